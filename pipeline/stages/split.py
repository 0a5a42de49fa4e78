"""Divide the training images into folds, unless somebody has done it by hand."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline import competitions, folds
from pipeline.experiment import Experiment, Layout
from pipeline.records import Dataset

log = logging.getLogger("pipeline.split")


def run(experiment: Experiment, layout: Layout) -> list[folds.Row]:
    """Write folds/<run>.csv.

    A CSV that this stage wrote is written anew when the images or settings have changed. One that was written or edited
    by hand is checked and used as it is, never overwritten. `folds.file` stands in the place of what this stage would choose.

    Raises:
        FoldsError: a CSV by hand, or `folds.file`, that does not fit the images or the experiment; too few groups for the folds.
    """
    dataset = Dataset.read(layout.train_json)
    path = layout.folds
    if path.exists() and not _is_ours(path, layout):
        rows = folds.read_csv(path)
        if not _is_what_we_would_write(rows, experiment, dataset):
            for warning in folds.check(rows, path, dataset, experiment.folds.count, experiment.folds.repeats):
                log.warning("%s", warning)
            log.info("%s was written by hand and is used as it is; delete it to have one made", path)
            if experiment.folds.file is not None:
                log.warning("so folds.file, %s, is not used", experiment.folds.file)
            folds.remember(path, layout.folds_record, by_hand=True)
            return rows
    rows = _divide(experiment, dataset)
    if not path.exists() or path.read_text() != folds.to_csv(rows):
        folds.write_csv(rows, path)
    folds.remember(path, layout.folds_record, by_hand=False)
    for fold in range(experiment.folds.total):
        own = [row for row in rows if fold in row.folds]
        log.info("fold %d: %d images in %d groups", fold, len(own), len({row.group or row.image for row in own}))
    return rows


def _divide(experiment: Experiment, dataset: Dataset) -> list[folds.Row]:
    competition, settings = competitions.get(experiment.competition), experiment.folds
    given = experiment.folds_file()
    if given is not None:
        rows = folds.read_csv(given)
        for warning in folds.check(rows, given, dataset, settings.count, settings.repeats, folds.NAMED):
            log.warning("%s", warning)
        return folds.described(rows, dataset, competition.stratum)
    return folds.divide(dataset, settings.count, experiment.seed, competition.stratum, settings.repeats)


def _is_ours(path: Path, layout: Layout) -> bool:
    return folds.is_known(path, layout.folds_record) and folds.remembered(layout.folds_record)["by_hand"] is False


def _is_what_we_would_write(rows: list[folds.Row], experiment: Experiment, dataset: Dataset) -> bool:
    """Our own CSV whose record went with the other artifacts."""
    try:
        return folds.to_csv(rows) == folds.to_csv(_divide(experiment, dataset))
    except folds.FoldsError:
        return False
