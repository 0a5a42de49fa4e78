"""How well true instances are covered, whatever the class and the score of what covers them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, compressed


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
    from pycocotools import mask as coco_mask

    found = defaultdict(list)
    for record in records:
        image = truth.image[record["image_id"]]
        rle = compressed(record["segmentation"], (image.height, image.width))
        rle_to_crop(rle)  # run lengths that do not add up send pycocotools' C code round in circles
        found[image.id].append(rle)
    best: list[float] = []
    for image in truth.images:
        wanted = [instance.rle for instance in truth.by_image[image.id] if not instance.crowd]
        masks = found.get(image.id)
        if not wanted or not masks:
            best += [0.0] * len(wanted)
            continue
        iou = np.maximum(coco_mask.iou(masks, wanted, [0] * len(wanted)), 0).max(axis=0)
        best += (2 * iou / (1 + iou)).tolist()  # Dice grows with IoU
    return float(np.mean(best)) if best else -1.0
