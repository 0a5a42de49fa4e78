"""Average precision of masks as COCO computes it, and who was matched to whom.

The rules are those of pycocotools' COCOeval for ``segm`` over all areas (Lin et al., "Microsoft COCO: Common Objects in
Context", 2014, and the cocoapi's cocoeval.py), written out over sparse overlaps: a detection overlaps one or two of an
image's 1,800 nuclei, and only those are looked at. The result is equal to pycocotools for any IoU thresholds and any
number of detections, to rounding in the last place. That includes what is peculiar about it:

* A truth whose annotation id is 0 is taken by the detection that matches it, which yet counts as a false positive.
* Annotations that share an id all stand for the last of them.
* Where the first record has a box, a record with a box of negative area is no false positive.
* Where a mask's size is not the image's, it matches nothing.

Two things pycocotools cannot do and this can: an empty list of results (every class with truths scores 0), and any
number of detections as the only one (there, ``maxDets`` without 100 gives -1).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from pipeline.metrics.overlaps import Groups, Masks, Pairs, overlaps
from pipeline.metrics.results import Results
from pipeline.records import Dataset, Detections

log = logging.getLogger("pipeline.metrics")

THRESHOLDS = np.linspace(0.5, 0.95, 10)
IOUS: tuple[float, ...] = tuple(THRESHOLDS.tolist())
"""COCO's IoU thresholds 0.50, 0.55, …, 0.95."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which precision is read off and averaged."""

ALL_AREAS = (0.0, 1e10)
"""COCOeval's "all": smallest and largest area, both included; truths outside are ignored."""

Found = Detections | Sequence[Mapping[str, Any]]
"""Detections, or COCO results records."""


# ---------------------------------------------------------------- matching --------------------------------------------


@dataclass(frozen=True)
class _Truths:
    """The truths as pycocotools looks them up: annotations that share an id all stand for the last of them.

    Attributes:
        index: (G,) int64, into the truth's `instances`.
        id, image_id, category_id: (G,) int64.
        area: (G,) float64.
        crowd: (G,) bool.
        masks: the G masks.
    """

    index: np.ndarray
    id: np.ndarray
    image_id: np.ndarray
    category_id: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    masks: Masks


def _categories(truth: Dataset) -> list[int]:
    """The categories that are scored."""
    return sorted(truth.categories) or sorted({a.category_id for a in truth.instances})


def _truths(truth: Dataset) -> _Truths:
    last = {instance.id: index for index, instance in enumerate(truth.instances)}
    if len(last) < len(truth.instances):
        log.warning(
            "the truth has %d annotations but %d ids; like pycocotools, only the last annotation of an id is used",
            len(truth.instances), len(last),
        )  # fmt: skip
    known = set(_categories(truth))
    chosen = [last[a.id] for a in sorted(truth.instances, key=lambda a: a.image_id)]
    used = [(i, truth.instances[i]) for i in chosen]
    used = [(i, a) for i, a in used if a.image_id in truth.image and a.category_id in known]
    try:
        masks = Masks.pack(a.rle for _, a in used)
        _ = masks.areas
    except ValueError as error:
        raise ValueError(f"the truth is damaged: {_named(error, [a.id for _, a in used])}") from error
    return _Truths(
        np.array([i for i, _ in used], np.int64),
        np.array([a.id for _, a in used], np.int64),
        np.array([a.image_id for _, a in used], np.int64),
        np.array([a.category_id for _, a in used], np.int64),
        np.array([a.area for _, a in used], np.float64),
        np.array([a.crowd for _, a in used], bool),
        masks,
    )


def _named(error: ValueError, ids: Sequence[int]) -> str:
    """``mask 3: …`` with the annotation's id in place of the mask's number."""
    what, _, why = str(error).partition(": ")
    number = what.removeprefix("mask ")
    return f"annotation {ids[int(number)]}: {why}" if number.isdigit() else str(error)


