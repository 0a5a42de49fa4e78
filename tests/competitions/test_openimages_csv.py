"""Submissions with packed masks: round trips, every fault in plain words, and what can be mended."""

import base64
import csv
import re
import string
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats import rle_csv
from pipeline.competitions.formats.openimages_csv import check, decode_mask, encode_mask, fix, load, read, write
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Image

TOY = {"size": [4, 5], "counts": "523OO22"}
TOY_TEXT = "eNozNTL29zcyAgAGZAGd"
EMPTY = encode_mask(crop_to_rle(np.zeros((4, 5), np.uint8), (0, 0, 5, 4), (4, 5)))
IDS = Dataset([Image(1, "images/test/abc.tif", 4, 5), Image(2, "images/test/def.tif", 30, 20)], {1: "blood_vessel"})
HEADER = "id,height,width,prediction_string\n"
GOOD = f"{HEADER}abc,4,5,0 0.9 {TOY_TEXT}\ndef,30,20,\n"


def square(size: tuple[int, int] = (30, 20), side: int = 4, at: int = 3) -> str:
    return encode_mask(crop_to_rle(np.ones((side, side), np.uint8), (at, at, at + side, at + side), size, threshold=1))


def file(tmp_path: Path, text: str | bytes, name: str = "submission.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def found(tmp_path: Path, text: str | bytes) -> list[Problem]:
    return check(file(tmp_path, text), IDS, "0")


# ---------------------------------------------------------------- masks -----------------------------------------------


def test_the_specification_s_example() -> None:
    assert encode_mask(TOY) == TOY_TEXT
    assert decode_mask(TOY_TEXT, (4, 5)) == TOY
    assert encode_mask({**TOY, "counts": b"523OO22"}) == TOY_TEXT


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 999), density=st.floats(0, 1))
def test_masks_survive_the_round_trip(height: int, width: int, seed: int, density: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    rle = crop_to_rle(mask, (0, 0, width, height), (height, width), threshold=1)
    text = encode_mask(rle)
    assert set(text) <= set(string.ascii_letters + string.digits + "+/=")
    assert decode_mask(text, (height, width)) == rle


def test_what_is_no_mask() -> None:
    for text, expected in [
        ("b'eNoz'", "not base64"),
        ("abc", "not base64"),
        ("é", "not base64"),
        (base64.b64encode(b"523OO22").decode(), "not packed with zlib"),
        (base64.b64encode(zlib.compress(b"523OO22", 9)[:-3]).decode(), "cut off"),
        (base64.b64encode(zlib.compress(b"\xff\xfe")).decode(), "run lengths"),
        (base64.b64encode(zlib.compress(b"0" * 10_000_000)).decode(), "far too much"),
    ]:
        with pytest.raises(ValueError, match=expected):
            decode_mask(text, (4, 5))
    with pytest.raises(ValueError, match="cover 20 pixels, its size"):
        decode_mask(TOY_TEXT, (5, 5))


@settings(max_examples=200, deadline=None)
@given(counts=st.binary(max_size=40))
def test_any_packed_bytes_are_a_mask_or_a_clear_error(counts: bytes) -> None:
    text = base64.b64encode(zlib.compress(counts)).decode()
    try:
        rle = decode_mask(text, (30, 20))
    except ValueError:
        return
    assert rle_to_crop(rle)[1].shape <= (30, 20)


# ---------------------------------------------------------------- there and back --------------------------------------


def records() -> list[dict[str, Any]]:
    rles = [square(side=4), square(side=2)]
    return [
        {"image_id": 2, "category_id": 1, "score": score, "segmentation": decode_mask(mask, (30, 20))}
        for mask, score in zip(rles, (1 / 3, 0.25), strict=True)
    ]


def test_records_are_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write(records(), IDS, path, "0")
    first = path.read_bytes()
    lines = first.decode().splitlines()
    assert lines[0] == HEADER.strip() and lines[1] == "abc,4,5,"  # nothing found: blank
    words = lines[2].removeprefix("def,30,20,").split()
    assert words == ["0", repr(1 / 3), square(side=4), "0", "0.25", square(side=2)]
    again = read(path, 1, IDS)
    assert [(r["image_id"], r["score"], r["category_id"]) for r in again] == [(2, 1 / 3, 1), (2, 0.25, 1)]
    assert again[0]["bbox"] == [3.0, 3.0, 4.0, 4.0] and again[0]["segmentation"] == records()[0]["segmentation"]
    assert check(path, IDS, "0") == []
    write(again, IDS, path, "0")
    assert path.read_bytes() == first
    with pytest.raises(CompetitionError, match="not to be submitted: 7"):
        write([{**again[0], "image_id": 7}], IDS, path, "0")


def test_read_without_images_numbers_them_by_name(tmp_path: Path) -> None:
    path = file(tmp_path, f"{HEADER}z,4,5,0 0.5 {TOY_TEXT}\na,4,5,0 0.25 {TOY_TEXT}\n")
    records = read(path, 1)
    assert [(r["image_id"], r["score"], r["segmentation"]) for r in records] == [(2, 0.5, TOY), (1, 0.25, TOY)]


def test_long_strings_and_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    many = " ".join([f"0 0.5 {square()}"] * 20_000)
    limit = csv.field_size_limit()
    assert len(many) > limit
    path = file(
        tmp_path, b"\xef\xbb\xbf" + f'"id","height","width","prediction_string"\r\n"def",30,20,"{many}"\r\n'.encode()
    )
    assert len(read(path, 1, IDS)) == 20_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; its first line must be id,height,width,prediction_string"),
        ("a,b\n1,2\n", "has no column id and prediction_string.*is a,b"),
        (f"{HEADER}ab,4,5,\n", "line 2: there is no image ab .is it abc"),
        (f"{HEADER}abc,4,5,0 0.9\n", "line 2 .abc.: the prediction string has 2 parts"),
        (f"{HEADER}abc,4,5,0 nan {TOY_TEXT}\n", "confidence 'nan' is not a finite number"),
        (f"{HEADER}abc,5,4,0 0.5 {TOY_TEXT}\n", "the row says 5 high and 4 wide, the image is 4 and 5"),
        (f"{HEADER}abc,x,5,0 0.5 {TOY_TEXT}\n", "height and width are 'x' and '5'"),
        (f"{HEADER}abc,4,5,0 0.5 AAAA\n", "not packed with zlib.*validate"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str | bytes, expected: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(CompetitionError, match=f"submission.csv.*{expected}"):
        read(path, 1, IDS)


def test_absent_and_absurd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompetitionError, match="there is no file .*none.csv"):
        load(tmp_path / "none.csv")
    with pytest.raises(CompetitionError, match="cannot be read"):
        load(tmp_path)
    path = file(tmp_path, f"{HEADER}abc,999999999,999999999,0 0.5 {TOY_TEXT}\n")
    with pytest.raises(CompetitionError, match="no image is 999999999 high"):
        read(path, 1)
    monkeypatch.setattr(rle_csv, "MAX_BYTES", 10)
    with pytest.raises(CompetitionError, match="too large for a CSV"):
        load(path)


CELL = st.one_of(
    st.sampled_from(
        ["id", "abc", "def", "height", "4", "5", "-1", TOY_TEXT, f"0 0.9 {TOY_TEXT}", "0 nan AAAA", '"', "'"]
    ),
    st.text(max_size=8),
)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(CELL, max_size=5), max_size=5), head=st.booleans(), raw=st.binary(max_size=60))
def test_no_input_crashes_reading_checking_or_fixing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], head: bool, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    text = (HEADER if head else "") + "\n".join(",".join(row) for row in rows)
    for content in (raw, HEADER.encode() + raw, text.encode("utf-8", "surrogatepass")):
        path = file(folder, content)
        problems = check(path, IDS, "0")
        valid = not any(problem.severity == "error" for problem in problems)
        try:
            records: list[dict[str, Any]] | None = read(path, 1, IDS)
        except CompetitionError:
            records = None
        assert records is not None or not valid  # what is valid can be read
        target = folder / "fixed.csv"
        try:
            assert fix(path, IDS, target, "0")
            check(target, IDS, "0")
        except CompetitionError:
            pass
        assert {p.name for p in folder.iterdir()} <= {"submission.csv", "fixed.csv"}


