"""The augmentations of an experiment, as albumentations has them."""

from __future__ import annotations

import warnings
from typing import Any

from pipeline.experiment import Augmentation, Experiment, ExperimentError, nearest


def augmentation(steps: list[Augmentation], seed: int) -> Any:
    """The albumentations pipeline of an experiment's `augment` list; one definition for both frameworks.

    Raises:
        ExperimentError: a name or argument that albumentations does not have.
    """
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
    """Build every model's augmentations and throw them away.

    Raises:
        ExperimentError: as `augmentation`, and with the model's name where it has its own.
    """
    augmentation(experiment.train.augment, 0)
    for name, model in experiment.models.items():
        if "augment" in model.train:
            try:
                augmentation(experiment.train_settings(name).augment, 0)
            except ExperimentError as error:
                raise ExperimentError(f"models.{name}.{error}") from error
