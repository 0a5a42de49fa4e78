"""SegPC-2021's submission text: cells as lists of pixels, ``row,col;row,col``, one line an image.

A line is ``<id> TAB cell TAB cell …``, a cell ``<nucleus pixels> <cytoplasm pixels>``, rows and columns from 0 at
1080x1440. What is read here is what the organisers' scorer reads, which is Python's ``split`` and ``int``: an entry that
is not two parts, or a cell without a second list, raises there and loses the WHOLE image; an entry that is no number or
lies beyond the frame is passed over; a negative number counts from the far side; of lines with the same id the last
counts.

Every pixel stands as text, a few hundred MB for the test set, so lines are read one at a time, each cell is painted onto
one canvas and cut out again, and what is written is made and compressed piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numba import njit

from pipeline.metrics.segpc import FRAME

NUCLEUS, CYTOPLASM = 1, 2
"""Bits of a painted pixel."""

MAX_LINE_BYTES = 1 << 28
"""A longer line is refused: an image has some ten cells of 200 kB."""

MAX_CELL_BYTES = 40 << 20
"""A longer cell is refused: all pixels of the frame as nucleus and again as cytoplasm are 31 MB."""

_BLOCK = 1 << 20


class LinesError(ValueError):
    """The text is no submission at all: binary, or lines of absurd length."""


@dataclass(frozen=True)
class Cell:
    """One cell as the scorer takes it.

    Attributes:
        box: (4,) int64 half-open x0, y0, x1, y1 inside the frame; zeros where no pixel is inside.
        bits: uint8 over the box, `NUCLEUS` and `CYTOPLASM`.
        counts: pixels listed as nucleus and as cytoplasm, those beyond the frame included.
        reach: (4,) int64 least row and column, greatest row and column of all pixels; zeros where there are none.
        fault: why the scorer stops here and the image scores 0; empty where it does not.
        odd: entries that the scorer passes over or misreads, because they are no numbers or negative.
        certain: whether, were it not for empty lists and stray separators, the cell is well formed.
    """

    box: np.ndarray
    bits: np.ndarray
    counts: tuple[int, int]
    reach: np.ndarray
    fault: str = ""
    odd: int = 0
    certain: bool = True

    @property
    def outside(self) -> bool:
        """Whether pixels lie beyond 1080x1440."""
        return bool(self.reach[2] >= FRAME[0] or self.reach[3] >= FRAME[1])


@dataclass(frozen=True)
class Line:
    """One image's line; `number` counts from 1."""

    number: int
    name: str
    cells: list[Cell]


# ---------------------------------------------------------------- reading ---------------------------------------------


@njit(cache=True)
def _scan(text, canvas, reach, counts):  # type: ignore[no-untyped-def]
    """Paint a cell whose two lists are plainly ``digits,digits;…``; False, with the canvas painted in part, for any
    other. `reach`: least row and column, greatest row and column."""
    rows, columns = canvas.shape
    which, items, digits = 0, 0, 0
    first, value = np.int64(0), np.int64(0)
    for position in range(text.size + 1):
        symbol = text[position] if position < text.size else np.uint8(59)  # the end closes a pixel like ;
        if 48 <= symbol <= 57:
            digits += 1
            if digits > 9:
                return False
            value = value * 10 + (symbol - 48)
        elif symbol == 44:  # ,
            if digits == 0 or items != 0:
                return False
            first, value, digits, items = value, np.int64(0), 0, 1
        elif symbol == 59 or symbol == 32:  # ; or space
            if digits == 0 or items != 1:
                return False
            counts[which] += 1
            reach[0], reach[1] = min(reach[0], first), min(reach[1], value)
            reach[2], reach[3] = max(reach[2], first), max(reach[3], value)
            if first < rows and value < columns:
                canvas[first, value] |= which + 1
            value, digits, items = np.int64(0), 0, 0
            if symbol == 32:
                which += 1
                if which > 1:
                    return False
        else:
            return False
    return which == 1


