"""The loops of clustering: each detection joins the cluster that it overlaps best, or founds one.

Candidates are found through square bins, so that the cost follows the crowding and not the number of clusters.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True)
def _taken(used, k, source):  # type: ignore[no-untyped-def]
    return (used[k, source >> 6] >> np.uint64(source & 63)) & np.uint64(1) != np.uint64(0)


@njit(cache=True)
def _take(used, k, source):  # type: ignore[no-untyped-def]
    used[k, source >> 6] |= np.uint64(1) << np.uint64(source & 63)


@njit(cache=True)
def shared_pixels(box, offset, pixels, bounds, i, j, foreground):  # type: ignore[no-untyped-def]
    """The number of pixels that the foregrounds of crops i and j share; `bounds` are the foregrounds' own boxes."""
    x0, x1 = max(bounds[i, 0], bounds[j, 0]), min(bounds[i, 2], bounds[j, 2])
    y0, y1 = max(bounds[i, 1], bounds[j, 1]), min(bounds[i, 3], bounds[j, 3])
    common = 0
    for y in range(y0, y1):
        p = offset[i] + (y - box[i, 1]) * (box[i, 2] - box[i, 0]) - box[i, 0]
        q = offset[j] + (y - box[j, 1]) * (box[j, 2] - box[j, 0]) - box[j, 0]
        for x in range(x0, x1):
            common += pixels[p + x] >= foreground and pixels[q + x] >= foreground
    return common


