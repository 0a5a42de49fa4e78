"""From maps of classes to instances: what semantic segmentation says about single objects."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

Split = Literal["components", "watershed"]

NEIGHBOURS = np.ones((3, 3), int)
"""Pixels that touch at a corner are of one object."""

SEED = 0.6
"""Where watershed begins: pixels further from the outline than this share of the object's innermost pixel."""

_UP, _DOWN, _ALL = slice(None, -1), slice(1, None), slice(None)
STEPS = (
    ((_ALL, _UP), (_ALL, _DOWN)),
    ((_UP, _ALL), (_DOWN, _ALL)),
    ((_UP, _UP), (_DOWN, _DOWN)),
    ((_UP, _DOWN), (_DOWN, _UP)),
)
"""Every pair of neighbours once, as two views of a map."""


def instances(
    probabilities: np.ndarray,
    split: Split = "components",
    threshold: float = 0.5,
    least: int = 16,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pixel is of its most probable class if that is above the threshold; what hangs together in a class is one object.

    Args:
        probabilities: (C, H, W) float, each class against the rest.
        split: ``watershed`` also cuts objects at their waists.
        least: fewer pixels are no object.
        most: only so many objects, those of the best scores, best first.

    Returns:
        masks: (N, H, W) float32, the probability of the object's class inside, which is above the threshold, and 0 outside.
        scores: (N,) float32, mean probability of the object's class inside.
        labels: (N,) int64 in 0..C-1.
    """
    best = probabilities.argmax(axis=0)
    found: list[tuple[float, int, int, tuple[slice, ...], np.ndarray]] = []
    for label, probability in enumerate(probabilities):
        region = (best == label) & (probability > threshold)
        parts, count = ndimage.label(region, NEIGHBOURS)
        if split == "watershed" and count:
            parts = watershed(parts)
        sizes = np.bincount(parts.ravel())
        scores = np.bincount(parts.ravel(), probability.ravel()) / np.maximum(sizes, 1)
        for number, place in enumerate(ndimage.find_objects(parts), 1):
            if sizes[number] >= least:
                found.append((float(scores[number]), label, number, place, parts))
    if most is not None:  # before there is a frame for each
        found = sorted(found, key=lambda one: -one[0])[:most]
    masks = np.zeros((len(found), *best.shape), np.float32)
    for frame, (_, label, number, place, parts) in zip(masks, found, strict=True):
        frame[place] = np.where(parts[place] == number, probabilities[label][place], 0)
    return masks, np.array([one[0] for one in found], np.float32), np.array([one[1] for one in found], np.int64)


def watershed(parts: np.ndarray) -> np.ndarray:
    """Components (H, W), 0 for none, cut further: the distance to the outline is flooded from its summits.

    A summit is a connected set of pixels higher than `SEED` of the component's highest. The flooding is a minimum spanning
    forest with a root in each summit, where a step between two pixels costs the more the lower they are (J. Cousty et al.,
    Watershed Cuts, 2009); so every pixel of a component ends with one of its summits.
    """
    region = parts > 0
    height = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]  # the frame's edge is an outline too
    highest = np.concatenate([[1.0], ndimage.maximum(height, parts, np.arange(1, parts.max() + 1))])
    seeds, count = ndimage.label(region & (height > SEED * highest[parts]), NEIGHBOURS)

    # a node for each pixel, for each summit, and one that holds the summits together while the tree grows
    pixels = int(region.sum())
    node = np.zeros(parts.shape, np.int64)
    node[region] = np.arange(pixels)
    summit, root = pixels + np.arange(count), pixels + count
    first, second, cost = [node[seeds > 0], summit], [summit[seeds[seeds > 0] - 1], np.full(count, root)], []
    cost += [np.full(len(first[0]), 0.5), np.full(count, 0.25)]  # these steps come first: all others cost 1 at least
    for here, there in STEPS:
        both = region[here] & region[there]
        first.append(node[here][both])
        second.append(node[there][both])
        low, high = np.sort([height[here][both], height[there][both]], axis=0)
        cost.append(
            1 + (height.max() - low) + (height.max() - high) / 1000
        )  # along an outline all is equally low: uphill
    edges = (np.concatenate(cost), (np.concatenate(first), np.concatenate(second)))
    tree = csgraph.minimum_spanning_tree(sparse.coo_array(edges, shape=(root + 1, root + 1)).tocsr())
    _, of_node = csgraph.connected_components(tree[:root, :root], directed=False)
    number = np.zeros(count, np.int32)
    number[of_node[summit]] = np.arange(1, count + 1)
    cut = np.zeros(parts.shape, np.int32)
    cut[region] = number[of_node[:pixels]]
    return cut
