"""Which detections mean the same object: weighted boxes fusion with membership, and its baselines.

Weighted boxes fusion (Solovyev, Wang, Gabruseva, "Weighted boxes fusion", 2021): the detections of a category are taken
in the order of score x weight; each joins the fused box that it overlaps best, if by more than a threshold, and moves
it to the weighted mean of its members; else it founds a cluster. In normalised coordinates the boxes and scores agree,
as sets, with ensemble_boxes 1.0.9 within its float32 rounding. Unlike it this returns who is in which cluster (masks
can follow), takes pixels, neither clips nor normalises, sorts stably, knows zero scores, and raises instead of
printing.

With masks the overlap is measured between a detection's mask and that of the cluster's founder, its best-scored member.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import njit

from pipeline.fusion.crops import Crops
from pipeline.masks import FOREGROUND

Method = Literal["wbf", "nms", "concatenate"]
Confidence = Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"]


@dataclass(frozen=True)
class Clusters:
    """K clusters of N detections, best score first.

    Attributes:
        member: (N,) int64, the cluster of each detection; -1 for one that does not vote (below the skip threshold, or
            without extent).
        vote: (N,) float64, score x weight of its source.
        founder: (K,) int64, the detection that founded each cluster: its highest vote.
        box: (K, 4) float64, in the unit of the given boxes.
        score: (K,) float64.
        category: (K,) int64.
    """

    member: np.ndarray
    vote: np.ndarray
    founder: np.ndarray
    box: np.ndarray
    score: np.ndarray
    category: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


def cluster(
    box: np.ndarray,
    score: np.ndarray,
    category: np.ndarray,
    source: np.ndarray,
    weights: Any,
    *,
    method: Method = "wbf",
    iou: float = 0.55,
    skip: float = 0.0,
    confidence: Confidence = "avg",
    masks: Crops | None = None,
    one_per_source: bool = False,
    absent: np.ndarray | None = None,
) -> Clusters:
    """Cluster the detections of one image.

    Args:
        box: (N, 4) x0, y0, x1, y1, in pixels or normalised.
        score: (N,) in 0..1; `category`: (N,) ints; only detections of one category meet.
        source: (N,) ints, which of the voters each detection is from; -1 for one that does not vote.
        weights: (S,) one weight for every voter that could have voted, whether it did or not: S is what agreement is a
            fraction of.
        method: ``wbf``; ``nms``: the founder keeps its box and score (over the largest weight) and its members are
            suppressed; ``concatenate``: every detection is its own cluster.
        iou: overlap above which (strictly) two detections are one object.
        skip: detections with a raw score below it do not vote.
        confidence: of a WBF cluster with n members of votes v and weights w.
            avg: mean(v) min(S, n) / sum of all weights.
            max: max(v) / largest weight.
            box_and_model_avg: sum(v) / sum(w) x the weights of its distinct voters / sum of all weights.
            absent_model_aware_avg: sum(v) / (sum(w) + the weights of the absent voters).
        masks: the detections' soft masks, where the overlap is to be that of the masks.
        one_per_source: a cluster takes at most one detection of a voter; a second one looks for its next best cluster,
            or founds its own.
        absent: (S,) the score that a voter is taken to give to what it has no detection of; 0 by default. Only with the
            confidence ``avg``, to which it adds the absent voters' weighted scores / sum of all weights.

    Raises:
        ValueError: columns of different lengths, a weight below 0 or none above it, a source without a weight, a
            threshold outside 0..1, or a score or box that is not finite.
    """
    weights = np.asarray(weights, np.float64).reshape(-1)
    box, score = np.asarray(box, np.float64).reshape(-1, 4), np.asarray(score, np.float64)
    category, source = np.asarray(category, np.int64), np.asarray(source, np.int64)
    count = len(box)
    if not (score.shape == category.shape == source.shape == (count,)) or (masks is not None and len(masks) != count):
        raise ValueError(
            f"the columns differ in length: {count} boxes, {score.shape} scores, {category.shape} categories, "
            f"{source.shape} sources" + (f", {len(masks)} masks" if masks is not None else "")
        )
    if not weights.size or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
        raise ValueError(f"weights are numbers of at least 0, one of them above it; they are {weights.tolist()}")
    if count and not -1 <= source.min() <= source.max() < len(weights):
        raise ValueError(f"sources {source.min()}..{source.max()} do not fit {len(weights)} weights")
    if not 0 <= iou < 1:
        raise ValueError(f"the overlap threshold is at least 0 and below 1, not {iou}")
    if not (np.isfinite(score).all() and np.isfinite(box).all()):
        raise ValueError("a score or a box is not a finite number")
    if confidence not in ("avg", "max", "box_and_model_avg", "absent_model_aware_avg"):
        raise ValueError(f"there is no confidence type {confidence!r}")
    if method not in ("wbf", "nms", "concatenate"):
        raise ValueError(f"there is no clustering method {method!r}")
    if absent is not None and (method != "wbf" or confidence != "avg" or np.shape(absent) != weights.shape):
        raise ValueError("scores of absent voters go with WBF, the confidence avg, and one for every weight")

    voting = (source >= 0) & (score >= skip)
    vote = np.where(source >= 0, score * weights[source], 0.0)
    if masks is None:
        voting &= (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        bounds, area = np.zeros((0, 4), np.int64), np.zeros(0, np.int64)
    else:
        bounds, area = masks.foregrounds
        voting &= area > 0
    order = np.flatnonzero(voting)
    order = order[np.lexsort((-vote[order], category[order]))]
    member = np.full(count, -1, np.int64)
    clusters = 0
    changes = np.flatnonzero(np.diff(category[order])) + 1
    for rows in np.split(order, changes) if order.size else []:
        if method == "concatenate":
            assigned, found = np.arange(len(rows)), len(rows)
        elif masks is None:
            assigned, found = _cluster_boxes(
                box, vote, source, rows, iou, method == "wbf", one_per_source, len(weights)
            )
        else:
            assigned, found = _cluster_masks(
                masks.box,
                masks.offset,
                masks.pixels,
                bounds,
                area,
                source,
                rows,
                iou,
                one_per_source,
                len(weights),
                FOREGROUND,
            )
        member[rows] = assigned + clusters
        clusters += found
    return _summarise(box, category, source, weights, vote, member, order, clusters, method, confidence, absent)


def _summarise(  # type: ignore[no-untyped-def]
    box, category, source, weights, vote, member, order, clusters, method, confidence, absent
) -> Clusters:
    """The box and the score of every cluster, and the clusters in the order of their scores."""
    inside = member[order]
    founder = np.zeros(clusters, np.int64)
    founder[inside[::-1]] = order[::-1]  # the first in order stays
    size = np.bincount(inside, minlength=clusters).astype(np.float64)
    total = np.bincount(inside, vote[order], clusters)
    if method == "wbf":
        share = np.where(
            total[inside] > 0, vote[order] / np.where(total[inside] > 0, total[inside], 1), 1 / size[inside]
        )
        fused = np.stack([np.bincount(inside, share * box[order, k], clusters) for k in range(4)], axis=1)
    else:
        fused = box[founder]
    if method != "wbf":
        score = vote[founder] / weights.max()
    elif confidence == "avg":
        score = total / np.maximum(size, 1) * np.minimum(len(weights), size) / weights.sum()
        if absent is not None:
            voters = np.unique(inside * len(weights) + source[order])
            given = np.bincount(voters // len(weights), (weights * absent)[voters % len(weights)], clusters)
            score = score + ((weights * absent).sum() - given) / weights.sum()
    elif confidence == "max":
        score = vote[founder] / weights.max()
    else:
        pairs = np.unique(inside * len(weights) + source[order])
        present = np.bincount(pairs // len(weights), weights[pairs % len(weights)], clusters)
        members_weight = np.bincount(inside, weights[source[order]], clusters)
        if confidence == "box_and_model_avg":
            score = total / np.where(members_weight > 0, members_weight, 1) * present / weights.sum()
        else:
            score = total / (members_weight + weights.sum() - present)
    rank = np.argsort(-score, kind="stable")
    place = np.empty(clusters, np.int64)
    place[rank] = np.arange(clusters)
    member = np.where(member >= 0, place[member] if clusters else -1, -1)
    return Clusters(member, vote, founder[rank], fused[rank], score[rank], category[founder[rank]])


# ---------------------------------------------------------------- kernels ---------------------------------------------
# Candidates are found through square bins, so that the cost follows the crowding and not the number of clusters.


@njit(cache=True)
def _taken(used, k, source):  # type: ignore[no-untyped-def]
    return (used[k, source >> 6] >> np.uint64(source & 63)) & np.uint64(1) != np.uint64(0)


@njit(cache=True)
def _take(used, k, source):  # type: ignore[no-untyped-def]
    used[k, source >> 6] |= np.uint64(1) << np.uint64(source & 63)


@njit(cache=True)
def _cluster_boxes(box, vote, source, rows, threshold, moving, one_per_source, sources):  # type: ignore[no-untyped-def]
    """Clusters of `rows` (in the order of their votes): the cluster of each, and how many there are.

    A fused box lives in the bin of its centre. A box of width w overlaps another by more than t only when the widths
    differ by at most the factor t and the centres by less than w max(1 - t, (1 / t - 1) / 2): those bins are searched.
    """
    n = rows.size
    assigned = np.empty(n, np.int64)
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
    return assigned, count


@njit(cache=True)
def _cluster_masks(  # type: ignore[no-untyped-def]
    box, offset, pixels, bounds, area, source, rows, threshold, one_per_source, sources, foreground
):
    """As `_cluster_boxes`, by the masks' IoU with each cluster's founder. A founder is listed in every bin it reaches."""
    n = rows.size
    assigned, founder = np.empty(n, np.int64), np.empty(n, np.int64)
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
                    x0, x1 = max(bounds[i, 0], bounds[j, 0]), min(bounds[i, 2], bounds[j, 2])
                    y0, y1 = max(bounds[i, 1], bounds[j, 1]), min(bounds[i, 3], bounds[j, 3])
                    common = 0
                    for y in range(y0, y1):
                        p = offset[i] + (y - box[i, 1]) * (box[i, 2] - box[i, 0]) - box[i, 0]
                        q = offset[j] + (y - box[j, 1]) * (box[j, 2] - box[j, 0]) - box[j, 0]
                        for x in range(x0, x1):
                            if pixels[p + x] >= foreground and pixels[q + x] >= foreground:
                                common += 1
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
        if one_per_source:
            _take(used, best, source[i])
        assigned[position] = best
    return assigned, count
