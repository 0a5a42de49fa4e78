"""Which of the detections are submitted, and what the competition's metric says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.competitions import Competition
from pipeline.experiment import SubmissionSettings
from pipeline.fusion.threshold import best_threshold
from pipeline.records import Dataset, Detections


def submitted(detections: Detections, settings: SubmissionSettings) -> Detections:
    """The rows that go into a submission: scored at least `min_score`, the best `max_per_image` of each image.

    A `min_score` that `tune` has chosen is not looked at here: it is among the fusion's settings, and `fuse` applies it.
    """
    return detections.take(np.flatnonzero(detections.score >= (settings.min_score or 0))).top(settings.max_per_image)


def has_no_least_score(competition: Competition, settings: SubmissionSettings) -> bool:
    """Whether the metric needs a least score, having no confidences, and the settings name none."""
    return not competition.ranked and settings.min_score is None


@dataclass(frozen=True)
class Judged:
    """What a submission of some detections would hold, and what the competition's metric says of it.

    `min_score` is the score below which masks were left out, where it was chosen here.
    """

    records: list[dict[str, Any]]
    result: dict[str, Any]
    min_score: float | None


def judged(
    competition: Competition, truth: Dataset, detections: Detections, settings: SubmissionSettings, choose: bool = True
) -> Judged:
    """Score detections as they would be submitted.

    Args:
        choose: where the metric has no confidences and the settings name no least score, use the one that is best here.
    """
    records = competition.records(submitted(detections, settings), truth)
    if not choose or not has_no_least_score(competition, settings):
        return Judged(records, competition.score(truth, records), None)

    def kept(level: float) -> list[dict[str, Any]]:
        return [record for record in records if record["score"] >= level]

    scores = np.array([record["score"] for record in records])
    level = best_threshold(scores, lambda level: float(competition.score(truth, kept(level))["score"]))
    return Judged(kept(level), competition.score(truth, kept(level)), level)
