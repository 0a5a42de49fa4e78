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


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"name": "Normalize"}, "Normalize makes float32"),
        ({"name": "Resize", "args": {"height": 32, "width": 32}}, "Resize makes uint8 of 32x32x3 out of .* 256x256x3"),
        ({"name": "RandomCrop", "args": {"height": 300, "width": 300}}, "RandomCrop fails on a crop of 256"),
    ],
)
def test_what_changes_an_image_s_size_or_kind_is_refused(step: dict, words: str) -> None:
    with pytest.raises(ExperimentError, match=f"^models.m.train.augment: {words}"):
        check(experiment({"augment": [{"name": "D4"}, {**step, "p": 0.1}]}))


def test_every_models_augmentations_are_checked() -> None:
    check(experiment())
    check(experiment({"augment": []}))
    with pytest.raises(ExperimentError, match="^train.augment.*'D5'.*'D4'"):
        check(experiment(common="D5"))
    with pytest.raises(ExperimentError, match="^models.m.train.augment.*'ToGrey'.*'ToGray'"):
        check(experiment({"augment": [{"name": "ToGrey"}]}))
