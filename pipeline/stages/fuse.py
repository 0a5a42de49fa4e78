"""Fuse the predictions of a run, image by image; or any submissions of one competition."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pipeline.experiment import Experiment, Layout
from pipeline.files import provenance
from pipeline.fusion.fuse import fuse_to
from pipeline.fusion.rescore import Rescorer, Table, cross_fit, fit, group_of
from pipeline.fusion.settings import read_settings
from pipeline.records import Dataset
from pipeline.stages.tune import prediction_files, training_table

log = logging.getLogger("pipeline.fuse")


def run(experiment: Experiment, layout: Layout, part: str) -> None:
    """Write fused/<part>.parquet with the settings in fusion.yaml.

    Args:
        part: ``oof``, where the learned rescorer of each image is one that never saw the image's fold, or ``test``.

    Raises:
        ExperimentError: predictions or fusion.yaml are missing; the message names the command that makes them.
    """
    began = time.perf_counter()
    settings = read_settings(layout.fusion)
    paths = prediction_files(experiment, layout, part)
    images = Dataset.read(layout.train_json if part == "oof" else layout.test_json)
    sizes = {image.id: (image.height, image.width) for image in images.images}
    rescorer = None
    if settings.rescore == "learned":
        table = Table.read(training_table(layout))
        folds = [str(fold) for fold in experiment.validation_folds()]
        rescorer = _out_of_fold(table, folds) if part == "oof" else _whole(table)
    facts = provenance(experiment=experiment.name, part=part, settings=settings.model_dump())
    written = 0
    for image_id, count in fuse_to(
        layout.fused(part), paths, settings, sizes, rescorer, everyone=part == "test", provenance=facts
    ):
        written += 1
        log.debug("%s: image %d, %d masks", part, image_id, count)
    log.info(
        "%s: %d images of %d files fused in %.0f s", part, written, len(paths), time.perf_counter() - began
    )


def _out_of_fold(table: Table, folds: list[str]) -> Callable[[str, int], Rescorer]:
    fitted = cross_fit(table)
    return lambda fold, image_id: fitted(group_of(fold, image_id, folds))


def _whole(table: Table) -> Callable[[str, int], Rescorer]:
    fitted = fit(table)
    return lambda fold, image_id: fitted
