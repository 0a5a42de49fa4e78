"""Checking and repairing submissions that are CSV files of run lengths.

One examination serves both: it collects every fault and, beside it, what the rows would be with those faults mended that
can be mended without a guess. What is never guessed: which of two overlapping masks owns a pixel, what a run beyond the
image's end meant, whose an unknown id is.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats.faults import Faults, too_large
from pipeline.competitions.formats.kaggle_rle import Order, as_text, numbers, runs_of, tidy, to_rle
from pipeline.competitions.formats.rle_csv import BLANK_WORDS, RleCsv, lines, name_of, unpacked, write_rows
from pipeline.records import Dataset, Image

LEAST_RUNS = 4
"""Only masks of so many runs say how far their runs lie apart."""

LEAST_MASKS = 5
"""So many masks have to speak before a file is told to be written in the wrong order, or for images of other sizes."""


@dataclass
class _Row:
    """One row of the file. `runs` is None where the text is no run lengths; `text` is written where it is."""

    line: int
    name: str
    text: str
    runs: np.ndarray | None = None

    @property
    def place(self) -> str:
        return f"line {self.line}"

    @property
    def blank(self) -> bool:
        return self.runs is not None and not len(self.runs)


@dataclass
class _Examination:
    form: RleCsv
    ids: Dataset
    faults: Faults = field(default_factory=Faults)
    changes: Counter[str] = field(default_factory=Counter)
    rows: list[_Row] | None = None
    """The repaired rows; None where the file cannot be read."""

    def __post_init__(self) -> None:
        self.known: dict[str, Image] = {name_of(image): image for image in self.ids.images}

    def error(self, kind: str, text: str, place: str) -> None:
        self.faults.add("error", kind, text, place)

    def warning(self, kind: str, text: str, place: str) -> None:
        self.faults.add("warning", kind, text, place)

    def size(self, row: _Row) -> tuple[int, int] | None:
        image = self.known.get(row.name)
        return (image.height, image.width) if image is not None and image.height and image.width else None


def check(path: Path, form: RleCsv, ids: Dataset) -> list[Problem]:
    """Every problem of a submission for these images; those of unknown size (0) are checked as far as that goes."""
    problems = examine(path, form, ids).faults.problems()
    return problems + too_large(path) if path.is_file() else problems


def fix(path: Path, form: RleCsv, ids: Dataset, target: Path) -> list[str]:
    """Write a repaired copy and say what was changed; faults that cannot be mended without a guess stay in it.

    Raises:
        CompetitionError: the file cannot be read, or nothing in it can be mended; no file is written.
    """
    found = examine(path, form, ids)
    if found.rows is None or not found.changes:
        left = [str(problem) for problem in found.faults.problems() if problem.severity == "error"]
        what = "has nothing to repair" if not left else "cannot be repaired with certainty:\n  " + "\n  ".join(left)
        raise CompetitionError(f"{path} {what}")
    write_rows([(r.name, r.text if r.runs is None else as_text(r.runs) or r.text) for r in found.rows], target, form)
    return [f"{text} ({count:,} times)" if count > 1 else text for text, count in found.changes.items()]


def examine(path: Path, form: RleCsv, ids: Dataset) -> _Examination:
    found = _Examination(form, ids)
    try:
        content, member = unpacked(path)
        if content[:4] == b"PAR1":
            raise CompetitionError(f"{path} is a Parquet file; the leaderboard takes a CSV")
        rows = lines(content, str(path))
    except CompetitionError as error:
        found.error("file", str(error), path.name)
        return found
    if member:
        found.warning("file", f"is a zip archive; {member} in it is what counts", path.name)
    if content[:3] == b"\xef\xbb\xbf":
        found.warning(
            "file", "begins with a byte order mark, which may be taken as a part of the first name", path.name
        )
        found.changes["the byte order mark is gone"] += 1
    rows = _split_otherwise(rows, found)
    _check_blank_lines(content, rows, found)
    columns = _columns(rows, found)
    if columns is None:
        return found
    first, id_column, mask_column = columns
    found.rows = []
    for line, values in rows[first:]:
        _read_row(line, values, id_column, mask_column, len(rows[0][1]), found)
    _check_ends(found)
    _check_starts(found)
    _check_order(found)
    for row in found.rows:
        _check_runs(row, found)
    _check_images(found)
    return found


# ---------------------------------------------------------------- header and rows -------------------------------------


def _split_otherwise(rows: list[tuple[int, list[str]]], found: _Examination) -> list[tuple[int, list[str]]]:
    """The rows split at what stands for commas, which neither ids nor run lengths can hold."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if rows and all(len(values) == 1 and separator in values[0] for _, values in rows):
            found.error("header", f"the values are separated by {name}; they must be by commas", f"line {rows[0][0]}")
            found.changes["values are separated by commas"] += 1
            return [(line, values[0].split(separator)) for line, values in rows]
    return rows


