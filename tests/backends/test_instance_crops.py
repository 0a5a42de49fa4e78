"""RoI targets cut from crops equal those that the frameworks cut from full bitmaps."""

import numpy as np
import pytest

from pipeline.backends.instance_crops import InstanceCrops

HEIGHT, WIDTH = 61, 47


def _frames(rng: np.random.Generator, count: int) -> np.ndarray:
    frames = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for frame in frames:
        y0, x0 = rng.integers(0, HEIGHT - 3), rng.integers(0, WIDTH - 3)
        y1, x1 = rng.integers(y0 + 2, HEIGHT + 1), rng.integers(x0 + 2, WIDTH + 1)
        frame[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.8
        frame[y0, x0] = frame[y1 - 1, x1 - 1] = 1
    return frames


def _crops(frames: np.ndarray) -> InstanceCrops:
    boxes, crops = [], []
    for frame in frames:
        ys, xs = np.nonzero(frame)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        boxes.append(box)
        crops.append(frame[box[1] : box[3], box[0] : box[2]])
    return InstanceCrops(np.array(boxes), crops, *frames.shape[1:])


def _rois(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.random((count, 2, 2)) * (WIDTH, HEIGHT)
    rois = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    rois[:3] = [[0, 0, WIDTH, HEIGHT], [0, 0, 5.5, 7.25], [WIDTH - 4.5, HEIGHT - 6.1, WIDTH, HEIGHT]]
    return rois


@pytest.mark.parametrize("side", [7, 28])
def test_targets_equal_roi_align_on_full_bitmaps(side: int) -> None:
    import torch
    from torchvision.ops import roi_align

    rng = np.random.default_rng(side)
    frames, rois = _frames(rng, 5), _rois(rng, 40)
    which = rng.integers(0, 5, len(rois))
    ours = _crops(frames).roi_align(rois, which, side)
    batch = np.concatenate([which[:, None], rois], axis=1).astype(np.float32)
    theirs = roi_align(torch.from_numpy(frames[:, None]).float(), torch.from_numpy(batch), side, 1.0, -1, True)[:, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
    assert 0.05 < ours.mean() < 0.95


def test_bitmaps_put_every_crop_back_in_its_place() -> None:
    frames = _frames(np.random.default_rng(3), 4)
    crops = _crops(frames)
    np.testing.assert_array_equal(crops.bitmaps(), frames)
    np.testing.assert_array_equal(crops.area(), frames.sum(axis=(1, 2)))
    np.testing.assert_array_equal(crops.take(np.array([2, 0])).bitmaps(), frames[[2, 0]])
    np.testing.assert_array_equal(crops.take(np.array([True, False, False, True])).bitmaps(), frames[[0, 3]])


def test_no_instances_and_no_rois() -> None:
    none = InstanceCrops(np.zeros((0, 4)), [], HEIGHT, WIDTH)
    assert none.bitmaps().shape == (0, HEIGHT, WIDTH)
    assert none.roi_align(np.zeros((0, 4)), np.zeros(0, int), 28).shape == (0, 28, 28)
