"""The mean best IoU of true objects: SegPC-2021's measure, on any data and at the images' own size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.metrics.overlaps import Groups, Masks, overlaps
from pipeline.metrics.results import Results
from pipeline.records import Dataset, Detections


def best_iou(truth: Dataset, found: Detections | Iterable[Mapping[str, Any]]) -> float | None:
    """The mean, over all true objects but crowds, of the best IoU that any detection of their category has with them.

    An object that nothing meets counts 0; detections too many cost nothing. On images of SegPC-2021's frame it is
    `segpc.best_overlaps`.

    Args:
        found: detections, or COCO results, of the truth's images; scores are not looked at.

    Returns:
        0..1; None where there are no true objects.

    Raises:
        ValueError: a damaged mask.
    """
    wanted = [a for a in truth.instances if not a.crowd]
    if not wanted:
        return None
    results = Results.of(found, {image.id: (image.height, image.width) for image in truth.images})
    groups = Groups.make(
        (results.category_id, results.image_id),
        (np.array([a.category_id for a in wanted], np.int64), np.array([a.image_id for a in wanted], np.int64)),
        results.score,
    )
    pairs = overlaps(results.masks, Masks.pack(a.rle for a in wanted), groups)
    row = np.repeat(np.arange(len(groups.a_rows)), np.diff(pairs.start))
    group = np.searchsorted(groups.a, row, side="right") - 1
    best = np.zeros(len(wanted))
    np.maximum.at(best, groups.b[group] + pairs.other, pairs.iou)
    return float(best.mean())
