"""Which masks overlap, and by how many pixels: run lengths against run lengths, and only where boxes meet.

A detection overlaps one or two of an image's 1,800 nuclei. A dense table of 1,000 detections by 400 truths is 3 MB an
image and nearly all zeros; here only the pairs that share a pixel exist. Masks stay COCO's text until they are looked
at, one group (an image and class) at a time, so that the memory follows the group and not the data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from pipeline.masks import rle_to_crop

_UNREADABLE, _ODD = -1, 1
"""What decoding says of a mask besides 0: its text or its runs are wrong; it holds an empty run in its midst."""


# ---------------------------------------------------------------- masks -----------------------------------------------


@dataclass(frozen=True)
class Masks:
    """N masks as COCO's compressed run lengths.

    Attributes:
        text: (B,) uint8, all masks' counts, one after another.
        offset: (N + 1,) int64; mask i's counts are ``text[offset[i]:offset[i + 1]]``.
        size: (N, 2) int64, height and width of each mask's image.
    """

    text: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.size)

    @staticmethod
    def pack(rles: Iterable[Mapping[str, Any]]) -> Masks:
        """From COCO RLEs with text counts.

        Raises:
            ValueError: counts that are not plain ASCII.
        """
        text, offset, size = bytearray(), [0], []
        for rle in rles:
            text += rle["counts"].encode("ascii")
            offset.append(len(text))
            size.append((rle["size"][0], rle["size"][1]))
        return Masks(
            np.frombuffer(text, np.uint8), np.array(offset, np.int64), np.array(size, np.int64).reshape(len(size), 2)
        )

    def rle(self, i: int) -> dict[str, Any]:
        """Mask i as a COCO RLE with text counts."""
        counts = self.text[self.offset[i] : self.offset[i + 1]].tobytes().decode("ascii")
        return {"size": [int(self.size[i, 0]), int(self.size[i, 1])], "counts": counts}

    @cached_property
    def areas(self) -> np.ndarray:
        """(N,) int64, pixels of each mask.

        Raises:
            ValueError: ``mask <i>: …``, the first one whose runs are damaged.
        """
        areas, bad = _areas(self.text, self.offset, self.size)
        if bad >= 0:
            try:
                rle_to_crop(self.rle(int(bad)))
            except (ValueError, OverflowError, MemoryError) as error:
                raise ValueError(f"mask {int(bad)}: {error}") from error
            raise ValueError(f"mask {int(bad)}: the RLE is damaged")
        return np.asarray(areas)


@njit(cache=True)
def _decode(text, first, last, height, width, spans):  # type: ignore[no-untyped-def]
    """Object runs of one mask into `spans` (S, 2) as half-open pixel ranges, counted down the columns.

    Returns how many, their area, box (x0, y0, x1, y1) and what is wrong: see `_ODD`. `spans` needs room for half as
    many as there are characters, and one more.
    """
    total = height * width
    before, two_before = np.int64(0), np.int64(0)
    place, area, found, count = np.int64(0), np.int64(0), 0, 0
    x0, y0, x1, y1 = np.int64(1) << 40, np.int64(1) << 40, np.int64(0), np.int64(0)
    state = 0
    position = first
    while position < last:
        value, shift, more = np.int64(0), 0, True
        while more:
            if position >= last:
                return 0, area, x0, y0, x1, y1, _UNREADABLE
            symbol = np.int64(text[position]) - 48
            if symbol < 0 or symbol > 63 or shift > 60:
                return 0, area, x0, y0, x1, y1, _UNREADABLE
            value |= (symbol & 0x1F) << shift
            more = (symbol & 0x20) != 0
            position += 1
            shift += 5
            if not more and (symbol & 0x10):
                value |= np.int64(-1) << shift
        if count > 2:
            value += two_before
        if value < 0 or value > total - place:
            return 0, area, x0, y0, x1, y1, _UNREADABLE
        if value == 0 and count > 0:
            state = _ODD
        if (count & 1) and value > 0:
            spans[found, 0], spans[found, 1] = place, place + value
            found += 1
            area += value
            column0, column1 = place // height, (place + value - 1) // height
            x0, x1 = min(x0, column0), max(x1, column1 + 1)
            if column0 != column1:
                y0, y1 = np.int64(0), np.int64(height)
            else:
                y0, y1 = min(y0, place - column0 * height), max(y1, place + value - column0 * height)
        place += value
        two_before, before = before, value
        count += 1
    if place != total:
        state = _UNREADABLE
    return found, area, x0, y0, x1, y1, state


@njit(cache=True)
def _longest(offset):  # type: ignore[no-untyped-def]
    most = np.int64(0)
    for i in range(offset.size - 1):
        most = max(most, offset[i + 1] - offset[i])
    return most


@njit(cache=True)
def _areas(text, offset, size):  # type: ignore[no-untyped-def]
    spans = np.empty((_longest(offset) // 2 + 1, 2), np.int64)
    areas = np.empty(size.shape[0], np.int64)
    for i in range(size.shape[0]):
        if size[i, 0] < 0 or size[i, 1] < 0 or size[i, 0] > 1 << 31 or size[i, 1] > 1 << 31:
            return areas, i
        found = _decode(text, offset[i], offset[i + 1], size[i, 0], size[i, 1], spans)
        if found[6] == _UNREADABLE:
            return areas, i
        areas[i] = found[1]
    return areas, -1


# ---------------------------------------------------------------- pairs -----------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Rows of two tables that are to be compared: K groups, each of an image and a category, rows in order.

    Attributes:
        key: (K, 2) int64, category id and image id; ascending.
        a, b: (K + 1,) int64 bounds; group k has the rows ``a_rows[a[k]:a[k + 1]]`` and ``b_rows[b[k]:b[k + 1]]``.
        a_rows, b_rows: int64, indexes into the two tables.
    """

    key: np.ndarray
    a: np.ndarray
    b: np.ndarray
    a_rows: np.ndarray
    b_rows: np.ndarray

    @staticmethod
    def make(
        a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], score: np.ndarray, most: int | None = None
    ) -> Groups:
        """Group rows by category and image.

        Args:
            a, b: each (category ids, image ids), (N,) and (M,) int64.
            score: (N,) float64; the rows of `a` come best first, equals in their own order.
            most: only so many of a group's rows of `a`.
        """
        order_a = np.lexsort((-score, a[1], a[0]))
        order_b = np.lexsort((b[1], b[0]))
        pairs_a = np.stack([a[0][order_a], a[1][order_a]], axis=1).astype(np.int64)
        pairs_b = np.stack([b[0][order_b], b[1][order_b]], axis=1).astype(np.int64)
        key, index = np.unique(np.concatenate([pairs_a, pairs_b]), axis=0, return_inverse=True)
        index = index.reshape(-1)
        index_a, index_b = index[: len(pairs_a)], index[len(pairs_a) :]
        if most is not None:
            kept = np.arange(len(index_a)) - np.searchsorted(index_a, index_a) < most
            order_a, index_a = order_a[kept], index_a[kept]
        steps = np.arange(len(key) + 1)
        return Groups(key, np.searchsorted(index_a, steps), np.searchsorted(index_b, steps), order_a, order_b)


