"""Fuse the predictions of a run, image by image; or any submissions of one competition."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import competitions
from pipeline.experiment import ALL, Experiment, Layout
from pipeline.files import provenance, writing
from pipeline.folds import read_folds, used_folds
from pipeline.fusion.fuse import fuse_to
from pipeline.fusion.lists import DEFAULT, MAJORITY, as_lists, fuse_lists
from pipeline.fusion.rescore import Rescorer, Table, cross_fit, group_of
from pipeline.fusion.settings import for_categories, read_settings
from pipeline.records import Dataset, Detections, Image
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
    named = read_settings(layout.fusion)
    paths = prediction_files(experiment, layout, part)
    images = Dataset.read(layout.train_json if part == "oof" else layout.test_json)
    settings = for_categories(named, images.categories)
    sizes = {image.id: (image.height, image.width) for image in images.images}
    folds_of = None
    if part == "oof":
        used = used_folds(read_folds(layout.folds, images), experiment.validation_folds())
        folds_of = {image_id: [str(fold) for fold in folds] for image_id, folds in used.items()}
    rescorer = None
    if settings.rescore == "learned":
        rescorer = _rescorers(Table.read(training_table(layout)), folds_of)
    facts = provenance(experiment=experiment.name, part=part, settings=settings.model_dump())
    written = 0
    for image_id, count in fuse_to(
        layout.fused(part), paths, settings, sizes, rescorer, folds_of=folds_of, provenance=facts
    ):
        written += 1
        log.debug("%s: image %d, %d masks", part, image_id, count)
    log.info("%s: %d images of %d files fused in %.0f s", part, written, len(paths), time.perf_counter() - began)


def _rescorers(table: Table, folds_of: Mapping[int, Sequence[str]] | None) -> Callable[[int], Rescorer]:
    """By image: out of fold the rescorer that never saw the image, on test images the one that saw all."""
    fitted = cross_fit(table)
    if folds_of is None:
        return lambda image_id: fitted(ALL)
    homes = {folds[0] for folds in folds_of.values()}
    return lambda image_id: fitted(group_of(folds_of[image_id][0], image_id, homes))


# ---------------------------------------------------------------- files alone -----------------------------------------


def fuse_files(
    competition: str, paths: Sequence[str | Path], output: str | Path, ids: str | Path | None = None
) -> dict[str, Any]:
    """Fuse submissions of one competition, any mix of .zip, .json, .csv and .parquet, into a submission.

    There is no truth to tune on: see fusion/lists.py for the settings and why. Each file is one voter (a Parquet file
    of a run's predictions is as many as its sources). As many masks of an image are kept as the fullest file has.

    Where the metric has no confidences, a mask is kept if at least half of the files have it.

    Args:
        ids: the test images; needed where no file says how large the images are: CSV, or Parquet alone.

    Returns:
        ``{"competition", "files", "images", "detections", "output", "problems"}``.

    Raises:
        CompetitionError: a file cannot be read; the fused one would not be accepted.
        ValueError: no files, or no image's size is known.
        FileNotFoundError: a file is not there.
    """
    if not paths:
        raise ValueError("there is nothing to fuse: give at least one submission")
    host = competitions.get(competition)
    names = [Path(path) for path in paths]
    for name in names:
        if not name.exists():
            raise FileNotFoundError(f"there is no {name}")
    images = host.read_ids(Path(ids)) if ids is not None else None
    sizes = {} if images is None else {i.id: (i.height, i.width) for i in images.images}
    tables = []
    for name in names:
        if name.suffix.lower() == ".parquet":
            tables.append(Detections.read(name))
            continue
        records = host.read_submission(name, images)
        try:
            for record in records:
                height, width = record["segmentation"]["size"]
                sizes.setdefault(int(record["image_id"]), (int(height), int(width)))
            tables.append(Detections.from_coco(records, name.stem))
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {error}"
            raise competitions.CompetitionError(
                f"{name}: {what}; `validate` lists every fault of a submission"
            ) from error
    found = as_lists(tables, [name.stem for name in names])
    unknown = sorted(set(found.image_id.tolist()) - set(sizes))
    if unknown:
        raise ValueError(
            f"how large are the images {unknown[:10]}? A Parquet file does not say; add a .zip or .json of the same images"
        )
    limit = max(
        (int(np.unique(table.image_id, return_counts=True)[1].max()) for table in tables if len(table)), default=0
    )
    settings = DEFAULT if host.ranked else MAJORITY
    fused = fuse_lists(found, sizes, settings, silence=host.ranked).top(limit)
    test = images or Dataset([Image(i, str(i), h, w) for i, (h, w) in sorted(sizes.items())], {})
    target = Path(output)
    with writing(target) as unchecked:
        host.write(fused, test, unchecked)
        problems = host.validate(unchecked, test)
        errors = [str(problem) for problem in problems if problem.severity == "error"]
        if errors:
            listed = "\n  ".join(errors)
            raise competitions.CompetitionError(f"{target} would not be accepted, so it was not written:\n  {listed}")
    return {
        "competition": host.name,
        "files": len(names),
        "images": len(test.images),
        "detections": len(fused),
        "output": str(target),
        "problems": [str(problem) for problem in problems],
    }
