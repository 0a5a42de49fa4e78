"""Images whose pixel values number the objects: one object for each value."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit

MOST_VALUES = 1 << 24
"""Larger values are no numbers of objects."""


def objects(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Every value above 0 with its tight half-open box (4,) int32 x0, y0, x1, y1 and its pixels there, uint8 of 0 and 1.

    Args:
        labels: (H, W) integers from 0.

    Raises:
        ValueError: the values are negative or absurdly large.
    """
    if labels.ndim != 2:
        raise ValueError(f"a label map has two dimensions, not {labels.ndim}")
    if not labels.size:
        return
    if labels.min() < 0 or labels.max() >= MOST_VALUES:
        raise ValueError(f"its values {labels.min()}..{labels.max()} are no numbers of objects")
    boxes = _boxes(np.ascontiguousarray(labels), int(labels.max()) + 1)
    for value in np.flatnonzero(boxes[:, 2] > 0).tolist():
        if value:
            x0, y0, x1, y1 = boxes[value]
            yield value, boxes[value], (labels[y0:y1, x0:x1] == value).astype(np.uint8)


@njit(cache=True)
def _boxes(labels, count):  # type: ignore[no-untyped-def]
    """(count, 4) int32 boxes by value; x1 is 0 for a value that does not occur."""
    height, width = labels.shape
    boxes = np.zeros((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1] = width, height
    for y in range(height):
        for x in range(width):
            box = boxes[labels[y, x]]
            box[0], box[1] = min(box[0], x), min(box[1], y)
            box[2], box[3] = max(box[2], x + 1), max(box[3], y + 1)
    return boxes
