"""Read the competition's files into datasets and images."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

from pipeline import competitions, near_duplicates
from pipeline.experiment import Experiment, Layout
from pipeline.files import provenance, write_json
from pipeline.records import Dataset

log = logging.getLogger("pipeline.prepare")


def run(experiment: Experiment, layout: Layout) -> competitions.Prepared:
    """Write data/train.json, data/test.json, data/integrity.json and the images below data/images/.

    Training images that are copies of each other are given one group, so that no fold is validated on what its training holds.

    Raises:
        ExperimentError: there is no data where the experiment says.
        CompetitionError: the data cannot be used at all. What can be survived stands in data/integrity.json.
    """
    competition = competitions.get(experiment.competition)
    folder = layout.train_json.parent
    folder.mkdir(parents=True, exist_ok=True)
    prepared = competition.read(experiment.data_path(), experiment.data.options, experiment.seed, folder)
    prepared, copies = near_duplicates.keep_together(prepared)
    prepared = replace(prepared, train=_signed(prepared.train), test=_signed(prepared.test))
    prepared.train.write(layout.train_json)
    prepared.test.write(layout.test_json)
    facts = provenance(
        experiment=experiment.name,
        competition=experiment.competition,
        options=experiment.data.options,
        seed=experiment.seed,
    )
    report = {**prepared.integrity.to_json(), "near_duplicates": copies.to_json(), "provenance": facts}
    write_json(layout.integrity, report)
    for problem in prepared.integrity.problems:
        log.warning("%s", problem)
    log.info(
        "%s: %d training images with %d instances, %d test images, %d problems (%s)",
        experiment.competition, len(prepared.train.images), len(prepared.train.instances), len(prepared.test.images),
        len(prepared.integrity.problems), layout.integrity,
    )  # fmt: skip
    return prepared


def _signed(dataset: Dataset) -> Dataset:
    """With every image's hash, by which what hangs on the data learns of other pixels under the same names."""
    return replace(dataset, images=[replace(i, sha256=_sha256(dataset.path(i))) for i in dataset.images])


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