@njit(cache=True)
def cluster_boxes(box, vote, source, rows, threshold, moving, one_per_source, sources):  # type: ignore[no-untyped-def]
    """Clusters of `rows` (in the order of their votes): the cluster of each, how many there are, and each one's overlap
    with the cluster as it joined, 1 for a founder. `moving` lets a cluster's box follow the mean of its members.

    A fused box lives in the bin of its centre. A box of width w overlaps another by more than t only when the widths
    differ by at most the factor t and the centres by less than w max(1 - t, (1 / t - 1) / 2): those bins are searched.
    """
    n = rows.size
    assigned, joined = np.empty(n, np.int64), np.ones(n)
    fused, weight = np.empty((n, 4)), np.zeros(n)
    used = np.zeros((n if one_per_source else 1, (sources + 63) // 64), np.uint64)

    low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
    for i in rows:
        cx, cy = (box[i, 0] + box[i, 2]) / 2, (box[i, 1] + box[i, 3]) / 2
        low_x, high_x = min(low_x, cx), max(high_x, cx)
        low_y, high_y = min(low_y, cy), max(high_y, cy)
    side = min(max(int(math.sqrt(n)), 1), 512)
    per_x = side / (high_x - low_x) if high_x > low_x else 0.0
    per_y = side / (high_y - low_y) if high_y > low_y else 0.0
    head = np.full((side, side), -1, np.int64)
    after, before = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    home = np.empty((n, 2), np.int64)
    reach = max(1 - threshold, (1 / threshold - 1) / 2) if threshold > 0 else np.inf

    count = 0
    for position in range(n):
        i = rows[position]
        x0, y0, x1, y1 = box[i, 0], box[i, 1], box[i, 2], box[i, 3]
        w, h = x1 - x0, y1 - y0
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        rx, ry = w * reach * (1 + 1e-9), h * reach * (1 + 1e-9)
        bx0, bx1, by0, by1 = 0, side - 1, 0, side - 1
        if reach < np.inf:
            bx0 = min(max(int(math.floor((cx - rx - low_x) * per_x)), 0), side - 1)
            bx1 = max(min(int(math.floor((cx + rx - low_x) * per_x)), side - 1), 0)
            by0 = min(max(int(math.floor((cy - ry - low_y) * per_y)), 0), side - 1)
            by1 = max(min(int(math.floor((cy + ry - low_y) * per_y)), side - 1), 0)
        best, best_iou = -1, threshold
        for by in range(by0, by1 + 1):
            for bx in range(bx0, bx1 + 1):
                k = head[by, bx]
                while k >= 0:
                    ix = min(x1, fused[k, 2]) - max(x0, fused[k, 0])
                    iy = min(y1, fused[k, 3]) - max(y0, fused[k, 1])
                    if ix > 0 and iy > 0:
                        common = ix * iy
                        size = (fused[k, 2] - fused[k, 0]) * (fused[k, 3] - fused[k, 1])
                        overlap = common / (w * h + size - common)
                        better = overlap > best_iou or (overlap == best_iou and best >= 0 and k < best)
                        if better and not (one_per_source and _taken(used, k, source[i])):
                            best, best_iou = k, overlap
                    k = after[k]
        v = vote[i]
        if best < 0:
            best = count
            count += 1
            fused[best, 0], fused[best, 1], fused[best, 2], fused[best, 3] = x0, y0, x1, y1
            weight[best] = v
        else:
            joined[position] = best_iou
            if moving and v > 0:
                weight[best] += v
                share = v / weight[best]
                for c in range(4):
                    fused[best, c] += share * (box[i, c] - fused[best, c])
            a, b = before[best], after[best]  # out of its bin, to come back into the one it has moved to
            if a >= 0:
                after[a] = b
            else:
                head[home[best, 0], home[best, 1]] = b
            if b >= 0:
                before[b] = a
        bx = min(max(int(((fused[best, 0] + fused[best, 2]) / 2 - low_x) * per_x), 0), side - 1)
        by = min(max(int(((fused[best, 1] + fused[best, 3]) / 2 - low_y) * per_y), 0), side - 1)
        first = head[by, bx]
        home[best, 0], home[best, 1] = by, bx
        before[best], after[best] = -1, first
        if first >= 0:
            before[first] = best
        head[by, bx] = best
        if one_per_source:
            _take(used, best, source[i])
        assigned[position] = best
    return assigned, count, joined


@njit(cache=True)
def cluster_masks(  # type: ignore[no-untyped-def]
    box, offset, pixels, bounds, area, source, rows, threshold, one_per_source, sources, foreground
):
    """As `cluster_boxes`, by the masks' IoU with each cluster's founder. A founder is listed in every bin it reaches."""
    n = rows.size
    assigned, founder, joined = np.empty(n, np.int64), np.empty(n, np.int64), np.ones(n)
    used = np.zeros((n if one_per_source else 1, (sources + 63) // 64), np.uint64)
    low_x, low_y, high_x, high_y = bounds[rows[0], 0], bounds[rows[0], 1], bounds[rows[0], 2], bounds[rows[0], 3]
    extent = 0
    for i in rows:
        low_x, low_y = min(low_x, bounds[i, 0]), min(low_y, bounds[i, 1])
        high_x, high_y = max(high_x, bounds[i, 2]), max(high_y, bounds[i, 3])
        extent += bounds[i, 2] - bounds[i, 0] + bounds[i, 3] - bounds[i, 1]
    bin_side = max(extent // (2 * n), (high_x - low_x) // 512, (high_y - low_y) // 512, 1)
    across, down = (high_x - low_x) // bin_side + 1, (high_y - low_y) // bin_side + 1
    head = np.full((down, across), -1, np.int64)
    listed, after = np.empty(4 * n, np.int64), np.empty(4 * n, np.int64)
    entries = 0
    seen = np.full(n, -1, np.int64)

    count = 0
    for position in range(n):
        i = rows[position]
        bx0, bx1 = (bounds[i, 0] - low_x) // bin_side, (bounds[i, 2] - 1 - low_x) // bin_side
        by0, by1 = (bounds[i, 1] - low_y) // bin_side, (bounds[i, 3] - 1 - low_y) // bin_side
        best, best_iou = -1, threshold
        for by in range(by0, by1 + 1):
            for bx in range(bx0, bx1 + 1):
                entry = head[by, bx]
                while entry >= 0:
                    k = listed[entry]
                    entry = after[entry]
                    if seen[k] == position:
                        continue
                    seen[k] = position
                    j = founder[k]
                    if min(area[i], area[j]) < best_iou * max(area[i], area[j]):  # their IoU cannot be better
                        continue
                    if one_per_source and _taken(used, k, source[i]):
                        continue
                    common = shared_pixels(box, offset, pixels, bounds, i, j, foreground)
                    overlap = common / (area[i] + area[j] - common)
                    if overlap > best_iou or (overlap == best_iou and best >= 0 and k < best):
                        best, best_iou = k, overlap
        if best < 0:
            best = count
            founder[count] = i
            count += 1
            for by in range(by0, by1 + 1):
                for bx in range(bx0, bx1 + 1):
                    if entries == listed.size:
                        listed = np.append(listed, np.empty(listed.size, np.int64))
                        after = np.append(after, np.empty(after.size, np.int64))
                    listed[entries], after[entries] = best, head[by, bx]
                    head[by, bx] = entries
                    entries += 1
        else:
            joined[position] = best_iou
        if one_per_source:
            _take(used, best, source[i])
        assigned[position] = best
    return assigned, count, joined
