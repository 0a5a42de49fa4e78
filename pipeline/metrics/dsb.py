"""The precision of sets of masks that the Data Science Bowl 2018 scored by, and after it Sartorius 2021.

For an image and an IoU threshold t, ``p(t) = TP / (TP + FP + FN)``: true positives are pairs of a predicted and a true
mask whose IoU is above t, false positives the predictions and false negatives the truths that are left over. An image's
score is the mean of p over t = 0.50, 0.55, …, 0.95; the score is the plain mean over images. Predictions have no
confidences and classes play no part. "Above" is meant strictly, and is decided in whole numbers, so that an IoU of
exactly 0.6 is not above 0.6 on any machine.

Both competitions forbid predictions that share pixels, and then pairs above 0.5 are unique. Two things their rule leaves
open are decided here:

* Where masks do overlap, each prediction is paired with one truth at most and each truth with one prediction, in as many
  pairs as there can be: of two predictions on one truth, one is false. So no extra mask that finds nothing new can help.
* An image without true masks scores 1 when nothing is predicted in it (0/0 in the formula) and 0 otherwise, so that a
  perfect submission scores 1.

Crowd regions and true masks without a pixel are no truths.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from pipeline.metrics.spans import Spans, overlaps
from pipeline.records import Dataset, Image, compressed

TWENTIETHS = np.arange(10, 20)
"""The thresholds 0.50, 0.55, …, 0.95 as whole twentieths."""


@dataclass(frozen=True)
class Precision:
    """Predictions held against the truth, for I images in the truth's order.

    Attributes:
        image_id: (I,) int64.
        truths: (I,) int64, masks to find; `predictions`: (I,) int64, masks predicted.
        matched: (I, 10) int64, true positives at each threshold.
    """

    image_id: np.ndarray
    truths: np.ndarray
    predictions: np.ndarray
    matched: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """(I, 10) float64, TP / (TP + FP + FN); 1 where there is neither truth nor prediction."""
        union = (self.truths + self.predictions)[:, None] - self.matched
        return np.divide(self.matched, union, out=np.ones(union.shape), where=union > 0)

    def score(self, images: np.ndarray | None = None) -> float | None:
        """The mean over images (all, or those of a boolean mask); None where there are none."""
        values = self.values if images is None else self.values[images]
        return mean(values.mean(axis=1)) if len(values) else None


def mean(values: np.ndarray) -> float:
    """The mean, the same to the last bit in whichever order the values come."""
    return math.fsum(values.tolist()) / len(values)


def evaluate(truth: Dataset, records: Sequence[Mapping[str, Any]]) -> Precision:
    """Hold COCO results records against the truth; their scores, categories and boxes are not looked at.

    Raises:
        ValueError: an image id that the truth does not have; a mask that cannot be read or is of another size.
    """
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, record in enumerate(records):
        image = truth.image.get(record.get("image_id", None))
        if image is None:
            raise ValueError(
                f"record {number} speaks of image {record.get('image_id')!r}, which the truth does not have"
            )
        found[image.id].append(_mask(record, image, number))
    matched = np.zeros((len(truth.images), len(TWENTIETHS)), np.int64)
    counts = np.zeros((len(truth.images), 2), np.int64)
    for k, image in enumerate(truth.images):
        true = _spans("the truth", [a.rle for a in truth.by_image[image.id] if not a.crowd], image)
        predicted = _spans("a record", found[image.id], image)
        row, column, common = overlaps(predicted, true)
        union = predicted.area[row] + true.area[column] - common
        counts[k] = (true.area > 0).sum(), len(predicted)
        for t, twentieth in enumerate(TWENTIETHS):
            above = 20 * common > twentieth * union
            matched[k, t] = _pairs(row[above], column[above], len(predicted), len(true))
    ids = np.array([image.id for image in truth.images], np.int64)
    return Precision(ids, counts[:, 0], counts[:, 1], matched)


def _mask(record: Mapping[str, Any], image: Image, number: int) -> dict[str, Any]:
    size = (image.height, image.width)
    try:
        rle = compressed(record["segmentation"], size)
    except KeyError as error:
        raise ValueError(f"record {number} has no {error}; `validate` lists every fault of a submission") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {number}: {error}; `validate` lists every fault of a submission") from error
    if tuple(rle["size"]) != size:
        raise ValueError(
            f"record {number}: the mask's size {rle['size']} is not the image's {list(size)} (image {image.id})"
        )
    return rle


def _spans(whose: str, rles: Sequence[dict[str, Any]], image: Image) -> Spans:
    try:
        return Spans.of(rles, image.height)
    except ValueError as error:
        raise ValueError(f"{whose} of image {image.id} ({image.file_name}) is damaged: {error}") from error


@njit(cache=True)
def _pairs(row, column, rows, columns):  # type: ignore[no-untyped-def]
    """The most pairs in which no row and no column occurs twice (Kuhn's augmenting paths, breadth first).

    `row` ascends. Of masks that share no pixels every pair is unique, and there is nothing to choose.
    """
    seen = np.zeros(columns, np.bool_)
    unique = True
    for p in range(row.size):
        unique = unique and not seen[column[p]] and (p == 0 or row[p] != row[p - 1])
        seen[column[p]] = True
    if unique:
        return row.size
    start = np.zeros(rows + 1, np.int64)
    for r in row:
        start[r + 1] += 1
    start = np.cumsum(start)
    owner = np.full(columns, -1, np.int64)
    held = np.full(rows, -1, np.int64)
    came_from = np.empty(columns, np.int64)
    queue = np.empty(rows + 1, np.int64)
    pairs = 0
    for root in range(rows):
        if start[root] == start[root + 1]:
            continue
        came_from[:] = -1
        queue[0], head, tail, end = root, 0, 1, -1
        while head < tail and end < 0:
            r = queue[head]
            head += 1
            for p in range(start[r], start[r + 1]):
                c = column[p]
                if came_from[c] >= 0:
                    continue
                came_from[c] = r
                if owner[c] < 0:
                    end = c
                    break
                queue[tail] = owner[c]
                tail += 1
        while end >= 0:  # hand the columns on along the path
            r = came_from[end]
            before = held[r]
            owner[end], held[r] = r, end
            end = before  # -1 at the root, which had none
        if held[root] >= 0:
            pairs += 1
    return pairs


def by_class(truth: Dataset, precision: Precision) -> dict[str, float | None]:
    """The mean over the images of each class, an image being of the class that most of its true masks have.

    Predictions of these competitions carry no class, so a class's own score cannot be known where an image holds several.
    """
    of_image = [
        Counter(a.category_id for a in truth.by_image[i] if not a.crowd).most_common(1)
        for i in precision.image_id.tolist()
    ]
    main = np.array([held[0][0] if held else -1 for held in of_image], np.int64)
    return {name: precision.score(main == category_id) for category_id, name in truth.categories.items()}


def summary(truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a competition's `score` says beside its name and metric, plain JSON values.

    ``score``; ``images``, ``images_without_truth``, ``truths``, ``detections``; ``precision`` by threshold (the mean over
    images) and ``true_positives`` by threshold (all images); ``classes``, see `by_class`.

    Raises:
        ValueError: there are no images; what `evaluate` raises.
    """
    precision = evaluate(truth, records)
    score = precision.score()
    if score is None:
        raise ValueError("the truth has no images to score")
    names = [f"{twentieth / 20:.2f}" for twentieth in TWENTIETHS]
    per_threshold = [mean(column) for column in precision.values.T]
    return {
        "score": score,
        "images": len(precision.image_id),
        "images_without_truth": int((precision.truths == 0).sum()),
        "truths": int(precision.truths.sum()),
        "detections": int(precision.predictions.sum()),
        "precision": dict(zip(names, per_threshold, strict=True)),
        "true_positives": dict(zip(names, precision.matched.sum(axis=0).tolist(), strict=True)),
        "classes": by_class(truth, precision),
    }
