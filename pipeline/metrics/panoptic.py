"""Panoptic quality: how well segments that share no pixel are found and drawn.

Kirillov et al., "Panoptic Segmentation", CVPR 2019. A found and a true segment of one class match when their IoU is above
0.5; since segments share no pixel, no segment can then match two (their theorem 1). Per class (their equation 1)

    PQ = sum of the matches' IoU / (TP + FP / 2 + FN / 2) = SQ * RQ,

SQ the mean IoU of the matches and RQ = TP / (TP + FP / 2 + FN / 2); each is then averaged over the classes. Void pixels are
taken out of found segments before the IoU, and a found segment more than half of which is void or a crowd of its class
counts neither way (their section 4.2, "unknown labels" and "group labels").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.records import compressed

LEAST_SCORE = 0.5
"""Detections scored below this are not painted, as in the panoptic baselines of Kirillov et al."""

MOST_HIDDEN = 0.5
"""A detection of which more than this lies under better ones is not painted, as there."""


def paint(
    size: Sequence[int],
    records: Sequence[Mapping[str, Any]],
    least_score: float = LEAST_SCORE,
    most_hidden: float = MOST_HIDDEN,
) -> tuple[np.ndarray, dict[int, int]]:
    """Lay one image's detections side by side: each pixel goes to the best-scored mask that has it.

    Args:
        size: (height, width).
        records: COCO results of the image. Of equal scores the order is by category and mask, whatever theirs is. Masks
            of another size are passed over: they match nothing.

    Returns:
        segments: (H, W) int32, 0 for none.
        categories: by segment number, from 1.

    Raises:
        ValueError: a damaged mask.
    """
    ranked = sorted(
        (r for r in records if r["score"] >= least_score),
        key=lambda r: (-r["score"], r["category_id"], str(r["segmentation"])),
    )
    segments = np.zeros((int(size[0]), int(size[1])), np.int32)
    categories: dict[int, int] = {}
    for record in ranked:
        rle = compressed(record["segmentation"], segments.shape)
        if tuple(rle["size"]) != segments.shape:
            continue
        (x0, y0, x1, y1), mask = rle_to_crop(rle)
        part = segments[y0:y1, x0:x1]
        seen = (mask > 0) & (part == 0)
        area, left = int(mask.sum()), int(seen.sum())
        if left and area - left <= most_hidden * area:
            categories[len(categories) + 1] = int(record["category_id"])
            part[seen] = len(categories)
    return segments, categories


@dataclass
class _Tally:
    iou: float = 0.0
    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0


@dataclass(frozen=True)
class Quality:
    """PQ, SQ and RQ of one class, or their means over classes."""

    pq: float
    sq: float
    rq: float


@dataclass
class Panoptic:
    """Counts over images, by class."""

    tallies: dict[int, _Tally] = field(default_factory=dict)

    def add(
        self,
        truth: np.ndarray,
        true_categories: Mapping[int, int],
        found: np.ndarray,
        found_categories: Mapping[int, int],
        crowds: frozenset[int] = frozenset(),
        void: np.ndarray | None = None,
    ) -> None:
        """Count one image.

        Args:
            truth: (H, W) integer, the segment each pixel belongs to, from 1; 0 for none.
            true_categories: of each segment in `truth`.
            found, found_categories: the same of the prediction.
            crowds: segments of `truth` that stand for many objects.
            void: (H, W) bool, pixels whose truth is not known; true segments have none of them.

        Raises:
            ValueError: the shapes differ, or a pixel has a segment without a category.
        """
        if truth.shape != found.shape or (void is not None and void.shape != truth.shape):
            raise ValueError(f"maps of one image must have one shape, not {truth.shape} and {found.shape}")
        last, rows = max(true_categories, default=0), max(found_categories, default=0) + 1
        if truth.size and (truth.max() > last or found.max() >= rows or min(truth.min(), found.min()) < 0):
            raise ValueError("a pixel belongs to a segment that has no category")
        # void pixels are one more true segment, of no category
        held = truth if void is None else np.where(void, last + 1, truth)
        pairs = np.bincount((held.astype(np.int64) * rows + found).ravel(), minlength=(last + 2) * rows)
        common = pairs.reshape(last + 2, rows)
        true_area, found_area, unknown = common.sum(axis=1), common.sum(axis=0), common[last + 1]
        matched_truths, matched_found = set(), set()
        for t, f in zip(*(index.tolist() for index in np.nonzero(common[: last + 1])), strict=True):
            if t not in true_categories or f not in found_categories or t in crowds:
                continue
            if true_categories[t] != found_categories[f]:
                continue
            shared = int(common[t, f])
            iou = shared / int(true_area[t] + found_area[f] - shared - unknown[f])
            if iou > 0.5:
                tally = self._of(true_categories[t])
                tally.iou += iou
                tally.true_positives += 1
                matched_truths.add(t)
                matched_found.add(f)
        for t, category in true_categories.items():
            if t not in matched_truths and t not in crowds and true_area[t]:
                self._of(category).false_negatives += 1
        for f, category in found_categories.items():
            if f in matched_found or not found_area[f]:
                continue
            ignored = int(unknown[f]) + sum(int(common[t, f]) for t in crowds if true_categories[t] == category)
            if ignored / int(found_area[f]) <= 0.5:
                self._of(category).false_positives += 1

    def _of(self, category: int) -> _Tally:
        return self.tallies.setdefault(category, _Tally())

    def classes(self) -> dict[int, Quality]:
        """Of each class that is true or found somewhere."""
        qualities = {}
        for category, tally in sorted(self.tallies.items()):
            weight = tally.true_positives + tally.false_positives / 2 + tally.false_negatives / 2
            segmentation = tally.iou / tally.true_positives if tally.true_positives else 0.0
            qualities[category] = Quality(tally.iou / weight, segmentation, tally.true_positives / weight)
        return qualities

    def mean(self) -> Quality | None:
        """The means over those classes; None where there are none."""
        qualities = list(self.classes().values())
        if not qualities:
            return None
        return Quality(*(float(np.mean([getattr(q, name) for q in qualities])) for name in ("pq", "sq", "rq")))
