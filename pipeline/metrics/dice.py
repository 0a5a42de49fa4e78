"""How well true instances are covered, whatever the class and the score of what covers them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Instance, compressed


def best_dice(truth: Dataset, records: Sequence[Mapping[str, Any]]) -> float:
    """The mean, over all true instances of all images, of the highest Dice coefficient with any detection of the image.

    Dice of two masks is ``2 |A ∩ B| / (|A| + |B|)``. This is "best Dice" from the truth's side (Scharr et al., "Leaf
    segmentation in plant phenotyping: a collation study", 2016), over instances instead of images. A truth that nothing
    meets counts 0; detections too many cost nothing, which is why it stands beside an average precision and not alone.

    Args:
        records: COCO results; category and score are not looked at.

    Returns:
        0..1; -1 where there are no true instances.

    Raises:
        ValueError: a damaged mask.
    """
    best: list[float] = []
    for instances, found, iou in overlaps_by_image(truth, records):
        most = iou.max(axis=0) if found else np.zeros(len(instances))
        best += (2 * most / (1 + most)).tolist()  # Dice grows with IoU
    return float(np.mean(best)) if best else -1.0


def overlaps_by_image(
    truth: Dataset, records: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[list[Instance], list[Mapping[str, Any]], np.ndarray]]:
    """For each image its true instances (without crowds), its COCO results, and their IoU (results, truths), 0..1.

    Raises:
        ValueError: a damaged mask.
    """
    from pycocotools import mask as coco_mask

    found = defaultdict(list)
    for record in records:
        found[truth.image[record["image_id"]].id].append(record)
    for image in truth.images:
        own = found.get(image.id, [])
        masks = [compressed(record["segmentation"], (image.height, image.width)) for record in own]
        for rle in masks:
            rle_to_crop(rle)  # run lengths that do not add up send pycocotools' C code round in circles
        instances = [instance for instance in truth.by_image[image.id] if not instance.crowd]
        iou = np.zeros((len(own), len(instances)))
        if own and instances:
            iou = np.maximum(coco_mask.iou(masks, [i.rle for i in instances], [0] * len(instances)), 0)
        yield instances, own, iou
