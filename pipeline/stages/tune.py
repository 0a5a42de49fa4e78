"""Choose the fusion's settings on out-of-fold predictions."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import competitions
from pipeline.competitions import Competition
from pipeline.experiment import Experiment, ExperimentError, Layout, SubmissionSettings
from pipeline.files import provenance, write_json
from pipeline.folds import read_folds, used_folds
from pipeline.fusion.fuse import by_image
from pipeline.fusion.ladder import Confirm, Rung
from pipeline.fusion.match import truths
from pipeline.fusion.ruler import Ruler
from pipeline.fusion.settings import Voter, as_fusion, for_categories, for_people, with_changes, write_settings
from pipeline.fusion.study import Case, Study
from pipeline.fusion.tune import Tuned, tune
from pipeline.records import Dataset, Detections, read_sources
from pipeline.submission import has_no_least_score, judged

log = logging.getLogger("pipeline.tune")

MOST_IMAGES = 300
"""Tuning looks at so many out-of-fold images at most (drawn by the experiment's seed): more change little and cost much."""


def training_table(layout: Layout) -> Path:
    """Where the learned rescorer's training table is kept; `fuse` fits it again from there."""
    return layout.fusion.parent / "fusion" / "training.parquet"


def ladder(layout: Layout) -> Path:
    """What every step of the fusion gained, for the report."""
    return layout.fusion.parent / "fusion" / "ladder.json"


def prediction_files(experiment: Experiment, layout: Layout, part: str) -> list[Path]:
    """The predictions that are fused for a part.

    Raises:
        ExperimentError: one is missing; the message names the command that makes it.
    """
    folds = [str(k) for k in experiment.validation_folds()] if part == "oof" else experiment.fold_names()
    paths = []
    for model in experiment.models:
        for fold in folds:
            path = layout.predictions(model, fold, part)
            if not path.exists():
                command = f"python -m pipeline predict {experiment.name} --model {model} --fold {fold} --part {part}"
                raise ExperimentError(f"there is no {path}; make it with: {command}")
            paths.append(path)
    return paths


def run(experiment: Experiment, layout: Layout) -> Tuned:
    """Write fusion.yaml and beside it, in fusion/, the rescorer's training table and the ladder.

    What the experiment itself says under `fusion` is held, of its weights those of 0, and the rest is chosen. With
    ``fusion.tune: false`` all of its settings go into fusion.yaml unchanged. Either way, where the metric has no confidences
    and ``submission.min_score`` names none, the score below which masks are left out is chosen last.

    Raises:
        ExperimentError: predictions are missing.
    """
    began = time.perf_counter()
    truth = Dataset.read(layout.train_json)
    folds_of = used_folds(read_folds(layout.folds, truth), experiment.validation_folds())
    image_ids = sorted(folds_of)
    if len(image_ids) > MOST_IMAGES:
        drawn = np.random.default_rng(experiment.seed).choice(image_ids, MOST_IMAGES, replace=False)
        image_ids = sorted(int(image_id) for image_id in drawn)
    truth = truth.subset(image_ids)
    cases = read_cases(prediction_files(experiment, layout, "oof"), truth, folds_of)
    log.info("%d out-of-fold images, %d detections", len(cases), sum(len(case.detections) for case in cases))

    competition = competitions.get(experiment.competition, experiment.submission.counted)
    limit = experiment.submission.max_per_image
    most = limit if competition.max_detections is None else min(competition.max_detections, limit)
    ruler = Ruler(most, tuple(competition.ious), seed=experiment.seed)
    base = for_categories(as_fusion(experiment.fusion), truth.categories)
    if base.tune:
        confirm = confirmation(competition, truth, experiment.submission)
        tuned = tune(cases, base, ruler, confirm, experiment.held(), nested=base.nested)
    else:
        study = Study(cases, ruler)
        tuned = Tuned(base, [], study.table(base), study.fused(base))
    tuned = with_threshold(tuned, cases, ruler, competition, truth, experiment.submission)

    table, rungs = training_table(layout), ladder(layout)
    tuned.table.write(table)
    write_json(rungs, [rung.to_json() for rung in tuned.ladder])
    facts = provenance(
        experiment=experiment.name,
        seed=experiment.seed,
        images=len(cases),
        seconds=round(time.perf_counter() - began, 1),
    )
    worth = None if tuned.estimate is None else tuned.estimate.to_json()
    write_settings(layout.fusion, for_people(tuned.settings, truth.categories), facts, worth)
    return tuned


def read_cases(paths: Sequence[Path], truth: Dataset, folds_of: Mapping[int, Sequence[int]]) -> list[Case]:
    """The out-of-fold images of `truth`, ascending by id, with what the voters of their own folds found.

    Args:
        folds_of: by image id, its fold in every division.
    """
    voters: dict[int, list[str]] = {}
    for path in paths:
        for name in read_sources(path):
            voters.setdefault(int(Voter.parse(name).fold), []).append(name)
    found = {image_id: table for image_id, table in by_image(paths) if image_id in truth.image}
    true = truths(truth, truth.image)
    cases = []
    for image_id in sorted(truth.image):
        image, names = truth.image[image_id], [name for fold in folds_of[image_id] for name in voters[fold]]
        table = found.get(image_id) or Detections.empty(names)
        cases.append(Case(image_id, (image.height, image.width), table, names, true[image_id]))
    return cases


def confirmation(competition: Competition, truth: Dataset, submission: SubmissionSettings) -> Confirm:
    """The competition's own score of fused detections as they would be submitted: its numbers only."""

    def score(found: Detections, image_ids: Sequence[int]) -> dict[str, Any]:
        return _numbers(judged(competition, truth.subset(image_ids), found, submission).result)

    return score


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def with_threshold(
    tuned: Tuned,
    cases: Sequence[Case],
    ruler: Ruler,
    competition: Competition,
    truth: Dataset,
    submission: SubmissionSettings,
) -> Tuned:
    """The tuned settings with the least score of a submitted mask, as a last rung; unchanged where none is to be chosen."""
    if not has_no_least_score(competition, submission):
        return tuned
    best = judged(competition, truth, Detections.concatenate(tuned.fused), submission)
    assert best.min_score is not None
    settings = with_changes(tuned.settings, min_score=best.min_score)
    kept = [found.take(found.score >= best.min_score) for found in tuned.fused]
    area = ruler.value(ruler.sheet(kept, [case.truth for case in cases]))
    changes = {"min_score": best.min_score}
    rung = Rung("+ threshold", area, None, None, None, True, _numbers(best.result), changes)
    log.info("masks scored below %.4f are left out: %s %.4f", best.min_score, competition.metric, best.result["score"])
    return replace(tuned, settings=settings, ladder=[*tuned.ladder, rung], fused=kept)
