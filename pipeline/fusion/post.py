"""What is done to fused masks last, in this order: fill holes, keep the largest part, drop small ones, remove overlaps.

Everything works on the foreground, the pixels of probability one half or more, and changes as little of the soft mask
as that takes: a filled hole gets the smallest foreground value, a removed pixel the largest background value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from pipeline.experiment import FusionSettings
from pipeline.fusion.crops import Crops, overlaps
from pipeline.masks import FOREGROUND
from pipeline.per_class import of_rows
from pipeline.records import Detections


def drop_duplicates(detections: Detections, share: float) -> Detections:
    """Drop masks that share at least `share` of the smaller mask with a better-scored one of their category.

    Args:
        detections: of one image.
    """
    crops = Crops.of(detections)
    _, area = crops.foregrounds
    rank = np.empty(len(detections), np.int64)
    order = np.argsort(-detections.score, kind="stable")
    rank[order] = np.arange(len(order))
    row, other, common = overlaps(crops, crops)
    rival = (rank[other] < rank[row]) & (detections.category_id[row] == detections.category_id[other])
    rival &= common >= share * np.minimum(area[row], area[other])
    row, other = row[rival], other[rival]
    kept = np.ones(len(detections), bool)
    for i in np.argsort(rank[row], kind="stable"):
        if kept[other[i]]:  # what is dropped itself drops nothing
            kept[row[i]] = False
    return detections.take(kept)


def clean(detections: Detections, settings: FusionSettings) -> Detections:
    """Apply the settings `fill_holes`, `largest_part`, `min_area` and `overlap_removal` to the detections of one image.

    A mask without any foreground is dropped. Overlaps are removed across categories: a pixel that several masks claim
    stays with the best-scored one, or with the one whose probability is larger there (of equal ones the better-scored).
    What that leaves of a mask is dropped too where it is smaller than `min_area`.

    Args:
        detections: (N,) of one image.

    Returns:
        The rows that are left, in their order.
    """
    crops = Crops.of(detections)
    pixels = crops.pixels
    if settings.fill_holes:
        pixels = _fill_holes(crops.box, crops.offset, pixels, FOREGROUND)
    if settings.largest_part:
        pixels = _largest_part(crops.box, crops.offset, pixels, FOREGROUND)
    smallest = np.maximum(of_rows(settings.min_area, detections.category_id), 1)
    kept = Crops(crops.box, crops.offset, pixels).foregrounds[1] >= smallest
    if settings.overlap_removal != "none":
        order = np.argsort(-detections.score, kind="stable")
        by_probability = settings.overlap_removal == "probability"
        pixels = _remove_overlaps(crops.box, crops.offset, pixels, order[kept[order]], by_probability, FOREGROUND)
        kept &= Crops(crops.box, crops.offset, pixels).foregrounds[1] >= smallest
    if pixels is crops.pixels:
        return detections.take(kept)
    columns: dict[str, Any] = Crops(crops.box, crops.offset, pixels).columns()
    return replace(detections, **columns).take(kept)


@njit(cache=True)
def _fill_holes(box, offset, pixels, foreground):  # type: ignore[no-untyped-def]
    """Background that the crop's edge cannot reach through sides of background pixels becomes foreground."""
    out = pixels.copy()
    for i in range(box.shape[0]):
        base, width, height = offset[i], box[i, 2] - box[i, 0], box[i, 3] - box[i, 1]
        outside = np.zeros(width * height, np.bool_)
        stack = np.empty(width * height, np.int64)
        size = 0
        for p in range(width * height):
            y, x = p // width, p % width
            edge = x == 0 or y == 0 or x == width - 1 or y == height - 1
            if edge and pixels[base + p] < foreground:
                outside[p] = True
                stack[size] = p
                size += 1
        while size > 0:
            size -= 1
            p = stack[size]
            y, x = p // width, p % width
            for step in range(4):
                v, u = y + (step == 0) - (step == 1), x + (step == 2) - (step == 3)
                q = v * width + u
                if 0 <= v < height and 0 <= u < width and not outside[q] and pixels[base + q] < foreground:
                    outside[q] = True
                    stack[size] = q
                    size += 1
        for p in range(width * height):
            if not outside[p] and pixels[base + p] < foreground:
                out[base + p] = foreground
    return out


@njit(cache=True)
def _largest_part(box, offset, pixels, foreground):  # type: ignore[no-untyped-def]
    """Of the parts of the foreground that hang together, corners included, the largest stays (of equal ones the first)."""
    out = pixels.copy()
    for i in range(box.shape[0]):
        base, width, height = offset[i], box[i, 2] - box[i, 0], box[i, 3] - box[i, 1]
        part = np.zeros(width * height, np.int64)
        stack = np.empty(width * height, np.int64)
        parts, best, best_size = 0, 0, 0
        for start in range(width * height):
            if pixels[base + start] < foreground or part[start] > 0:
                continue
            parts += 1
            part[start], stack[0] = parts, start
            size, area = 1, 0
            while size > 0:
                size -= 1
                p = stack[size]
                area += 1
                y, x = p // width, p % width
                for v in range(max(y - 1, 0), min(y + 2, height)):
                    for u in range(max(x - 1, 0), min(x + 2, width)):
                        q = v * width + u
                        if part[q] == 0 and pixels[base + q] >= foreground:
                            part[q] = parts
                            stack[size] = q
                            size += 1
            if area > best_size:
                best, best_size = parts, area
        if parts > 1:
            for p in range(width * height):
                if part[p] > 0 and part[p] != best:
                    out[base + p] = foreground - 1
    return out


@njit(cache=True)
def _remove_overlaps(box, offset, pixels, order, by_probability, foreground):  # type: ignore[no-untyped-def]
    """Masks in `order` claim their pixels: the first keeps a pixel, or the first of those with the largest value there."""
    out = pixels.copy()
    x0, y0, x1, y1 = 0, 0, 0, 0
    for n in range(order.size):
        i = order[n]
        if n == 0:
            x0, y0, x1, y1 = box[i, 0], box[i, 1], box[i, 2], box[i, 3]
        x0, y0 = min(x0, box[i, 0]), min(y0, box[i, 1])
        x1, y1 = max(x1, box[i, 2]), max(y1, box[i, 3])
    owner = np.full((y1 - y0, x1 - x0), -1, np.int32)
    best = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for i in order:
        p = offset[i]
        for y in range(box[i, 1] - y0, box[i, 3] - y0):
            for x in range(box[i, 0] - x0, box[i, 2] - x0):
                free = owner[y, x] < 0 or (by_probability and pixels[p] > best[y, x])
                if pixels[p] >= foreground and free:
                    owner[y, x], best[y, x] = i, pixels[p]
                p += 1
    for i in order:
        p = offset[i]
        for y in range(box[i, 1] - y0, box[i, 3] - y0):
            for x in range(box[i, 0] - x0, box[i, 2] - x0):
                if out[p] >= foreground and owner[y, x] != i:
                    out[p] = foreground - 1
                p += 1
    return out
