"""Average precision as Cityscapes' own evaluation computes it (evalInstanceLevelSemanticLabeling.py of cityscapesScripts).

It is not COCO's. Per class and overlap threshold t, over all images:

* A truth counts when it is a single object of at least 100 pixels. Groups and smaller objects are ignored.
* A detection finds a truth when their IoU is above t (strictly). Of several that find one truth the best scored is right
  and the others are wrong, also where they would find another.
* A detection that finds nothing, not even a group or a small object, is wrong, unless more than a share t of its pixels
  is void, of a group of its class, or of a small object of its class (pixels of a small group count twice).
* The curve is drawn over the distinct scores, ends at precision 1 and recall 0, and is integrated by steps whose width is
  half of the distance between a point's neighbours, without making precision monotonic.

The mean is over thresholds and over classes with truths that count. All detections are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.metrics.overlaps import Groups, Masks, overlaps
from pipeline.metrics.results import Results
from pipeline.records import Dataset, Detections, Image

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
"""0.50, 0.55, …, 0.95, rounded as the official script has them."""

LEAST_AREA = 100
"""Truths of fewer pixels are ignored."""


@dataclass(frozen=True)
class CityscapesAp:
    """AP by class and threshold; a row of NaN for a class without a truth that counts."""

    names: tuple[str, ...]
    table: np.ndarray

    def ap(self) -> float:
        """The mean over classes and thresholds; -1 where no class has a truth that counts."""
        return self._mean(self.table)

    def ap50(self) -> float:
        return self._mean(self.table[:, 0])

    def classes(self) -> dict[str, float | None]:
        means = self.table.mean(axis=1)
        return {name: None if np.isnan(v) else float(v) for name, v in zip(self.names, means, strict=True)}

    @staticmethod
    def _mean(values: np.ndarray) -> float:
        known = values[~np.isnan(values)]
        return float(known.mean()) if known.size else -1.0


def evaluate(
    truth: Dataset,
    found: Detections | Sequence[Mapping[str, Any]],
    void: Callable[[Image], np.ndarray | None] = lambda image: None,
) -> CityscapesAp:
    """Hold detections against the truth.

    Args:
        truth: instances, groups as crowds; masks of one image share no pixel.
        found: detections or COCO results; categories that the truth does not have are passed over.
        void: an image's void pixels, (H, W) bool; None where they are not known.

    Raises:
        ValueError: an image id that the truth does not have; a damaged mask.
    """
    results = Results.of(found, {image.id: (image.height, image.width) for image in truth.images})
    unknown = sorted(set(np.unique(results.image_id).tolist()) - set(truth.image))
    if unknown:
        raise ValueError(f"the results speak of image ids that the truth does not have: {unknown[:10]}")
    instances = [a for a in truth.instances if a.category_id in truth.categories and a.image_id in truth.image]
    true_masks = Masks.pack(a.rle for a in instances)
    groups = Groups.make(
        (results.category_id, results.image_id),
        (np.array([a.category_id for a in instances], np.int64), np.array([a.image_id for a in instances], np.int64)),
        results.score,
    )
    pairs = overlaps(results.masks, true_masks, groups)
    single = ~np.array([a.crowd for a in instances], bool)
    large = true_masks.areas >= LEAST_AREA
    row = np.repeat(np.arange(len(groups.a_rows)), np.diff(pairs.start))
    target = groups.b_rows[groups.b[np.searchsorted(groups.a, row, side="right") - 1] + pairs.other]
    ignored = _void_pixels(truth, results, void)[groups.a_rows]
    weight = (~single[target]).astype(np.int64) + (~large[target]).astype(np.int64)
    np.add.at(ignored, row, weight * pairs.common)
    area = results.masks.areas[groups.a_rows]
    share = ignored / np.maximum(area, 1)
    counted = single & large
    score, kinds = results.score[groups.a_rows], results.category_id[groups.a_rows]
    own = np.array([a.category_id for a in instances], np.int64)
    table = np.full((len(truth.categories), len(THRESHOLDS)), np.nan)
    for k, category_id in enumerate(truth.categories):
        truths = int((counted & (own == category_id)).sum())
        mine = (kinds == category_id) & (area > 0)
        if not truths:
            continue
        for t, threshold in enumerate(THRESHOLDS.tolist()):
            over = (pairs.iou > threshold) & mine[row]
            right, wrong = _credited(row[over], target[over], counted, score)
            alone = mine & (share <= threshold)
            alone[row[over]] = False
            table[k, t] = _average(score[right], score[np.concatenate([wrong, np.flatnonzero(alone)])], truths)
    return CityscapesAp(tuple(truth.categories.values()), table)


def _void_pixels(truth: Dataset, results: Results, void: Callable[[Image], np.ndarray | None]) -> np.ndarray:
    """(N,) int64, how many of each mask's pixels are void."""
    counts = np.zeros(len(results), np.int64)
    order = np.argsort(results.image_id, kind="stable")
    known = np.isin(results.category_id, list(truth.categories))
    for rows in np.split(order, np.flatnonzero(np.diff(results.image_id[order])) + 1):
        rows = rows[known[rows]]
        pixels = void(truth.image[int(results.image_id[rows[0]])]) if len(rows) else None
        if pixels is None:
            continue
        for i in rows.tolist():
            if tuple(results.masks.size[i].tolist()) == pixels.shape:
                (x0, y0, x1, y1), mask = rle_to_crop(results.masks.rle(i))
                counts[i] = np.count_nonzero(mask.astype(bool) & pixels[y0:y1, x0:x1])
    return counts


def _credited(
    row: np.ndarray, target: np.ndarray, counted: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of the pairs over the threshold: the detections that are a truth's best, and those that come second or later."""
    real = counted[target]
    row, target = row[real], target[real]
    order = np.lexsort((-score[row], target))
    row, target = row[order], target[order]
    best = np.concatenate([[True], target[1:] != target[:-1]]) if len(row) else np.zeros(0, bool)
    return row[best], row[~best]


def _average(right: np.ndarray, wrong: np.ndarray, truths: int) -> float:
    """Area under the curve of a class at one threshold, from the scores of right and wrong detections."""
    score = np.concatenate([right, wrong])
    if not score.size:
        return 0.0
    order = np.argsort(score, kind="stable")
    is_right = np.concatenate([np.ones(len(right)), np.zeros(len(wrong))])[order]
    _, first = np.unique(score[order], return_index=True)
    below = np.concatenate([[0.0], np.cumsum(is_right)])[first]
    true_positives = len(right) - below
    precision = np.append(true_positives / (len(score) - first), 1.0)
    recall = np.append(true_positives / truths, 0.0)
    neighbours = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ ((neighbours[:-2] - neighbours[2:]) / 2))
