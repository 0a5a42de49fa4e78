"""The augmentations of an experiment, as albumentations has them."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from pipeline.experiment import WAYS, Augmentation, Experiment, ExperimentError, TrainSettings, nearest

AN_IMAGE = (256, 192)
"""Height and width of what transforms are tried on where crops are as large as images are."""


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
    """Build every model's augmentations and try each on a crop, in a process of its own: albumentations brings 700 MB along.

    Raises:
        ExperimentError: as `augmentation`, and where a transform changes an image's size or kind; with the model's name where it
            has its own.
    """
    asked = {"": experiment.train} if experiment.train.augment else {}
    for name, model in experiment.models.items():
        if model.train.get("augment"):
            asked[f"models.{name}."] = experiment.train_settings(name)
    if asked:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_try, asked).result()


def _try(asked: dict[str, TrainSettings]) -> None:
    import numpy as np

    for place, settings in asked.items():
        size = (settings.crop, settings.crop) if isinstance(settings.crop, int) else AN_IMAGE
        crop = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        try:
            augmentation(settings.augment, 0)
            for step in settings.augment:
                _keeps(step, crop)
        except ExperimentError as error:
            raise ExperimentError(f"{place}{error}") from None


def _keeps(step: Augmentation, crop: Any) -> None:
    """See that a transform gives an image of bytes and of the same size, which is what a network is shown in prediction too.

    Raises:
        ExperimentError: it does not, or fails.
    """
    try:
        done = augmentation([step.model_copy(update={"p": 1.0})], 0)(image=crop, masks=[crop[:, :, 0]])
    except Exception as error:  # noqa: BLE001  a transform may raise anything
        size = f"{crop.shape[0]}x{crop.shape[1]}"
        raise ExperimentError(f"train.augment: {step.name} fails on a crop of {size}: {error}") from error
    image, mask = done["image"], done["masks"][0]
    turned = (crop.shape[1], crop.shape[0], 3)
    if image.dtype != crop.dtype or image.shape not in (crop.shape, turned) or mask.shape != image.shape[:2]:
        raise ExperimentError(
            f"train.augment: {step.name} makes {image.dtype} of {'x'.join(map(str, image.shape))} out of a crop of bytes of "
            f"{'x'.join(map(str, crop.shape))}; sizes are the matter of train.crop and {', '.join(WAYS)}, and the model itself "
            "normalises"
        )