def _read_cell(text: bytes, canvas: np.ndarray) -> Cell:
    """Read one cell; the canvas, which has the frame's size, is all zero before and after."""
    if len(text) > MAX_CELL_BYTES:
        raise LinesError(f"a cell of {len(text):,} bytes is larger than all pixels of the frame")
    reach = np.array([1 << 40, 1 << 40, -1, -1], np.int64)
    counts = np.zeros(2, np.int64)
    plain = _scan(np.frombuffer(text, np.uint8), canvas, reach, counts)
    if not plain:
        canvas[max(reach[0], 0) : reach[2] + 1, max(reach[1], 0) : reach[3] + 1] = 0
        try:
            return _read_odd_cell(text.decode("utf-8"), canvas)
        except UnicodeDecodeError as error:
            raise LinesError(f"holds bytes that are no text: {text[error.start : error.start + 8]!r}") from error
    return _cut(canvas, reach, (int(counts[0]), int(counts[1])))


def _read_odd_cell(text: str, canvas: np.ndarray) -> Cell:
    """Read a cell as the scorer does, word for word, and note at what it would stop.

    Where it would, no pixel counts, and what is painted is what was meant.
    """
    lists = text.split(" ")
    words = [word for word in lists if word]
    fault, odd, certain = "", 0, len(words) <= 2
    if len(lists) < 2:
        fault = "has one list of pixels instead of two" if words else "is empty"
    elif not (lists[0] and lists[1]):
        if len(words) == 2:
            fault = "has spaces too many, so that one of its lists is empty"
            lists = words
        else:
            fault = f"has no pixel of the {'cytoplasm' if lists[0] else 'nucleus'}"
    elif len(words) > 2:
        odd = 1  # what comes after the second list is passed over
    reach = np.array([1 << 40, 1 << 40, -1, -1], np.int64)
    counts = [0, 0]
    for which, pixels in enumerate(lists[:2]):
        for entry in pixels.split(";") if pixels else []:
            items = entry.split(",")
            if len(items) != 2:
                certain = certain and not entry.strip()
                fault = fault or (f"holds {entry[:20]!r}, which is not row,col" if entry.strip() else "has a stray ;")
                continue
            try:
                row, column = int(items[0]), int(items[1])
            except ValueError:
                odd += 1
                continue
            counts[which] += 1
            if row < 0 or column < 0:
                odd += 1
                row, column = row + canvas.shape[0] * (row < 0), column + canvas.shape[1] * (column < 0)
                if row < 0 or column < 0:
                    continue
            row, column = min(row, 1 << 30), min(column, 1 << 30)
            reach[:2] = np.minimum(reach[:2], (row, column))
            reach[2:] = np.maximum(reach[2:], (row, column))
            if row < canvas.shape[0] and column < canvas.shape[1]:
                canvas[row, column] |= (NUCLEUS, CYTOPLASM)[which]
    return _cut(canvas, reach, (counts[0], counts[1]), fault, odd, certain and not odd)


