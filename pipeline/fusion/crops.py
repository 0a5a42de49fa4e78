"""Soft masks of many objects at one cell per pixel, flat: what the fusion kernels read and write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from pipeline.masks import FOREGROUND
from pipeline.records import GRID_CAP, Detections, shrink


@dataclass(frozen=True)
class Crops:
    """N soft masks in image coordinates.

    Attributes:
        box: (N, 4) int64 half-open pixel boxes x0, y0, x1, y1.
        offset: (N + 1,) int64; crop i is ``pixels[offset[i]:offset[i + 1]]``, the rows of its box one after the other.
        pixels: (P,) uint8 probabilities.
    """

    box: np.ndarray
    offset: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.box)

    def crop(self, i: int) -> np.ndarray:
        x0, y0, x1, y1 = self.box[i]
        return self.pixels[self.offset[i] : self.offset[i + 1]].reshape(y1 - y0, x1 - x0)

    @staticmethod
    def none() -> Crops:
        return Crops(np.zeros((0, 4), np.int64), np.zeros(1, np.int64), np.zeros(0, np.uint8))

    @staticmethod
    def of(detections: Detections) -> Crops:
        """The masks of a table; grids that the cap sampled down are brought back to one cell per pixel."""
        box = detections.mask_box.astype(np.int64)
        sides = np.stack([box[:, 3] - box[:, 1], box[:, 2] - box[:, 0]], axis=1)
        capped = np.flatnonzero((sides != detections.shape).any(axis=1))
        if not capped.size:
            return Crops(box, detections.offset, detections.pixels)
        offset = np.concatenate([[0], np.cumsum(sides.prod(axis=1))])
        pixels = np.empty(offset[-1], np.uint8)
        for whole, i in _runs(capped, len(box)):
            pixels[offset[whole] : offset[i]] = detections.pixels[detections.offset[whole] : detections.offset[i]]
            if i < len(box):
                pixels[offset[i] : offset[i + 1]] = detections.crop(i).ravel()
        return Crops(box, offset, pixels)

    @cached_property
    def foregrounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Tight boxes (N, 4) int64 of the pixels with probability one half or more, and their number (N,) int64."""
        return _foregrounds(self.box, self.offset, self.pixels, FOREGROUND)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns `mask_box`, `shape`, `offset` and `pixels` of `Detections`, with the cap applied."""
        sides = np.stack([self.box[:, 3] - self.box[:, 1], self.box[:, 2] - self.box[:, 0]], axis=1)
        shape = np.minimum(sides, GRID_CAP)
        offset, pixels = self.offset, self.pixels
        large = np.flatnonzero((shape != sides).any(axis=1))
        if large.size:
            offset = np.concatenate([[0], np.cumsum(shape.prod(axis=1))])
            pixels = np.empty(offset[-1], np.uint8)
            for whole, i in _runs(large, len(self)):
                pixels[offset[whole] : offset[i]] = self.pixels[self.offset[whole] : self.offset[i]]
                if i < len(self):
                    pixels[offset[i] : offset[i + 1]] = shrink(self.crop(i)).ravel()
        return {
            "mask_box": self.box.astype(np.int32),
            "shape": shape.astype(np.int32),
            "offset": offset.astype(np.int64),
            "pixels": pixels,
        }


def _runs(exceptions: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    """Before each exception, and before the end, the run of ordinary rows: its first row and the exception (or `count`)."""
    start = 0
    for i in [*exceptions.tolist(), count]:
        yield start, i
        start = i + 1


@njit(cache=True)
def _foregrounds(box, offset, pixels, threshold):  # type: ignore[no-untyped-def]
    """Tight boxes (N, 4) of the masks' foregrounds, in image coordinates, and their areas (N,)."""
    bounds, area = np.zeros((box.shape[0], 4), np.int64), np.zeros(box.shape[0], np.int64)
    for i in range(box.shape[0]):
        p = offset[i]
        x0, y0, x1, y1 = box[i, 2], box[i, 3], box[i, 0], box[i, 1]
        for y in range(box[i, 1], box[i, 3]):
            for x in range(box[i, 0], box[i, 2]):
                if pixels[p] >= threshold:
                    area[i] += 1
                    x0, x1 = min(x0, x), max(x1, x + 1)
                    y0, y1 = min(y0, y), max(y1, y + 1)
                p += 1
        if area[i] > 0:
            bounds[i, 0], bounds[i, 1], bounds[i, 2], bounds[i, 3] = x0, y0, x1, y1
    return bounds, area


def overlaps(a: Crops, b: Crops) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of masks that share pixels of probability one half or more.

    Returns:
        rows of `a`, rows of `b`, and the number of shared pixels, each (P,) int64; ascending by the row of `a`.
    """
    bounds_a, _ = a.foregrounds
    bounds_b, _ = (bounds_a, None) if a is b else b.foregrounds
    order = np.argsort(bounds_b[:, 0], kind="stable")
    return _overlaps(a.box, a.offset, a.pixels, bounds_a, b.box, b.offset, b.pixels, bounds_b, order, FOREGROUND)


@njit(cache=True)
def _overlaps(box_a, offset_a, pixels_a, bounds_a, box_b, offset_b, pixels_b, bounds_b, order, threshold):  # type: ignore[no-untyped-def]
    first: np.ndarray = np.empty(256, np.int64)
    second: np.ndarray = np.empty(256, np.int64)
    shared: np.ndarray = np.empty(256, np.int64)
    count = 0
    lefts = bounds_b[order, 0]
    widest = 0
    for j in range(bounds_b.shape[0]):
        widest = max(widest, bounds_b[j, 2] - bounds_b[j, 0])
    for i in range(bounds_a.shape[0]):
        if bounds_a[i, 2] == bounds_a[i, 0]:
            continue
        position = np.searchsorted(lefts, bounds_a[i, 0] - widest)
        while position < order.size and lefts[position] < bounds_a[i, 2]:
            j = order[position]
            position += 1
            x0, x1 = max(bounds_a[i, 0], bounds_b[j, 0]), min(bounds_a[i, 2], bounds_b[j, 2])
            y0, y1 = max(bounds_a[i, 1], bounds_b[j, 1]), min(bounds_a[i, 3], bounds_b[j, 3])
            if x0 >= x1 or y0 >= y1:
                continue
            common = 0
            for y in range(y0, y1):
                p = offset_a[i] + (y - box_a[i, 1]) * (box_a[i, 2] - box_a[i, 0]) - box_a[i, 0]
                q = offset_b[j] + (y - box_b[j, 1]) * (box_b[j, 2] - box_b[j, 0]) - box_b[j, 0]
                for x in range(x0, x1):
                    if pixels_a[p + x] >= threshold and pixels_b[q + x] >= threshold:
                        common += 1
            if common == 0:
                continue
            if count == first.size:
                first = np.append(first, np.empty(count, np.int64))
                second = np.append(second, np.empty(count, np.int64))
                shared = np.append(shared, np.empty(count, np.int64))
            first[count], second[count], shared[count] = i, j, common
            count += 1
    return first[:count], second[:count], shared[:count]
