"""Predict one part of the images with one checkpoint, under all of the part's views."""

from __future__ import annotations

import logging
import time

from pipeline import backends
from pipeline.experiment import ALL, Experiment, ExperimentError, Layout
from pipeline.files import provenance
from pipeline.folds import read_folds
from pipeline.records import Dataset, DetectionsWriter

log = logging.getLogger("pipeline.predict")


def run(experiment: Experiment, layout: Layout, model: str, fold: str, part: str) -> None:
    """Write predictions/<model>/fold-<fold>-<part>.parquet.

    Args:
        part: ``oof`` for the fold's own images, which its training never saw, or ``test``.

    Raises:
        ExperimentError: out-of-fold predictions of the fold ``all``, which has seen every image.
        CheckpointError: the checkpoint is unreadable or of another model.
    """
    settings = experiment.models[model]
    backend = backends.get(settings.framework)
    if part == "oof":
        if fold == ALL:
            raise ExperimentError(f"fold {ALL!r} is trained on every image, so it has no out-of-fold predictions")
        images = Dataset.read(layout.train_json)
        folds_of = read_folds(layout.folds, images)
        images = images.subset(image.id for image in images.images if int(fold) in folds_of[image.id])
    else:
        images = Dataset.read(layout.test_json)
    views = experiment.views(model, part)
    title = f"{model}/{fold}"
    job = backends.PredictJob(
        settings, experiment.predict_settings(model), views, layout.checkpoint(model, fold), images, title
    )
    facts = provenance(
        experiment=experiment.name, model=model, fold=fold, part=part, settings=job.settings.model_dump()
    )
    began = time.perf_counter()
    sources = [f"{title}/{view}" for view in views]
    with DetectionsWriter(layout.predictions(model, fold, part), sources, provenance=facts) as writer:
        for done, (image, found) in enumerate(backend.predict(job), start=1):
            writer.add(found)
            left = (time.perf_counter() - began) / done * (len(images.images) - done)
            log.info(
                "%s %s: %d/%d %s  %d instances in %d views  ETA %d:%02d",
                title, part, done, len(images.images), image.file_name, len(found), len(views), left // 60, left % 60,
            )  # fmt: skip
