"""Numbers of masks against scipy, scikit-learn-free formulas and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull

from pipeline.fusion.crops import Crops
from pipeline.fusion.shape import certainty, shapes
from tests.fusion.cells import ellipse, table


def test_shapes_of_random_masks() -> None:
    rng = np.random.default_rng(0)
    frames = [ellipse(*rng.uniform(10, 100, 2), *rng.uniform(2, 20, 2)) for _ in range(12)]
    frames += [np.where(rng.random((120, 120)) < 0.01, 200, 0).astype(np.uint8) for _ in range(4)]
    crops = Crops.of(table(frames, [0.5] * len(frames)))
    look = shapes(crops)
    area, inside = certainty(crops)
    np.testing.assert_array_equal(area, look.area)
    np.testing.assert_array_equal(inside, look.inside)
    for i, frame in enumerate(frames):
        mask = frame >= 128
        assert look.area[i] == mask.sum()
        assert look.inside[i] == pytest.approx(frame[mask].mean() / 255)
        support = frame >= 64
        assert look.unsure[i] == pytest.approx((support & (frame < 192)).sum() / support.sum())
        padded = np.pad(mask, 1).astype(int)
        edges = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
        assert look.perimeter[i] == edges
        cy, cx = ndimage.center_of_mass(mask)
        assert (look.y[i], look.x[i]) == pytest.approx((cy + 0.5, cx + 0.5))
        y, x = np.nonzero(mask)
        corners = np.concatenate([np.stack([y + dy, x + dx], axis=1) for dy in (0, 1) for dx in (0, 1)])
        assert look.hull[i] == pytest.approx(ConvexHull(corners).volume)
        values = np.linalg.eigvalsh(np.cov(np.stack([y, x]), bias=True) + np.eye(2) / 12)
        assert look.eccentricity[i] == pytest.approx(np.sqrt(1 - values[0] / values[1]), abs=1e-6)


def test_simple_shapes() -> None:
    square, line = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    square[3:9, 4:10], line[5, 2:18] = 255, 255
    look = shapes(Crops.of(table([square, line, np.zeros((20, 20), np.uint8)], [1, 1, 1])))
    assert look.area.tolist() == [36, 16, 0] and look.hull.tolist() == [36, 16, 0]
    assert look.perimeter.tolist() == [24, 34, 0]
    assert look.eccentricity[0] == pytest.approx(0) and look.eccentricity[1] > 0.99
    assert look.bounds.tolist() == [[4, 3, 10, 9], [2, 5, 18, 6], [0, 0, 0, 0]]
    assert look.inside.tolist() == [1, 1, 0] and look.unsure.tolist() == [0, 0, 0]


def test_none() -> None:
    assert len(shapes(Crops.of(table([], []))).area) == 0
