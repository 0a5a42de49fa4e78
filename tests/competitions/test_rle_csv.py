"""Submissions of run lengths: written, read, checked for every fault, and repaired where that is certain."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats import rle_check
from pipeline.competitions.formats.kaggle_rle import Order, from_rle
from pipeline.competitions.formats.rle_competition import LEAST_LEFT, RleCompetition, disjoint
from pipeline.competitions.formats.rle_csv import RleCsv, read_records, write_records
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections, Image, Instance

FORM = RleCsv("ImageId", "EncodedPixels", "columns", empty="1 1")
ROWS = RleCsv("id", "predicted", "rows", size=(30, 50), truth="annotation", category="kind")
NAMES = ["aa", "bb", "cc"]
SIZE = (30, 50)
IDS = Dataset([Image(k, f"images/test/{name}.png", *SIZE) for k, name in enumerate(NAMES, 1)], {1: "nucleus"})
UNSIZED = Dataset([Image(k, f"{name}.png", 0, 0) for k, name in enumerate(NAMES, 1)], {1: "nucleus"})


class Plain(RleCompetition):
    """A competition of either dialect."""

    name = "plain"
    categories = {1: "round", 2: "long"}
    least_area = 3

    def __init__(self, form: RleCsv) -> None:
        self.form = form


def disc(y: int, x: int, radius: int = 4, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def coco(frame: np.ndarray) -> dict[str, Any]:
    return crop_to_rle(frame, (0, 0, frame.shape[1], frame.shape[0]), frame.shape, threshold=1)


def text(frame: np.ndarray, order: Order = "columns") -> str:
    return from_rle(coco(frame), order)


GOOD = [
    ("aa", text(disc(10, 10))),
    ("aa", text(disc(10, 20))),
    ("aa", text(disc(20, 30))),
    ("bb", text(disc(9, 9))),
    ("bb", text(disc(20, 40))),
    ("cc", text(disc(15, 15))),
]


def submission(path: Path, rows: list[tuple[str, str]], header: str = "ImageId,EncodedPixels") -> Path:
    path.write_text("\n".join([header, *(f"{name},{mask}" for name, mask in rows)]) + "\n")
    return path


def problems(path: Path, form: RleCsv = FORM, ids: Dataset = IDS) -> list[tuple[str, str]]:
    return [(p.severity, p.kind) for p in rle_check.check(path, form, ids)]


def texts(path: Path, form: RleCsv = FORM, ids: Dataset = IDS) -> str:
    return "\n".join(map(str, rle_check.check(path, form, ids)))


# ---------------------------------------------------------------- checking --------------------------------------------


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    assert problems(submission(tmp_path / "s.csv", GOOD)) == []
    assert problems(submission(tmp_path / "d.csv", [*GOOD[:-1], ("cc", "1 1")])) == []
    with pytest.raises(CompetitionError, match="has nothing to repair"):
        rle_check.fix(tmp_path / "s.csv", FORM, IDS, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    path = submission(tmp_path / "s.csv", [("aa", "900000 5"), *GOOD[1:]])
    assert problems(path, ids=UNSIZED) == [("warning", "size")]
    assert "aa, bb, cc: how large the image is is not known" in texts(path, ids=UNSIZED)
    overlapping = submission(tmp_path / "o.csv", [*GOOD, ("cc", text(disc(15, 17)))])
    assert ("error", "overlap") in problems(overlapping, ids=UNSIZED)  # that needs no size


SWAPPED = [(name, text(disc(10, x), "rows")) for name, x in zip(NAMES * 2, (8, 18, 28, 28, 38, 18), strict=True)]

FAULTS: dict[str, tuple[list[tuple[str, str]], str, str, bool]] = {
    "unknown id": ([*GOOD, ("zz", "5 2")], "id", "the id is not among the images", False),
    "suffix": ([(f"{n}.png", t) for n, t in GOOD], "id", "not written as the competition writes it", True),
    "upper case": ([(n.upper(), t) for n, t in GOOD], "id", "not written as the competition writes it", True),
    "folder": ([(f"stage1_test/{n}/images/{n}.png", t) for n, t in GOOD], "id", "not written as", True),
    "missing id": (GOOD[:-1], "id", "cc: the image has no row; every id must be there", True),
    "odd number": ([*GOOD[:-1], ("cc", "1 2 3")], "mask", "3 numbers are no pairs", False),
    "words": ([*GOOD[:-1], ("cc", "nuclei")], "mask", "'nuclei' is not a whole number", False),
    "nan": ([*GOOD[:-1], ("cc", "nan")], "mask", "'nan' stands where there is no mask", True),
    "decimals": ([*GOOD[:-1], ("cc", "5.0 2.0 9.0 1.0")], "mask", "decimal points", True),
    "zero length": ([*GOOD[:-1], ("cc", "5 0 9 1")], "mask", "a run has length 0", True),
    "only zero length": ([*GOOD[:-1], ("cc", "5 0")], "mask", "a run has length 0", True),
    "from 0": ([*GOOD[:-1], ("cc", "0 2 9 1")], "mask", "a run starts at 0; positions count from 1", True),
    "past the end": ([*GOOD[:-1], ("cc", "1500 2")], "mask", "a run goes past the image's last pixel", False),
    "descending": ([*GOOD[:-1], ("cc", "9 1 5 2")], "mask", "the runs are not in ascending order", True),
    "runs overlap": ([*GOOD[:-1], ("cc", "5 4 7 4")], "mask", "runs of one mask overlap", True),
    "duplicate": ([*GOOD, GOOD[0]], "duplicate", "line 8 (as line 2): the same mask stands there more than once", True),
    "overlap": ([*GOOD, ("cc", text(disc(15, 17)))], "overlap", "cc (", False),
    "blank beside": ([*GOOD, ("cc", "")], "blank", "a blank row beside the image's masks", True),
    "blank twice": ([*GOOD[:-1], ("cc", ""), ("cc", "")], "blank", "a blank row more than once for an image", True),
    "wrong order": (SWAPPED, "order", "numbered row by row; this competition numbers them column by column", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_mended_where_that_is_certain(tmp_path: Path, fault: str) -> None:
    rows, kind, expected, certain = FAULTS[fault]
    path, target = submission(tmp_path / "s.csv", rows), tmp_path / "fixed.csv"
    found = rle_check.check(path, FORM, IDS)
    assert [(p.severity, p.kind) for p in found if p.severity == "error"] == [("error", kind)]
    assert expected in "\n".join(map(str, found))
    if not certain:
        with pytest.raises(CompetitionError, match="cannot be repaired with certainty"):
            rle_check.fix(path, FORM, IDS, target)
        assert not target.exists()
        return
    assert rle_check.fix(path, FORM, IDS, target)
    assert not [p for p in rle_check.check(target, FORM, IDS) if p.severity == "error"]


HEADERS = ["ImageID,EncodedPixels", "ImageId, EncodedPixels", "imageid,encodedpixels", "ImageId,EncodedPixel", None]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_are_nearly_right(tmp_path: Path, header: str | None) -> None:
    path = submission(tmp_path / "s.csv", GOOD, header or "")
    if header is None:
        path.write_text(path.read_text().lstrip("\n"))
    assert problems(path) == [("error", "header")]
    assert "ImageId,EncodedPixels" in texts(path)
    rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == submission(tmp_path / "good.csv", GOOD).read_bytes()


def test_a_table_with_an_index_loses_it(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("\n".join([",ImageId,EncodedPixels", *(f"{k},{n},{t}" for k, (n, t) in enumerate(GOOD))]))
    assert problems(path) == [("error", "header")]
    rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")
    assert problems(tmp_path / "t.csv") == []


@pytest.mark.parametrize("header", ["name,score", "EncodedPixels", "a,b,c"])
def test_headers_that_say_nothing(tmp_path: Path, header: str) -> None:
    path = submission(tmp_path / "s.csv", [("x", "y")], header)
    assert "has no column" in texts(path) and problems(path) == [("error", "header")]
    with pytest.raises(CompetitionError, match="cannot be repaired"):
        rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")


def test_odd_rows(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    body = [f"{n}, {t}" for n, t in GOOD[:-1]]  # "id, rle", as one public notebook writes it
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["ImageId,EncodedPixels", "", *body, "cc", ""]).encode())
    assert problems(path) == [
        ("error", "row"),
        ("warning", "file"),
        ("warning", "row"),
        ("warning", "row"),
        ("warning", "blank"),
    ]
    assert "line 2: a blank line" in texts(path)
    assert "spaces around a value" in texts(path) and "byte order mark" in texts(path)
    changes = rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")
    assert "spaces around values are gone (5 times)" in changes
    assert problems(tmp_path / "t.csv") == [("warning", "blank")]  # whether a blank is taken is not known for certain
    path.write_text("ImageId,EncodedPixels\n" + "\n".join(f"{n},{t}" for n, t in GOOD[:-1]) + "\ncc,1,2,3\n")
    assert "more values than the 2 columns" in texts(path)


def test_several_faults_at_once_and_what_stays(tmp_path: Path) -> None:
    rows = [(f"{n}.png", t) for n, t in GOOD[:-1]] + [("zz", "5 2")]
    path, target = submission(tmp_path / "s.csv", rows, "ImageId,Pixels"), tmp_path / "t.csv"
    changes = rle_check.fix(path, FORM, IDS, target)
    assert changes == [
        "the header is ImageId,EncodedPixels, and there are no other columns",
        "ids are written as the competition writes them (5 times)",
        "images without a row have one, '1 1'",
    ]
    assert problems(target) == [("error", "id")]  # zz is still nobody's
    assert target.read_text().endswith("zz,5 2\ncc,1 1\n")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(tmp_path: Path, separator: str) -> None:
    path, good = tmp_path / "s.csv", submission(tmp_path / "good.csv", GOOD)
    path.write_text(good.read_text().replace(",", separator))
    assert problems(path) == [("error", "header")] and "they must be by commas" in texts(path)
    rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == good.read_bytes()


def test_blank_lines_at_the_end(tmp_path: Path) -> None:
    path = submission(tmp_path / "s.csv", GOOD)
    path.write_text(path.read_text() + "\n,\n")
    assert texts(path) == "warning: line 8, line 9: a blank line, which may be taken for a row without an id"
    assert rle_check.fix(path, FORM, IDS, tmp_path / "t.csv") == ["blank lines are gone (2 times)"]


def test_large_files_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.competitions.formats.faults.LARGE_BYTES", 100)
    assert problems(submission(tmp_path / "s.csv", GOOD)) == [("warning", "file size")]
    assert problems(tmp_path / "none.csv") == [("error", "file")]


def test_the_mark_of_an_empty_image_beside_masks(tmp_path: Path) -> None:
    path = submission(tmp_path / "s.csv", [*GOOD, ("bb", "1 1")])
    assert problems(path) == [("warning", "blank")] and "line 8: '1 1', which stands for" in texts(path)
    rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")
    assert problems(tmp_path / "t.csv") == []
    rows = [(n, text(disc(10, x), "rows")) for n in NAMES for x in (8, 18)] + [("aa", "1 1")]
    assert problems(submission(tmp_path / "r.csv", rows, "id,predicted"), ROWS) == []  # which has no such mark


def test_pairs_of_start_and_end_are_told_and_not_joined(tmp_path: Path) -> None:
    def ends(mask: str) -> str:
        numbers = [int(v) for v in mask.split()]
        return " ".join(f"{a} {a + b - 1}" for a, b in zip(numbers[::2], numbers[1::2], strict=True))

    path = submission(tmp_path / "s.csv", [(n, ends(t)) for n, t in GOOD])
    assert problems(path) == [("error", "mask")] and "they must be start and length" in texts(path)
    with pytest.raises(CompetitionError, match="cannot be repaired with certainty"):
        rle_check.fix(path, FORM, IDS, tmp_path / "t.csv")


@pytest.mark.parametrize("order", ["columns", "rows"])
def test_positions_from_0_are_told_by_masks_at_the_edge(tmp_path: Path, order: Order) -> None:
    form = FORM if order == "columns" else ROWS
    places = (
        [(0, x) for x in (8, 20, 32)] + [(29, x) for x in (8, 20, 32)] + [(y, x) for y in (10, 20) for x in (0, 49)]
    )
    frames = [(n, disc(y, x)) for n in NAMES for y, x in places]
    rows = [(n, text(f, order)) for n, f in frames]
    header = f"{form.id},{form.rle}"
    assert problems(submission(tmp_path / "good.csv", rows, header), form) == []

    def moved(mask: str) -> str:
        return " ".join(str(int(v) - (k % 2 == 0)) for k, v in enumerate(mask.split()))

    # the first pixel of all would give itself away as 0
    path = submission(tmp_path / "s.csv", [(n, moved(t)) for n, t in rows], header)
    assert problems(path, form) == [("warning", "mask")] and "positions look counted from 0" in texts(path, form)
    rle_check.fix(path, form, IDS, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "good.csv").read_bytes()


def test_masks_of_resized_images(tmp_path: Path) -> None:
    rows = [(n, text(disc(y, x, 4, (64, 64)))) for n in NAMES for y, x in ((8, 6), (8, 18))]
    path = submission(tmp_path / "s.csv", rows)
    assert ("warning", "order") in problems(path) and "are they masks of resized images" in texts(path)


@pytest.mark.parametrize("order", ["columns", "rows"])
def test_square_images_do_not_speak_for_either_order(tmp_path: Path, order: Order) -> None:
    square = (44, 44)
    ids = Dataset([Image(1, "aa.png", *square), Image(2, "bb.png", *SIZE)], {1: "nucleus"})
    rows = [("aa", text(disc(y, x, 4, square), order)) for y in (8, 20, 32) for x in (8, 20, 32)]
    rows += [("bb", text(disc(10, x), order)) for x in (8, 18, 28, 38)] + [("bb", text(disc(22, 12), order))]
    path = submission(tmp_path / "s.csv", rows)
    assert problems(path, ids=ids) == ([] if order == "columns" else [("error", "order")])
    if order == "rows":
        assert problems(path, RleCsv("ImageId", "EncodedPixels", "rows"), ids) == []
        rle_check.fix(path, FORM, ids, tmp_path / "t.csv")
        right = [("aa", text(disc(8, 8, 4, square))), ("bb", text(disc(22, 12)))]
        assert {f"{name},{mask}" for name, mask in right} <= set((tmp_path / "t.csv").read_text().splitlines())


def test_a_file_of_nothing(tmp_path: Path) -> None:
    path = submission(tmp_path / "s.csv", [(n, "1 1") for n in NAMES])
    assert texts(path) == "warning: the file: the file holds no mask at all"
    path = submission(tmp_path / "b.csv", [(n, "") for n in NAMES])
    assert set(problems(path)) == {("warning", "mask"), ("warning", "blank")}
    path = submission(tmp_path / "r.csv", [(n, "") for n in NAMES], "id,predicted")
    assert problems(path, ROWS) == [("warning", "mask")]  # there a blank is what the sample has


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"PK\x03\x04rest", "not a whole zip archive"),
        (b"PAR1....", "is a Parquet file"),
        (b"ImageId,EncodedPixels\na\x00b,1 1\n", "id is not among the images|not a CSV"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, expected: str) -> None:
    import re

    path = tmp_path / "s.csv"
    path.write_bytes(content)
    assert re.search(expected, texts(path)) and problems(path)[0][0] == "error"
    assert "there is no file" in texts(tmp_path / "none.csv")


def test_a_zip_with_the_csv_counts(tmp_path: Path) -> None:
    path = submission(tmp_path / "s.csv", GOOD)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(path, "s.csv")
        archive.writestr("__MACOSX/._s.csv", "x")
    assert problems(tmp_path / "s.zip") == [("warning", "file")]
    assert read_records(tmp_path / "s.zip", FORM, IDS, 1) == read_records(path, FORM, IDS, 1)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text(alphabet='aIbmgeEcodPix,;"\n\r 0123456789.-', max_size=120)))
def test_any_bytes_are_checked_read_and_fixed_or_refused_clearly(tmp_path: Path, content: bytes | str) -> None:
    path, target = tmp_path / "s.csv", tmp_path / "t.csv"
    raw = content if isinstance(content, bytes) else b"ImageId,EncodedPixels\naa," + content.encode()
    path.write_bytes(raw)
    target.unlink(missing_ok=True)
    rle_check.check(path, FORM, IDS)
    for call in (lambda: read_records(path, FORM, IDS, 1), lambda: rle_check.fix(path, FORM, IDS, target)):
        try:
            call()
        except CompetitionError:
            continue
    if target.exists():
        rle_check.check(target, FORM, IDS)
    assert {p.name for p in tmp_path.iterdir()} <= {"s.csv", "t.csv"}


# ---------------------------------------------------------------- reading and writing ---------------------------------


def found(frames: list[tuple[int, float, np.ndarray]], category: int = 1) -> Detections:
    boxes = [(0, 0, frame.shape[1], frame.shape[0]) for _, _, frame in frames]
    return Detections.build(
        [i for i, _, _ in frames],
        category,
        [s for _, s, _ in frames],
        boxes,
        boxes,
        [frame * np.uint8(255) for _, _, frame in frames],
    )


@pytest.mark.parametrize("form", [FORM, ROWS])
def test_what_is_written_is_valid_and_read_back(tmp_path: Path, form: RleCsv) -> None:
    competition = Plain(form)
    masks = [(1, 0.9, disc(10, 10)), (1, 0.8, disc(10, 17)), (3, 0.7, disc(20, 30))]
    path = tmp_path / "s.csv"
    competition.write(found(masks), IDS, path)
    assert problems(path, form) == []
    with open(path, newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == [form.id, form.rle]
    assert [name for name, _ in rows[1:]] == ["aa", "aa", "bb", "cc"] and rows[3][1] == form.empty
    again = competition.read_submission(path, IDS)
    assert [r["score"] for r in again] == [1.0] * len(again) and {r["category_id"] for r in again} == {1}
    pixels = {(r["image_id"], r["segmentation"]["counts"]) for r in again}
    expected = {(r["image_id"], r["segmentation"]["counts"]) for r in competition.records(found(masks), IDS)}
    assert pixels - {(2, coco(_first())["counts"])} == expected
    first = path.read_bytes()
    competition.write(found(masks[::-1]), IDS, path)
    assert path.read_bytes() == first


def _first() -> np.ndarray:
    frame = np.zeros(SIZE, np.uint8)
    frame[0, 0] = 1
    return frame


def test_better_scored_masks_keep_shared_pixels_and_remnants_go(tmp_path: Path) -> None:
    whole, half = disc(15, 15, 6), np.zeros(SIZE, np.uint8)
    half[9:22, 17:25] = 1
    inside, far = disc(15, 15, 3), disc(15, 40, 5)
    table = found([(1, 0.9, whole), (1, 0.8, half), (1, 0.7, inside), (1, 0.95, far)])
    records = disjoint(table, IDS, 3)
    assert [r["score"] for r in records] == [0.95, 0.9, 0.8]  # what was inside another is gone
    painted = np.zeros(SIZE, int)
    for record in records:
        (x0, y0, x1, y1), mask = rle_to_crop(record["segmentation"])
        painted[y0:y1, x0:x1] += mask
        assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    np.testing.assert_array_equal(painted, ((far + whole + half) > 0).astype(int))
    assert rle_to_crop(records[1]["segmentation"])[1].sum() == whole.sum()
    assert disjoint(found([(1, 0.9, disc(15, 15, 0))]), IDS, 3) == []
    assert disjoint(Detections.empty(), IDS, 3) == []
    with pytest.raises(CompetitionError, match=r"not to be submitted: \[9\]"):
        disjoint(found([(9, 0.9, whole)]), IDS, 3)


def test_what_a_dropped_mask_would_have_taken_goes_to_the_next() -> None:
    top, remnant, next_one = (np.zeros(SIZE, np.uint8) for _ in range(3))
    top[0:10, 0:10] = 1
    remnant[0:10, 4:14] = 1  # 40 of 100 pixels are left: dropped
    next_one[0:10, 10:20] = 1
    records = disjoint(found([(1, 0.9, top), (1, 0.8, remnant), (1, 0.7, next_one)]), IDS, 1)
    assert [r["score"] for r in records] == [0.9, 0.7]
    assert rle_to_crop(records[1]["segmentation"])[1].sum() == 100
    assert LEAST_LEFT == 0.5


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_records_do_not_depend_on_worse_scored_detections(seed: int, level: float) -> None:
    """So a least score can be applied before or after."""
    rng = np.random.default_rng(seed)
    masks = [
        (int(rng.integers(1, 4)), float(rng.random()), disc(*(int(v) for v in rng.integers(5, 28, 2)), int(rng.integers(2, 7))))
        for _ in range(14)
    ]  # fmt: skip
    table = found(masks)
    after = [r for r in disjoint(table, IDS, 3) if r["score"] >= level]
    assert disjoint(table.take(table.score >= level), IDS, 3) == after
    order = rng.permutation(len(table))
    assert disjoint(table.take(order), IDS, 3) == disjoint(table, IDS, 3)


def test_large_masks_share_no_pixel_either(tmp_path: Path) -> None:
    """Beyond 128 pixels a side a soft mask is sampled down, so only the decoded one can be cut exactly."""
    size = (300, 400)
    ids = Dataset([Image(1, "aa.png", *size)], {1: "nucleus"})
    table = found([(1, 0.9, disc(140, 150, 120, size)), (1, 0.8, disc(150, 260, 130, size))])
    Plain(FORM).write(table, ids, tmp_path / "s.csv")
    assert problems(tmp_path / "s.csv", FORM, ids) == []
    assert len(read_records(tmp_path / "s.csv", FORM, ids, 1)) == 2


def test_reading_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    competition = Plain(FORM)
    path = submission(tmp_path / "s.csv", GOOD)
    with pytest.raises(CompetitionError, match=r"does not say how large its images are.*--ids"):
        competition.read_submission(path)
    with pytest.raises(CompetitionError, match="nothing says how large aa is"):
        competition.read_submission(path, UNSIZED)
    with pytest.raises(CompetitionError, match="none of its ids is among the images, e.g. 'aa'"):
        competition.read_submission(path, Dataset([Image(1, "zz.png", 9, 9)], {1: "x"}))
    with pytest.raises(CompetitionError, match="line 2: a run ends at pixel 1501.*validate"):
        competition.read_submission(submission(tmp_path / "e.csv", [("aa", "1500 2")]), IDS)
    with pytest.raises(CompetitionError, match="has no column encodedpixels; it has imageid, rle"):
        competition.read_submission(submission(tmp_path / "h.csv", GOOD, "ImageId,rle"), IDS)
    with pytest.raises(CompetitionError, match="there is no file"):
        competition.read_submission(tmp_path / "none.csv", IDS)
    part = Dataset(IDS.images[1:], {1: "nucleus"})
    assert len(competition.read_submission(path, part)) == 3
    assert "1 ids are not among the images and are left out" in caplog.text
    assert len(competition.read_submission(submission(tmp_path / "p.csv", GOOD[:3]), IDS)) == 3
    assert "2 of 3 images have no row" in caplog.text


def test_detections_are_read_as_they_would_be_submitted(tmp_path: Path) -> None:
    table = found([(1, 0.9, disc(10, 10)), (1, 0.8, disc(10, 12)), (2, 0.3, disc(20, 20))])
    table.write(tmp_path / "d.parquet")
    records = Plain(FORM).read_submission(tmp_path / "d.parquet", IDS)
    assert records == disjoint(table, IDS, 3) and len(records) < 3
    with pytest.raises(CompetitionError, match=r"d\.parquet: there are detections on images"):
        Plain(FORM).read_submission(tmp_path / "d.parquet", Dataset(IDS.images[:1], {1: "x"}))


def test_a_record_on_another_image_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="not to be submitted: 9"):
        write_records([{"image_id": 9, "segmentation": coco(disc(9, 9))}], IDS, tmp_path / "s.csv", FORM)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the organisers' files -------------------------------


def solution(path: Path) -> Path:
    text_ = io.StringIO()
    writer = csv.writer(text_)
    writer.writerow(["ImageId", "EncodedPixels", "Height", "Width", "Usage"])
    for name, mask in GOOD:
        writer.writerow([name, mask, *SIZE, "Ignored" if name == "bb" else "Private"])
    writer.writerow(["dd", "", 9, 9, "Private"])
    path.write_text(text_.getvalue())
    return path


def test_the_truth_of_a_solution(tmp_path: Path) -> None:
    competition = Plain(FORM)
    truth = competition.read_truth(solution(tmp_path / "solution.csv"))
    assert [(i.id, i.file_name, i.height) for i in truth.images] == [
        (1, "aa.png", 30),
        (2, "cc.png", 30),
        (3, "dd.png", 9),
    ]
    assert [len(truth.by_image[k]) for k in (1, 2, 3)] == [3, 1, 0]
    assert truth.instances[0].rle == coco(disc(10, 10)) and truth.instances[0].box == (6.0, 6.0, 9.0, 9.0)
    ids = competition.read_ids(tmp_path / "solution.csv")
    assert [i.file_name for i in ids.images] == ["aa.png", "bb.png", "cc.png", "dd.png"]  # ignored ones are submitted
    path = submission(tmp_path / "s.csv", [*GOOD, ("dd", "")])
    result = competition.score(truth, competition.read_submission(path, truth))
    assert result["score"] == 1.0 and result["competition"] == "plain" and result["images"] == 3


def test_truth_and_ids_from_coco_jsons(tmp_path: Path) -> None:
    data = Dataset(IDS.images, {1: "round", 2: "long"}, [Instance(1, 1, 2, coco(disc(9, 9)), (0, 0, 1, 1), 9.0)])
    data.write(tmp_path / "truth.json")
    competition = Plain(FORM)
    assert competition.read_truth(tmp_path / "truth.json").instances == data.instances
    assert competition.read_ids(tmp_path / "truth.json").images == IDS.images
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(CompetitionError, match="not a COCO annotation file"):
        competition.read_truth(tmp_path / "bad.json")


def test_ids_of_a_sample_submission(tmp_path: Path) -> None:
    path = submission(tmp_path / "sample.csv", [(n, "1 1") for n in ("bb", "aa")])
    assert [(i.id, i.file_name, i.height) for i in Plain(FORM).read_ids(path).images] == [
        (1, "aa.png", 0),
        (2, "bb.png", 0),
    ]
    path = submission(tmp_path / "rows.csv", [("bb", "")], "id,predicted")
    assert Plain(ROWS).read_ids(path).images == [Image(1, "bb.png", 30, 50)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("ImageId,EncodedPixels\naa,1 1\n", "no columns Height and Width.*train.json"),
        ("ImageId,Height,Width\naa,9,9\n", "no column encodedpixels"),
        ("ImageId,EncodedPixels,Height,Width\naa,1 1,nine,9\n", "line 2: the height 'nine'"),
        ("ImageId,EncodedPixels,Height,Width\naa,1 1,9,9\naa,1 1,9,8\n", "line 3: aa has another size"),
        ("ImageId,EncodedPixels,Height,Width\naa,82 1,9,9\n", "line 2: a run ends at pixel 82"),
        ("ImageId,EncodedPixels,Height,Width,Usage\naa,1 1,9,9,Ignored\n", "names no images that are scored"),
        ("", "no column imageid"),
    ],
)
def test_truths_that_are_none(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(CompetitionError, match=expected):
        Plain(FORM).read_truth(path)


def test_the_truth_with_classes(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rows = [("aa", text(disc(9, 9), "rows"), "long"), ("bb", text(disc(9, 30), "rows"), "round")]
    path.write_text("id,annotation,kind\n" + "\n".join(",".join(row) for row in rows))
    truth = Plain(ROWS).read_truth(path)
    assert [a.category_id for a in truth.instances] == [2, 1] and truth.instances[1].rle == coco(disc(9, 30))
    path.write_text("id,annotation,kind\naa,1 1,square\n")
    with pytest.raises(CompetitionError, match="line 2: the kind 'square' is not one of round, long"):
        Plain(ROWS).read_truth(path)
