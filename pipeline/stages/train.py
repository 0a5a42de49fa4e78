"""Train one model on one fold: everything but the fold's own images (fold ``all``: everything)."""

from __future__ import annotations

import io
import logging
import time

from pipeline import backends
from pipeline.backends import catalog
from pipeline.experiment import ALL, Experiment, Layout
from pipeline.files import commit, provenance, write_json, writing
from pipeline.folds import read_folds
from pipeline.records import Dataset
from pipeline.supervision import exclusive

log = logging.getLogger("pipeline.train")

SEEDS_APART = 10_000
"""A model's seed counts so much, so that no two of its trainings, of whatever folds, begin alike."""


def run(experiment: Experiment, layout: Layout, model: str, fold: str, version: str = "") -> None:
    """Write models/<model>/fold-<fold>/checkpoint.pth, resuming from the training's own last checkpoint if it has one.

    Args:
        version: of what the training depends on besides its images, its model config and code among it; checkpoints of
            another version are thrown away, not resumed from.

    Raises:
        TrainingError: the loss is not a number or stays exactly zero.
        BlockingIOError: another process is training in this folder.
    """
    commit()  # the code that trains, whatever is committed meanwhile
    settings = experiment.models[model]
    backend = backends.get(settings.framework)
    images = Dataset.read(layout.train_json)
    if fold != ALL:
        folds_of = read_folds(layout.folds, images)
        images = images.subset(image.id for image in images.images if int(fold) not in folds_of[image.id])
    folder = layout.training(model, fold)
    folder.mkdir(parents=True, exist_ok=True)
    job = backends.TrainJob(
        settings,
        experiment.train_settings(model),
        images,
        folder,
        f"{model}/{fold}",
        experiment.seed + SEEDS_APART * settings.seed + _offset(fold),
        version,
    )
    began = time.perf_counter()
    with exclusive(folder / "lock", f"training of {model} on fold {fold}"):
        log.info(
            "%s: %d images, %d instances, %s",
            job.title, len(images.images), len(images.instances), catalog.first_weights(settings),
        )  # fmt: skip
        state = backend.train(job)
        _save(layout, model, fold, state)
    write_json(
        folder / "provenance.json",
        provenance(
            experiment=experiment.name,
            model=settings.model_dump(),
            settings=job.settings.model_dump(),
            seed=job.seed,
            images=len(images.images),
            seconds=round(time.perf_counter() - began, 1),
        ),
    )


def _offset(fold: str) -> int:
    """Folds draw different samples and first weights: an ensemble lives on its members' differences."""
    return 1000 if fold == ALL else int(fold)


def _save(layout: Layout, model: str, fold: str, state: dict[str, object]) -> None:
    import torch

    plain = {k: v.detach().cpu().clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    content = io.BytesIO()  # written by itself, torch says nothing clear of a full disk
    torch.save({"state_dict": plain, "model": model, "fold": fold}, content)
    with writing(layout.checkpoint(model, fold)) as temporary:
        temporary.write_bytes(content.getbuffer())
