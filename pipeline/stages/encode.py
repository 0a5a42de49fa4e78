"""Turn the fused test detections into the file that is uploaded."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import competitions
from pipeline.competitions import Competition
from pipeline.experiment import Experiment, Layout, SubmissionSettings
from pipeline.files import writing
from pipeline.fusion.threshold import best_threshold
from pipeline.records import Dataset, Detections

log = logging.getLogger("pipeline.encode")


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


def run(experiment: Experiment, layout: Layout) -> Path:
    """Write submissions/<run><suffix>, checked before it gets that name; the same detections give the same bytes.

    Raises:
        CompetitionError: the submission has errors; all of them are listed.
    """
    competition = competitions.get(experiment.competition, experiment.submission.counted)
    test = Dataset.read(layout.test_json)
    detections = submitted(_read(layout.fused("test")), experiment.submission)
    target = layout.submission(competition.suffix)
    with writing(target) as unchecked:
        competition.write(detections, test, unchecked)
        problems = competition.validate(unchecked, test)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            listed = "\n  ".join(str(problem) for problem in errors)
            raise competitions.CompetitionError(f"{target} would not be accepted, so it was not written:\n  {listed}")
        content = unchecked.read_bytes()
    log.info(
        "%s: %d detections on %d images, %d bytes, sha256 %s",
        target, len(detections), len(test.images), len(content), hashlib.sha256(content).hexdigest()[:16],
    )  # fmt: skip
    return target


def _read(path: Path) -> Detections:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; make it with: python -m pipeline fuse")
    return Detections.read(path)
