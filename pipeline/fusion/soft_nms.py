"""Soft-NMS: overlapping detections lose score instead of being removed.

Bodla, Singh, Chellappa, Davis, "Soft-NMS: improving object detection with one line of code", ICCV 2017.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numba import njit

from pipeline.fusion.kernels import shared_pixels


@njit(cache=True)
def soften(  # type: ignore[no-untyped-def]
    corners,
    by_mask,
    box,
    offset,
    pixels,
    bounds,
    area,
    source,
    vote,
    rows,
    threshold,
    sigma,
    linear,
    floor,
    one_per_source,
    foreground,
):
    """The votes of `rows` after all that stand above them have decayed them; -1 for those that fell to the floor.

    The highest vote stands, and every lower one that overlaps it by o is multiplied by 1 - o where o is above the
    threshold (linear), or by exp(-o o / sigma) (gaussian); then the highest of what is left, and so on.

    Args:
        corners: (N, 4) float64, what overlaps must lie within: the boxes themselves, or the foregrounds' boxes.
        by_mask: overlaps are those of the foregrounds, (N, 4) int64 `bounds` and (N,) int64 `area`, of the crops `box`,
            `offset`, `pixels`; else those of the corners.
        rows: (n,) int64, one category's, by falling vote.
        one_per_source: detections of one source do not decay each other.

    Returns:
        (n,) float64.
    """
    n = rows.size
    low_x, low_y, high_x, high_y, extent = np.inf, np.inf, -np.inf, -np.inf, 0.0
    for i in rows:
        low_x, low_y = min(low_x, corners[i, 0]), min(low_y, corners[i, 1])
        high_x, high_y = max(high_x, corners[i, 2]), max(high_y, corners[i, 3])
        extent += corners[i, 2] - corners[i, 0] + corners[i, 3] - corners[i, 1]
    side = max(extent / (2 * n), (high_x - low_x) / 512, (high_y - low_y) / 512)
    across, down = int((high_x - low_x) / side) + 1, int((high_y - low_y) / side) + 1
    reach = np.empty((n, 4), np.int64)  # the bins that each one lies in, inclusive
    end: np.ndarray = np.zeros(across * down + 1, np.int64)
    for p in range(n):
        i = rows[p]
        reach[p, 0], reach[p, 1] = int((corners[i, 0] - low_x) / side), int((corners[i, 1] - low_y) / side)
        reach[p, 2], reach[p, 3] = int((corners[i, 2] - low_x) / side), int((corners[i, 3] - low_y) / side)
        for by in range(reach[p, 1], reach[p, 3] + 1):
            for bx in range(reach[p, 0], reach[p, 2] + 1):
                end[by * across + bx + 1] += 1
    end = np.cumsum(end)
    listed, filled = np.empty(end[-1], np.int64), end[:-1].copy()
    for p in range(n):
        for by in range(reach[p, 1], reach[p, 3] + 1):
            for bx in range(reach[p, 0], reach[p, 2] + 1):
                listed[filled[by * across + bx]] = p
                filled[by * across + bx] += 1

    now, out = vote[rows], np.full(n, -1.0)
    seen = np.full(n, -1, np.int64)
    heap = [(-now[p], p) for p in range(n)]
    heapq.heapify(heap)
    while len(heap) > 0:
        negative, p = heapq.heappop(heap)
        if -negative > now[p]:  # it has been decayed since: back to where it belongs now
            heapq.heappush(heap, (-now[p], p))
            continue
        if now[p] <= floor:  # all that is left is lower still
            break
        out[p] = now[p]
        i = rows[p]
        for by in range(reach[p, 1], reach[p, 3] + 1):
            for bx in range(reach[p, 0], reach[p, 2] + 1):
                for entry in range(end[by * across + bx], end[by * across + bx + 1]):
                    q = listed[entry]
                    if seen[q] == p or out[q] >= 0:
                        continue
                    seen[q] = p
                    j = rows[q]
                    if one_per_source and source[i] == source[j]:
                        continue
                    if by_mask:
                        common = float(shared_pixels(box, offset, pixels, bounds, i, j, foreground))
                        both = float(area[i] + area[j])
                    else:
                        w = min(corners[i, 2], corners[j, 2]) - max(corners[i, 0], corners[j, 0])
                        h = min(corners[i, 3], corners[j, 3]) - max(corners[i, 1], corners[j, 1])
                        common = max(w, 0.0) * max(h, 0.0)
                        both = (corners[i, 2] - corners[i, 0]) * (corners[i, 3] - corners[i, 1])
                        both += (corners[j, 2] - corners[j, 0]) * (corners[j, 3] - corners[j, 1])
                    overlap = common / (both - common)
                    if linear:
                        now[q] *= 1 - overlap if overlap > threshold else 1.0
                    else:
                        now[q] *= math.exp(-overlap * overlap / sigma)
    return out
