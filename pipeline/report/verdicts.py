"""Which true instances were found, which were missed, and which detections are false, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.coco_ap import Match
from pipeline.records import Dataset, Detections, Image


@dataclass(frozen=True)
class Verdict:
    """One image at one score threshold.

    Attributes:
        image: the image.
        found: rows of the detections that found an instance.
        matched: for each of them, the index of that instance among the dataset's `instances`.
        missed: indexes of the instances that nothing found. Crowd regions are none of them.
        false: rows of the detections that found nothing.
    """

    image: Image
    found: list[int]
    matched: list[int]
    missed: list[int]
    false: list[int]

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + false); 1 where there was nothing to find and nothing was claimed."""
        total = 2 * len(self.found) + len(self.missed) + len(self.false)
        return 2 * len(self.found) / total if total else 1.0


def best_threshold(detections: Detections, match: Match, truths: int) -> float:
    """The score threshold at which F1 over all images is greatest; 0 when nothing was found.

    Args:
        detections: what was matched.
        match: to whom.
        truths: how many instances there are to find.
    """
    counted = match.ranked & ~match.ignored
    score, hit = detections.score[counted], match.true_positive[counted]
    if not hit.any():
        return 0.0
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    f1 = 2 * np.cumsum(hit[order]) / (np.arange(1, len(order) + 1) + truths)
    last = np.append(ranked[1:] != ranked[:-1], True)  # a threshold cannot part equal scores
    return float(ranked[np.argmax(np.where(last, f1, -1.0))])


def judge(dataset: Dataset, detections: Detections, match: Match, threshold: float) -> list[Verdict]:
    """All images of the dataset, the best first; among equals the one with more instances first, as it says more.

    COCO matches in order of score, so the match of the detections above a threshold is the whole match cut off there.
    """
    kept = match.ranked & ~match.ignored & (detections.score >= threshold)
    found: dict[int, list[int]] = {image.id: [] for image in dataset.images}
    false: dict[int, list[int]] = {image.id: [] for image in dataset.images}
    for row in np.flatnonzero(kept):
        (found if match.true_positive[row] else false)[int(detections.image_id[row])].append(int(row))
    missed: dict[int, list[int]] = {image.id: [] for image in dataset.images}
    claimed = set(match.truth[kept].tolist())
    for index, instance in enumerate(dataset.instances):
        if index not in claimed and not instance.crowd:
            missed[instance.image_id].append(index)
    verdicts = [
        Verdict(i, found[i.id], match.truth[found[i.id]].tolist(), missed[i.id], false[i.id]) for i in dataset.images
    ]
    return sorted(verdicts, key=lambda v: (-v.f1, -len(v.found) - len(v.missed), v.image.file_name))


def choose(verdicts: Sequence[Verdict], each: int = 3) -> list[tuple[str, list[Verdict]]]:
    """Some of the best, the median and the worst images, none twice. Empty ones are shown only if all of them are."""
    telling = [v for v in verdicts if v.found or v.missed or v.false] or list(verdicts)
    if len(telling) <= each:
        return [("All images", telling)] if telling else []
    worst = telling[-each:]
    best = telling[: min(each, len(telling) - len(worst))]
    rest = telling[len(best) : len(telling) - len(worst)]
    middle = max((len(rest) - each) // 2, 0)
    groups = [("Best", best), ("Median", rest[middle : middle + each]), ("Worst", worst[::-1])]
    return [(name, group) for name, group in groups if group]