def _check_blank_lines(content: bytes, rows: Sequence[tuple[int, list[str]]], found: _Examination) -> None:
    if b'"' in content:  # then a value may go over several lines
        return
    last = content.count(b"\n") + (not content.endswith(b"\n"))
    blank = sorted(set(range(1, last + 1)) - {line for line, _ in rows}) if rows else []
    for line in blank:
        found.warning("row", "a blank line, which may be taken for a row without an id", f"line {line}")
        found.changes["blank lines are gone"] += 1


def _columns(rows: Sequence[tuple[int, list[str]]], found: _Examination) -> tuple[int, int, int] | None:
    """The first row of data, and the two columns; None where they cannot be told."""
    wanted = [found.form.id, found.form.rle]
    right = ",".join(wanted)
    if not rows:
        found.error("header", f"the file is empty; it must begin with {right}", "line 1")
        return None
    line, header = rows[0]
    place = f"line {line}"
    if header == wanted:
        return 1, 0, 1
    shown = ",".join(header)[:80]
    names = [value.strip() for value in header]
    if len(header) == 2 and _looks_like_data(names, found):
        found.error("header", f"the header is missing; the first line must be {right}", place)
        found.changes[f"the header {right} is added"] += 1
        return 0, 0, 1
    chosen: list[int] = []
    for name in wanted:
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
        exact = [k for k, n in enumerate(names) if n == name]
        close = [k for k, n in enumerate(names) if near and n.lower() == near[0]]
        if not (exact or close) or (exact or close)[0] in chosen:
            found.error("header", f"the header is {shown!r} and has no column {name!r}; it must be {right}", place)
            return None
        chosen.append((exact or close)[0])
    found.error("header", f"the header is {shown!r}; it must be exactly {right}", place)
    found.changes[f"the header is {right}, and there are no other columns"] += 1
    return 1, chosen[0], chosen[1]


def _looks_like_data(values: Sequence[str], found: _Examination) -> bool:
    if _plain_name(values[0], found) in found.known:
        return True
    try:
        return len(numbers(values[1])) > 0
    except ValueError:
        return False


def _plain_name(name: str, found: _Examination) -> str:
    """The id that a name surely means: without folder and suffix, in the case of the ids; unchanged where there is none."""
    if name in found.known:
        return name
    bare = re.sub(r"\.(png|tiff?|jpe?g|bmp)$", "", PurePosixPath(name.replace("\\", "/")).name, flags=re.IGNORECASE)
    for candidate in (bare, bare.lower()):
        if candidate in found.known:
            return candidate
    return name


