"""Holes, parts, areas, overlaps and duplicates: each against scipy or by hand, and in their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from pipeline.fusion.crops import Crops
from pipeline.fusion.post import clean, drop_duplicates
from pipeline.fusion.settings import Fusion
from pipeline.records import Detections
from tests.fusion.cells import ellipse, frames_of, table

NOTHING: dict[str, Any] = {"fill_holes": False, "largest_part": False, "min_area": 0, "overlap_removal": "none"}


def cleaned(found: Detections, **settings: Any) -> Detections:
    return clean(found, Fusion(**{**NOTHING, **settings}))


def blots(seed: int, count: int) -> list[np.ndarray]:
    """Smoothed noise: many parts, many holes."""
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.normal(size=(60, 70)), rng.uniform(1, 3)) for _ in range(count)]
    return [np.clip(128 + 120 * n / np.abs(n).max(), 0, 255).astype(np.uint8) for n in noise]


def test_holes() -> None:
    frames = blots(0, 12)
    found = cleaned(table(frames, [0.5] * 12), fill_holes=True)
    for before, after in zip(frames, frames_of(Crops.of(found), (60, 70)), strict=True):
        np.testing.assert_array_equal(after >= 128, ndimage.binary_fill_holes(before >= 128))
        same = (after >= 128) == (before >= 128)
        np.testing.assert_array_equal(after[same], before[same])


def test_the_largest_part() -> None:
    frames = blots(1, 12)
    found = cleaned(table(frames, [0.5] * 12), largest_part=True)
    for before, after in zip(frames, frames_of(Crops.of(found), (60, 70)), strict=True):
        parts, count = ndimage.label(before >= 128, structure=np.ones((3, 3)))
        assert count > 1
        sizes = np.bincount(parts.ravel())[1:]
        np.testing.assert_array_equal(after >= 128, parts == 1 + np.argmax(sizes))


def test_the_smallest_area() -> None:
    frames = [ellipse(50, 50, r, r) for r in (2, 4, 8)]
    found = table(frames, [0.9, 0.8, 0.7])
    area = found.area()
    assert cleaned(found, min_area=int(area[1])).score.tolist() == [0.8, 0.7]
    assert cleaned(found, min_area=int(area[1]) + 1).score.tolist() == [0.7]
    faint = table([np.full((9, 9), 127, np.uint8), np.full((9, 9), 128, np.uint8)], [0.9, 0.8])
    assert cleaned(faint).score.tolist() == [0.8]  # no foreground, no detection


def test_overlaps_go_to_the_better_scored() -> None:
    frames = [ellipse(50, 48, 12, 12), ellipse(50, 55, 12, 12), ellipse(50, 65, 12, 12), ellipse(50, 56, 3, 3)]
    found = cleaned(table(frames, [0.5, 0.9, 0.7, 0.6]), overlap_removal="score")
    assert found.score.tolist() == [0.5, 0.9, 0.7]  # the last lay wholly inside
    after = [f >= 128 for f in frames_of(Crops.of(found))]
    before = [f >= 128 for f in frames]
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[2], before[2] & ~before[1])
    np.testing.assert_array_equal(after[0], before[0] & ~before[1] & ~before[2])
    assert np.sum(after, axis=0).max() == 1
    remnant = int(after[0].sum())
    kept = cleaned(table(frames, [0.5, 0.9, 0.7, 0.6]), overlap_removal="score", min_area=remnant + 1)
    assert kept.score.tolist() == [0.9, 0.7]


def test_overlaps_go_to_the_larger_probability() -> None:
    """Pixel by pixel and whatever the scores; equal ones to the better-scored; checked against full frames."""
    frames = [ellipse(50, 48, 12, 12), ellipse(50, 60, 12, 12), ellipse(62, 55, 9, 12)]
    score = [0.5, 0.9, 0.7]
    found = cleaned(table(frames, score), overlap_removal="probability")
    assert found.score.tolist() == score
    after = np.stack([f >= 128 for f in frames_of(Crops.of(found))])
    soft = np.stack(frames).astype(int)
    ranked = [1, 2, 0]
    winner = np.array(ranked)[np.argmax(soft[ranked], axis=0)]  # the first of equal ones
    for k in range(3):
        np.testing.assert_array_equal(after[k], (soft[k] >= 128) & (winner == k))
    assert after.sum(axis=0).max() == 1
    assert after[0].sum() > cleaned(table(frames, score), overlap_removal="score").area()[0]
    sure = [np.where(f >= 128, 255, 0).astype(np.uint8) for f in frames]
    for way in ("score", "probability"):  # binary masks know no other order than the scores'
        same = cleaned(table(sure, score), overlap_removal=way)
        assert same.area().tolist() == cleaned(table(sure, score), overlap_removal="score").area().tolist()


def test_a_dropped_small_mask_takes_no_pixel_from_a_better_one_by_probability() -> None:
    faint, small = ellipse(50, 50, 12, 12) // 2 + 60, np.zeros((120, 140), np.uint8)
    small[48:52, 48:52] = 255
    found = cleaned(table([faint, small], [0.9, 0.3]), overlap_removal="probability", min_area=17)
    assert found.score.tolist() == [0.9] and found.area()[0] == (faint >= 128).sum()


def test_the_smallest_area_by_category() -> None:
    frames = [ellipse(50, 50, r, r) for r in (3, 3, 8, 8)]
    found = table(frames, [0.9, 0.8, 0.7, 0.6])
    found.category_id[:] = [1, 2, 1, 2]
    small, large = found.area()[[0, 2]].tolist()
    assert cleaned(found, min_area={"1": small + 1, "default": 0}).score.tolist() == [0.8, 0.7, 0.6]
    assert cleaned(found, min_area={1: small + 1, 2: large + 1}).score.tolist() == [0.7]


@pytest.mark.parametrize("way", ["none", "score", "probability"])
def test_one_item(way: str) -> None:
    frame = ellipse(50, 50, 8, 8)
    found = cleaned(table([frame], [0.5]), overlap_removal=way, largest_part=True, fill_holes=True, min_area=3)
    np.testing.assert_array_equal(frames_of(Crops.of(found))[0], frame)
    assert len(cleaned(table([frame], [0.5]), overlap_removal=way, min_area=10_000)) == 0


def test_the_order() -> None:
    """Holes are filled before parts are weighed, and a dropped small mask takes no pixels."""
    ring = np.zeros((40, 40), np.uint8)
    ring[2:13, 2:13], ring[4:11, 4:11] = 255, 0  # 72 pixels, 121 with its hole
    ring[20:30, 20:30] = 255  # 100 pixels
    small = np.zeros((40, 40), np.uint8)
    small[5:8, 5:8] = 255
    found = cleaned(
        table([ring, small], [0.5, 0.9]), fill_holes=True, largest_part=True, min_area=10, overlap_removal="score"
    )
    assert found.score.tolist() == [0.5] and found.area().tolist() == [121]


def test_duplicates() -> None:
    frames = [ellipse(50, 50, 12, 12), ellipse(51, 50, 12, 12), ellipse(50, 50, 4, 4), ellipse(50, 74, 12, 12)]
    found = table(frames, [0.8, 0.9, 0.7, 0.6])
    assert drop_duplicates(found, 0.5).score.tolist() == [0.9, 0.6]
    assert drop_duplicates(found, 1.0).score.tolist() == [0.8, 0.9, 0.6]
    found.category_id[2] = 2
    assert drop_duplicates(found, 0.5).score.tolist() == [0.9, 0.7, 0.6]


def test_what_is_dropped_drops_nothing() -> None:
    """A chain: the first drops the second, which would have dropped the third."""
    frames = [ellipse(50, x, 12, 12) for x in (40, 49, 58)]
    found = table(frames, [0.9, 0.8, 0.7])
    share = 0.5
    assert drop_duplicates(found.take([0, 1]), share).score.tolist() == [0.9]
    assert drop_duplicates(found.take([1, 2]), share).score.tolist() == [0.8]
    assert drop_duplicates(found, share).score.tolist() == [0.9, 0.7]


def test_none() -> None:
    for way in ("none", "score", "probability"):
        settings = Fusion.model_validate({"overlap_removal": way, "largest_part": True, "min_area": {"1": 5}})
        assert len(clean(Detections.empty(), settings)) == 0
    assert len(drop_duplicates(Detections.empty(), 0.5)) == 0
