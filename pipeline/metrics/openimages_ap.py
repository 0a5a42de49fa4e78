"""Average precision as the OpenImages challenges compute it, on masks of one class.

The rules are those of the TensorFlow Object Detection API's OpenImages evaluator, the public code that Kaggle's OpenImages
metrics were made after (tensorflow/models, research/object_detection/utils/per_image_evaluation.py and metrics.py; Everingham
et al., "The PASCAL Visual Object Classes Challenge", 2010, for the area under the curve). What sets it apart from COCO's:

* Every detection counts, however many there are of an image.
* A detection belongs to the truth that it overlaps most, taken or not, where the IoU is at least the threshold. The first to
  come takes it; a later one is a false positive even where another truth would be left for it.
* Precision is made to fall with recall and then summed over every step of recall (all points), not read off at 101 places.
* Group-of truths are regions to ignore: what is no true positive and lies in one by at least the threshold, measured on the
  detection's own area, counts neither way.

Equal scores have no order in that code. Here they are ordered by image and mask, so that the result does not depend on the
order of the records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Instance, compressed


def average_precision(hit: np.ndarray, truths: int) -> float:
    """The area under the precision-recall curve, precision being the highest at this or any greater recall.

    Args:
        hit: (N,) bool, best-scored detection first: is it a true positive?
        truths: how many there are to find.

    Returns:
        0..1; -1 where there is nothing to find.
    """
    if not truths:
        return -1.0
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.asarray(hit, bool)].sum() / truths)  # recall grows by 1 / truths at every hit, else not


@dataclass(frozen=True)
class Result:
    """Detections of one class over all images, best-scored first.

    Attributes:
        score: (N,) float64, descending.
        hit: (N,) bool, true positives.
        ignored: (N,) bool, in a region to ignore: they count neither way.
        truths: how many there are to find.
    """

    score: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truths: int

    @property
    def ap(self) -> float:
        """Average precision; -1 where there is nothing to find."""
        return average_precision(self.hit[~self.ignored], self.truths)


def evaluate(
    truth: Dataset, records: Sequence[Mapping[str, Any]], iou: float, category_id: int, ignore: Collection[int] = ()
) -> Result:
    """Hold the detections of a class against its instances.

    Args:
        truth: images with their instances; crowds are never to be found.
        records: COCO results; those of other categories are passed over.
        iou: smallest mask IoU of a match.
        category_id: the class.
        ignore: ids (of `truth.instances`) of regions to ignore.

    Raises:
        ValueError: an image id that the truth does not have; a record without score or with a damaged mask.
    """
    from pycocotools import mask as coco_mask

    found = defaultdict(list)
    for number, record in enumerate(records):
        image_id, score, rle = _row(truth, record, number, category_id)
        if rle is not None:
            found[image_id].append((-score, str(rle["counts"]), rle))
    rows: list[tuple[float, int, str, bool, bool]] = []
    truths = 0
    for image in truth.images:
        instances = truth.by_image[image.id]
        wanted = [_checked(a) for a in instances if a.category_id == category_id and not a.crowd]
        regions = [_checked(a) for a in instances if a.id in ignore]
        truths += len(wanted)
        ranked = sorted(found.get(image.id, []), key=lambda row: row[:2])
        if not ranked:
            continue
        masks = [rle for _, _, rle in ranked]
        best = _best(coco_mask.iou(masks, wanted, [0] * len(wanted)) if wanted else None, len(masks))
        inside = _best(coco_mask.iou(masks, regions, [1] * len(regions)) if regions else None, len(masks))
        taken = np.zeros(len(wanted), bool)
        for (score, counts, _), (overlap, place), (share, _) in zip(ranked, best, inside, strict=True):
            hit = overlap >= iou and not taken[place]
            if hit:
                taken[place] = True
            rows.append((score, image.id, counts, hit, not hit and share >= iou))
    rows.sort(key=lambda row: row[:3])
    return Result(
        -np.array([row[0] for row in rows], np.float64),
        np.array([row[3] for row in rows], bool),
        np.array([row[4] for row in rows], bool),
        truths,
    )


def _best(overlaps: np.ndarray | None, count: int) -> list[tuple[float, int]]:
    """Of each detection, the largest overlap and (the first of) what it is with; overlap -1 where there is nothing."""
    if overlaps is None:
        return [(-1.0, -1)] * count
    return list(zip(overlaps.max(axis=1).tolist(), overlaps.argmax(axis=1).tolist(), strict=True))


def _row(
    truth: Dataset, record: Mapping[str, Any], number: int, category_id: int
) -> tuple[int, float, dict[str, Any] | None]:
    """Image, score and mask of a record; no mask where the record is of another class."""
    try:
        image = truth.image.get(record["image_id"])
        if image is None:
            raise ValueError(f"there is no image {record['image_id']} in the truth")
        rle = compressed(record["segmentation"], (image.height, image.width))
        rle_to_crop(rle)  # run lengths that do not add up send pycocotools' C code round in circles
        return image.id, float(record["score"]), rle if record["category_id"] == category_id else None
    except KeyError as error:
        raise ValueError(f"record {number} has no {error}; `validate` lists every fault of a submission") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {number}: {error}; `validate` lists every fault of a submission") from error


def _checked(instance: Instance) -> dict[str, Any]:
    try:
        rle_to_crop(instance.rle)
    except ValueError as error:
        raise ValueError(f"the truth's annotation {instance.id} is damaged: {error}") from error
    return instance.rle
