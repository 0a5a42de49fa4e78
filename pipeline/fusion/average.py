"""The soft masks of a cluster's members as one soft mask."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.fusion.crops import Crops


def average(crops: Crops, member: np.ndarray, weight: np.ndarray, clusters: int) -> Crops:
    """Average the members' probabilities pixel by pixel in image coordinates.

    A member counts as 0 where its own crop does not reach, so the result lives on the union of the members' supports;
    it is neither stretched to the fused box nor clipped by it. Its crop is cut to the pixels that are not 0.

    Args:
        crops: N soft masks.
        member: (N,) int64, the cluster of each, 0 <= member < `clusters`; -1 for none.
        weight: (N,) at least 0. A cluster whose weights are all 0 takes the plain mean.

    Returns:
        One crop per cluster; an empty one for a cluster without any mask.
    """
    weight = np.asarray(weight, np.float64)
    voting = member >= 0
    total = np.bincount(member[voting], weight[voting], clusters)
    size = np.bincount(member[voting], minlength=clusters)
    share = np.zeros(len(member), np.float32)
    mine = member[voting]
    share[voting] = np.where(
        total[mine] > 0, weight[voting] / np.where(total[mine] > 0, total[mine], 1), 1 / size[mine]
    )
    return Crops(*_average(crops.box, crops.offset, crops.pixels, member, share, clusters))


@njit(cache=True)
def _average(box, offset, pixels, member, share, clusters):  # type: ignore[no-untyped-def]
    union = np.zeros((clusters, 4), np.int64)
    for i in range(member.size):
        k = member[i]
        if k < 0 or offset[i + 1] == offset[i]:
            continue
        if union[k, 2] == union[k, 0]:
            for c in range(4):
                union[k, c] = box[i, c]
        else:
            union[k, 0], union[k, 1] = min(union[k, 0], box[i, 0]), min(union[k, 1], box[i, 1])
            union[k, 2], union[k, 3] = max(union[k, 2], box[i, 2]), max(union[k, 3], box[i, 3])
    start = np.zeros(clusters + 1, np.int64)
    for k in range(clusters):
        start[k + 1] = start[k] + (union[k, 2] - union[k, 0]) * (union[k, 3] - union[k, 1])
    total = np.zeros(start[clusters], np.float32)
    for i in range(member.size):
        k = member[i]
        if k < 0 or share[i] == 0:
            continue
        width, p = union[k, 2] - union[k, 0], offset[i]
        for y in range(box[i, 1], box[i, 3]):
            q = start[k] + (y - union[k, 1]) * width + box[i, 0] - union[k, 0]
            for x in range(box[i, 2] - box[i, 0]):
                total[q + x] += share[i] * pixels[p]
                p += 1

    # cut to what is not 0
    tight, end = np.zeros((clusters, 4), np.int64), np.zeros(clusters + 1, np.int64)
    for k in range(clusters):
        x0, y0, x1, y1 = union[k, 2], union[k, 3], union[k, 0], union[k, 1]
        q = start[k]
        for y in range(union[k, 1], union[k, 3]):
            for x in range(union[k, 0], union[k, 2]):
                if total[q] >= np.float32(0.4999):
                    x0, x1 = min(x0, x), max(x1, x + 1)
                    y0, y1 = min(y0, y), max(y1, y + 1)
                q += 1
        if x1 > x0:
            tight[k, 0], tight[k, 1], tight[k, 2], tight[k, 3] = x0, y0, x1, y1
        end[k + 1] = end[k] + (tight[k, 2] - tight[k, 0]) * (tight[k, 3] - tight[k, 1])
    out = np.empty(end[clusters], np.uint8)
    p = 0
    for k in range(clusters):
        width = union[k, 2] - union[k, 0]
        for y in range(tight[k, 1], tight[k, 3]):
            q = start[k] + (y - union[k, 1]) * width - union[k, 0]
            for x in range(tight[k, 0], tight[k, 2]):
                # the shares' sum may fall short of one by a rounding: a half must stay a half
                out[p] = np.uint8(min(total[q + x] + np.float32(0.5001), np.float32(255)))
                p += 1
    return tight, end, out
