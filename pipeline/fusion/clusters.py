"""Which detections mean the same object: weighted boxes fusion with membership, and its alternatives.

Weighted boxes fusion (Solovyev, Wang, Gabruseva, "Weighted boxes fusion", 2021): the detections of a category are taken
in the order of score x weight; each joins the fused box that it overlaps best, if by more than a threshold, and moves
it to the weighted mean of its members; else it founds a cluster. In normalised coordinates the boxes and scores agree,
as sets, with ensemble_boxes 1.0.9 within its float32 rounding. Unlike it this returns who is in which cluster (masks
can follow), takes pixels, neither clips nor normalises, sorts stably, knows zero scores, and raises instead of
printing.

With masks the overlap is measured between a detection's mask and that of the cluster's founder, its best-scored member.

The alternatives: non-maximum suppression; Soft-NMS (soft_nms.py); non-maximum weighted (Zhou and others, "CAD: scale
invariant framework for real-time object detection", ICCV workshops 2017). They agree with ensemble_boxes 1.0.9 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pipeline.fusion.crops import Crops
from pipeline.fusion.kernels import cluster_boxes, cluster_masks
from pipeline.fusion.soft_nms import soften
from pipeline.masks import FOREGROUND

Method = Literal["wbf", "nmw", "nms", "soft-nms-linear", "soft-nms-gaussian", "concatenate"]
Confidence = Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"]
ByCategory = float | Mapping[int, float]
"""A number for all, or one by category id for every category that occurs."""


@dataclass(frozen=True)
class Clusters:
    """K clusters of N detections, best score first.

    Attributes:
        member: (N,) int64, the cluster of each detection; -1 for one that does not vote (below the skip threshold, or
            without extent) or that Soft-NMS dropped.
        share: (N,) float64, what a member counts for in its cluster's box and mask beside its vote: 1 with WBF, its
            overlap with the founder with NMW, else 1 for the founder and 0 for what it suppressed.
        vote: (N,) float64, score x weight of its source.
        founder: (K,) int64, the detection that founded each cluster: its highest vote.
        box: (K, 4) float64, in the unit of the given boxes.
        score: (K,) float64.
        category: (K,) int64.
    """

    member: np.ndarray
    share: np.ndarray
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
    iou: ByCategory = 0.55,
    skip: ByCategory = 0.0,
    confidence: Confidence = "avg",
    sigma: float = 0.5,
    floor: float = 0.001,
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
        method: ``wbf``; all others score a cluster by its founder's vote over the largest weight.
            nmw: the founder stays where it is while others join it; its box is the mean of the members' weighted by
            vote x overlap with the founder.
            nms: the founder keeps its box, and its members are suppressed.
            soft-nms-linear, soft-nms-gaussian: every detection is its own cluster, and its vote is decayed by those above
            it that it overlaps.
            concatenate: every detection is its own cluster; no overlap is measured.
        iou: overlap above which (strictly) two detections are one object; soft-nms-gaussian has no such threshold.
        skip: detections with a raw score below it do not vote.
        confidence: of a WBF cluster with n members of votes v and weights w.
            avg: mean(v) min(S, n) / sum of all weights.
            max: max(v) / largest weight.
            box_and_model_avg: sum(v) / sum(w) x the weights of its distinct voters / sum of all weights.
            absent_model_aware_avg: sum(v) / (sum(w) + the weights of the absent voters).
        sigma: of soft-nms-gaussian: an overlap o leaves exp(-o o / sigma) of a vote.
        floor: Soft-NMS drops what has decayed to this score or below.
        masks: the detections' soft masks, where the overlap is to be that of the masks.
        one_per_source: a cluster takes at most one detection of a voter; a second one looks for its next best cluster,
            or founds its own. Soft-NMS: detections of one voter do not decay each other.
        absent: (S,) the score that a voter is taken to give to what it has no detection of; 0 by default. Only with the
            confidence ``avg``, to which it adds the absent voters' weighted scores / sum of all weights.

    Raises:
        ValueError: columns of different lengths, a weight below 0 or none above it, a source without a weight, a
            threshold outside 0..1 or none for a category, or a score or box that is not finite.
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
    for value in iou.values() if isinstance(iou, Mapping) else (iou,):
        if not 0 <= value < 1:
            raise ValueError(f"the overlap threshold is at least 0 and below 1, not {value}")
    if not (sigma > 0 and floor >= 0):
        raise ValueError(f"sigma is above 0 and the floor at least 0, not {sigma} and {floor}")
    if not (np.isfinite(score).all() and np.isfinite(box).all()):
        raise ValueError("a score or a box is not a finite number")
    if confidence not in get_args(Confidence):
        raise ValueError(f"there is no confidence type {confidence!r}")
    if method not in get_args(Method):
        raise ValueError(f"there is no clustering method {method!r}")
    if absent is not None and (method != "wbf" or confidence != "avg" or np.shape(absent) != weights.shape):
        raise ValueError("scores of absent voters go with WBF, the confidence avg, and one for every weight")

    voting = (source >= 0) & (score >= _for_rows(skip, category))
    vote = np.where(source >= 0, score * weights[source], 0.0)
    if masks is None:
        voting &= (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        where, bounds, area = Crops.none(), np.zeros((0, 4), np.int64), np.zeros(0, np.int64)
        corners = box
    else:
        where = masks
        bounds, area = masks.foregrounds
        voting &= area > 0
        corners = bounds.astype(np.float64) if method.startswith("soft") else box
    order = np.flatnonzero(voting)
    order = order[np.lexsort((-vote[order], category[order]))]
    member, share = np.full(count, -1, np.int64), np.zeros(count)
    standing = vote  # what the vote of a cluster's founder counts
    clusters = 0
    changes = np.flatnonzero(np.diff(category[order])) + 1
    for rows in np.split(order, changes) if order.size else []:
        kind = int(category[rows[0]])
        if isinstance(iou, Mapping) and kind not in iou:
            raise ValueError(f"there is no threshold for the category {kind}; there are {dict(iou)}")
        threshold = iou[kind] if isinstance(iou, Mapping) else iou
        if method == "concatenate":
            member[rows], share[rows] = clusters + np.arange(len(rows)), 1.0
            clusters += len(rows)
            continue
        if method.startswith("soft"):
            left = soften(
                corners, masks is not None, where.box, where.offset, where.pixels, bounds, area, source, vote, rows,
                float(threshold), float(sigma), method == "soft-nms-linear", float(floor * weights.max()),
                one_per_source, FOREGROUND,
            )  # fmt: skip
            rows, left = rows[left >= 0], left[left >= 0]
            standing = standing.copy() if standing is vote else standing
            standing[rows], member[rows], share[rows] = left, clusters + np.arange(len(rows)), 1.0
            clusters += len(rows)
            continue
        if masks is None:
            assigned, found, joined = cluster_boxes(
                box, vote, source, rows, float(threshold), method == "wbf", one_per_source, len(weights)
            )
        else:
            assigned, found, joined = cluster_masks(
                where.box, where.offset, where.pixels, bounds, area, source, rows, float(threshold), one_per_source,
                len(weights), FOREGROUND,
            )  # fmt: skip
        member[rows], share[rows] = clusters + assigned, joined if method == "nmw" else 1.0
        clusters += found
    order = order[member[order] >= 0]
    return _summarise(
        box, category, source, weights, vote, standing, member, share, order, clusters, method, confidence, absent
    )


def _for_rows(setting: ByCategory, category: np.ndarray) -> Any:
    """The setting of every row: the number itself, or (N,) float64.

    Raises:
        ValueError: a category that occurs has none.
    """
    if not isinstance(setting, Mapping):
        return setting
    kinds, index = np.unique(category, return_inverse=True)
    missing = [int(k) for k in kinds if int(k) not in setting]
    if missing:
        raise ValueError(f"there is no threshold for the categories {missing}; there are {dict(setting)}")
    return np.array([setting[int(k)] for k in kinds])[index] if kinds.size else 0.0


def _summarise(  # type: ignore[no-untyped-def]
    box, category, source, weights, vote, standing, member, share, order, clusters, method, confidence, absent
) -> Clusters:
    """The box and the score of every cluster, and the clusters in the order of their scores."""
    inside = member[order]
    founder = np.zeros(clusters, np.int64)
    founder[inside[::-1]] = order[::-1]  # the first in order stays
    size = np.bincount(inside, minlength=clusters).astype(np.float64)
    if method in ("wbf", "nmw"):
        weight = vote[order] * share[order]
        sums = np.bincount(inside, weight, clusters)[inside]
        part = np.where(sums > 0, weight / np.where(sums > 0, sums, 1), 1 / size[inside])
        fused = np.stack([np.bincount(inside, part * box[order, k], clusters) for k in range(4)], axis=1)
    else:
        fused = box[founder]
        if method == "nms":
            share = np.zeros(len(member))
            share[founder] = 1.0
    total = np.bincount(inside, vote[order], clusters)
    if method != "wbf":
        score = standing[founder] / weights.max()
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
    return Clusters(member, share, vote, founder[rank], fused[rank], score[rank], category[founder[rank]])