def _cut(
    canvas: np.ndarray, reach: np.ndarray, counts: tuple[int, int], fault: str = "", odd: int = 0, certain: bool = True
) -> Cell:
    if reach[2] < 0:
        return Cell(
            np.zeros(4, np.int64), np.zeros((0, 0), np.uint8), counts, np.zeros(4, np.int64), fault, odd, certain
        )
    y0, x0, y1, x1 = reach[0], reach[1], min(reach[2] + 1, canvas.shape[0]), min(reach[3] + 1, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return Cell(np.zeros(4, np.int64), np.zeros((0, 0), np.uint8), counts, reach, fault, odd, certain)
    window = canvas[y0:y1, x0:x1]
    bits = window.copy()
    window[:] = 0
    return Cell(np.array([x0, y0, x1, y1], np.int64), bits, counts, reach, fault, odd, certain)


def read_lines(handle: IO[bytes], frame: tuple[int, int] = FRAME) -> Iterator[Line]:
    """The lines of a submission, blank ones left out. A mark of byte order before the first id is part of the id.

    Args:
        frame: rows and columns beyond which pixels are not kept.

    Raises:
        LinesError: it is not text, or a line is absurdly long.
        Whatever reading the file raises.
    """
    canvas = np.zeros(frame, np.uint8)
    number = 0
    for raw in _raw_lines(handle):
        number += 1
        if not raw.strip():
            continue
        fields = raw.split(b"\t")
        try:
            name = fields[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise LinesError(f"line {number} does not begin with an image's id: it is no text") from error
        if "\0" in name:
            raise LinesError(f"line {number} does not begin with an image's id: it is no text")
        yield Line(number, name, [_read_cell(field, canvas) for field in fields[1:]])


def _raw_lines(handle: IO[bytes]) -> Iterator[bytes]:
    """Lines as Python's text files have them: ended by LF, CR LF or CR."""
    pieces: list[bytes] = []
    length = 0
    while block := handle.read(_BLOCK):
        *ends, rest = block.split(b"\n")
        for end in ends:
            yield from b"".join([*pieces, end]).removesuffix(b"\r").split(b"\r")
            pieces, length = [], 0
        pieces.append(rest)
        length += len(rest)
        if length > MAX_LINE_BYTES:
            raise LinesError(f"a line of more than {MAX_LINE_BYTES:,} bytes is no image's cells")
    yield from b"".join(pieces).removesuffix(b"\r").split(b"\r")


# ---------------------------------------------------------------- writing ---------------------------------------------


@njit(cache=True)
def _put(text, length, value):  # type: ignore[no-untyped-def]
    if value >= 1000:
        text[length] = 48 + value // 1000
        length += 1
    if value >= 100:
        text[length] = 48 + value // 100 % 10
        length += 1
    if value >= 10:
        text[length] = 48 + value // 10 % 10
        length += 1
    text[length] = 48 + value % 10
    return length + 1


@njit(cache=True)
def _list_pixels(mask, x0, y0):  # type: ignore[no-untyped-def]
    count = 0
    for value in mask.flat:
        count += value != 0
    text = np.empty(count * 10 + 1, np.uint8)
    length = 0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                length = _put(text, length, y0 + row)
                text[length] = 44
                length = _put(text, length + 1, x0 + column)
                text[length] = 59
                length += 1
    return text[: max(length - 1, 0)]


def split(cell: np.ndarray, nucleus: np.ndarray | None) -> np.ndarray:
    """The bits of a cell whose lists are both not empty; together they are the cell's pixels, which is all that is scored.

    The nucleus is cut to the cell. Where that leaves nothing, the cell's middle pixel stands for it; where it is the whole
    cell, the last pixel becomes cytoplasm; a cell of one pixel lists it as both.

    Args:
        cell: (h, w) uint8 of 0 and 1, not empty.
        nucleus: the same shape, or None.
    """
    bits = cell * np.uint8(CYTOPLASM)
    pixels = np.flatnonzero(cell)
    inside = pixels[:0] if nucleus is None else np.flatnonzero(cell & nucleus)
    if not inside.size:
        inside = pixels[len(pixels) // 2 : len(pixels) // 2 + 1]
    elif len(inside) == len(pixels) > 1:
        inside = inside[:-1]
    bits.flat[inside] = NUCLEUS | CYTOPLASM if len(pixels) == 1 else NUCLEUS
    return bits


def line(name: str, cells: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[bytes]:
    """One image's line, without its end, piece by piece.

    Args:
        cells: box and bits of each, at 1080x1440; both lists not empty, see `split`.
    """
    yield name.encode()
    for box, bits in cells:
        x0, y0 = int(box[0]), int(box[1])
        nucleus, cytoplasm = (_list_pixels(np.ascontiguousarray(bits & bit), x0, y0) for bit in (NUCLEUS, CYTOPLASM))
        yield b"\t" + nucleus.tobytes() + b" " + cytoplasm.tobytes()
