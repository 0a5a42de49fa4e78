"""Faults of a SegPC-2021 submission: what the scorer stops at or passes over, and the repairs that are certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats import pixel_lists, zipped
from pipeline.competitions.formats.faults import Faults
from pipeline.competitions.formats.pixel_lists import CYTOPLASM, NUCLEUS, Cell, Line, LinesError
from pipeline.files import writing
from pipeline.metrics.segpc import FRAME, to_frame
from pipeline.records import Image

MAX_TEXT_BYTES = 16 << 30
"""A submission that unpacks to more is refused unread."""

LARGEST_SIDE = 1 << 14
"""Of an image that masks may be drawn at before they are resized."""

MANY_PIXELS = 250_000_000
"""More listed pixels than this, some 2 GB of text, are worth a warning: the scorer reads them one by one in Python."""


@contextmanager
def opened(path: Path, member: str, problems: list[Problem]) -> Iterator[IO[bytes] | None]:
    """The text of a submission, a zip or bare, as it is read; None where there is none, with the reason in `problems`.

    Raises:
        zipped.DamagedError: the zip cannot be read.
    """
    try:
        packed = zipped.is_zip(path)
    except OSError as error:
        text = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        problems.append(Problem("error", str(path), text))
        yield None
        return
    if packed:
        with zipped.opened(path, member, MAX_TEXT_BYTES, problems) as handle:
            yield handle
        return
    text = f"is a bare text file; the leaderboard takes a zip that holds {member}"
    problems.append(Problem("warning", path.name, text, "archive"))
    with open(path, "rb") as bare:
        yield bare


# ---------------------------------------------------------------- looking ---------------------------------------------


@dataclass
class _Whole:
    """What the lines say together.

    Attributes:
        lines: how many lines each id has, ids as they stand.
        reach: least row and column, greatest row and column of all pixels.
        beyond: ids whose pixels leave the frame.
        beyond_image: whether pixels leave their own image too, or the image is not known.
    """

    lines: Counter[str] = field(default_factory=Counter)
    cells: int = 0
    pixels: int = 0
    reach: np.ndarray = field(default_factory=lambda: np.array([1 << 40, 1 << 40, -1, -1], np.int64))
    beyond: set[str] = field(default_factory=set)
    beyond_image: bool = False

    def add(self, line: Line, image: Image | None) -> None:
        self.lines[line.name] += 1
        self.cells += len(line.cells)
        for cell in line.cells:
            self.pixels += sum(cell.counts)
            if not sum(cell.counts):
                continue
            self.reach[:2] = np.minimum(self.reach[:2], cell.reach[:2])
            self.reach[2:] = np.maximum(self.reach[2:], cell.reach[2:])
            if cell.outside:
                self.beyond.add(line.name)
            if (
                image is None
                or max(image.height, image.width) > LARGEST_SIDE
                or cell.reach[2] >= image.height
                or cell.reach[3] >= image.width
            ):
                self.beyond_image = True

    def causes(self) -> list[str]:
        """What explains pixels beyond the frame, ``swapped``, ``from one`` or ``not resized``; it is certain where just one
        does."""
        if not self.beyond:
            return []
        low_row, low_column, row, column = (int(v) for v in self.reach)
        found = []
        if row < FRAME[1] and column < FRAME[0]:
            found.append("swapped")
        if low_row >= 1 and low_column >= 1 and row <= FRAME[0] and column <= FRAME[1]:
            found.append("from one")
        if not self.beyond_image and 2 * len(self.beyond) >= len(self.lines) and "from one" not in found:
            found.append("not resized")
        return found


_CAUSES = {
    "swapped": "the pixels look like column,row; they must be row,column",
    "from one": "the pixels look counted from 1; they must count from 0",
    "not resized": f"the masks look as large as the images; they must be resized to {FRAME[0]}x{FRAME[1]}, nearest pixel",
}


def _known(name: str, images: Mapping[str, Image]) -> str | None:
    """The test image that an id stands for with certainty: with a suffix, spaces, zeros, a mask's number or a byte order
    mark too many."""
    if name in images:
        return name
    bare = name.removeprefix("\ufeff").strip()
    bare = bare[:-4] if bare.lower().endswith(".bmp") else bare
    if bare in images:
        return bare
    stem, _, number = bare.partition("_")
    if number.isdigit() and stem in images:  # the name of a mask, <id>_<number>
        return stem
    return bare.lstrip("0") if bare.isdigit() and bare.lstrip("0") in images else None


def check(path: Path, member: str, images: Mapping[str, Image]) -> list[Problem]:
    """Every problem of a submission.

    Args:
        member: the name of the zip's one file.
        images: the test images by id, as lines begin with it.
    """
    problems: list[Problem] = []
    faults, whole = Faults(), _Whole()
    try:
        with opened(path, member, problems) as handle:
            if handle is None:
                return problems
            for line in pixel_lists.read_lines(handle):
                whole.add(line, images.get(_known(line.name, images) or ""))
                _check_line(line, images, faults)
    except (zipped.DamagedError, LinesError) as error:
        return [*problems, Problem("error", path.name, str(error), "archive")]
    if not whole.cells:
        problems.append(Problem("error", path.name, "holds no cell at all", "structure"))
    for name, count in whole.lines.items():
        if count > 1:
            faults.add("error", "image id", "more than one line; the scorer reads the last alone", f"image {name!r}")
    for name in images:
        if name not in whole.lines:
            faults.add("warning", "image id", "has no line, so its cells score 0", f"image {name}")
    for cause in whole.causes():
        problems.append(Problem("error", path.name, _CAUSES[cause], "pixels"))
    if whole.pixels > MANY_PIXELS:
        text = f"lists {whole.pixels:,} pixels; the scorer may need hours, or more memory than it has, for so many"
        problems.append(Problem("warning", path.name, text, "file size"))
    return sorted([*problems, *faults.problems()], key=lambda problem: problem.severity)


def _check_line(line: Line, images: Mapping[str, Image], faults: Faults) -> None:
    place = f"line {line.number} ({line.name[:20]!r})"
    if line.name not in images:
        meant = _known(line.name, images)
        hint = f"; it must be {meant}" if meant else ""
        if not line.cells and (" " in line.name or ";" in line.name):
            hint = "; there is no tab on the line, which must stand after the id and between cells"
        faults.add("error", "image id", f"the id is no test image, so the line is passed over{hint}", place)
    if not line.cells:
        faults.add("warning", "structure", "has no cell", place)
    for number, cell in enumerate(line.cells, start=1):
        where = f"image {line.name[:20]}, cell {number}"
        if cell.fault:
            text = f"{cell.fault}: the scorer stops there, and the whole image scores 0"
            faults.add("error", "cell", text, where)
        if cell.odd:
            faults.add("error", "pixels", "entries that are no pixels (no numbers, negative, a third list)", where)
        if cell.outside:
            faults.add("error", "pixels", f"pixels beyond {FRAME[0]}x{FRAME[1]}, which are passed over", where)


# ---------------------------------------------------------------- repairing -------------------------------------------


def fix(path: Path, member: str, images: Mapping[str, Image], target: Path) -> list[str]:
    """Write a repaired copy and say what was changed; see `Competition.fix`.

    A cell that cannot be read is left out: as it stands it loses its whole image, and fewer cells never cost more than
    themselves. Lines of one image are joined, for more cells never hurt.
    """
    whole, packing = _Whole(), list[Problem]()
    try:
        with opened(path, member, packing) as handle:
            if handle is None:
                raise CompetitionError(f"{path}: {packing[-1].text}")
            for line in pixel_lists.read_lines(handle):
                whole.add(line, images.get(_known(line.name, images) or ""))
        causes = whole.causes()
        if whole.beyond and len(causes) != 1:
            raise CompetitionError(
                f"{path}: pixels lie beyond {FRAME[0]}x{FRAME[1]}, and it is not certain why; "
                "write the masks again at that size"
            )
        large = whole.pixels > 100_000_000
        changes: Counter[str] = Counter({f"packed alone, as {member}, into a zip": 1} if packing else {})
        with writing(target) as temporary, zipped.written(temporary, member, large=large) as out:
            written = _rewrite(path, member, images, causes[0] if causes else "", whole, out, changes)
            if written == 0 and whole.cells:
                raise CompetitionError(f"{path}: no cell would be left")
            if not changes:
                raise CompetitionError(f"{path} holds nothing that could be repaired with certainty")
    except (zipped.DamagedError, LinesError) as error:
        raise CompetitionError(f"{path} {error}") from error
    return [f"{text} ({count:,} times)" if count > 1 else text for text, count in changes.items()]


def _rewrite(
    path: Path,
    member: str,
    images: Mapping[str, Image],
    cause: str,
    whole: _Whole,
    out: IO[bytes],
    changes: Counter[str],
) -> int:
    """Write every line as it should be, and say how many cells that were.

    Lines that share an image are kept until all are read, then joined.
    """
    if cause:
        changes[{
            "swapped": "column,row turned into row,column",
            "from one": "pixels counted from 1 now count from 0",
            "not resized": f"masks resized to {FRAME[0]}x{FRAME[1]}, nearest pixel",
        }[cause]] += 1  # fmt: skip
    meant = Counter(_known(name, images) or name for name in whole.lines.elements())
    waiting: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    first, written = True, 0

    def put(name: str, cells: list[tuple[np.ndarray, np.ndarray]]) -> None:
        nonlocal first, written
        written += len(cells)
        out.write(b"" if first else b"\n")
        first = False
        for piece in pixel_lists.line(name, cells):
            out.write(piece)

    with opened(path, member, []) as handle:
        assert handle is not None, path
        for line in pixel_lists.read_lines(handle, _canvas(cause, images)):
            name = _known(line.name, images) or line.name
            if name != line.name:
                changes[f"id {line.name[:20]!r} is now {name}"] += 1
            cells = [cell for c in line.cells if (cell := _mended(c, cause, images.get(name), changes)) is not None]
            if meant[name] > 1:
                waiting.setdefault(name, []).extend(cells)
            else:
                put(name, cells)
    for name, cells in waiting.items():
        changes[f"the {meant[name]} lines of image {name} joined"] += 1
        put(name, cells)
    return written


def _canvas(cause: str, images: Mapping[str, Image]) -> tuple[int, int]:
    if cause == "swapped":
        return FRAME[1], FRAME[0]
    if cause == "from one":
        return FRAME[0] + 1, FRAME[1] + 1
    if cause == "not resized":
        return max(i.height for i in images.values()), max(i.width for i in images.values())
    return FRAME


def _mended(cell: Cell, cause: str, image: Image | None, changes: Counter[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """A cell's box and bits with both lists filled; None for one that is left out."""
    if not cell.certain and cell.fault:
        changes["a cell that cannot be read left out, which would have lost its whole image"] += 1
        return None
    if cell.odd:
        changes["entries that are no pixels left out of a cell, as the scorer does"] += 1
    box, bits = cell.box, cell.bits
    if cause == "swapped":
        box, bits = box[[1, 0, 3, 2]], bits.T
    elif cause == "from one":
        box = box - 1
    elif cause == "not resized" and image is not None:
        box, bits = to_frame(box, bits, (image.height, image.width))
    union = (bits > 0).astype(np.uint8)
    if not union.any():
        changes["a cell without pixels left out, which would have lost its whole image"] += 1
        return None
    if (bits & NUCLEUS).any() and (bits & CYTOPLASM).any():
        if cell.fault:
            changes["stray separators removed from a cell"] += 1
        return box, bits
    changes["an empty list of a cell filled with one pixel of the other"] += 1
    return box, pixel_lists.split(union, ((bits & NUCLEUS) > 0).astype(np.uint8))
