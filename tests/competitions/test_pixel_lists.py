"""SegPC's text of pixels: read as the organisers' scorer reads it, checked, repaired, and any bytes survived."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats import pixel_lists, pixel_lists_check
from pipeline.competitions.formats.pixel_lists import CYTOPLASM, NUCLEUS, Cell, Line, LinesError, read_lines, split
from pipeline.metrics.segpc import FRAME, nearest
from pipeline.records import Image

MEMBER = "submission.txt"
IMAGES = {"101": Image(101, "101.bmp", 1920, 2560), "2001": Image(2001, "2001.bmp", 1536, 2040)}


def lines_of(text: str | bytes) -> list[Line]:
    return list(read_lines(io.BytesIO(text.encode() if isinstance(text, str) else text)))


def pixels(cell: Cell, bit: int | None = None) -> set[tuple[int, int]]:
    chosen = cell.bits > 0 if bit is None else cell.bits & bit > 0
    return {(int(y + cell.box[1]), int(x + cell.box[0])) for y, x in zip(*np.nonzero(chosen), strict=True)}


def scorers_reading(text: str) -> dict[str, list[set[tuple[int, int]]] | None]:
    """What the organisers' scorer takes from a text: the pixels of each cell by image, None for an image it stops at.

    Its rules written out: split at tabs, spaces, semicolons, commas; then two names for the items of each entry, and
    int() with errors passed over; a negative index counts from the end.
    """
    found: dict[str, list[set[tuple[int, int]]] | None] = {}
    for raw in io.StringIO(text, newline=None).read().split("\n"):
        name, *cells = raw.split("\t")
        try:
            taken = []
            for cell in cells:
                lists = [[entry.split(",") for entry in part.split(";")] for part in cell.split(" ")]
                own = set()
                for part in (lists[0], lists[1]):
                    for row, column in part:
                        try:
                            r, c = int(row), int(column)
                        except ValueError:
                            continue
                        if -FRAME[0] <= r < FRAME[0] and -FRAME[1] <= c < FRAME[1]:
                            own.add((r % FRAME[0], c % FRAME[1]))
                taken.append(own)
            found[name] = taken
        except (ValueError, IndexError):
            found[name] = None
    return found


def our_reading(text: str) -> dict[str, list[set[tuple[int, int]]] | None]:
    return {
        line.name: None if any(cell.fault for cell in line.cells) else [pixels(cell) for cell in line.cells]
        for line in lines_of(text)
    }


# ---------------------------------------------------------------- reading ---------------------------------------------


def test_the_formats_example() -> None:
    (line,) = lines_of("101\t10,20;10,21 9,20;9,21")
    (cell,) = line.cells
    assert (line.number, line.name) == (1, "101") and cell.counts == (2, 2) and not cell.fault
    assert pixels(cell, NUCLEUS) == {(10, 20), (10, 21)} and pixels(cell, CYTOPLASM) == {(9, 20), (9, 21)}
    assert cell.box.tolist() == [20, 9, 22, 11] and cell.reach.tolist() == [9, 20, 10, 21]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_end_as_in_text_files(newline: str) -> None:
    found = lines_of(newline.join(["1\t1,1 2,2", "", "2", "3\t4,4 5,5\t6,6 7,7", ""]))
    assert [(line.number, line.name, len(line.cells)) for line in found] == [(1, "1", 1), (3, "2", 0), (4, "3", 2)]


@pytest.mark.parametrize(
    ("cell", "fault", "certain"),
    [
        ("1,1 2,2", "", True),
        ("1,1 2,2 ", "", True),
        ("1,1 2,2 3,3", "", False),
        ("1,1;1,1 1,1", "", True),
        (" 2,2", "no pixel of the nucleus", True),
        ("2,2 ", "no pixel of the cytoplasm", True),
        ("2,2", "one list of pixels", True),
        ("", "is empty", True),
        (" ", "no pixel of the nucleus", True),
        ("1,1  2,2", "spaces too many", True),
        (" 1,1 2,2", "spaces too many", True),
        ("1,1; 2,2", "a stray ;", True),
        ("1,1;;1,2 2,2", "a stray ;", True),
        ("1,1,3 2,2", "'1,1,3', which is not row,col", False),
        ("1 2,2", "'1', which is not row,col", False),
        ("1,x 2,2", "", False),
        ("1,-1 2,2", "", False),
        ("1,+1 2,2", "", True),
    ],
)
def test_what_the_scorer_stops_at(cell: str, fault: str, certain: bool) -> None:
    (line,) = lines_of(f"101\t{cell}")
    assert fault in line.cells[0].fault and bool(fault) == bool(line.cells[0].fault)
    assert line.cells[0].certain == certain
    assert (scorers_reading(f"101\t{cell}")["101"] is None) == bool(fault)


def test_numbers_the_scorer_reads_in_its_own_way() -> None:
    (line,) = lines_of("101\t+1,2;-1,-1440;-1081,0;1080,5;99999999999999999999,1;1_0,7;x,1 ٣,3")
    assert pixels(line.cells[0]) == {(1, 2), (1079, 0), (10, 7), (3, 3)}
    assert line.cells[0].odd == 3 and line.cells[0].outside


ALPHABET = st.text(st.sampled_from("0123456789,,,;;; \t\t\n\r-+x_"), max_size=60)
ENTRY = st.builds(lambda r, c: f"{r},{c}", st.integers(-2, 1100), st.integers(-2, 1500))
LIST = st.lists(ENTRY, max_size=4).map(";".join)
CELL = st.lists(LIST, max_size=3).map(" ".join)
TEXT = st.lists(st.lists(CELL, max_size=3).map(lambda cells: "\t".join(["7", *cells])), max_size=3).map("\n".join)


@settings(max_examples=400, deadline=None)
@given(text=ALPHABET | TEXT)
def test_read_as_the_scorer_reads(text: str) -> None:
    expected = {name: cells for name, cells in scorers_reading(text).items() if name.strip() or cells}
    ours = our_reading(text)
    assert {k: v for k, v in ours.items() if k in expected} == expected
    assert all(not (k.strip() or v) for k, v in ours.items() if k not in expected)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=80))
def test_any_bytes_are_lines_or_a_clear_error(content: bytes) -> None:
    try:
        lines_of(content)
    except LinesError as error:
        assert str(error)


def test_absurd_lines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_lists, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(LinesError, match="a line of more than"):
        lines_of(b"1\t" + b"1,1;" * (1 << 20))
    monkeypatch.setattr(pixel_lists, "MAX_CELL_BYTES", 1000)
    with pytest.raises(LinesError, match="larger than all pixels"):
        lines_of(b"1\t" + b"1,1;" * 1000)


def test_the_canvas_is_left_clean() -> None:
    """What one cell painted, be it odd or broken off in the middle, is not in the next."""
    (line,) = lines_of("1\t5,5;6,6 7,7\t5,6;8,8;x,9 1,1\t9,9;9 9,9\t5,5 6,6")
    assert pixels(line.cells[3]) == {(5, 5), (6, 6)} and pixels(line.cells[1]) == {(5, 6), (8, 8), (1, 1)}


# ---------------------------------------------------------------- writing ---------------------------------------------


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_written_and_read_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = []
    for _ in range(int(rng.integers(1, 4))):
        y0, x0 = int(rng.choice([0, 8, 97, 995, 1065])), int(rng.choice([0, 5, 96, 999, 1425]))
        mask = rng.integers(0, 2, rng.integers(1, 15, 2)).astype(np.uint8)
        mask.flat[0] = 1
        nucleus = rng.integers(0, 2, mask.shape).astype(np.uint8) if rng.random() < 0.8 else None
        box = np.array([x0, y0, x0 + mask.shape[1], y0 + mask.shape[0]])
        cells.append((box, split(mask, nucleus), mask, nucleus))
    text = b"".join(pixel_lists.line("77", [(box, bits) for box, bits, _, _ in cells]))
    assert scorers_reading(text.decode()) == our_reading(text.decode())
    (line,) = lines_of(text)
    for found, (box, _, mask, nucleus) in zip(line.cells, cells, strict=True):
        assert not found.fault and found.certain and min(found.counts) > 0
        expected = {(int(y + box[1]), int(x + box[0])) for y, x in zip(*np.nonzero(mask), strict=True)}
        assert pixels(found) == expected
        inside = set() if nucleus is None else pixels(Cell(box, mask & nucleus, (0, 0), box), 1)
        own = pixels(found, NUCLEUS)
        assert own == inside or len(own ^ inside) == 1  # one pixel is lent where a list would be empty
        assert own | pixels(found, CYTOPLASM) == expected
        assert not own & pixels(found, CYTOPLASM) or len(expected) == 1


@pytest.mark.parametrize(
    ("cell", "nucleus", "expected"),
    [
        ([[1, 1, 1]], None, [[2, 1, 2]]),
        ([[1, 1, 1]], [[0, 0, 0]], [[2, 1, 2]]),
        ([[1, 1, 1]], [[1, 1, 1]], [[1, 1, 2]]),
        ([[1, 1, 0]], [[0, 1, 1]], [[2, 1, 0]]),
        ([[0, 1]], None, [[0, 3]]),
        ([[0, 1]], [[1, 1]], [[0, 3]]),
    ],
)
def test_both_lists_always_have_a_pixel(cell: Any, nucleus: Any, expected: Any) -> None:
    bits = split(np.array(cell, np.uint8), None if nucleus is None else np.array(nucleus, np.uint8))
    assert bits.tolist() == expected


# ---------------------------------------------------------------- checking --------------------------------------------


def packed(tmp_path: Path, text: str | bytes, member: str = MEMBER) -> Path:
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return path


def texts(path: Path) -> list[str]:
    return [str(problem) for problem in pixel_lists_check.check(path, MEMBER, IMAGES)]


GOOD = "101\t10,20;10,21 9,20;9,21\n2001\t5,5 5,6\t1079,1439 0,0"


def test_a_good_submission_has_no_problem(tmp_path: Path) -> None:
    assert texts(packed(tmp_path, GOOD)) == texts(packed(tmp_path, GOOD + "\n")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD.replace("9,20;9,21", ""),
            "error: image 101, cell 1: has no pixel of the cytoplasm: .*whole image scores 0",
        ),
        (
            GOOD.replace("2001", "2001.bmp"),
            "error: line 2 .*no test image, so the line is passed over; it must be 2001",
        ),
        (GOOD.replace("2001", "77"), "error: line 2 .'77'.*passed over$"),
        (GOOD.replace("2001", "2001_3"), "error: line 2 .'2001_3'.*it must be 2001$"),
        (GOOD.replace("\t", " "), "error: line 1 .*there is no tab on the line"),
        (GOOD.replace("\t", ","), "error: line 1 .*there is no tab on the line"),
        ("\ufeff" + GOOD, "error: line 1 .*it must be 101"),
        (GOOD.replace("2001", "101"), "error: image '101': more than one line; the scorer reads the last"),
        (GOOD.split("\n")[0], "warning: image 2001: has no line"),
        (GOOD.split("\n")[0] + "\n2001", "warning: line 2 .'2001'.: has no cell"),
        (GOOD.replace("5,6", "5,x;5,7"), "error: image 2001, cell 1: entries that are no pixels"),
        (GOOD.replace("5,6", "-1,6"), "error: image 2001, cell 1: entries that are no pixels"),
        (GOOD.replace("5,6", "1080,6"), "error: image 2001, cell 1: pixels beyond 1080x1440"),
        ("101\n2001", "error: .*holds no cell at all"),
        ("", "error: .*holds no cell at all"),
        (b"\xff\xfe1\x000\x001\x00", "no text"),
        (b"101\t1,\xff1 2,2", "no text"),
    ],
)
def test_every_fault_has_its_words(tmp_path: Path, text: str | bytes, expected: str) -> None:
    import re

    listed = texts(packed(tmp_path, text))
    assert any(re.search(expected, problem) for problem in listed), listed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("101\t5,1079 1439,6\n2001\t5,5 5,6\n1\t5,5 1,1\n2\t5,5 1,1", "column,row"),
        ("101\t1,1 1080,1440\n2001\t5,5 5,6", "counted from 1"),
        ("101\t1500,2500 0,2\n2001\t1535,2039 5,6", "as large as the images"),
    ],
)
def test_why_pixels_lie_beyond_the_frame(tmp_path: Path, text: str, expected: str) -> None:
    listed = [problem for problem in texts(packed(tmp_path, text)) if problem.startswith("error: submission.zip")]
    assert len(listed) == 1 and expected in listed[0]


@pytest.mark.parametrize(
    ("member", "expected", "readable"),
    [
        ("sub/submission.txt", "submission.txt must lie at the top", True),
        ("Submission.txt", "holds Submission.txt and no submission.txt", True),
        ("submission.json", "holds submission.json and no submission.txt", False),
    ],
)
def test_wrong_members(tmp_path: Path, member: str, expected: str, readable: bool) -> None:
    listed = texts(packed(tmp_path, GOOD, member))
    assert len(listed) == 1 and expected in listed[0] and listed[0].startswith("error")


def test_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "submission.txt"
    bare.write_text(GOOD)
    (problem,) = texts(bare)
    assert problem.startswith("warning") and "takes a zip that holds submission.txt" in problem
    path = packed(tmp_path, GOOD)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"PK\x03\x04", whole[:50] + b"\xff\xff" + whole[52:]):
        path.write_bytes(content)
        assert len(texts(path)) == 1 and texts(path)[0].startswith("error: submission.zip")
    assert "there is no such file" in texts(tmp_path / "none.zip")[0]
    monkeypatch.setattr(pixel_lists_check, "MAX_TEXT_BYTES", 10)
    assert "unpacks to" in texts(packed(tmp_path, GOOD))[0]
    monkeypatch.setattr(pixel_lists_check, "MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr(pixel_lists_check, "MANY_PIXELS", 3)
    assert "lists 8 pixels" in texts(packed(tmp_path, GOOD))[0]


# ---------------------------------------------------------------- repairing -------------------------------------------


def fixed(tmp_path: Path, path: Path) -> tuple[str, list[str]]:
    target = tmp_path / "fixed" / "out.zip"
    changes = pixel_lists_check.fix(path, MEMBER, IMAGES, target)
    assert [p for p in pixel_lists_check.check(target, MEMBER, IMAGES) if p.severity == "error"] == []
    with zipfile.ZipFile(target) as archive:
        assert archive.namelist() == [MEMBER]
        return archive.read(MEMBER).decode(), changes


@pytest.mark.parametrize(
    ("text", "expected", "change"),
    [
        ("101\t10,20;10,21 ", "101\t10,20 10,21", "empty list"),
        ("101\t 10,20;10,21", "101\t10,21 10,20", "empty list"),
        ("101\t10,20", "101\t10,20 10,20", "empty list"),
        ("101\t1,1  2,2", "101\t1,1 2,2", "stray separators"),
        ("101\t1,1; 2,2", "101\t1,1 2,2", "stray separators"),
        ("101\t1,1 2,2\t\t3,3 4,4", "101\t1,1 2,2\t3,3 4,4", "without pixels left out"),
        ("101\t1,1,1 2,2\t3,3 4,4", "101\t3,3 4,4", "cannot be read left out"),
        ("101\t1,1;x,2 2,2", "101\t1,1 2,2", "entries that are no pixels"),
        ("\ufeff101.bmp\t1,1 2,2", "101\t1,1 2,2", "is now 101"),
        ("101_1\t1,1 2,2\n101_2\t3,3 4,4", "101\t1,1 2,2\t3,3 4,4", "2 lines of image 101"),
        ("0101\t1,1 2,2", "101\t1,1 2,2", "id '0101' is now 101"),
        (
            "101\t1,1 2,2\n2001\t5,5 6,6\n101.bmp\t3,3 4,4",
            "2001\t5,5 6,6\n101\t1,1 2,2\t3,3 4,4",
            "2 lines of image 101",
        ),
        ("101\t1,1 1080,1440", "101\t0,0 1079,1439", "counted from 1"),
        ("101\t0,1079 1300,6", "101\t1079,0 6,1300", "turned into row,column"),
    ],
)
def test_certain_repairs(tmp_path: Path, text: str, expected: str, change: str) -> None:
    if "1300" in text:
        text, expected = text + "\n2001\t1439,1 5,6", expected + "\n2001\t1,1439 6,5"
        images = {k: Image(i.id, i.file_name, 1300, 1440) for k, i in IMAGES.items()}  # too small to be drawn so
        target = tmp_path / "out.zip"
        changes = pixel_lists_check.fix(packed(tmp_path, text), MEMBER, images, target)
        with zipfile.ZipFile(target) as archive:
            found = archive.read(MEMBER).decode()
    else:
        found, changes = fixed(tmp_path, packed(tmp_path, text))
    assert found == expected
    assert any(change in line for line in changes), changes


def test_masks_that_were_not_resized(tmp_path: Path) -> None:
    """Drawn at the images' own size, they come out as the organisers' converter would have written them."""
    expected, own = [], []
    for image in IMAGES.values():
        rows, columns = nearest(image.height, FRAME[0]), nearest(image.width, FRAME[1])
        mask = np.zeros((image.height, image.width), np.uint8)
        mask[image.height - 40 :, image.width - 30 :] = CYTOPLASM
        mask[image.height - 30 : image.height - 20, image.width - 25 : image.width - 9] = NUCLEUS
        for kept, pixels in ((own, mask), (expected, mask[np.ix_(rows, columns)])):
            box = np.array([0, 0, pixels.shape[1], pixels.shape[0]])
            kept.append(b"".join(pixel_lists.line(image.file_name[:-4], [(box, pixels)])))
    found, changes = fixed(tmp_path, packed(tmp_path, b"\n".join(own)))
    assert found == b"\n".join(expected).decode() and "resized to 1080x1440" in changes[0]


def test_packing_is_repaired(tmp_path: Path) -> None:
    found, changes = fixed(tmp_path, packed(tmp_path, GOOD, "a/submission.txt"))
    assert found == GOOD and changes == ["packed alone, as submission.txt, into a zip"]
    (tmp_path / "bare.txt").write_text(GOOD)
    assert fixed(tmp_path, tmp_path / "bare.txt") == (found, changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, "nothing that could be repaired"),
        ("101\t1300,5 5,6\n2001\t5,5 5,6", "not certain why"),  # swapped, or drawn at the image's size
        ("101\t5000,5 5,6", "not certain why"),
        (b"\xff\xff", "no text"),
        ("101\t1.0,1.0 2.0,2.0", "no cell would be left"),
        ("101\t(1,1) (2,2)", "no cell would be left"),
    ],
)
def test_what_is_not_certain_is_left(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(CompetitionError, match=f"submission.zip.*{expected}"):
        fixed(tmp_path, packed(tmp_path, text))
    assert not list((tmp_path / "fixed").glob("*")) if (tmp_path / "fixed").exists() else True
    with pytest.raises(CompetitionError, match="there is no such file"):
        fixed(tmp_path, tmp_path / "none.zip")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ALPHABET | TEXT.map(lambda t: t.replace("7\t", "101\t", 1)))
def test_a_repaired_copy_is_never_worse(tmp_path: Path, text: str) -> None:
    """What the scorer took from known images it still takes, and a repaired copy needs no second repair."""
    path = packed(tmp_path, text)
    pixel_lists_check.check(path, MEMBER, IMAGES)
    target = tmp_path / "out.zip"
    try:
        pixel_lists_check.fix(path, MEMBER, IMAGES, target)
    except CompetitionError:
        return
    with zipfile.ZipFile(target) as archive:
        after = scorers_reading(archive.read(MEMBER).decode())
    before = scorers_reading(text)
    assert all(cells is not None for cells in after.values())
    one_cause = any("beyond" in str(p) for p in pixel_lists_check.check(path, MEMBER, IMAGES))
    for name, cells in before.items():
        if cells and name in IMAGES and not one_cause:
            kept = after[name]
            assert kept is not None and all(cell in kept for cell in cells if cell)
    with pytest.raises(CompetitionError, match="nothing that could be repaired|no cell"):
        pixel_lists_check.fix(target, MEMBER, IMAGES, tmp_path / "again.zip")