def _results(truth: Dataset, found: Found) -> Results:
    results = Results.of(found, {image.id: (image.height, image.width) for image in truth.images})
    unknown = sorted(set(np.unique(results.image_id).tolist()) - set(truth.image))
    if unknown:
        raise ValueError(f"the results speak of image ids that the truth does not have: {unknown[:10]}")
    try:
        _ = results.masks.areas
    except ValueError as error:
        raise ValueError(
            f"{str(error).replace('mask', 'record', 1)}; `validate` lists every fault of a submission"
        ) from error
    return results


def _compared(truths: _Truths, results: Results, most: int | None) -> tuple[Groups, Pairs]:
    """Groups of one image and class, detections best first, and which masks in them overlap."""
    groups = Groups.make(
        (results.category_id, results.image_id), (truths.category_id, truths.image_id), results.score, most
    )
    return groups, overlaps(results.masks, truths.masks, groups, truths.crowd)


@njit(cache=True)
def _assign(bound_a, bound_b, start, other, iou, ignore, crowd, floors):  # type: ignore[no-untyped-def]
    chosen = np.full((floors.size, start.size - 1), -1, np.int32)
    for k in range(bound_a.size - 1):
        first = bound_b[k]
        taken = np.zeros(bound_b[k + 1] - first, np.bool_)
        for t in range(floors.size):
            taken[:] = False
            for r in range(bound_a[k], bound_a[k + 1]):
                best, place = floors[t], -1
                for skipped in (False, True):
                    if place >= 0:
                        break
                    for p in range(start[r], start[r + 1]):
                        g = other[p]
                        if ignore[first + g] != skipped or (taken[g] and not crowd[first + g]):
                            continue
                        if iou[p] >= best:
                            best, place = iou[p], g
                if place >= 0:
                    taken[place] = True
                    chosen[t, r] = first + place
    return chosen


