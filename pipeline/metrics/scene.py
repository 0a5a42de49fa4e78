"""Detections seen as maps of a whole scene: pixel accuracy, class IoU and panoptic quality beside average precision."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.metrics.panoptic import Panoptic, paint
from pipeline.metrics.semantic import Confusion
from pipeline.records import Dataset, Image, Instance

log = logging.getLogger("pipeline.metrics")

VOID = 255
"""In maps made here: the truth is not known."""


def read_map(path: Path, size: Sequence[int]) -> np.ndarray:
    """A label map, (H, W) uint8.

    Raises:
        ValueError: it cannot be read, is no 8-bit map of one channel, or has another size.
    """
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path} is missing or not an image; run `prepare` again")
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or pixels.shape != tuple(size):
        raise ValueError(f"{path} is {pixels.dtype} {pixels.shape}, not an 8-bit label map of {tuple(size)}")
    return np.asarray(pixels)


def measure(truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Paint each image's detections side by side (see `panoptic.paint`) and compare that with the truth.

    The truth is the image's label map; where it has none, or its file is not at hand, the true instances are painted. A
    detection can say only what is a category: the other semantic classes (road and sky, or the background) count as one,
    ``rest``, which is predicted wherever no detection is painted. Where they are one class, it keeps its name. Panoptic
    quality is over the categories alone.

    Returns:
        ``{"pixel_accuracy", "miou", "pq", "sq", "rq", "iou_classes": {name: IoU or None}, "pq_classes": {name: PQ}}``.

    Raises:
        ValueError: a damaged mask or map; a record of an image that the truth does not have.
    """
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["image_id"] not in truth.image:
            raise ValueError(f"the results speak of an image id that the truth does not have: {record['image_id']}")
        if record["category_id"] in truth.categories:
            found[record["image_id"]].append(record)
    rest = [value for value in truth.semantic_classes if value not in truth.categories]
    other = rest[0] if rest else 0
    if other in truth.categories or not all(0 <= c < VOID for c in truth.categories):
        raise ValueError(f"categories must lie within 1..{VOID - 1}, to stand in a map: {sorted(truth.categories)}")
    known = set(truth.semantic_classes) | set(truth.categories) | {other}
    merged = np.array([v if v in truth.categories else other if v in known else VOID for v in range(256)], np.uint8)
    confusion, panoptic = Confusion([other, *truth.categories]), Panoptic()
    for image in truth.images:
        size = (image.height, image.width)
        instances = [a for a in truth.by_image[image.id] if a.category_id in truth.categories]
        segments, categories, crowds = _painted(size, instances)
        classes = _true_classes(truth, image, segments, categories, other, merged)
        painted, painted_categories = paint(size, found[image.id])
        lookup = np.full(len(painted_categories) + 1, other, np.uint8)
        for number, category in painted_categories.items():
            lookup[number] = category
        confusion.add(classes, lookup[painted])
        void = (classes == VOID) & (segments == 0)
        panoptic.add(segments, categories, painted, painted_categories, crowds, void)
    quality = panoptic.mean()
    names = {**truth.categories, other: truth.semantic_classes.get(other, "rest") if len(rest) < 2 else "rest"}
    return {
        "pixel_accuracy": confusion.pixel_accuracy,
        "miou": confusion.mean_iou,
        "pq": None if quality is None else quality.pq,
        "sq": None if quality is None else quality.sq,
        "rq": None if quality is None else quality.rq,
        "iou_classes": {names[c]: value for c, value in confusion.iou().items()},
        "pq_classes": {names[c]: q.pq for c, q in panoptic.classes().items()},
    }


def _painted(size: Sequence[int], instances: Sequence[Instance]) -> tuple[np.ndarray, dict[int, int], frozenset[int]]:
    """True instances as a segment map (H, W) int32, their categories and which are crowds; crowds lie below."""
    segments = np.zeros((int(size[0]), int(size[1])), np.int32)
    ordered = sorted(instances, key=lambda a: not a.crowd)
    for number, instance in enumerate(ordered, start=1):
        (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
        segments[y0:y1, x0:x1][mask > 0] = number
    categories = {number: a.category_id for number, a in enumerate(ordered, start=1)}
    return segments, categories, frozenset(n for n, a in enumerate(ordered, start=1) if a.crowd)


def _true_classes(
    truth: Dataset, image: Image, segments: np.ndarray, categories: Mapping[int, int], other: int, merged: np.ndarray
) -> np.ndarray:
    """(H, W) uint8: categories, `other` for the classes that are none, `VOID`."""
    if image.semantic:
        path = truth.root / image.semantic
        if path.exists():
            return np.asarray(merged[read_map(path, segments.shape)])
        log.warning("there is no label map %s; its image's true instances are painted instead", path)
    lookup = np.full(len(categories) + 1, other, np.uint8)
    for number, category in categories.items():
        lookup[number] = category
    return np.asarray(lookup[segments])
