"""Which fused masks are true: COCO's greedy matching on crops, fast enough to tune with.

The overlaps of masks and truths are computed once; a change of scores alone repeats the matching only. The rules are
COCOeval's: in the order of scores, each mask takes the free truth of its category that it overlaps best, if by the
threshold; crowd truths never run out and make their match count neither way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.fusion.crops import Crops, overlaps
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Detections


@dataclass(frozen=True)
class Truth:
    """The G true instances of one image. `category` (G,) int64, `crowd` (G,) bool, `area` (G,) int64."""

    crops: Crops
    category: np.ndarray
    crowd: np.ndarray
    area: np.ndarray


def truths(dataset: Dataset, image_ids: Iterable[int]) -> dict[int, Truth]:
    """The true instances of these images; an image without any has an empty `Truth`."""
    found = {}
    for image_id in image_ids:
        instances = dataset.by_image.get(image_id, [])
        decoded = [rle_to_crop(instance.rle) for instance in instances]
        crops = Crops(
            np.array([box for box, _ in decoded], np.int64).reshape(-1, 4),
            np.cumsum([0, *(mask.size for _, mask in decoded)]),
            np.concatenate([mask.ravel() * np.uint8(255) for _, mask in decoded]) if decoded else np.zeros(0, np.uint8),
        )
        found[image_id] = Truth(
            crops,
            np.array([instance.category_id for instance in instances], np.int64),
            np.array([instance.crowd for instance in instances], bool),
            crops.foregrounds[1],
        )
    return found


@dataclass(frozen=True)
class Overlaps:
    """Of N masks of one image with its truths, the pairs of one category whose IoU is above 0.

    Attributes:
        row, truth: (P,) int64, ascending by row.
        iou: (P,) float64; for a crowd the share of the mask that lies in it.
        crowd: (G,) bool.
        best: (N,) float64, the largest IoU of each mask with any truth that is no crowd.
    """

    row: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    crowd: np.ndarray
    best: np.ndarray

    @staticmethod
    def of(detections: Detections, truth: Truth) -> Overlaps:
        crops = Crops.of(detections)
        row, column, common = overlaps(crops, truth.crops)
        same = detections.category_id[row] == truth.category[column]
        row, column, common = row[same], column[same], common[same]
        _, area = crops.foregrounds
        crowd = truth.crowd[column]
        union = np.where(crowd, area[row], area[row] + truth.area[column] - common)
        iou = common / np.maximum(union, 1)
        best = np.zeros(len(detections))
        np.maximum.at(best, row[~crowd], iou[~crowd])
        return Overlaps(row, column, iou, truth.crowd, best)

    def matched(self, score: np.ndarray, iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """Which masks are true when ranked by `score` (N,): true (N,) bool, and ignored (N,) bool (they lie in a crowd)."""
        order = np.argsort(-score, kind="stable")
        start = np.searchsorted(self.row, np.arange(len(score) + 1))
        return _matched(order, start, self.truth, self.iou, self.crowd, iou)


@njit(cache=True)
def _matched(order, start, truth, iou, crowd, threshold):  # type: ignore[no-untyped-def]
    true, ignored = np.zeros(order.size, np.bool_), np.zeros(order.size, np.bool_)
    taken = np.zeros(crowd.size, np.bool_)
    for i in order:
        best, best_iou = -1, min(threshold, 1 - 1e-10)
        for p in range(start[i], start[i + 1]):
            g = truth[p]
            if not taken[g] and not crowd[g] and iou[p] >= best_iou:
                best, best_iou = g, iou[p]
        if best >= 0:
            taken[best], true[i] = True, True
            continue
        for p in range(start[i], start[i + 1]):
            if crowd[truth[p]] and iou[p] >= min(threshold, 1 - 1e-10):
                ignored[i] = True
    return true, ignored
