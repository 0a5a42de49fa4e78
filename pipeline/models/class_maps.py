"""From maps of classes to instances: what semantic segmentation says about single objects."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

Split = Literal["components", "watershed"]

NEIGHBOURS = np.ones((3, 3), int)
"""Pixels that touch at a corner are of one object."""

SEED = 0.6
"""Where watershed begins: pixels further from the outline than this share of the object's innermost pixel."""


def instances(
    probabilities: np.ndarray, split: Split = "components", threshold: float = 0.5, least: int = 16
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pixel is of its most probable class if that is above the threshold; what hangs together in a class is one object.

    Args:
        probabilities: (C, H, W) float, each class against the rest.
        split: ``watershed`` also cuts objects at their waists.
        least: fewer pixels are no object.

    Returns:
        masks: (N, H, W) bool, without overlap.
        scores: (N,) float32, mean probability of the object's class inside.
        labels: (N,) int64 in 0..C-1.
    """
    best = probabilities.argmax(axis=0)
    masks, scores, labels = [], [], []
    for label, probability in enumerate(probabilities):
        region = (best == label) & (probability > threshold)
        parts, count = ndimage.label(region, NEIGHBOURS)
        if split == "watershed" and count:
            parts = watershed(parts)
        for number in range(1, int(parts.max()) + 1):
            mask = parts == number
            if np.count_nonzero(mask) >= least:
                masks.append(mask)
                scores.append(probability[mask].mean())
                labels.append(label)
    stack = np.stack(masks) if masks else np.zeros((0, *best.shape), bool)
    return stack, np.array(scores, np.float32), np.array(labels, np.int64)


def watershed(parts: np.ndarray) -> np.ndarray:
    """Components (H, W), 0 for none, cut further: the distance to the outline is flooded from its summits.

    A summit is a connected set of pixels higher than `SEED` of the component's highest. Every pixel of a component stays with
    one of its summits.
    """
    framed = np.pad(parts, 1)  # the frame's edge is an outline too
    height = ndimage.distance_transform_edt(framed > 0)[1:-1, 1:-1]
    highest = np.concatenate([[1.0], ndimage.maximum(height, parts, np.arange(1, parts.max() + 1))])
    seeds, _ = ndimage.label((parts > 0) & (height > SEED * highest[parts]), NEIGHBOURS)
    depth = np.round(255 * (1 - height / height.max())).astype(np.uint8)
    markers = np.where(parts > 0, seeds, -1).astype(np.int32)
    flooded = ndimage.watershed_ift(depth, markers, NEIGHBOURS)
    lost = (parts > 0) & (flooded <= 0)  # flooded from outside: they go with their nearest summit
    if lost.any():
        nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
        flooded[lost] = seeds[tuple(nearest)][lost]
    return np.where(parts > 0, flooded, 0)
