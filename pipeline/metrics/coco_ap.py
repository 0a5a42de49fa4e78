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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Detections, Instance, compressed

log = logging.getLogger("pipeline.metrics")

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds 0.50, 0.55, …, 0.95."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""The recalls at which precision is read off and averaged."""

_LARGEST_AREA = 1e10
"""COCOeval's upper bound of "all areas"; what is outside 0..1e10 is ignored."""

Found = Detections | Sequence[Mapping[str, Any]]
"""Detections, or COCO results records."""


# ---------------------------------------------------------------- matching --------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Detections as columns. `area` is the box's where there are boxes; `rle` is None for a mask of the wrong size."""

    image_id: np.ndarray
    category_id: np.ndarray
    score: np.ndarray
    area: np.ndarray
    rle: list[dict[str, Any] | None]


def _columns(truth: Dataset, found: Found) -> _Columns:
    if isinstance(found, Detections):
        image_ids, size = found.image_id, {i.id: (i.height, i.width) for i in truth.images}
        _check_images(truth, image_ids.tolist())
        rles: list[dict[str, Any] | None] = [found.rle(i, size[int(image_ids[i])]) for i in range(len(found))]
        return _Columns(image_ids, found.category_id, found.score, np.zeros(len(found)), rles)
    try:
        _check_images(truth, [record["image_id"] for record in found])
        image_ids = np.array([record["image_id"] for record in found], np.int64)
        boxed = bool(found) and bool(found[0].get("bbox"))
        return _Columns(
            image_ids,
            np.array([record["category_id"] for record in found], np.int64),
            np.array([record["score"] for record in found], np.float64),
            np.array([_box_area(record) if boxed else 0.0 for record in found], np.float64),
            [_mask(truth, record, i) for i, record in enumerate(found)],
        )
    except KeyError as error:
        raise ValueError(f"a record has no {error}; `validate` lists every fault of a submission") from error
    except TypeError as error:
        raise ValueError(f"a record is malformed ({error}); `validate` lists every fault of a submission") from error


def _check_images(truth: Dataset, image_ids: Sequence[Any]) -> None:
    unknown = sorted(set(image_ids) - set(truth.image), key=str)
    if unknown:
        raise ValueError(f"the results speak of image ids that the truth does not have: {unknown[:10]}")


def _box_area(record: Mapping[str, Any]) -> float:
    box = record.get("bbox") or (0, 0, 0, 0)
    return float(box[2]) * float(box[3])


def _mask(truth: Dataset, record: Mapping[str, Any], index: int) -> dict[str, Any] | None:
    image = truth.image[record["image_id"]]
    size = (image.height, image.width)
    try:
        rle = compressed(record["segmentation"], size)
        if tuple(rle["size"]) != size:
            return None
        rle_to_crop(rle)  # run lengths that do not add up send pycocotools' C code round in circles
    except (ValueError, TypeError, UnicodeError) as error:
        raise ValueError(f"record {index}: {error}; `validate` lists every fault of a submission") from error
    return rle


def _truths(truth: Dataset) -> tuple[list[int], dict[tuple[int, int], list[int]]]:
    """The categories that are scored, and instances' indexes by (image, category), as pycocotools looks them up."""
    last = {instance.id: index for index, instance in enumerate(truth.instances)}
    if len(last) < len(truth.instances):
        log.warning(
            "the truth has %d annotations but %d ids; like pycocotools, only the last annotation of an id is used",
            len(truth.instances), len(last),
        )  # fmt: skip
    by_key: dict[tuple[int, int], list[int]] = defaultdict(list)
    for instance in sorted(truth.instances, key=lambda a: a.image_id):
        index = last[instance.id]
        used = truth.instances[index]
        by_key[used.image_id, used.category_id].append(index)
    categories = sorted(truth.categories) or sorted({a.category_id for a in truth.instances})
    return categories, by_key


def _outside(area: float) -> bool:
    return area < 0 or area > _LARGEST_AREA


