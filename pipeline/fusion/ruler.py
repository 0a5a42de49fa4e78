"""What tuning measures: average precision without the metric's steps, and the gain of one fusion over another.

The competition's own AP is read off at 101 recalls, so on a few images it moves in steps of one hundredth, and with a
cap on the detections of an image most of its truths are out of reach. The ruler here is the area under the same
interpolated precision, over the best-ranked detections that the metric looks at, as a fraction of what those could
reach: it moves with every true positive and every change of order. It is the mean over the overlaps that the competition's
metric asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.fusion.match import Overlaps, Truth
from pipeline.records import Detections


@dataclass(frozen=True)
class Ranked:
    """One category's detections over I images, best first: which are true at one overlap, and whose they are.

    Attributes:
        true: (N,) bool; `image`: (N,) int64, index of the image.
        wanted: (I,) float64, how many true positives each image could give at most.
    """

    true: np.ndarray
    image: np.ndarray
    wanted: np.ndarray


Sheet = dict[tuple[int, float], Ranked]
"""By category and overlap, for every category that has truths."""


@dataclass(frozen=True)
class Gain:
    """The gain of one fusion over another: its mean over bootstrapped sets of images, the 90 % interval, and how often > 0."""

    mean: float
    low: float
    high: float
    often: float
    worse: list[int]
    """Categories that lose in at least 95 % of the draws."""


@dataclass(frozen=True)
class Ruler:
    """`max_detections`: best-ranked detections of an image and category that count, None for all; `ious`: the overlaps of a
    match."""

    max_detections: int | None = 100
    ious: tuple[float, ...] = (0.5,)
    draws: int = 300
    seed: int = 0

    def sheet(
        self, found: Sequence[Detections], truth: Sequence[Truth], overlaps: Sequence[Overlaps] | None = None
    ) -> Sheet:
        """Rank and match the detections of I images (one table and one truth each)."""
        categories = np.unique(np.concatenate([t.category[~t.crowd] for t in truth])) if truth else []
        rows: dict[tuple[int, float], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
            (int(c), iou): [] for c in categories for iou in self.ious
        }
        for i, (detections, true) in enumerate(zip(found, truth, strict=True)):
            pairs = overlaps[i] if overlaps is not None else Overlaps.of(detections, true)
            ranking = np.full(len(detections), -np.inf)
            for category in np.unique(detections.category_id):
                own = np.flatnonzero(detections.category_id == category)
                own = own[np.argsort(-detections.score[own], kind="stable")][: self.max_detections]
                ranking[own] = detections.score[own]
            for iou in self.ious:
                right, ignored = pairs.matched(ranking, iou)
                counted = np.isfinite(ranking) & ~ignored
                for category in categories:
                    kept = np.flatnonzero(counted & (detections.category_id == category))
                    rows[int(category), iou].append((detections.score[kept], right[kept], np.full(len(kept), i)))
        sheet = {}
        for (category, iou), parts in rows.items():
            count = np.array([int(((t.category == category) & ~t.crowd).sum()) for t in truth], np.float64)
            wanted = count if self.max_detections is None else np.minimum(count, self.max_detections)
            score, right, image = (
                (np.concatenate([p[k] for p in parts]) for k in range(3)) if parts else (np.zeros(0) for _ in range(3))
            )
            order = np.argsort(-score, kind="stable")
            sheet[category, iou] = Ranked(right[order].astype(bool), image[order].astype(np.int64), wanted)
        return sheet

    def values(self, sheet: Sheet, weights: np.ndarray) -> np.ndarray:
        """Every category's value, the mean over overlaps, when the images are weighted by each row of `weights`.

        Args:
            weights: (B, I).

        Returns:
            (C, B), categories in the sheet's order; NaN where there is nothing to find.
        """
        categories = list(dict.fromkeys(category for category, _ in sheet))
        out = np.zeros((len(categories), len(weights)))
        for (category, _), ranked in sheet.items():
            out[categories.index(category)] += _area(ranked, weights) / len(self.ious)
        return out

    def value(self, sheet: Sheet) -> float:
        """The mean over categories; 0 where there is nothing to find."""
        if not sheet:
            return 0.0
        images = len(next(iter(sheet.values())).wanted)
        return float(np.nan_to_num(np.nanmean(self.values(sheet, np.ones((1, images))))))

    def drawn(self, images: int, stream: int = 0) -> np.ndarray:
        """(draws, images) how often each image is in each bootstrapped set; the same every time for one `stream`."""
        generator = np.random.default_rng([self.seed, stream])
        return generator.multinomial(images, np.full(images, 1 / images), self.draws).astype(np.float64)

    def gain(self, after: Sheet, before: Sheet) -> Gain:
        """What `after` gains over `before` (sheets of the same images), bootstrapped over the images."""
        if not before:
            return Gain(0.0, 0.0, 0.0, 0.0, [])
        weights = self.drawn(len(next(iter(before.values())).wanted))
        each = self.values(after, weights) - self.values(before, weights)
        each = each[:, ~np.isnan(each).all(axis=0)]  # draws without anything to find say nothing
        if not each.size:
            return Gain(0.0, 0.0, 0.0, 0.0, [])
        per_draw = np.nanmean(each, axis=0)
        low, high = np.percentile(per_draw, [5, 95])
        categories = list(dict.fromkeys(category for category, _ in before))
        known = [row[~np.isnan(row)] for row in each]  # a draw without the category is no vote for it
        worse = [c for c, row in zip(categories, known, strict=True) if row.size and (row < 0).mean() >= 0.95]
        return Gain(float(per_draw.mean()), float(low), float(high), float((per_draw > 0).mean()), worse)


def _area(ranked: Ranked, weights: np.ndarray) -> np.ndarray:
    """(B,) the area under interpolated precision for each row of `weights` (B, I), as a fraction of the reachable one."""
    wanted = weights @ ranked.wanted
    area = _areas(ranked.true, ranked.image, np.ascontiguousarray(weights, np.float64))
    return np.divide(area, wanted, out=np.full(len(weights), np.nan), where=wanted > 0)


@njit(cache=True)
def _areas(true, image, weights):  # type: ignore[no-untyped-def]
    """(B,) the sum over true positives of weight x the greatest precision from there on."""
    out = np.zeros(weights.shape[0])
    precision, gained = np.empty(true.sum()), np.empty(true.sum())
    for b in range(weights.shape[0]):
        hits, total, count = 0.0, 0.0, 0
        for i in range(true.size):
            weight = weights[b, image[i]]
            total += weight
            if true[i] and weight > 0:
                hits += weight
                precision[count], gained[count] = hits / total, weight
                count += 1
        envelope, area = 0.0, 0.0
        for k in range(count - 1, -1, -1):  # precision rises at true positives only
            envelope = max(envelope, precision[k])
            area += envelope * gained[k]
        out[b] = area
    return out
