"""The augmentations of an experiment, as albumentations has them."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from pipeline.experiment import Augmentation, Experiment, ExperimentError, nearest


def augmentation(steps: list[Augmentation], seed: int) -> Any:
    """The albumentations pipeline of an experiment's `augment` list; one definition for both frameworks.

    Raises:
        ExperimentError: a name or argument that albumentations does not have.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks on the internet for a newer one otherwise
    import albumentations

    transforms = []
    for step in steps:
        cls = getattr(albumentations, step.name, None)
        if cls is None:
            hint = nearest(step.name, dir(albumentations))
            raise ExperimentError(f"train.augment: albumentations has no {step.name!r}{hint}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # albumentations only warns about arguments it does not know
            try:
                transforms.append(cls(p=step.p, **step.args))
            except (TypeError, ValueError, UserWarning) as error:
                raise ExperimentError(f"train.augment: {step.name} does not take {step.args}: {error}") from error
    return albumentations.Compose(transforms, seed=seed)


def check(experiment: Experiment) -> None:
    """Build every model's augmentations and throw them away, in a process of its own, since albumentations brings 700 MB along.

    Raises:
        ExperimentError: as `augmentation`, and with the model's name where it has its own.
    """
    asked = {"": experiment.train.augment} if experiment.train.augment else {}
    for name, model in experiment.models.items():
        if model.train.get("augment"):
            asked[f"models.{name}."] = experiment.train_settings(name).augment
    if asked:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_build, asked).result()


def _build(asked: dict[str, list[Augmentation]]) -> None:
    for place, steps in asked.items():
        try:
            augmentation(steps, 0)
        except ExperimentError as error:
            raise ExperimentError(f"{place}{error}") from None
