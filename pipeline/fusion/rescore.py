"""How sure a fused mask is.

Three ways: the cluster's score as it is; times the mean probability inside the mask (Sartorius 2021, first place); or
learned, the probability that the mask is true: that it overlaps a truth by IoU 0.5 or more and is the first to do so.

What is learned is how well the mask overlaps, from how the voters agreed, how the mask looks, what is around it, and where
it stands in all this among the image's masks: images differ more than masks do, and such ranks carry over. Boosted and
randomised trees are averaged, and one logistic curve for all turns the expected overlap into a probability, because average
precision pools all images. On nuclei, with whole images left out, regressing the overlap ranked better than classifying the
truth, and the ranks gained as much as the learning itself.

It is trained on out-of-fold predictions and cross-fitted: the probabilities of a fold come from a model that saw none of
the fold's images. No model is stored. The training table is, as Parquet, and the fit, which takes seconds and is
deterministic, is repeated when it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from pipeline.files import writing
from pipeline.fusion.clusters import Clusters
from pipeline.fusion.crops import Crops, overlaps
from pipeline.fusion.shape import shapes
from pipeline.masks import FOREGROUND

RANKED = (
    "score", "mean score", "best score", "mask agreement", "worst mask agreement", "box agreement", "inside", "unsure",
    "log area", "solidity", "roughness", "nearest", "neighbours",
)  # fmt: skip
"""Features that also come as ``rank of …``: the fraction of the image's masks that are not above this one."""

RISING = ("score", "mean score", "best score", "voters", "models", "mask agreement", "worst mask agreement",
          "box agreement", "inside", "solidity")  # fmt: skip
FALLING = ("unsure", "covered")
"""Features that can only speak for a mask as they rise, or as they fall: the boosted trees are held to it."""

MOST_ROWS = 20_000
"""A rescorer is trained on so many rows at most, drawn at random: more change little and cost much."""

NEIGHBOURHOOD = 3.0
"""Radius, in median diameters of the image's objects, within which others count as neighbours."""


# ---------------------------------------------------------------- features --------------------------------------------


@dataclass(frozen=True)
class Features:
    """(K, F) float32 `values` of K fused masks, NaN where a feature has no meaning, and the F `names` of the columns."""

    names: tuple[str, ...]
    values: np.ndarray

    @staticmethod
    def concatenate(parts: Sequence[Features]) -> Features:
        """Rows of several; a column that one part lacks is NaN there."""
        names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        return Features(names, np.concatenate([part.columns(names) for part in parts]) if parts else np.zeros((0, 0)))

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """(K, len(names)) float32, the columns of these names; NaN for one that is not here."""
        index = {name: i for i, name in enumerate(self.names)}
        out = np.full((len(self.values), len(names)), np.nan, np.float32)
        for i, name in enumerate(names):
            if name in index:
                out[:, i] = self.values[:, index[name]]
        return out

    def take(self, rows: np.ndarray) -> Features:
        return Features(self.names, self.values[rows])