def _read_row(
    line: int, values: Sequence[str], id_column: int, mask_column: int, width: int, found: _Examination
) -> None:
    assert found.rows is not None
    place = f"line {line}"
    if len(values) > width:
        found.error("row", f"there are more values than the {width} columns of the header", place)
        found.rows.append(_Row(line, values[id_column].strip(), ",".join(values[mask_column:])))
        return
    if len(values) <= max(id_column, mask_column):
        found.error("row", "there is no second value, not even a comma", place)
        found.changes["rows without a second value have a blank one"] += 1
        values = [*values, *[""] * width]
    name, text = values[id_column].strip(), values[mask_column].strip()
    if [name, text] != [values[id_column], values[mask_column]]:
        found.warning("row", "there are spaces around a value", place)
        found.changes["spaces around values are gone"] += 1
    plain = _plain_name(name, found)
    if plain not in found.known:
        found.error("id", "the id is not among the images", f"{place} ({name[:40]})")
    elif plain != name:
        found.error("id", "the id is not written as the competition writes it", f"{place} ({name[:80]})")
        found.changes["ids are written as the competition writes them"] += 1
    row = _Row(line, plain, text)
    if text.lower() in BLANK_WORDS:
        found.error("mask", f"{text!r} stands where there is no mask", place)
        found.changes["words for nothing are blank"] += 1
        row.text = text = ""
    found.rows.append(row)
    try:
        row.runs = numbers(text)
    except ValueError as error:
        try:
            row.runs = numbers(re.sub(r"\.0+(?!\S)", "", text))
        except ValueError:
            found.error("mask", "the mask is not start length start length …", f"{place}: {error}")
            return
        found.error("mask", "the run lengths are written with decimal points", place)
        found.changes["run lengths are whole numbers"] += 1
    if (row.runs[:, 1] == 0).any():
        found.error("mask", "a run has length 0", place)
        found.changes["runs of length 0 are gone"] += 1
        row.runs = row.runs[row.runs[:, 1] > 0]
        row.text = as_text(row.runs)


# ---------------------------------------------------------------- positions -------------------------------------------


def _ends(runs: np.ndarray) -> int:
    """The last position that the runs cover, as counted in them."""
    return int(runs.sum(axis=1).max()) - 1


def _check_ends(found: _Examination) -> None:
    """Pairs of start and end: read as start and length they overlap. Such masks are looked at no further, for whether the
    end is the last pixel or the one after is not known."""
    masks = [row for row in found.rows or [] if row.runs is not None and len(row.runs) > 1]
    ends = [row for row in masks if row.runs is not None and _are_ends(row.runs)]
    if len(ends) < LEAST_MASKS or len(ends) < 0.9 * len(masks):
        return
    for row in found.rows or []:
        if row.runs is not None and len(row.runs):
            found.error("mask", "the pairs look like start and end; they must be start and length", row.place)
            row.runs = None


def _are_ends(runs: np.ndarray) -> bool:
    first, second = runs[:, 0], runs[:, 1]
    apart = (second >= first).all() and (first[1:] > second[:-1]).all()
    return bool(apart and (first[1:] < runs.sum(axis=1)[:-1]).any())


def _check_starts(found: _Examination) -> None:
    """A start of 0 says that the whole file counts positions from 0; so do runs that go over a line's end by a pixel."""
    masks = [row for row in found.rows or [] if row.runs is not None and len(row.runs)]
    early = [row for row in masks if row.runs is not None and (row.runs[:, 0] == 0).any()]
    over = [] if early else _over_the_end(masks, found)
    if not early and not over:
        return
    fits = True
    for row in masks:
        assert row.runs is not None
        size = found.size(row)
        fits = fits and (size is None or _ends(row.runs) + 1 <= size[0] * size[1])
    for row in early:
        found.error("mask", "a run starts at 0; positions count from 1, so the whole file may be off by one", row.place)
    line = "column" if found.form.order == "columns" else "row"
    for row in over:
        text = (
            f"a run begins at the last pixel of a {line} and goes on in the next, and none of the file begins at a first: "
            "positions look counted from 0; they count from 1"
        )
        found.warning("mask", text, row.place)
    if fits:
        found.changes["every run starts one pixel later: positions were counted from 0"] += 1
        for row in masks:
            assert row.runs is not None
            row.runs = row.runs + np.array([1, 0])


