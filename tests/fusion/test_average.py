"""Averaged masks against full frames; crops, caps and overlaps too."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fusion.average import average
from pipeline.fusion.crops import Crops, overlaps
from pipeline.records import GRID_CAP, Detections
from tests.fusion.cells import SIZE, ellipse, frames_of, table


def some(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [ellipse(*rng.uniform(0, 120, 2), *rng.uniform(1, 25, 2)) for _ in range(count)]


def test_the_mean_of_full_frames() -> None:
    rng = np.random.default_rng(0)
    frames = some(0, 40)
    crops = Crops.of(table(frames, [0.5] * 40))
    member, weight = rng.integers(-1, 8, 40), rng.random(40)
    fused = average(crops, member, weight, 9)
    for k, got in enumerate(frames_of(fused)):
        mine = np.flatnonzero(member == k)
        expected = np.zeros(SIZE)
        if mine.size:
            expected = np.average(np.stack([frames[i] for i in mine]).astype(float), axis=0, weights=weight[mine])
        np.testing.assert_allclose(got, expected, atol=0.51)
    assert (fused.box[8] == 0).all() and fused.crop(8).size == 0  # a cluster without members


def test_a_member_outside_its_fused_box_is_not_clipped() -> None:
    """Two masks side by side: the result spans both, at half their probability."""
    left, right = ellipse(40, 20, 8, 8), ellipse(40, 60, 8, 8)
    fused = average(Crops.of(table([left, right], [0.5, 0.5])), np.array([0, 0]), np.array([1.0, 1.0]), 1)
    np.testing.assert_allclose(frames_of(fused)[0], (left.astype(float) + right) / 2, atol=0.51)
    assert fused.box[0, 0] < 20 and fused.box[0, 2] > 60


def test_half_is_foreground_and_one_stays_as_it_is() -> None:
    """A pixel that half of the weight is sure of counts; one mask by itself is kept bit for bit, whatever its weight."""
    frame = ellipse(50, 50, 12, 9)
    sure, none = np.full((10, 10), 255, np.uint8), np.zeros((10, 10), np.uint8)
    pair = Crops(np.array([[0, 0, 10, 10]] * 2), np.array([0, 100, 200]), np.concatenate([sure.ravel(), none.ravel()]))
    assert (average(pair, np.array([0, 0]), np.array([0.3, 0.3]), 1).pixels == 128).all()
    for weight in (0.0, 1e-9, 0.3, 7.0):
        fused = average(Crops.of(table([frame], [0.5])), np.array([0]), np.array([weight]), 1)
        np.testing.assert_array_equal(frames_of(fused)[0], frame)
    thirds = Crops(np.array([[0, 0, 10, 10]] * 3), np.arange(4) * 100, np.tile(sure.ravel(), 3))
    assert (average(thirds, np.zeros(3, int), np.array([0.1, 0.2, 0.4]), 1).pixels == 255).all()


def test_weights_of_zero_give_the_plain_mean() -> None:
    a, b = ellipse(50, 50, 12, 9), ellipse(52, 50, 12, 9)
    fused = average(Crops.of(table([a, b], [0, 0])), np.array([0, 0]), np.zeros(2), 1)
    np.testing.assert_allclose(frames_of(fused)[0], (a.astype(float) + b) / 2, atol=0.51)


def test_nothing() -> None:
    assert len(average(Crops.of(Detections.empty()), np.zeros(0, int), np.zeros(0), 0)) == 0


def test_capped_grids_are_averaged_at_full_size() -> None:
    size = (300, 420)
    large, small = ellipse(150, 200, 120, 180, size), ellipse(150, 200, 20, 20, size)
    found = table([large, small, large], [1, 1, 1])
    assert found.shape.max() == GRID_CAP
    crops = Crops.of(found)
    np.testing.assert_array_equal(crops.crop(1), found.grid(1))
    np.testing.assert_array_equal(crops.crop(2), found.crop(2))
    fused = average(crops, np.array([0, 0, 0]), np.ones(3), 1)
    expected = (2.0 * large + small) / 3
    assert np.abs(frames_of(fused, size)[0] - expected).mean() < 2
    columns = fused.columns()
    assert columns["shape"].tolist() == [[GRID_CAP, GRID_CAP]] and columns["offset"].tolist() == [0, GRID_CAP**2]


def test_crops_and_columns_round_trip_with_capped_and_empty_grids() -> None:
    size = (300, 420)
    frames = [
        ellipse(20, 20, 9, 5, size),
        ellipse(150, 200, 120, 180, size),
        np.zeros(size, np.uint8),
        ellipse(9, 9, 4, 4, size),
    ]
    for chosen in ([0, 1, 2, 3], [1], [2], [1, 1, 3], [3, 2, 1]):
        found = table([frames[i] for i in chosen], [0.5] * len(chosen))
        again = Detections(**{**vars(found), **Crops.of(found).columns()})
        np.testing.assert_array_equal(again.shape, found.shape)
        np.testing.assert_array_equal(again.offset, found.offset)
        assert np.abs(again.pixels.astype(int) - found.pixels).max(initial=0) <= 30  # down, up and down again
        for k, i in enumerate(chosen):
            if i != 1:
                np.testing.assert_array_equal(again.grid(k), found.grid(k))


@pytest.mark.parametrize("same", [True, False])
def test_overlaps_are_those_of_the_full_frames(same: bool) -> None:
    first = some(1, 30)
    second = first if same else some(2, 25)
    a = Crops.of(table(first, [0.5] * len(first)))
    b = a if same else Crops.of(table(second, [0.5] * len(second)))
    row, column, common = overlaps(a, b)
    found = {(int(i), int(j)): int(n) for i, j, n in zip(row, column, common, strict=True)}
    expected = {
        (i, j): n
        for i, x in enumerate(first)
        for j, y in enumerate(second)
        if (n := int(((x >= 128) & (y >= 128)).sum()))
    }
    assert found == expected and len(found) == len(row) > 50
    assert (np.diff(row) >= 0).all()