# ---------------------------------------------------------------- checking --------------------------------------------


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    assert found(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("text", "severity", "kind", "expected"),
    [
        ("\n", "error", "file", "is empty"),
        ("\ufeff" + GOOD, "warning", "file", "byte order mark"),
        (GOOD.replace("ion_string", "ions,x", 1).replace("id,", "name,", 1), "error", "file", "no column id: its first"),
        (GOOD.replace("30,20,", "30,20,nan"), "error", "blank", "line 3 .def.: 'nan' stands where nothing was found"),
        (GOOD.replace("prediction_string", "PredictionString"), "error", "column", "'PredictionString' should be"),
        (f"id,width,prediction_string\nabc,5,0 0.9 {TOY_TEXT}\ndef,20,\n", "error", "column", "'height' is missing"),
        (
            f",id,height,width,prediction_string\n0,abc,4,5,0 0.9 {TOY_TEXT}\n1,def,30,20,\n",
            "error", "column", "the column '' should not be there",
        ),
        (GOOD.replace("def,30,20,\n", ""), "error", "id", "def: has no row"),
        (GOOD + "ghi,4,5,\n", "error", "id", "line 4 .ghi.: there is no test image"),
        (GOOD + "def,30,20,\n", "error", "id", "line 3 .def., line 4 .def.: the id stands there more than once"),
        (GOOD.replace("def,30,20", "def,20,30"), "error", "size", "not the image's; they are exchanged"),
        (GOOD.replace("abc,4,5", "abc,512,512"), "error", "size", "not the image's"),
        (GOOD.replace("0 0.9", "0.9"), "error", "structure", "2 parts, which are no triples"),
        (GOOD.replace("0 0.9", "1 0.9"), "error", "label", "the label is not 0; labels count from 0"),
        (GOOD.replace("0 0.9", "vessel 0.9"), "error", "label", "vessel.: the label is not 0"),
        (GOOD.replace("0 0.9", "0 90"), "error", "score", "90.0.: the confidence is outside 0..1"),
        (GOOD.replace("0 0.9", "0 nan"), "error", "score", "not a finite number"),
        (GOOD.replace("0 0.9", "0 high"), "error", "score", "not a finite number"),
        (GOOD.replace(TOY_TEXT, f"b'{TOY_TEXT}'"), "error", "mask", "not base64; it was written as Python shows bytes"),
        (GOOD.replace(TOY_TEXT, "523OO22"), "error", "mask", "not base64"),
        (GOOD.replace(TOY_TEXT, "NTIz"), "error", "mask", "not packed with zlib"),
        (GOOD.replace(TOY_TEXT, square()), "error", "mask", "not of the image's size; bring masks back"),
        (GOOD.replace(TOY_TEXT, EMPTY), "error", "mask", "the mask is empty"),
        (GOOD.replace(TOY_TEXT, f"{TOY_TEXT} 0 0.8 {TOY_TEXT}"), "warning", "duplicate", "abc: the same mask more than once"),
        (GOOD.replace(f"0 0.9 {TOY_TEXT}", ""), "warning", "count", "holds no detection at all"),
        (
            f"{HEADER}abc,4,5,\ndef,30,20," + " ".join(f"0 1.0 {square(side=k % 9 + 1, at=k // 9)}" for k in range(20)) + "\n",
            "warning", "score", "more than half of the scores are the same",
        ),
    ],
)  # fmt: skip
def test_every_fault_is_found(tmp_path: Path, text: str, severity: str, kind: str, expected: str) -> None:
    (problem,) = found(tmp_path, text)
    assert (problem.severity, problem.kind) == (severity, kind)
    assert re.search(expected, str(problem)), str(problem)