def _over_the_end(masks: Sequence[_Row], found: _Examination) -> list[_Row]:
    """Masks with a run that begins at the last pixel of a line (a column or row, as pixels are numbered) and goes on in
    the next, where these are several and none touches a line's first or last pixel in another way.

    Masks that touch the image's edge look so when positions are counted from 0; as they should be, only a mask that
    touches both opposite edges can.
    """
    over = []
    for row in masks:
        size = found.size(row)
        if size is None or row.runs is None:
            continue
        pitch = size[0] if found.form.order == "columns" else size[1]
        starts, lengths = row.runs[:, 0], row.runs[:, 1]
        at_last = starts % pitch == 0
        whole = at_last & (lengths == 1)
        if (starts % pitch == 1).any() or (((starts + lengths - 1) % pitch == 0) & ~whole).any():
            return []
        if (at_last & ~whole).any():
            over.append(row)
    return over if len(over) >= LEAST_MASKS else []


def _check_order(found: _Examination) -> None:
    """How far the runs of a mask lie apart is the length of a line: the height down the columns, the width along rows.

    Only images that are no near-squares can tell one from the other.
    """
    right = wrong = square = other = 0
    for row in found.rows or []:
        size = found.size(row)
        if size is None or row.runs is None or len(row.runs) < LEAST_RUNS or _ends(row.runs) > size[0] * size[1]:
            continue
        pitch, across = size if found.form.order == "columns" else size[::-1]
        apart = float(np.median(np.diff(np.sort(row.runs[:, 0]))))
        near_square = abs(pitch - across) <= 0.2 * max(pitch, across)
        if abs(apart - pitch) <= 0.1 * pitch:
            square, right = square + near_square, right + (not near_square)
        elif abs(apart - across) <= 0.1 * across and not near_square:
            wrong += 1
        else:
            other += 1
    line, lie = ("column", "row") if found.form.order == "columns" else ("row", "column")
    if wrong >= LEAST_MASKS and wrong > 9 * right:
        text = f"the pixels are numbered {lie} by {lie}; this competition numbers them {line} by {line}"
        found.error("order", text, f"{wrong:,} masks of images that are not square")
        found.changes[f"every mask is numbered {line} by {line}"] += 1
        _renumber(found)
    elif other >= LEAST_MASKS and other > 4 * (right + wrong + square):
        text = (
            f"the runs of a mask do not lie a {line} of its image apart; are they masks of resized images, or numbered "
            f"{lie} by {lie}?"
        )
        found.warning("order", text, f"{other:,} masks")


def _renumber(found: _Examination) -> None:
    right = found.form.order
    given: Order = "rows" if right == "columns" else "columns"
    for row in found.rows or []:
        size = found.size(row)
        if size is not None and row.runs is not None and len(row.runs) and _ends(row.runs) <= size[0] * size[1]:
            row.runs = runs_of(to_rle(row.runs, size, given), right)


def _check_runs(row: _Row, found: _Examination) -> None:
    """One mask's runs: inside the image, ascending, no pixel twice."""
    if row.runs is None or not len(row.runs):
        return
    size = found.size(row)
    if size is not None and _ends(row.runs) > size[0] * size[1]:
        text = "a run goes past the image's last pixel; bring masks back to the original image"
        pixels = f"{_ends(row.runs):,} of {size[0] * size[1]:,}, {size[1]}x{size[0]}"
        found.error("mask", text, f"{row.place} ({pixels})")
    starts, ends = row.runs[:, 0], row.runs.sum(axis=1)
    if (np.diff(starts) < 0).any():
        found.error("mask", "the runs are not in ascending order", row.place)
        found.changes["runs are in ascending order"] += 1
        row.runs = row.runs[np.argsort(starts, kind="stable")]
        starts, ends = row.runs[:, 0], row.runs.sum(axis=1)
    if (starts[1:] < np.maximum.accumulate(ends)[:-1]).any():
        found.error("mask", "runs of one mask overlap", row.place)
        found.changes["overlapping runs of one mask are joined"] += 1
        row.runs = tidy(row.runs)


