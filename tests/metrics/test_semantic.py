"""Confusion of semantic maps, by hand and against the formulas written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.semantic import Confusion


def test_by_hand() -> None:
    """Six pixels that count: 4 right. Class 7: 2 of (2 right, 1 missed, 1 too many); class 9: 2 of (2, 1 missed, 0)."""
    truth = np.array([[7, 7, 7, 9], [9, 9, 0, 255]], np.uint8)
    found = np.array([[7, 7, 9, 9], [9, 7, 7, 9]], np.uint8)
    confusion = Confusion([7, 9, 11])
    confusion.add(truth, found)
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]]
    assert confusion.pixel_accuracy == 4 / 6
    assert confusion.iou() == {7: 2 / 4, 9: 2 / 4, 11: None}
    assert confusion.mean_iou == 0.5


def test_predictions_that_are_no_class_are_wrong() -> None:
    confusion = Confusion([1, 2])
    confusion.add(np.array([[1, 1, 2, 2]], np.uint8), np.array([[1, 0, 255, 3]], np.uint8))
    assert confusion.counts.tolist() == [[1, 0, 1], [0, 0, 2]]
    assert confusion.pixel_accuracy == 0.25
    assert confusion.iou() == {1: 0.5, 2: 0.0}


def test_nothing() -> None:
    confusion = Confusion([1, 2])
    assert (confusion.pixel_accuracy, confusion.mean_iou) == (None, None)
    confusion.add(np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8))  # all void
    confusion.add(np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.uint8))
    assert (confusion.pixel_accuracy, confusion.mean_iou) == (None, None)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 3))
def test_equals_the_definition(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    classes = [3, 0, 200]
    values = np.array([0, 3, 200, 5, 255], np.uint8)
    pairs = [(values[rng.integers(0, 5, (6, 7))], values[rng.integers(0, 5, (6, 7))]) for _ in range(images)]
    confusion = Confusion(classes)
    for truth, found in pairs:
        confusion.add(truth, found)
    truth, found = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    found, truth = found[np.isin(truth, classes)], truth[np.isin(truth, classes)]
    assert confusion.pixel_accuracy == (truth == found).mean()
    ious = {c: ((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum() for c in classes}
    assert confusion.iou() == pytest.approx(ious)
    assert confusion.mean_iou == pytest.approx(np.mean(list(ious.values())))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="different values"):
        Confusion([1, 1])
    with pytest.raises(ValueError, match="0..255"):
        Confusion([256])
    good = np.zeros((3, 4), np.uint8)
    for bad in (good.astype(np.int32), good.T):
        with pytest.raises(ValueError, match="uint8 of one shape"):
            Confusion([0]).add(good, bad)