@dataclass(frozen=True)
class Pairs:
    """The pairs of masks of two tables that share pixels.

    Attributes:
        start: (R + 1,) int64; the r-th grouped row of the first table has the pairs ``start[r]:start[r + 1]``.
        other: (P,) int64, the place of each pair's other mask among the group's rows of the second table, ascending.
        common: (P,) int64, pixels that both have.
        iou: (P,) float64; where the other mask is a crowd, the share of the first one that lies in it.
    """

    start: np.ndarray
    other: np.ndarray
    common: np.ndarray
    iou: np.ndarray


def overlaps(a: Masks, b: Masks, groups: Groups, crowd: np.ndarray | None = None) -> Pairs:
    """Compare the masks of each group. Masks of different sizes share nothing.

    Two masks with empty runs in their midst are compared by pycocotools, which may stop half way through such: what it
    says is what a leaderboard says.

    Args:
        crowd: (len(b),) bool.

    Raises:
        ValueError: ``mask <i>: …``, a damaged mask.
    """
    from pycocotools import mask as coco_mask

    area_a, area_b = a.areas, b.areas
    endless = np.zeros(len(b), np.bool_) if crowd is None else np.asarray(crowd, np.bool_)
    start, other, common, odd = _pairs(
        a.text, a.offset, a.size, b.text, b.offset, b.size, groups.a, groups.b, groups.a_rows, groups.b_rows
    )
    row = np.repeat(np.arange(len(groups.a_rows)), np.diff(start))
    group = np.searchsorted(groups.a, row, side="right") - 1
    first, second = groups.a_rows[row], groups.b_rows[groups.b[group] + other]
    iou = common / np.where(endless[second], area_a[first], area_a[first] + area_b[second] - common)
    for p in np.flatnonzero(odd):
        one, two = a.rle(int(first[p])), b.rle(int(second[p]))
        iou[p] = coco_mask.iou([one], [two], [int(endless[second[p]])])[0, 0]
    return Pairs(start, other, common, iou)


