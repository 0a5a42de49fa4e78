"""Best Dice, by hand and against full frames."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.dice import best_dice
from pipeline.records import Dataset
from tests.metrics.test_openimages_ap import STRIP, dataset, frame, record


def test_by_hand() -> None:
    """Truths of 10 and 20 columns and one that nothing meets; 2 * 5 / (10 + 5) and 2 * 20 / (20 + 20) are the best."""
    truth = dataset((1, 0, 0, 10), (1, 15, 0, 20), (2, 0, 0, 10))
    records = [record(1, 0.1, 0, 0, 5), record(1, 0.9, 0, 8, 20), record(1, 0.5, 15, 0, 20, category_id=9)]
    assert best_dice(truth, records) == pytest.approx((2 * 5 / 15 + 1 + 0) / 3, abs=1e-12)


def test_nothing_there() -> None:
    assert best_dice(dataset(), []) == -1.0
    assert best_dice(dataset((1, 0, 0, 10)), []) == 0.0
    assert best_dice(dataset((1, 0, 0, 10)), [record(2, 0.5, 0, 0, 10)]) == 0.0


def written_out(truth: Dataset, records: list[dict[str, Any]]) -> float:
    values = []
    for instance in truth.instances:
        mask = frame(instance.rle)
        others = [frame(r["segmentation"]) for r in records if r["image_id"] == instance.image_id]
        values.append(max([2 * (mask & o).sum() / (mask.sum() + o.sum()) for o in others], default=0.0))
    return float(np.mean(values))


@settings(max_examples=60, deadline=None)
@given(truths=st.lists(STRIP, min_size=1, max_size=6), found=st.lists(STRIP, max_size=6), seed=st.integers(0, 9))
def test_against_frames_and_order(truths: list, found: list, seed: int) -> None:
    truth = dataset(*truths)
    records = [record(i, 0.5, y, x0, x1) for i, y, x0, x1 in found]
    value = best_dice(truth, records)
    assert value == pytest.approx(written_out(truth, records), abs=1e-12)
    shuffled = [records[k] for k in np.random.default_rng(seed).permutation(len(records))]
    assert best_dice(truth, shuffled) == pytest.approx(value, abs=1e-12)
    perfect = [record(i, 0.5, y, x0, x1) for i, y, x0, x1 in truths]
    assert best_dice(truth, records + perfect) == pytest.approx(1, abs=1e-12)