def _assigned(
    groups: Groups, pairs: Pairs, ignore: np.ndarray, crowd: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:
    """Give every detection, best score first, the free truth with the highest IoU that reaches the threshold.

    Of equal IoUs the last truth wins; ignored truths are taken only where no other fits; crowds never run out.

    Args:
        ignore, crowd: (G,) bool, by truth.

    Returns:
        (T, R) int32, for each grouped detection the place in ``groups.b_rows``, -1 for none.
    """
    floors = np.array([min(float(t), 1 - 1e-10) for t in thresholds])
    if floors.size and not floors.min() > 0:
        raise ValueError(f"IoU thresholds must be above 0, not {floors.min()}")
    rows = groups.b_rows
    return np.asarray(
        _assign(groups.a, groups.b, pairs.start, pairs.other, pairs.iou, ignore[rows], crowd[rows], floors)
    )


def _outside(areas: np.ndarray, within: tuple[float, float]) -> np.ndarray:
    return np.asarray((areas < within[0]) | (areas > within[1]))


@dataclass(frozen=True)
class Match:
    """Who was matched to whom, by detection. All arrays are in the detections' own order.

    Attributes:
        truth: (N,) int64, index into the truth's `instances`; -1 for a false detection.
        iou: (N,) float64, mask IoU with that instance; 0 for none.
        best: (N,) float64, the highest IoU with any instance of the class in the image, taken or not.
        ignored: (N,) bool, counts neither way: it lies on a crowd.
        ranked: (N,) bool, among the image's and class's `max_detections` best; the others were not matched at all.
    """

    truth: np.ndarray
    iou: np.ndarray
    best: np.ndarray
    ignored: np.ndarray
    ranked: np.ndarray

    @property
    def true_positive(self) -> np.ndarray:
        """(N,) bool."""
        return (self.truth >= 0) & ~self.ignored


def match(truth: Dataset, found: Found, iou: float = 0.5, max_detections: int | None = None) -> Match:
    """Match detections to truths as COCO does: within image and class, best score first, each truth once.

    Args:
        truth: images with their instances.
        found: detections or COCO results records, in any order.
        iou: smallest IoU of a match.
        max_detections: only so many of an image's best-scored detections of a class are matched; None for all.

    Raises:
        ValueError: an image id that the truth does not have; a damaged mask.
    """
    results, truths = _results(truth, found), _truths(truth)
    groups, pairs = _compared(truths, results, max_detections)
    ignore = truths.crowd | _outside(truths.area, ALL_AREAS)
    chosen = _assigned(groups, pairs, ignore, truths.crowd, [iou])[0]
    n = len(results)
    found_by = Match(np.full(n, -1, np.int64), np.zeros(n), np.zeros(n), np.zeros(n, bool), np.zeros(n, bool))
    rows = groups.a_rows
    found_by.ranked[rows] = np.isin(results.category_id[rows], _categories(truth))
    hit = np.flatnonzero(chosen >= 0)
    target = groups.b_rows[chosen[hit]]
    found_by.truth[rows[hit]] = truths.index[target]
    found_by.ignored[rows[hit]] = ignore[target]
    row = np.repeat(np.arange(len(rows)), np.diff(pairs.start))
    np.maximum.at(found_by.best, rows[row], pairs.iou)
    place = groups.b[np.searchsorted(groups.a, row, side="right") - 1] + pairs.other
    same = chosen[row] == place
    found_by.iou[rows[row[same]]] = pairs.iou[same]
    return found_by


# ---------------------------------------------------------------- precision -------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """One class's detections over all images, best first, as the metric counts them.

    Attributes:
        image_id: (N,) int64.
        score: (N,) float64, descending.
        rank: (N,) int64, the place among the image's own, from 0.
        matched: (T, N) bool, overlaps a truth that was free.
        hit: (T, N) bool, counts as a true positive: `matched`, but for truths with annotation id 0.
        ignored: (T, N) bool, counts neither way.
        truths: by image id, how many instances there are to find.
    """

    image_id: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    matched: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truths: dict[int, int]

    def precision(self, cap: int | None = None) -> np.ndarray | None:
        """(T, 101) interpolated precision at `RECALLS`; None where there is nothing to find.

        Args:
            cap: count at most so many truths per image as findable.
        """
        positives = self._positives(cap)
        if not positives:
            return None
        curves = np.zeros((len(self.hit), len(RECALLS)))
        for t in range(len(self.hit)):
            counted = ~self.ignored[t]
            true = np.cumsum(self.hit[t] & counted).astype(np.float64)
            false = np.cumsum(~self.hit[t] & counted).astype(np.float64)
            precision = true / (true + false + np.spacing(1))
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            place = np.searchsorted(true / positives, RECALLS, side="left")
            reached = place < len(envelope)
            curves[t, reached] = envelope[place[reached]]
        return curves

    def recall(self, max_detections: int | None = None) -> np.ndarray | None:
        """(T,) share of the truths that are found; None where there is nothing to find.

        Args:
            max_detections: look only at so many of an image's best; at all that were matched by default.
        """
        positives = self._positives()
        if not positives:
            return None
        looked = slice(None) if max_detections is None else self.rank < max_detections
        return (self.hit & ~self.ignored)[:, looked].sum(axis=1) / positives

    def _positives(self, cap: int | None = None) -> int:
        return sum(n if cap is None else min(n, cap) for n in self.truths.values())


@dataclass(frozen=True)
class Evaluation:
    """Detections held against the truth at T thresholds. `rankings` has every category of the truth."""

    thresholds: np.ndarray
    max_detections: int
    rankings: dict[int, Ranking]

    def ap(self, threshold: float | None = None, category_id: int | None = None, cap: int | None = None) -> float:
        """Average precision, the mean over thresholds and over classes that have truths; -1 where none has.

        Args:
            threshold: one of `thresholds`; all of them by default.
            category_id: one class; all by default.
            cap: see `Ranking.precision`.
        """
        rows = slice(None) if threshold is None else [self._row(threshold)]
        chosen = self.rankings.values() if category_id is None else [self.rankings[category_id]]
        curves = [curve[rows] for ranking in chosen if (curve := ranking.precision(cap)) is not None]
        return float(np.mean(curves)) if curves else -1.0

    def recall(self, max_detections: int | None = None) -> float:
        """Average recall, the mean over thresholds and over classes that have truths; -1 where none has.

        Args:
            max_detections: look only at so many of an image's best of a class.
        """
        parts = [r for ranking in self.rankings.values() if (r := ranking.recall(max_detections)) is not None]
        return float(np.mean(parts)) if parts else -1.0

    def true_positives(self, threshold: float) -> dict[int, int]:
        """By image id, how many truths were really found, over all classes; every image with truths or detections."""
        row = self._row(threshold)
        counts: dict[int, int] = {}
        for ranking in self.rankings.values():
            for image_id in ranking.truths:
                counts.setdefault(image_id, 0)
            good = ranking.matched[row] & ~ranking.ignored[row]
            for image_id, found in zip(ranking.image_id.tolist(), good.tolist(), strict=True):
                counts[image_id] = counts.get(image_id, 0) + found
        return dict(sorted(counts.items()))

    def _row(self, threshold: float) -> int:
        near = np.flatnonzero(np.isclose(self.thresholds, threshold))
        if not near.size:
            raise ValueError(f"IoU {threshold} was not evaluated; {self.thresholds.round(3).tolist()} were")
        return int(near[0])


def evaluate(
    truth: Dataset, found: Found, thresholds: Sequence[float] | np.ndarray = THRESHOLDS, max_detections: int = 100
) -> Evaluation:
    """Hold detections against the truth.

    Args:
        truth: images with their instances.
        found: detections or COCO results records; categories that the truth does not have are passed over.
        thresholds: (T,) IoUs.
        max_detections: per image AND class, as COCO counts them.

    Raises:
        ValueError: an image id that the truth does not have; a damaged mask.
    """
    return evaluate_areas(truth, found, [ALL_AREAS], thresholds, max_detections)[0]


def evaluate_areas(
    truth: Dataset,
    found: Found,
    areas: Sequence[tuple[float, float]],
    thresholds: Sequence[float] | np.ndarray = THRESHOLDS,
    max_detections: int = 100,
) -> list[Evaluation]:
    """`evaluate` for several ranges of area, each (smallest, largest), both included.

    Truths outside a range are ignored, and so are detections outside that match none. A detection's area is that of its
    box where the first record has a box, else its mask's: so pycocotools has it.
    """
    steps = [float(t) for t in thresholds]
    results, truths = _results(truth, found), _truths(truth)
    groups, pairs = _compared(truths, results, max_detections)
    return [_evaluated(truth, truths, results, groups, pairs, within, steps, max_detections) for within in areas]


def _evaluated(
    truth: Dataset,
    truths: _Truths,
    results: Results,
    groups: Groups,
    pairs: Pairs,
    within: tuple[float, float],
    steps: list[float],
    max_detections: int,
) -> Evaluation:
    ignore = truths.crowd | _outside(truths.area, within)
    chosen = _assigned(groups, pairs, ignore, truths.crowd, steps)
    matched = chosen >= 0
    # the last for "none", index -1
    ids = np.append(truths.id[groups.b_rows], 0)
    hit = ids[chosen] != 0
    ignored = np.append(ignore[groups.b_rows], False)[chosen]
    ignored |= ~hit & _outside(results.areas[groups.a_rows], within)
    rank = np.arange(len(groups.a_rows)) - np.repeat(groups.a[:-1], np.diff(groups.a))
    wanted = np.concatenate([[0], np.cumsum(~ignore[groups.b_rows])])[groups.b]
    wanted = wanted[1:] - wanted[:-1]
    rankings = {}
    for category_id in _categories(truth):
        low, high = np.searchsorted(groups.key[:, 0], [category_id, category_id + 1])
        own = slice(groups.a[low], groups.a[high])
        rows = groups.a_rows[own]
        order = np.argsort(-results.score[rows], kind="stable")
        rankings[category_id] = Ranking(
            results.image_id[rows[order]],
            results.score[rows[order]],
            rank[own][order],
            matched[:, own][:, order],
            hit[:, own][:, order],
            ignored[:, own][:, order],
            {int(i): int(n) for i, n in zip(groups.key[low:high, 1], wanted[low:high], strict=True) if n},
        )
    return Evaluation(np.array(steps), max_detections, rankings)
