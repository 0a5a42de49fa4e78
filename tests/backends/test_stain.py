"""Stain normalisation takes different stains of one slide to the same image, and leaves alone what has no stain."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.backends import PredictJob, inference
from pipeline.backends.found import Found
from pipeline.backends.samples import Samples
from pipeline.backends.stain import REFERENCE, REFERENCE_MOST, normalised
from pipeline.experiment import ModelSettings, PredictSettings, TrainSettings
from pipeline.records import Dataset, Image

OTHER = np.array([[0.65, 0.70, 0.29], [0.27, 0.85, 0.45]])  # of another laboratory


def slide(colours: np.ndarray, most: np.ndarray, seed: int = 0) -> np.ndarray:
    """A (90, 120, 3) image in which each stain is pure somewhere, and some of the glass is bare."""
    rng = np.random.default_rng(seed)
    held = rng.uniform(0.25, 1, (90, 120, 2))
    held[:20, :, 0] = 0
    held[20:40, :, 1] = 0
    held[80:] = 0
    colours = colours / np.linalg.norm(colours, axis=1, keepdims=True)
    return np.clip(np.rint(256 * np.exp(-(held * most) @ colours) - 1), 0, 255).astype(np.uint8)


def test_two_stains_of_one_slide_become_one_image() -> None:
    first, second = slide(REFERENCE, REFERENCE_MOST), slide(OTHER, np.array([1.5, 1.0]))
    before = np.abs(first.astype(int) - second).mean()
    a, b = normalised(first), normalised(second)
    assert a.shape == first.shape and a.dtype == np.uint8
    assert before > 8
    assert np.abs(a.astype(int) - b).mean() < 2


def test_the_reference_stays_and_bare_glass_stays_bare() -> None:
    reference = slide(REFERENCE, REFERENCE_MOST)
    assert np.abs(normalised(reference).astype(int) - reference).mean() < 2
    assert (normalised(slide(OTHER, np.array([1.5, 1.0])))[80:] >= 254).all()


@pytest.mark.parametrize(
    "image",
    [
        np.full((40, 40, 3), 255, np.uint8),
        np.full((40, 40, 3), 120, np.uint8),
        np.random.default_rng(0).integers(0, 40, (40, 40, 3), dtype=np.uint8),  # fluorescence
        np.repeat(np.random.default_rng(0).integers(60, 250, (40, 40, 1), dtype=np.uint8), 3, axis=2),  # grey
        np.zeros((1, 1, 3), np.uint8),
    ],
)
def test_what_has_no_stain_is_left_alone(image: np.ndarray) -> None:
    np.testing.assert_array_equal(normalised(image), image)


def test_a_model_sees_the_same_pixels_in_training_and_prediction(tmp_path: Path) -> None:
    """A window as large as the image, and the image under the identity."""
    cv2.imwrite(str(tmp_path / "0.png"), slide(OTHER, np.array([1.5, 1.0]))[:, :, ::-1])
    data = Dataset([Image(1, "0.png", 90, 120)], {1: "cell"}, [], tmp_path)
    model = ModelSettings(framework="mmdet", config="none", stain="macenko")
    shown: list[np.ndarray] = []

    def look(images: list[torch.Tensor]) -> list[Found]:
        shown.extend(image.numpy()[::-1].transpose(1, 2, 0) for image in images)
        return [Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28))]

    job = PredictJob(model, PredictSettings(), ["identity"], tmp_path / "none", data, "m/0")
    assert len(list(inference.predict(job, look))) == 1
    np.testing.assert_array_equal(shown[0], normalised(slide(OTHER, np.array([1.5, 1.0]))))

    window = Samples(data, TrainSettings(crop=120), 0, 1, model.stain)[0].image
    row = next(y for y in range(31) if (window[y : y + 90] == shown[0]).all())
    assert window[:row].sum() + window[row + 90 :].sum() == 0  # beyond the image