@njit(cache=True)
def _common(a, count_a, b, first_b, last_b):  # type: ignore[no-untyped-def]
    """Pixels that two sorted lists of ranges share."""
    total = np.int64(0)
    i, j = 0, first_b
    while i < count_a and j < last_b:
        low, high = max(a[i, 0], b[j, 0]), min(a[i, 1], b[j, 1])
        if low < high:
            total += high - low
        if a[i, 1] < b[j, 1]:
            i += 1
        else:
            j += 1
    return total


@njit(cache=True)
def _pairs(text_a, offset_a, size_a, text_b, offset_b, size_b, bound_a, bound_b, rows_a, rows_b):  # type: ignore[no-untyped-def]
    start = np.zeros(rows_a.size + 1, np.int64)
    other: np.ndarray = np.empty(1024, np.int64)
    common: np.ndarray = np.empty(1024, np.int64)
    odd: np.ndarray = np.zeros(1024, np.bool_)
    found = 0
    spans = np.empty((_longest(offset_a) // 2 + 1, 2), np.int64)
    for k in range(bound_a.size - 1):
        first, count = bound_b[k], bound_b[k + 1] - bound_b[k]
        characters = np.int64(0)
        for g in range(count):
            row = rows_b[first + g]
            characters += (offset_b[row + 1] - offset_b[row]) // 2 + 1
        spans_b = np.empty((characters, 2), np.int64)
        place = np.zeros(count + 1, np.int64)
        box = np.empty((count, 4), np.int64)
        state = np.empty(count, np.int64)
        if bound_a[k] < bound_a[k + 1]:
            for g in range(count):
                row = rows_b[first + g]
                n, _, x0, y0, x1, y1, what = _decode(
                    text_b, offset_b[row], offset_b[row + 1], size_b[row, 0], size_b[row, 1], spans_b[place[g] :]
                )
                place[g + 1] = place[g] + n
                box[g, 0], box[g, 1], box[g, 2], box[g, 3], state[g] = x0, y0, x1, y1, what
        for r in range(bound_a[k], bound_a[k + 1]):
            row = rows_a[r]
            start[r] = found
            n, _, x0, y0, x1, y1, what = _decode(
                text_a, offset_a[row], offset_a[row + 1], size_a[row, 0], size_a[row, 1], spans
            )
            for g in range(count):
                if x0 >= box[g, 2] or x1 <= box[g, 0] or y0 >= box[g, 3] or y1 <= box[g, 1]:
                    continue
                one = rows_b[first + g]
                if size_a[row, 0] != size_b[one, 0] or size_a[row, 1] != size_b[one, 1]:
                    continue
                shared = _common(spans, n, spans_b, place[g], place[g + 1])
                if not shared:
                    continue
                if found == other.size:
                    other = np.concatenate((other, np.empty(found, np.int64)))
                    common = np.concatenate((common, np.empty(found, np.int64)))
                    odd = np.concatenate((odd, np.zeros(found, np.bool_)))
                other[found], common[found] = g, shared
                odd[found] = what == _ODD and state[g] == _ODD
                found += 1
    start[rows_a.size] = found
    return start, other[:found].copy(), common[:found].copy(), odd[:found].copy()
