"""The least score of a submitted mask, for metrics that count every mask alike."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fusion.threshold import COARSE, FINE, best_threshold


def precision(scores: np.ndarray, right: np.ndarray, wanted: int, level: float) -> float:
    """TP / (TP + FP + FN) of the masks scored at least `level`."""
    kept = scores >= level
    hits = int((kept & right).sum())
    return hits / (int(kept.sum()) + wanted - hits)


@pytest.mark.parametrize("low", [0.0, 0.3])
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_it_finds_where_masks_turn_false(scale: float, low: float) -> None:
    """Above 0.6 of the range every mask is right, below none: also where scores fill a small part of 0..1."""
    rng = np.random.default_rng(0)
    place = rng.random(400)
    scores, right = scale * (low + (1 - low) * place), place > 0.6
    level = best_threshold(scores, lambda level: precision(scores, right, 200, level))
    assert precision(scores, right, 200, level) > 0.98 * precision(scores, right, 200, float(scores[right].min()))
    assert abs(level - scores[right].min()) < 0.02 * scale


def test_it_keeps_everything_where_everything_helps() -> None:
    scores = np.linspace(0.2, 0.9, 50)
    assert best_threshold(scores, lambda level: -level) <= 0.2
    assert best_threshold(scores, lambda level: 1.0) <= 0.2  # of equal ones the lowest
    assert best_threshold(np.zeros(0), lambda level: 1.0) == 0.0


def test_it_asks_no_more_often_than_it_says() -> None:
    asked: list[float] = []

    def judge(level: float) -> float:
        asked.append(level)
        return -abs(level - 0.37)

    scores = np.random.default_rng(1).random(1000)
    level = best_threshold(scores, judge)
    assert level == pytest.approx(0.37, abs=0.01)
    assert len(asked) == len(set(asked)) <= COARSE + FINE + 2
    assert best_threshold(np.full(9, 0.5), lambda level: 1.0) == 0.5