# ---------------------------------------------------------------- images ----------------------------------------------


def _check_images(found: _Examination) -> None:
    """What the rows of one image are together, and whether every image has one."""
    assert found.rows is not None
    of_image: dict[str, list[_Row]] = defaultdict(list)
    for row in found.rows:
        of_image[row.name].append(row)
    dropped: set[int] = set()
    for rows in of_image.values():
        masks = [row for row in rows if row.runs is not None and len(row.runs)]
        blanks = [row for row in rows if row.blank]
        for row in blanks if masks else blanks[1:]:
            what = "beside the image's masks" if masks else "more than once for an image"
            found.error("blank", f"a blank row {what}", row.place)
            found.changes["spare blank rows are gone"] += 1
            dropped.add(row.line)
        dropped |= _check_marks(masks, found)
        dropped |= _check_duplicates([row for row in masks if row.line not in dropped], found)
        _check_overlaps([row for row in masks if row.line not in dropped], found)
        if blanks and not masks and found.form.empty:
            text = f"an image without masks is blank; the sample submission has {found.form.empty!r}, which is safer"
            found.warning("blank", text, rows[0].place)
    found.rows = [row for row in found.rows if row.line not in dropped]
    _check_presence(of_image, found)


def _check_marks(masks: Sequence[_Row], found: _Examination) -> set[int]:
    """The lines of the mark of an image without masks that stand beside masks."""
    marks = [row for row in masks if row.runs is not None and as_text(row.runs) == found.form.empty]
    if not marks or len(marks) == len(masks):
        return set()
    for row in marks:
        text = f"{found.form.empty!r}, which stands for an image without masks, beside the image's masks: it counts as false"
        found.warning("blank", text, row.place)
        found.changes["marks of images without masks are gone where there are masks"] += 1
    return {row.line for row in marks}


def _check_duplicates(masks: Sequence[_Row], found: _Examination) -> set[int]:
    """The lines of masks that stand there a second time."""
    seen: dict[bytes, _Row] = {}
    again = set()
    for row in masks:
        assert row.runs is not None
        first = seen.setdefault(row.runs.tobytes(), row)
        if first is not row:
            found.error("duplicate", "the same mask stands there more than once", f"{row.place} (as {first.place})")
            found.changes["masks that stood there twice stand there once"] += 1
            again.add(row.line)
    return again


def _check_overlaps(masks: Sequence[_Row], found: _Examination) -> None:
    """Pixels in more than one mask; that can be told without the image's size."""
    parts = [row.runs for row in masks if row.runs is not None]
    if len(parts) < 2:
        return
    runs = np.concatenate([tidy(part) for part in parts])
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = runs.sum(axis=1)
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    shared = int(np.maximum(np.minimum(ends, before) - runs[:, 0], 0).sum())
    if shared:
        text = "masks of one image share pixels, which the server refuses"
        found.error("overlap", text, f"{masks[0].name[:40]} ({shared:,} pixels)")


def _check_presence(of_image: Mapping[str, Sequence[_Row]], found: _Examination) -> None:
    assert found.rows is not None
    for name, image in found.known.items():
        if name not in of_image:
            found.error("id", "the image has no row; every id must be there, also without a mask", name)
            found.changes[f"images without a row have one, {found.form.empty!r}"] += 1
            found.rows.append(_Row(0, name, found.form.empty, np.zeros((0, 2), np.int64)))
        elif not image.height or not image.width:
            text = "how large the image is is not known, so neither its end nor the order of pixels was checked"
            found.warning("size", text, name)
    dummy = found.form.empty or "1 1"
    if found.rows and all(row.blank or row.text == dummy for row in found.rows):
        found.warning("mask", "the file holds no mask at all", "the file")