def _assign(overlaps: np.ndarray, ignore: np.ndarray, crowd: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Give every detection, best score first, the free truth with the highest IoU that reaches the threshold.

    Of equal IoUs the last truth wins; ignored truths are taken only where no other fits; crowds never run out.

    Args:
        overlaps: (D, G) float64, detections in order of score.
        ignore: (G,) bool.
        crowd: (G,) bool.

    Returns:
        (T, D) int64, the truth's index, -1 for none.
    """
    order = np.argsort(ignore, kind="stable")
    overlaps = overlaps[:, order]
    skipped, endless = ignore[order].tolist(), crowd[order].tolist()
    floors = [min(float(t), 1 - 1e-10) for t in thresholds]
    rows, columns = np.nonzero(overlaps >= min(floors))
    values = overlaps[rows, columns].tolist()
    candidates: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row, column, value in zip(rows.tolist(), columns.tolist(), values, strict=True):
        candidates[row].append((column, value))
    assigned = np.full((len(floors), len(overlaps)), -1, np.int64)
    for t, floor in enumerate(floors):
        taken = [False] * len(order)
        for row, options in candidates.items():
            best, chosen = floor, -1
            for column, value in options:
                if taken[column] and not endless[column]:
                    continue
                if chosen >= 0 and not skipped[chosen] and skipped[column]:
                    break
                if value >= best:
                    best, chosen = value, column
            if chosen >= 0:
                taken[chosen] = True
                assigned[t, row] = order[chosen]
    return assigned


@dataclass(frozen=True)
class _Pairing:
    """One image's detections and truths of one category, in order of score, with their overlaps (D, G)."""

    image_id: int
    category_id: int
    rows: np.ndarray
    truths: list[int]
    overlaps: np.ndarray
    ignore: np.ndarray
    crowd: np.ndarray


def _pairings(truth: Dataset, columns: _Columns, max_detections: int | None) -> Iterator[_Pairing]:
    from pycocotools import mask as coco_mask

    categories, by_key = _truths(truth)
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(columns.image_id.tolist(), columns.category_id.tolist(), strict=True)):
        rows_of[key].append(row)
    keys = set(rows_of) | set(by_key)
    known = set(categories)
    for category_id, image_id in sorted((c, i) for i, c in keys if c in known and i in truth.image):
        rows = np.array(rows_of.get((image_id, category_id), []), np.int64)
        rows = rows[np.argsort(-columns.score[rows], kind="stable")][:max_detections]
        truths = by_key.get((image_id, category_id), [])
        instances = [truth.instances[i] for i in truths]
        crowd = np.array([a.crowd for a in instances], bool)
        ignore = crowd | np.array([_outside(a.area) for a in instances], bool)
        overlaps = np.zeros((len(rows), len(truths)))
        masks = [columns.rle[row] for row in rows]
        usable = [i for i, mask in enumerate(masks) if mask is not None]
        if usable and truths:
            wanted = [_checked(a) for a in instances]
            overlaps[usable] = coco_mask.iou([masks[i] for i in usable], wanted, crowd.astype(int).tolist())
        yield _Pairing(image_id, category_id, rows, truths, overlaps, ignore, crowd)


def _checked(instance: Instance) -> dict[str, Any]:
    try:
        rle_to_crop(instance.rle)
    except ValueError as error:
        raise ValueError(f"the truth's annotation {instance.id} is damaged: {error}") from error
    return instance.rle


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
    columns = _columns(truth, found)
    n = len(columns.score)
    result = Match(np.full(n, -1, np.int64), np.zeros(n), np.zeros(n), np.zeros(n, bool), np.zeros(n, bool))
    for pair in _pairings(truth, columns, max_detections):
        result.ranked[pair.rows] = True
        if not pair.truths or not len(pair.rows):
            continue
        chosen = _assign(pair.overlaps, pair.ignore, pair.crowd, [iou])[0]
        hit = np.flatnonzero(chosen >= 0)
        result.best[pair.rows] = pair.overlaps.max(axis=1)
        result.truth[pair.rows[hit]] = np.array(pair.truths, np.int64)[chosen[hit]]
        result.iou[pair.rows[hit]] = pair.overlaps[hit, chosen[hit]]
        result.ignored[pair.rows[hit]] = pair.ignore[chosen[hit]]
    return result


# ---------------------------------------------------------------- precision -------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """One class's detections over all images, best first, as the metric counts them.

    Attributes:
        image_id: (N,) int64.
        score: (N,) float64, descending.
        matched: (T, N) bool, overlaps a truth that was free.
        hit: (T, N) bool, counts as a true positive: `matched`, but for truths with annotation id 0.
        ignored: (T, N) bool, counts neither way.
        truths: by image id, how many instances there are to find.
    """

    image_id: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truths: dict[int, int]

    def precision(self, cap: int | None = None) -> np.ndarray | None:
        """(T, 101) interpolated precision at `RECALLS`; None where there is nothing to find.

        Args:
            cap: count at most so many truths per image as findable.
        """
        positives = sum(n if cap is None else min(n, cap) for n in self.truths.values())
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
    steps = [float(t) for t in thresholds]
    columns = _columns(truth, found)
    categories, _ = _truths(truth)
    parts: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = {c: [] for c in categories}
    truths: dict[int, dict[int, int]] = {c: {} for c in categories}
    for pair in _pairings(truth, columns, max_detections):
        wanted = int((~pair.ignore).sum())
        if wanted:
            truths[pair.category_id][pair.image_id] = wanted
        if not len(pair.rows):
            continue
        chosen = np.full((len(steps), len(pair.rows)), -1, np.int64)
        if pair.truths:
            chosen = _assign(pair.overlaps, pair.ignore, pair.crowd, steps)
        ids = np.array([truth.instances[i].id for i in pair.truths] + [0], np.int64)  # the last for "none", index -1
        ignore = np.append(pair.ignore, False)
        hit = ids[chosen] != 0
        outside = np.array([_outside(area) for area in columns.area[pair.rows]], bool)
        ignored = ignore[chosen] | (~hit & outside)
        parts[pair.category_id].append((pair.rows, chosen >= 0, hit, ignored))
    rankings = {}
    for category_id, pieces in parts.items():
        rows = np.concatenate([p[0] for p in pieces]) if pieces else np.zeros(0, np.int64)
        order = np.argsort(-columns.score[rows], kind="stable")
        flags = [
            np.concatenate([p[k] for p in pieces], axis=1)[:, order] if pieces else np.zeros((len(steps), 0), bool)
            for k in (1, 2, 3)
        ]
        rows = rows[order]
        rankings[category_id] = Ranking(
            columns.image_id[rows], columns.score[rows], flags[0], flags[1], flags[2], truths[category_id]
        )
    return Evaluation(np.array(steps), max_detections, rankings)
