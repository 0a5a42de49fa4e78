"""Tiles join without seams: a network that sees the truth in every tile gives the truth of the image, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backends.found import Found
from pipeline.backends.inference import look_at
from pipeline.experiment import PredictSettings, TileSettings
from pipeline.masks import tight_box
from pipeline.records import Detections
from pipeline.tiles import layout
from pipeline.views import TURNS, View

IDS = np.array([3, 8], np.int32)


def cells(height: int, width: int, seed: int, largest: float) -> np.ndarray:
    """(height, width) int32 label map of ellipses that do not touch, each label's class its parity."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    y, x = np.mgrid[:height, :width]
    for _ in range(60):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(2, largest, 2)
        mask = np.hypot((y - cy) / ry, (x - cx) / rx) < 1
        near = np.hypot((y - cy) / (ry + 2), (x - cx) / (rx + 2)) < 1
        if mask.sum() > 4 and not labels[near].any():
            labels[mask] = labels.max() + 1
    return labels


def painted(labels: np.ndarray) -> np.ndarray:
    """The label map as an RGB image from which a network can read it."""
    return np.stack([labels % 256, labels // 256, np.zeros_like(labels)], axis=2).astype(np.uint8)


def truthful(images: list[torch.Tensor]) -> list[Found]:
    """A network that reads the labels out of its (3, H, W) BGR image."""
    answers = []
    for image in images:
        labels = image[2].int() + 256 * image[1].int()
        known = [int(k) for k in torch.unique(labels) if k]
        masks = torch.stack([labels == k for k in known]) if known else torch.zeros(0, *labels.shape, dtype=torch.bool)
        answers.append(
            Found(
                torch.zeros(len(known), 4), torch.full((len(known),), 0.5), torch.tensor(known).long() % 2, masks, True
            )
        )
    return answers


def expected(labels: np.ndarray) -> Detections:
    boxes, grids, known = [], [], [int(k) for k in np.unique(labels) if k]
    for k in known:
        x0, y0, x1, y1 = tight_box(labels == k)
        boxes.append((x0, y0, x1, y1))
        grids.append((labels[y0:y1, x0:x1] == k) * np.uint8(255))
    return Detections.build(1, IDS[np.array(known, int) % 2], [0.5] * len(known), np.array(boxes), boxes, grids, "v")


def same(a: Detections, b: Detections) -> None:
    order = [np.lexsort(table.mask_box.T) for table in (a, b)]
    a, b = a.take(order[0]), b.take(order[1])
    for name in ("mask_box", "shape", "category_id", "pixels", "score", "box"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def tiled(labels: np.ndarray, size: int, overlap: int, turn: str, batch: int = 3) -> Detections:
    predicting = PredictSettings(score_threshold=0, batch=batch, tile=TileSettings(size=size, overlap=overlap))
    return look_at(painted(labels), 1, [View(turn)], ["v"], IDS, predicting, truthful)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("largest", [12, 60])  # smaller than the overlap, and larger than that and than half a tile
def test_what_is_joined_is_the_truth(turn: str, largest: float) -> None:
    labels = cells(203, 281, 5, largest)
    assert labels.max() > 5
    same(tiled(labels, 97, 31, turn), expected(labels))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(20, 230), st.integers(20, 230), st.integers(0, 10_000), st.sampled_from([8.0, 25.0, 90.0]),
    st.integers(64, 130), st.integers(8, 32), st.sampled_from(sorted(TURNS)),
)  # fmt: skip
def test_it_is_so_for_any_size(
    height: int, width: int, seed: int, largest: float, size: int, overlap: int, turn: str
) -> None:
    labels = cells(height, width, seed, largest)
    if labels.any():
        same(tiled(labels, size, overlap, turn), expected(labels))


def test_an_object_larger_than_a_tile_and_the_cap_is_one_instance() -> None:
    y, x = np.mgrid[:300, :420]
    labels = (np.hypot((y - 150) / 140, (x - 210) / 200) < 1).astype(np.int32)
    found = tiled(labels, 80, 20, "rot270")
    assert len(found) == 1
    same(found, expected(labels))


def test_an_image_smaller_than_a_tile_is_shown_whole() -> None:
    labels = cells(50, 40, 1, 10)
    seen = []

    def look(images: list[torch.Tensor]) -> list[Found]:
        seen.extend(tuple(image.shape) for image in images)
        return truthful(images)

    predicting = PredictSettings(score_threshold=0, tile=TileSettings(size=64, overlap=16))
    same(look_at(painted(labels), 1, [View()], ["v"], IDS, predicting, look), expected(labels))
    assert seen == [(3, 50, 40)]


def test_no_network_sees_more_than_a_tile_and_none_more_than_a_batch() -> None:
    sizes, counts = set(), []

    def look(images: list[torch.Tensor]) -> list[Found]:
        sizes.update(tuple(image.shape[1:]) for image in images)
        counts.append(len(images))
        assert len({image.shape for image in images}) == 1
        return truthful(images)

    predicting = PredictSettings(score_threshold=0, batch=4, tile=TileSettings(size=64, overlap=16))
    views = [View("identity"), View("rot90"), View("hflip", 2.0)]
    found = look_at(painted(cells(150, 190, 2, 20)), 1, views, ["a", "b", "c"], IDS, predicting, look)
    assert sizes == {(64, 64), (128, 128)} and max(counts) == 4 and len(counts) == -(-24 // 4) + 3
    assert found.sources == ["a", "b", "c"] and (np.diff(found.source) >= 0).all()


def test_a_batch_of_several_is_one_of_each() -> None:
    labels = cells(170, 210, 8, 30)
    alone, together = (tiled(labels, 70, 20, "transpose", batch) for batch in (1, 5))
    same(alone, together)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 900), st.data())
def test_tiles_cover_the_image_and_overlap(height: int, width: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, size // 2))
    tiles = layout(height, width, size, overlap)
    for low, high, length in (("x0", "x1", width), ("y0", "y1", height)):
        spans = sorted({(getattr(tile, low), getattr(tile, high)) for tile in tiles})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(end - first == min(size, length) for first, end in spans)
        assert all(b[0] > a[0] and a[1] - b[0] >= overlap for a, b in zip(spans, spans[1:], strict=False))
    with pytest.raises(ValueError, match="cannot overlap"):
        layout(10, 10, size, size)


def test_half_an_object_that_its_neighbour_does_not_confirm_is_left_out() -> None:
    """A sliver at a border, which the next tile sees from the inside, and as nothing."""

    def look(images: list[torch.Tensor]) -> list[Found]:
        masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        masks[0, 20:30, 58:] = True
        here = int(images[0].max()) == 1  # the first tile alone
        return [Found(torch.zeros(1, 4)[:here], torch.ones(1)[:here], torch.zeros(1)[:here], masks[:here], True)]

    pixels = np.zeros((64, 100, 3), np.uint8)
    pixels[:, :30] = 1
    predicting = PredictSettings(tile=TileSettings(size=64, overlap=20))
    assert len(look_at(pixels, 1, [View()], ["v"], IDS, predicting, look)) == 0
