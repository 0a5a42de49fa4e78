"""An experiment's augmentations."""

import pytest

from pipeline.backends.augmentation import augmentation, check
from pipeline.experiment import Augmentation, Experiment, ExperimentError


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [("HEStian", {}, "did you mean 'HEStain'"), ("GaussNoise", {"strength": 3}, "GaussNoise does not take")],
)
def test_an_unknown_augmentation_is_named(name: str, args: dict, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        augmentation([Augmentation(name=name, args=args)], 0)


def experiment(own: dict | None = None, common: str = "D4") -> Experiment:
    model = {"framework": "mmdet", "config": "mmdet/mask-rcnn_r50", "train": own or {}}
    return Experiment.model_validate(
        {"name": "x", "competition": "coco", "models": {"m": model}, "train": {"augment": [{"name": common}]}}
    )


def test_every_models_augmentations_are_checked() -> None:
    check(experiment())
    check(experiment({"augment": []}))
    with pytest.raises(ExperimentError, match="^train.augment.*'D5'.*'D4'"):
        check(experiment(common="D5"))
    with pytest.raises(ExperimentError, match="^models.m.train.augment.*'ToGrey'.*'ToGray'"):
        check(experiment({"augment": [{"name": "ToGrey"}]}))