def features(
    clusters: Clusters,
    score: np.ndarray,
    source: np.ndarray,
    members: Crops,
    fused: Crops,
    models: Sequence[str],
    size: tuple[int, int],
) -> Features:
    """Describe the fused masks of one image.

    Args:
        clusters: K clusters of N detections, best first.
        score: (N,) raw scores; `source`: (N,) index of each detection's voter.
        members: the N detections' masks; `fused`: the K clusters' masks.
        models: of every voter that could have voted, its model; names repeat.
        size: (height, width) of the image.
    """
    count, voting = len(clusters), clusters.member >= 0
    member, raw, voter = clusters.member[voting], score[voting].astype(np.float64), source[voting]
    names = list(dict.fromkeys(models))
    model = np.array([names.index(m) for m in models], np.int64)
    per_model = np.bincount(model, minlength=len(names))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(member, values, count) / np.maximum(members_of, 1)

    members_of = np.bincount(member, minlength=count)
    average = mean(raw)
    best = np.zeros(count)
    np.maximum.at(best, member, raw)
    pairs = np.unique(member * len(models) + voter)
    voters = np.bincount(pairs // len(models), minlength=count)
    model_pairs = np.unique(member * len(names) + model[voter])
    overlap = _overlap_with_fused(
        members.box, members.offset, members.pixels, clusters.member, fused.box, fused.offset, fused.pixels, FOREGROUND
    )[voting]
    worst = np.ones(count)
    np.minimum.at(worst, member, overlap)

    look = shapes(fused)
    area = np.maximum(look.area, 1)
    bounds = look.bounds
    sides = np.stack([bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]], axis=1)
    sure = clusters.score >= 0.5
    typical = float(np.median(look.area[sure] if sure.any() else look.area)) if count else 1.0
    diameter = 2 * np.sqrt(max(typical, 1.0) / np.pi)
    nearest, neighbours = _surroundings(look.x, look.y, clusters.score, NEIGHBOURHOOD * diameter)
    covered, covering = _covered(fused, look.area)
    height, width = size
    at_border = (bounds[:, 0] == 0) | (bounds[:, 1] == 0) | (bounds[:, 2] == width) | (bounds[:, 3] == height)

    columns: dict[str, Any] = {
        "category": clusters.category,
        "score": clusters.score,
        "best score": best,
        "mean score": average,
        "score spread": np.sqrt(np.maximum(mean(raw**2) - average**2, 0)),
        "voters": voters / len(models),
        "models": np.bincount(model_pairs // len(names), minlength=count) / len(names),
        "members per voter": members_of / np.maximum(voters, 1),
        "mask agreement": mean(overlap),
        "worst mask agreement": worst,
        "box agreement": _box_iou(clusters.box, bounds),
        "inside": look.inside,
        "unsure": look.unsure,
        "log area": np.log(area),
        "relative area": np.log(area / max(typical, 1.0)),
        "solidity": look.area / np.maximum(look.hull, 1),
        "eccentricity": look.eccentricity,
        "extent": look.area / np.maximum(sides.prod(axis=1), 1),
        "roughness": look.perimeter**2 / area,
        "at border": at_border,
        "nearest": nearest / diameter,
        "neighbours": neighbours,
        "covered": covered,
        "covering": covering,
        "image's median score": float(np.median(clusters.score)) if count else np.nan,
        "image's objects": clusters.score.sum(),
    }
    for i, name in enumerate(names):  # a voter that is absent counts as a score of 0
        columns[f"score of {name}"] = np.bincount(member, raw * (model[voter] == i), count) / per_model[i]
    for name in RANKED:
        columns[f"rank of {name}"] = _ranks(np.asarray(columns[name], np.float64))
    stacked = [np.broadcast_to(np.asarray(v, np.float32), (count,)) for v in columns.values()]
    return Features(tuple(columns), np.stack(stacked, axis=1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """(K,) in 0..1, the mean rank of equal values; a value that is not a number ranks nowhere."""
    from scipy.stats import rankdata

    known = np.isfinite(values)
    out = np.full(len(values), np.nan)
    out[known] = rankdata(values[known]) / max(int(known.sum()), 1)
    return out


@njit(cache=True)
def _overlap_with_fused(box, offset, pixels, member, fused_box, fused_offset, fused_pixels, foreground):  # type: ignore[no-untyped-def]
    """(N,) IoU of each member's foreground with its cluster's."""
    out = np.zeros(member.size)
    area = np.zeros(fused_box.shape[0], np.int64)
    for k in range(fused_box.shape[0]):
        for p in range(fused_offset[k], fused_offset[k + 1]):
            area[k] += fused_pixels[p] >= foreground
    for i in range(member.size):
        k = member[i]
        if k < 0:
            continue
        mine, common = 0, 0
        p = offset[i]
        width = fused_box[k, 2] - fused_box[k, 0]
        for y in range(box[i, 1], box[i, 3]):
            inside = fused_box[k, 1] <= y < fused_box[k, 3]
            q = fused_offset[k] + (y - fused_box[k, 1]) * width - fused_box[k, 0]
            for x in range(box[i, 0], box[i, 2]):
                if pixels[p] >= foreground:
                    mine += 1
                    if inside and fused_box[k, 0] <= x < fused_box[k, 2] and fused_pixels[q + x] >= foreground:
                        common += 1
                p += 1
        union = mine + area[k] - common
        out[i] = common / union if union > 0 else 0.0
    return out


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K,) IoU of the boxes of two lists, pair by pair."""
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    common = sides.prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return common / np.maximum(union, 1e-9)


def _surroundings(x: np.ndarray, y: np.ndarray, score: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The distance to the nearest other centre, and the scores of all others within a radius summed; (K,) each."""
    from scipy.spatial import cKDTree

    if len(x) < 2:
        return np.full(len(x), np.nan), np.zeros(len(x))
    tree = cKDTree(np.stack([x, y], axis=1))
    nearest = tree.query(tree.data, k=2)[0][:, 1]
    pairs = tree.query_pairs(radius, output_type="ndarray")
    total = np.bincount(pairs[:, 0], score[pairs[:, 1]], len(x)) + np.bincount(pairs[:, 1], score[pairs[:, 0]], len(x))
    return nearest, total


def _covered(fused: Crops, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest share of each mask that lies under one better-ranked mask, and over one worse-ranked; (K,) each."""
    row, other, common = overlaps(fused, fused)
    share = common / np.maximum(area[row], 1)
    covered, covering = np.zeros(len(fused)), np.zeros(len(fused))
    np.maximum.at(covered, row[other < row], share[other < row])
    np.maximum.at(covering, row[other > row], share[other > row])
    return covered, covering


# ---------------------------------------------------------------- the learned probability -----------------------------


@dataclass(frozen=True)
class Table:
    """What the learned rescorer is trained on: one row per fused out-of-fold mask.

    Attributes:
        features: (N, F).
        true: (N,) bool, the mask is a true positive of its image at the least overlap that the ruler asks for.
        iou: (N,) float32, its largest IoU with any truth.
        group: (N,) text; rows of one group are never on both sides of a fit and its use.
    """

    features: Features
    true: np.ndarray
    iou: np.ndarray
    group: np.ndarray

    def take(self, rows: np.ndarray) -> Table:
        return Table(self.features.take(rows), self.true[rows], self.iou[rows], self.group[rows])

    def write(self, path: str | Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: self.features.values[:, i] for i, name in enumerate(self.features.names)}
        data = {"true": self.true, "iou": self.iou, "group": self.group.astype(str).tolist(), **columns}
        schema = pa.schema(
            [("true", pa.bool_()), ("iou", pa.float32()), ("group", pa.string())]
            + [(name, pa.float32()) for name in columns],
            metadata={"maskfold": json.dumps({"features": list(columns)})},
        )
        with writing(path) as temporary:
            pq.write_table(pa.table(data, schema=schema), temporary, compression="zstd")

    @staticmethod
    def read(path: str | Path) -> Table:
        """Raises ValueError when the file is missing or is not a training table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            names = json.loads((table.schema.metadata or {})[b"maskfold"])["features"]
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ValueError(
                f"{path} is not the rescorer's training table ({error}); run the stage `tune` again"
            ) from error
        values = [table.column(name).to_numpy() for name in names]
        return Table(
            Features(tuple(names), np.stack(values, axis=1) if values else np.zeros((table.num_rows, 0), np.float32)),
            table.column("true").to_numpy(),
            table.column("iou").to_numpy(),
            np.array(table.column("group").to_pylist(), object),
        )


Rescorer = Callable[[Features], np.ndarray]
"""From the features of K fused masks to their probabilities (K,) float64."""


def _regress(table: Table) -> Rescorer:
    """The expected overlap with a truth, learned from all rows of a table (`MOST_ROWS` of them)."""
    from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    if len(table.true) > MOST_ROWS:
        table = table.take(np.sort(np.random.default_rng(0).choice(len(table.true), MOST_ROWS, replace=False)))
    if not len(table.true):
        return lambda found: np.full(len(found.values), 0.5)
    names = table.features.names
    values = _filled(table.features.values)
    target = np.where(table.true, table.iou, 0.8 * np.minimum(table.iou, 0.5))  # a second mask of a truth is a miss
    direction = [(name in RISING) - (name in FALLING) for name in names]
    boosted = HistGradientBoostingRegressor(
        learning_rate=0.07, max_iter=100, max_leaf_nodes=15, min_samples_leaf=30, l2_regularization=1.0,
        max_features=0.3, monotonic_cst=direction, early_stopping=False, random_state=0,
    )  # fmt: skip
    randomised = ExtraTreesRegressor(80, min_samples_leaf=5, max_features=0.3, random_state=0)
    # one thread: on these few rows OpenMP's threads win nothing, and on a busy machine they wait for each other for minutes
    with threadpool_limits(1, user_api="openmp"):
        for model in (boosted, randomised):
            model.fit(values, target)

    def overlap(found: Features) -> np.ndarray:
        if not len(found.values):
            return np.zeros(0)
        described = _filled(found.columns(names))
        with threadpool_limits(1, user_api="openmp"):
            return np.asarray((boosted.predict(described) + randomised.predict(described)) / 2, np.float64)

    return overlap


def _logistic(value: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the rising logistic curve from a value to the probability of being true (Platt scaling)."""
    from sklearn.linear_model import LogisticRegression

    if len(true) and true.min() != true.max():
        curve = LogisticRegression(C=1e6).fit(value[:, None], true.astype(int))
        if curve.coef_[0, 0] > 0:
            return float(curve.coef_[0, 0]), float(curve.intercept_[0])
    return 10.0, -5.0  # nothing to fit: one half at an overlap of one half


def cross_fit(table: Table) -> Callable[[str], Rescorer]:
    """For every group the rescorer that saw none of its rows; for any other name the one that saw all.

    The logistic curve is the same for all, fitted to what each group was given by the rescorer that had not seen it. The
    same table gives the same rescorers, bit for bit.
    """
    groups = list(dict.fromkeys(table.group.tolist()))
    fitted: dict[str, Rescorer] = {}
    unseen = np.zeros(len(table.true))
    for group in groups if len(groups) > 1 else []:
        own = table.group == group
        fitted[group] = _regress(table.take(np.flatnonzero(~own)))
        unseen[own] = fitted[group](table.features.take(np.flatnonzero(own)))
    slope, offset = _logistic(unseen, table.true) if fitted else _logistic(np.zeros(0), np.zeros(0))

    @cache
    def rescorer(group: str) -> Rescorer:
        overlap = fitted[group] if group in fitted else everything()
        return lambda found: 1 / (1 + np.exp(-(slope * overlap(found) + offset)))

    @cache
    def everything() -> Rescorer:
        return _regress(table)

    return rescorer


def _filled(values: np.ndarray) -> np.ndarray:
    """What has no meaning (the nearest neighbour of a lone mask, the score of a model that is new) is taken as -1."""
    return np.where(np.isfinite(values), values, np.float32(-1))


def group_of(home: str, image_id: int, homes: Collection[str]) -> str:
    """The group of an image's rows, whichever fold's voters they are of.

    Args:
        home: the image's fold in the first division: an image is in one of it, where it is in several of all divisions.
        homes: the homes of all images. Where there is only one, images are grouped by their ids into five.
    """
    return home if len(homes) > 1 else f"images {image_id % 5}"


def scores(
    mode: str, score: np.ndarray, inside: np.ndarray, described: Features | None, rescorer: Rescorer | None
) -> np.ndarray:
    """The scores (K,) of K fused masks by one of the three ways.

    Args:
        mode: ``none``, ``mask`` or ``learned``.
        score: (K,) of the clusters; `inside`: (K,) mean probability inside each mask.
        described, rescorer: needed for ``learned`` only.

    Raises:
        ValueError: ``learned`` without a rescorer.
    """
    if mode == "none":
        return score
    if mode == "mask":
        return score * inside
    if described is None or rescorer is None:
        raise ValueError("the learned rescoring needs its training table; run the stage `tune` first")
    return rescorer(described)
