"""Full-frame masks become Detections and lose no more than is promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.backends.found import Found, Thresholded, detections, frame_to_crop
from pipeline.masks import FOREGROUND
from pipeline.records import GRID_CAP, Detections
from pipeline.views import TURNS, View
from tests.test_views import blobs

IDS = np.array([4, 9], np.int32)


def discs(height: int, width: int, radius: float, count: int = 6) -> np.ndarray:
    """(count, height, width) bool, discs of this radius at random places, some cut by the frame."""
    rng = np.random.default_rng(round(radius))
    y, x = np.mgrid[:height, :width]
    centres = rng.random((count, 2)) * (height, width)
    return np.stack([np.hypot(y + 0.5 - cy, x + 0.5 - cx) < radius for cy, cx in centres])


def told(masks: np.ndarray, threshold: float = 0.5) -> Found:
    count = len(masks)
    return Found(
        torch.zeros(count, 4), torch.linspace(1, 0.1, count), torch.arange(count) % 2, torch.from_numpy(masks), True,
        threshold,
    )  # fmt: skip


def frames_of(table: Detections, height: int, width: int) -> np.ndarray:
    """(N, height, width) uint8 soft masks."""
    frames = np.zeros((len(table), height, width), np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(table.mask_box):
        frames[i, y0:y1, x0:x1] = table.crop(i)
    return frames


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("turn", TURNS)
def test_a_binary_mask_up_to_the_cap_comes_back_bit_for_bit(turn: str) -> None:
    height, width = 127, 101
    truth = np.concatenate([discs(height, width, 20), discs(height, width, 60), np.ones((1, height, width), bool)])
    view = View(turn)
    seen = np.stack([view.apply(mask.astype(np.uint8)).astype(bool) for mask in truth])
    table = detections(view, 7, (height, width), told(seen), IDS, "m")
    np.testing.assert_array_equal(frames_of(table, height, width), truth * np.uint8(255))
    assert table.category_id[:2].tolist() == [4, 9] and (table.image_id == 7).all()
    for box, mask in zip(table.box, truth, strict=True):  # without boxes of its own, the mask's
        ys, xs = np.nonzero(mask)
        np.testing.assert_array_equal(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def test_a_probability_stays_within_half_a_step() -> None:
    height, width = 90, 120
    truth = np.stack([f for f in blobs(height, width, 12, seed=2) if (f > 127).any()]).astype(np.float32) / 255
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, truth.shape) / 255
    truth = np.clip(truth + noise, 0, 1).astype(np.float32)
    table = detections(View(), 1, (height, width), told(truth), IDS, "m")
    kept = frames_of(table, height, width)
    for mine, mask, (x0, y0, x1, y1) in zip(kept, truth, table.mask_box, strict=True):
        inside = (slice(y0, y1), slice(x0, x1))
        assert np.abs(mine[inside] / 255 - mask[inside]).max() <= 1 / 510 + 1e-6
        np.testing.assert_array_equal(mine >= FOREGROUND, mask > 0.5)
        ys, xs = np.nonzero(mask > 0.5)  # and around it the margin, where there is something in it
        x, y = max(xs.min() - 2, 0), max(ys.min() - 2, 0)
        assert (x0 <= x or not (mask[:, x] > 1 / 255).any()) and (y0 <= y or not (mask[y] > 1 / 255).any())


def test_a_little_everywhere_does_not_make_a_mask_as_large_as_the_image() -> None:
    mask = np.full((600, 800), 0.2, np.float32)
    mask[100:220, 300:420] = 0.9
    tight, box, grid = frame_to_crop(torch.from_numpy(mask))
    assert tight.tolist() == [300, 100, 420, 220]
    assert grid.shape == (128, 128) and box.tolist() == [296, 96, 424, 224]  # the margin does not cost it a cell
    np.testing.assert_array_equal(grid[4:-4, 4:-4], 230)


def test_another_threshold_than_one_half_becomes_one_half() -> None:
    mask = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    _, (x0, y0, x1, y1), grid = frame_to_crop(torch.from_numpy(mask), 0.3)
    whole = np.zeros((10, 10), np.uint8)
    whole[y0:y1, x0:x1] = grid
    np.testing.assert_array_equal(whole >= FOREGROUND, mask > 0.3)
    assert whole.max() == 255 and (np.diff(whole.ravel()[y0 * 10 :].astype(int)) >= 0).all()


@pytest.mark.parametrize(("radius", "bound"), [(70, 0.99), (150, 0.985), (400, 0.985)])
def test_a_mask_larger_than_the_cap_keeps_its_outline(radius: float, bound: float) -> None:
    height, width = 1100, 1203
    truth = discs(height, width, radius, 4)
    for masks in (truth, np.where(truth, np.float32(0.9), np.float32(0.05))):
        table = detections(View("rot90"), 1, (height, width), told(np.rot90(masks, axes=(1, 2)).copy()), IDS, "m")
        assert table.shape.max() <= GRID_CAP
        for mine, mask in zip(frames_of(table, height, width), truth, strict=True):
            assert iou(mine >= FOREGROUND, mask) > bound


@pytest.mark.parametrize(("scale", "bound"), [(0.5, 0.93), (1.5, 0.96), (2.0, 0.97)])
def test_of_a_scaled_view_it_is_resampled_once(scale: float, bound: float) -> None:
    height, width = 301, 255
    truth = discs(height, width, 40)
    view = View("antitranspose", scale)
    seen = np.stack([view.apply(mask.astype(np.float32)) for mask in truth])
    table = detections(view, 1, (height, width), told(seen), IDS, "m")
    for mine, mask in zip(frames_of(table, height, width), truth, strict=True):
        assert iou(mine >= FOREGROUND, mask) > bound
    large = discs(height, width, 110, 3)  # larger than the cap in the view, and in the image
    seen = np.stack([view.apply(mask.astype(np.float32)) for mask in large])
    table = detections(view, 1, (height, width), told(seen), IDS, "m")
    for mine, mask in zip(frames_of(table, height, width), large, strict=True):
        assert iou(mine >= FOREGROUND, mask) > 0.97


def test_what_has_no_pixel_or_too_low_a_score_is_left_out() -> None:
    masks = np.zeros((3, 20, 30), bool)
    masks[1:, 3, 4] = True
    table = detections(View(), 1, (20, 30), told(masks), IDS, "m", score_threshold=0.5)
    assert len(table) == 1 and table.category_id.tolist() == [9] and table.mask_box.tolist() == [[4, 3, 5, 4]]
    none = detections(View("rot90", 2.0), 1, (20, 30), told(masks[:0]), IDS, "m")
    assert len(none) == 0 and none.sources == ["m"]


def test_probabilities_are_found_behind_thresholded_masks() -> None:
    maps = torch.rand(3, 5, 7)
    with Thresholded() as thresholded:
        scores = torch.rand(9) > 0.5
        masks = (maps * 1.0) > 0.4
        others = masks.clone()
    soft, threshold = thresholded.behind(masks)
    assert threshold == 0.4 and torch.equal(soft, maps)
    for unknown in (scores, others, torch.rand(3, 5, 7) > 0.5):
        assert thresholded.behind(unknown)[0] is unknown
