"""Which masks of one image share pixels, and how many, from their run lengths alone.

A mask is its spans: half-open ranges of pixel positions, counted down the columns. Two masks are compared by walking
along their spans side by side, and only where the masks' boxes meet, so the cost follows the outlines of neighbours:
no mask is unpacked to pixels, and no matrix of all pairs is filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from pipeline.masks import rle_to_spans


@dataclass(frozen=True)
class Spans:
    """N masks of one image.

    Attributes:
        spans: (S, 2) int64, each mask's half-open ranges, ascending, one mask after the other.
        offset: (N + 1,) int64; mask i has ``spans[offset[i]:offset[i + 1]]``.
        area: (N,) int64 pixels.
        rows: (N, 2) int64, the half-open range of rows that each mask lies in.
    """

    spans: np.ndarray
    offset: np.ndarray
    area: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.area)

    @staticmethod
    def of(rles: Sequence[Mapping[str, Any]], height: int) -> Spans:
        """Unpack COCO RLEs of one image of this height.

        Raises:
            ValueError: an RLE cannot be read.
        """
        parts = [rle_to_spans(dict(rle)) for rle in rles]
        spans = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
        offset = np.cumsum([0, *(len(part) for part in parts)])
        area, rows = _measure(spans, offset, height)
        return Spans(spans, offset, area, rows)


def overlaps(a: Spans, b: Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of masks that share pixels.

    Returns:
        rows of `a`, rows of `b`, and the number of shared pixels, each (P,) int64, ascending by the row of `a`.
    """
    present = np.flatnonzero(b.offset[1:] > b.offset[:-1])
    order = present[np.argsort(b.spans[b.offset[present], 0], kind="stable")]
    return _overlaps(a.spans, a.offset, a.rows, b.spans, b.offset, b.rows, order)


@njit(cache=True)
def _measure(spans, offset, height):  # type: ignore[no-untyped-def]
    count = offset.size - 1
    area, rows = np.zeros(count, np.int64), np.zeros((count, 2), np.int64)
    for i in range(count):
        top, foot = np.int64(height), np.int64(0)
        for s in range(offset[i], offset[i + 1]):
            first, end = spans[s, 0], spans[s, 1]
            area[i] += end - first
            if first // height != (end - 1) // height:
                top, foot = np.int64(0), np.int64(height)
            else:
                top, foot = min(top, first % height), max(foot, (end - 1) % height + 1)
        if area[i] > 0:
            rows[i, 0], rows[i, 1] = top, foot
    return area, rows


@njit(cache=True)
def _overlaps(spans_a, offset_a, rows_a, spans_b, offset_b, rows_b, order):  # type: ignore[no-untyped-def]
    first: np.ndarray = np.empty(256, np.int64)
    second: np.ndarray = np.empty(256, np.int64)
    shared: np.ndarray = np.empty(256, np.int64)
    count = 0
    begins, furthest = np.empty(order.size, np.int64), np.empty(order.size, np.int64)
    reach = np.int64(0)
    for k in range(order.size):  # how far the masks up to here reach: ascending, so it can be searched
        j = order[k]
        begins[k] = spans_b[offset_b[j], 0]
        reach = max(reach, spans_b[offset_b[j + 1] - 1, 1])
        furthest[k] = reach
    for i in range(offset_a.size - 1):
        if offset_a[i + 1] == offset_a[i]:
            continue
        start, stop = spans_a[offset_a[i], 0], spans_a[offset_a[i + 1] - 1, 1]
        k = np.searchsorted(furthest, start, side="right")
        while k < order.size and begins[k] < stop:
            j = order[k]
            k += 1
            if rows_a[i, 0] >= rows_b[j, 1] or rows_b[j, 0] >= rows_a[i, 1]:
                continue
            common = np.int64(0)
            p, q = offset_a[i], offset_b[j]
            while p < offset_a[i + 1] and q < offset_b[j + 1]:
                common += max(np.int64(0), min(spans_a[p, 1], spans_b[q, 1]) - max(spans_a[p, 0], spans_b[q, 0]))
                if spans_a[p, 1] < spans_b[q, 1]:
                    p += 1
                else:
                    q += 1
            if common == 0:
                continue
            if count == first.size:
                first = np.append(first, np.empty(count, np.int64))
                second = np.append(second, np.empty(count, np.int64))
                shared = np.append(shared, np.empty(count, np.int64))
            first[count], second[count], shared[count] = i, j, common
            count += 1
    return first[:count], second[:count], shared[:count]
