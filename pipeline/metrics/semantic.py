"""Pixel accuracy and class IoU of semantic maps, from the confusion matrix over all images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_VALUES = 256
"""A map holds 8-bit values."""


class Confusion:
    """How many pixels of each class were taken for which.

    Pixels whose true value is none of the classes are void and not counted. A predicted value that is none of them is
    wrong wherever the truth is a class.

    Attributes:
        classes: C values of the maps.
        counts: (C, C + 1) int64; row: the true class, column: the predicted one, the last for "none of them".
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = [int(c) for c in classes]
        if len(set(self.classes)) != len(self.classes) or not all(0 <= c < _VALUES for c in self.classes):
            raise ValueError(f"classes must be different values within 0..{_VALUES - 1}, not {self.classes}")
        self.counts = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        self._row = np.full(_VALUES, len(self.classes), np.int64)
        self._row[self.classes] = np.arange(len(self.classes))

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one image.

        Args:
            truth, predicted: (H, W) uint8.

        Raises:
            ValueError: the shapes or the types differ from that.
        """
        if truth.shape != predicted.shape or truth.dtype != np.uint8 or predicted.dtype != np.uint8:
            raise ValueError(
                f"maps must be uint8 of one shape, not {truth.dtype} {truth.shape} and {predicted.dtype} {predicted.shape}"
            )
        pairs = np.bincount((truth.ravel().astype(np.int32) << 8) | predicted.ravel(), minlength=_VALUES * _VALUES)
        pairs = pairs.reshape(_VALUES, _VALUES)[self.classes]
        for value in np.flatnonzero(pairs.any(axis=0)):
            self.counts[:, self._row[value]] += pairs[:, value]

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the pixels with a true class that have it predicted; None where there are none."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts)) / total if total else None

    def iou(self) -> dict[int, float | None]:
        """By class, TP / (TP + FP + FN) in pixels of all images; None for a class neither true nor predicted anywhere."""
        true_positive = np.diag(self.counts)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - true_positive
        return {
            c: float(t / u) if u else None
            for c, t, u in zip(self.classes, true_positive.tolist(), union.tolist(), strict=True)
        }

    @property
    def mean_iou(self) -> float | None:
        """The mean over the classes that have an IoU; None where none has."""
        known = [value for value in self.iou().values() if value is not None]
        return float(np.mean(known)) if known else None
