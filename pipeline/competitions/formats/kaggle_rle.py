"""Kaggle's run lengths: ``start length start length …``, positions counted from 1, to and from COCO's.

The pixels are numbered either down the columns, as COCO does (`columns`; Data Science Bowl 2018), or along the rows
(`rows`; Sartorius 2021). The toy mask of height 4 and width 5 whose pixels are (1,1) (2,1) (2,2) (1,3) (2,3) (3,3), as
(row, column) from 0, is ``6 2 11 1 14 3`` down the columns and ``7 1 9 1 12 3 19 1`` along the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.masks import rle_to_spans, spans_to_rle, transposed

Order = Literal["columns", "rows"]

_DIGITS = 18
"""A longer number is no position in any image, and does not fit into 64 bits."""


def numbers(text: str) -> np.ndarray:
    """The pairs as written, (R, 2) int64 of start and length, whatever their values; none for a blank text.

    Raises:
        ValueError: something is no whole number, or a start has no length.
    """
    words = text.split()
    for word in words:
        if not (word.isascii() and word.isdigit()) or len(word) > _DIGITS:
            raise ValueError(f"{word[:20]!r} is not a whole number")
    if len(words) % 2:
        raise ValueError(f"{len(words)} numbers are no pairs of start and length")
    return np.array(list(map(int, words)), np.int64).reshape(-1, 2)


def parse(text: str) -> np.ndarray:
    """The runs as written, (R, 2) int64 of start, from 1, and length; none for a blank text.

    Raises:
        ValueError: something is no whole number, a start or length is below 1, or a start has no length.
    """
    runs = numbers(text)
    if runs.size and runs[:, 0].min() < 1:
        raise ValueError("a run starts at 0; positions count from 1")
    if runs.size and runs[:, 1].min() < 1:
        raise ValueError("a run has length 0")
    return runs


def tidy(runs: np.ndarray) -> np.ndarray:
    """The same pixels as ascending runs that neither overlap nor touch, (R, 2) int64."""
    if len(runs) < 2:
        return runs
    ordered = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ordered.sum(axis=1))
    first = np.concatenate([[True], ordered[1:, 0] > ends[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([ordered[first, 0], ends[last] - ordered[first, 0]], axis=1)


def to_rle(runs: np.ndarray, size: Sequence[int], order: Order) -> dict[str, Any]:
    """A compressed COCO RLE of the runs.

    Args:
        runs: (R, 2) start, from 1, and length, in any order; they may overlap.
        size: ``(height, width)`` of the image.

    Raises:
        ValueError: a run leaves the image.
    """
    height, width = (int(v) for v in size)
    ascending = tidy(runs)
    if len(ascending) and int(ascending[-1].sum()) - 1 > height * width:
        raise ValueError(
            f"a run ends at pixel {int(ascending[-1].sum()) - 1}, "
            f"an image of height {height} and width {width} has {height * width}"
        )
    spans = np.stack([ascending[:, 0] - 1, ascending.sum(axis=1) - 1], axis=1)
    if order == "columns":
        return spans_to_rle(spans, (height, width))
    return transposed(spans_to_rle(spans, (width, height)))


def from_rle(rle: dict[str, Any], order: Order) -> str:
    """The runs of a COCO RLE as Kaggle writes them; blank for an empty mask.

    Raises:
        ValueError: the RLE cannot be read.
    """
    return as_text(runs_of(rle, order))


def runs_of(rle: dict[str, Any], order: Order) -> np.ndarray:
    """(R, 2) int64, as `parse` gives them."""
    spans = rle_to_spans(rle if order == "columns" else transposed(rle))
    return np.stack([spans[:, 0] + 1, spans[:, 1] - spans[:, 0]], axis=1)


def as_text(runs: np.ndarray) -> str:
    return " ".join(map(str, runs.ravel().tolist()))