def test_large_files_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.competitions.formats.faults.LARGE_BYTES", 10)
    assert [(p.severity, p.kind) for p in found(tmp_path, GOOD)] == [("warning", "file size")]


def test_a_fault_of_many_rows_is_one_problem(tmp_path: Path) -> None:
    bad = " ".join([f"0 0.5 b'{TOY_TEXT}'"] * 9)
    (problem,) = [p for p in found(tmp_path, f"{HEADER}abc,4,5,{bad}\ndef,30,20,\n") if p.kind == "mask"]
    assert problem.place.endswith("and 6 more")


# ---------------------------------------------------------------- repairing -------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("prediction_string", "PredictionString"), "'PredictionString' renamed 'prediction_string'"),
        (f"Id,prediction_string\nabc,0 0.9 {TOY_TEXT}\ndef,\n", "column 'height' added"),
        (f",id,height,width,prediction_string\n0,abc,4,5,0 0.9 {TOY_TEXT}\n1,def,30,20,\n", "column '' removed"),
        (f"prediction_string,id,width,height,n\n0 0.9 {TOY_TEXT},abc,5,4,1\n,def,20,30,1\n", "column 'n' removed"),
        (GOOD.replace("def,30,20,\n", ""), "1 images added that had no row"),
        (GOOD + "ghi,4,5,\n", "1 rows removed that speak of no test image"),
        (GOOD.replace("abc,", "test/abc.tif,"), "1 ids stripped"),
        (GOOD + "def,30,20,\n", "1 images' rows joined to one"),
        (GOOD.replace("0 0.9", "1 0.9"), "1 labels 1 made 0"),
        (GOOD.replace("0 0.9", "0.9"), "1 masks given the label 0"),
        (GOOD.replace("30,20,", "30,20,NaN"), "1 words for nothing made blank"),
        (GOOD.replace(TOY_TEXT, f"{TOY_TEXT} 0 nan {TOY_TEXT}"), "1 masks removed whose confidence is not finite"),
        (GOOD.replace(TOY_TEXT, f"b'{TOY_TEXT}'"), "1 masks written as Python shows bytes"),
        (GOOD.replace(TOY_TEXT, f"{TOY_TEXT} 0 0.8 {EMPTY}"), "1 empty masks removed"),
        (GOOD.replace("abc,4,5", "abc,512,512"), "1 heights and widths made the images'"),
        (
            GOOD.replace("def,30,20", "def,20,30"),
            "1 heights and widths made the images'",
        ),  # no mask could lie on its side
    ],
)
def test_what_is_certain_is_mended(tmp_path: Path, text: str, said: str) -> None:
    path, target = file(tmp_path, text), tmp_path / "fixed.csv"
    assert any(p.severity == "error" for p in check(path, IDS, "0"))
    changes = fix(path, IDS, target, "0")
    assert said in "; ".join(changes)
    assert target.read_text() == GOOD
    assert path.read_bytes() == text.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, "nothing that can be repaired with certainty"),
        (GOOD.replace("0 0.9", "0 high"), "nothing that can be repaired"),
        (
            GOOD.replace("0 0.9", "vein 0.9").replace("def,30,20,", f"def,30,20,artery 0.5 {square()}"),
            "nothing that can",
        ),
        (GOOD.replace("abc,4,5", "abc,5,4"), "nothing that can be repaired"),  # the mask may lie on its side
        (GOOD.replace(TOY_TEXT, square()), "nothing that can be repaired"),
        (GOOD.replace(TOY_TEXT, "AAAA"), "nothing that can be repaired"),
        (f"{HEADER}x,4,5,\n", "speaks of none of the 2 test images"),
        ("a,b\n", "has no column"),
    ],
)
def test_what_is_uncertain_is_left_alone(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        fix(file(tmp_path, text), IDS, tmp_path / "fixed.csv", "0")
    assert not (tmp_path / "fixed.csv").exists()


def test_confidences_are_scaled_in_their_order(tmp_path: Path) -> None:
    words = " ".join(f"0 {score} {square(side=side)}" for side, score in ((3, 90), (4, -5), (5, 42.5)))
    changes = fix(file(tmp_path, GOOD.replace("30,20,", f"30,20,{words}")), IDS, tmp_path / "fixed.csv", "0")
    assert changes == ["4 confidences scaled to 0..1, in the same order"]
    scores = [r["score"] for r in read(tmp_path / "fixed.csv", 1, IDS)]
    assert scores == pytest.approx([5.9 / 95, 1, 0, 0.5]) and check(tmp_path / "fixed.csv", IDS, "0") == []


def test_a_zip_and_a_byte_order_mark_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("sub/submission.csv", "\ufeff" + GOOD)
    told = [str(p) for p in check(tmp_path / "s.zip", IDS, "0")]
    assert len(told) == 2 and "sub/submission.csv in it is what counts" in told[0] and "byte order mark" in told[1]
    assert fix(tmp_path / "s.zip", IDS, tmp_path / "fixed.csv", "0") == ["the byte order mark is gone"]
    assert (tmp_path / "fixed.csv").read_text() == GOOD


def test_what_cannot_be_mended_stays_beside_what_is(tmp_path: Path) -> None:
    text = GOOD.replace(TOY_TEXT, f"b'{TOY_TEXT}' 0 0.5 AAAA")
    fix(file(tmp_path, text), IDS, tmp_path / "fixed.csv", "0")
    (problem,) = check(tmp_path / "fixed.csv", IDS, "0")
    assert problem.kind == "mask" and "mask 2" in problem.place
