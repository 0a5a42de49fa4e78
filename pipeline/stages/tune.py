"""Choose the fusion's settings on out-of-fold predictions."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import competitions
from pipeline.competitions import Competition
from pipeline.experiment import Experiment, ExperimentError, Layout
from pipeline.files import provenance, write_json
from pipeline.folds import read_folds
from pipeline.fusion.fuse import by_image
from pipeline.fusion.match import truths
from pipeline.fusion.ruler import Ruler
from pipeline.fusion.settings import Fusion, Voter, write_settings
from pipeline.fusion.tune import Case, Confirm, Study, Tuned, tune
from pipeline.records import Dataset, Detections, read_sources

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

    With ``fusion.tune: false`` the experiment's own settings go into fusion.yaml unchanged.

    Raises:
        ExperimentError: predictions are missing.
    """
    began = time.perf_counter()
    truth = Dataset.read(layout.train_json)
    fold_of = read_folds(layout.folds, truth)
    used = experiment.validation_folds()
    image_ids = sorted(image_id for image_id, fold in fold_of.items() if fold in used)
    if len(image_ids) > MOST_IMAGES:
        drawn = np.random.default_rng(experiment.seed).choice(image_ids, MOST_IMAGES, replace=False)
        image_ids = sorted(int(image_id) for image_id in drawn)
    truth = truth.subset(image_ids)
    cases = read_cases(prediction_files(experiment, layout, "oof"), truth, fold_of)
    log.info("%d out-of-fold images, %d detections", len(cases), sum(len(case.detections) for case in cases))

    competition = competitions.get(experiment.competition)
    limit = experiment.submission.max_per_image
    most = limit if competition.max_detections is None else min(competition.max_detections, limit)
    ruler = Ruler(most, seed=experiment.seed)
    base = Fusion.model_validate(experiment.fusion.model_dump())
    if base.tune:
        tuned = tune(cases, base, ruler, confirmation(competition, truth, limit))
    else:
        tuned = Tuned(base, [], Study(cases, ruler).table(base))

    table, rungs = training_table(layout), ladder(layout)
    tuned.table.write(table)
    write_json(rungs, [rung.to_json() for rung in tuned.ladder])
    facts = provenance(
        experiment=experiment.name,
        seed=experiment.seed,
        images=len(cases),
        seconds=round(time.perf_counter() - began, 1),
    )
    write_settings(layout.fusion, tuned.settings, facts)
    return tuned


def read_cases(paths: Sequence[Path], truth: Dataset, fold_of: dict[int, int]) -> list[Case]:
    """The out-of-fold images of `truth`, ascending by id, with what their own fold's voters found."""
    voters: dict[int, list[str]] = {}
    for path in paths:
        for name in read_sources(path):
            voters.setdefault(int(Voter.parse(name).fold), []).append(name)
    found = {image_id: table for image_id, table, _ in by_image(paths) if image_id in truth.image}
    true = truths(truth, truth.image)
    cases = []
    for image_id in sorted(truth.image):
        image, names = truth.image[image_id], voters[fold_of[image_id]]
        table = found.get(image_id) or Detections.empty(names)
        cases.append(Case(image_id, (image.height, image.width), table, names, true[image_id]))
    return cases


def confirmation(competition: Competition, truth: Dataset, limit: int) -> Confirm:
    """The competition's own score of fused detections, the best `limit` of each image: its numbers only."""
    sizes = {image.id: (image.height, image.width) for image in truth.images}

    def score(found: Detections) -> dict[str, Any]:
        result = competition.score(truth, found.top(limit).to_coco(sizes))
        return {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    return score
