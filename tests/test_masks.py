"""Run lengths against pycocotools, pasting against torch's grid_sample, overlaps against full frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from pipeline import masks

TOY = np.zeros((4, 5), np.uint8)
for _row, _column in ((1, 1), (2, 1), (2, 2), (1, 3), (2, 3), (3, 3)):
    TOY[_row, _column] = 1
TOY_COUNTS = "523OO22"

frames = hnp.arrays(np.uint8, st.tuples(st.integers(1, 13), st.integers(1, 13)), elements=st.integers(0, 1))


def encode(frame: np.ndarray) -> dict[str, Any]:
    """pycocotools' own encoding, with text counts."""
    rle = coco_mask.encode(np.asfortranarray(frame))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def frame_of(box: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    frame = np.zeros(shape, np.uint8)
    frame[box[1] : box[3], box[0] : box[2]] = mask
    return frame


# ---------------------------------------------------------------- run lengths -----------------------------------------


def test_the_toy_mask_of_the_formats() -> None:
    box, mask = masks.rle_to_crop({"size": [4, 5], "counts": TOY_COUNTS})
    np.testing.assert_array_equal(box, [1, 1, 4, 4])
    np.testing.assert_array_equal(mask, TOY[1:4, 1:4])
    assert masks.crop_to_rle(mask, box, (4, 5), threshold=1) == {"size": [4, 5], "counts": TOY_COUNTS}
    for counts in ([5, 2, 3, 1, 2, 3, 4], TOY_COUNTS.encode()):
        again, same = masks.rle_to_crop({"size": [4, 5], "counts": counts})
        np.testing.assert_array_equal(again, box)
        np.testing.assert_array_equal(same, mask)


@given(frames)
def test_decoding_what_pycocotools_encoded(frame: np.ndarray) -> None:
    box, mask = masks.rle_to_crop(encode(frame))
    np.testing.assert_array_equal(frame_of(box, mask, frame.shape), frame)
    np.testing.assert_array_equal(box, masks.tight_box(frame))
    assert mask.dtype == np.uint8 and box.dtype == np.int32


@given(frames, st.data())
def test_encoding_as_pycocotools_does(frame: np.ndarray, data: st.DataObject) -> None:
    """From a tight crop, and from any larger one: the text is the same."""
    x0, y0, x1, y1 = masks.tight_box(frame)
    height, width = frame.shape
    left, top = data.draw(st.integers(0, x0)), data.draw(st.integers(0, y0))
    right, bottom = data.draw(st.integers(x1, width)), data.draw(st.integers(y1, height))
    crop = frame[top:bottom, left:right] * np.uint8(masks.FOREGROUND)
    assert masks.crop_to_rle(crop, (left, top, right, bottom), frame.shape) == encode(frame)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 5), (64, 33), (333, 517)])
def test_objects_at_every_border(shape: tuple[int, int]) -> None:
    height, width = shape
    for rows in (slice(0, 1), slice(height - 1, height), slice(0, height), slice(height // 3, 2 * height // 3 + 1)):
        for columns in (slice(0, 1), slice(width - 1, width), slice(0, width), slice(width // 3, 2 * width // 3 + 1)):
            frame = np.zeros(shape, np.uint8)
            frame[rows, columns] = 1
            box, mask = masks.rle_to_crop(encode(frame))
            np.testing.assert_array_equal(frame_of(box, mask, shape), frame)
            assert masks.crop_to_rle(mask, box, shape, threshold=1) == encode(frame)


def test_large_random_masks_round_trip() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(int(v) for v in rng.integers(1, 400, 2))
        frame = (rng.random(shape) < rng.random()).astype(np.uint8)
        rle = encode(frame)
        box, mask = masks.rle_to_crop(rle)
        np.testing.assert_array_equal(coco_mask.decode(rle), frame_of(box, mask, shape))
        assert masks.crop_to_rle(mask, box, shape, threshold=1) == rle


def test_an_empty_mask() -> None:
    box, mask = masks.rle_to_crop(encode(np.zeros((3, 4), np.uint8)))
    assert box.tolist() == [0, 0, 0, 0] and mask.shape == (0, 0)
    assert masks.crop_to_rle(mask, box, (3, 4)) == encode(np.zeros((3, 4), np.uint8))


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 5], "counts": [5, 2]},
        {"size": [4, 5], "counts": [-1, 21]},
        {"size": [4, 5], "counts": [30, -10]},
        {"size": [4, 4], "counts": TOY_COUNTS},
        {"size": [4, 5], "counts": "52\x013"},
        {"size": [4, 5], "counts": "52o"},
        {"size": [4, 5], "counts": "é"},
        {"size": [-4, -5], "counts": [20]},
        {"size": [4, 5], "counts": [2**62, 2**62, 2**62, 2**62, 20]},
    ],
)
def test_unreadable_run_lengths(rle: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="run|RLE|counts"):
        masks.rle_to_crop(rle)


def test_a_crop_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        masks.crop_to_rle(np.zeros((2, 2), np.uint8), (0, 0, 3, 2), (4, 5))
    for box in ((-1, 0, 1, 2), (4, 0, 6, 2), (0, 3, 2, 5)):
        with pytest.raises(ValueError, match="leaves the image"):
            masks.crop_to_rle(np.zeros((2, 2), np.uint8), box, (4, 5))


def test_half_is_foreground() -> None:
    grid = np.array([[127, 128, 129]], np.uint8)
    _, mask = masks.rle_to_crop(masks.crop_to_rle(grid, (0, 0, 3, 1), (1, 3)))
    assert mask.tolist() == [[1, 1]]
    assert [round(255 * p) >= masks.FOREGROUND for p in (0.4999, 0.5, 0.5001)] == [False, True, True]


@pytest.mark.parametrize(
    ("polygons", "size", "expected"),
    [
        ([], (9, 9), "no polygon"),
        ([[]], (9, 9), "0 coordinates"),
        ([[1, 2, 3, 4, 5, 6], [1, 2]], (9, 9), "2 coordinates"),
        ([[1, 2, 3, 4, float("nan"), 6]], (9, 9), "not finite"),
        ([[1, 2, 3, 4, -1e9, 6]], (9, 9), "far outside"),
        ([[1, 2, 3, 4, 5, 6]], (0, 9), "height 0"),
        ([[1, 2, 3, 4, 5, 6]], (1 << 20, 1 << 20), "height 1048576"),
    ],
)
def test_polygons_that_would_keep_pycocotools_busy_are_refused(polygons: list, size: tuple, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        masks.polygons_to_rle(polygons, size)


@pytest.mark.parametrize("counts", [[["a"]], ["a"], [[20]], [1 << 70], None, 20])
def test_counts_that_are_no_list_of_numbers_are_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="the RLE's counts"):
        masks.rle_to_crop({"size": [4, 5], "counts": counts})


def test_polygons_are_rasterised_as_pycocotools_does() -> None:
    polygons = [[1.0, 1.0, 8.5, 2.0, 5.0, 9.0], [10, 10, 14, 10, 14, 14, 10, 14]]
    frame = np.zeros((16, 17), np.uint8)
    for rle in coco_mask.frPyObjects(polygons, 16, 17):
        frame |= coco_mask.decode(rle)
    box, mask = masks.rle_to_crop(masks.polygons_to_rle(polygons, (16, 17)))
    np.testing.assert_array_equal(frame_of(box, mask, (16, 17)), frame)


@settings(deadline=None)  # the first call compiles
@given(frames)
def test_spans_are_the_object_pixels_down_the_columns(frame: np.ndarray) -> None:
    spans = masks.rle_to_spans(encode(frame))
    flat = np.zeros(frame.size, np.uint8)
    for first, end in spans:
        assert first < end and not flat[max(first - 1, 0) : end + 1].any()  # they neither overlap nor touch
        flat[first:end] = 1
    np.testing.assert_array_equal(flat, frame.T.ravel())
    assert masks.spans_to_rle(spans, frame.shape) == encode(frame)


def test_spans_of_odd_run_lengths() -> None:
    assert masks.rle_to_spans({"size": [4, 3], "counts": [0, 3, 0, 2, 7]}).tolist() == [[0, 5]]
    assert masks.rle_to_spans({"size": [4, 3], "counts": [12]}).shape == (0, 2)
    split = np.array([[2, 4], [4, 6], [8, 9]])
    assert masks.spans_to_rle(split, (4, 3)) == masks.spans_to_rle(np.array([[2, 6], [8, 9]]), (4, 3))
    assert masks.spans_to_rle(np.zeros((0, 2)), (4, 3)) == encode(np.zeros((4, 3), np.uint8))
    with pytest.raises(ValueError, match="cover 3 pixels"):
        masks.rle_to_spans({"size": [4, 3], "counts": [3]})


@pytest.mark.parametrize("spans", [[[3, 3]], [[4, 3]], [[0, 3], [2, 5]], [[5, 6], [0, 2]], [[-1, 2]], [[9, 13]]])
def test_spans_that_are_none(spans: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="the spans"):
        masks.spans_to_rle(np.array(spans), (4, 3))


@settings(deadline=None)  # the first call compiles
@given(frames)
def test_transposing_without_a_frame(frame: np.ndarray) -> None:
    assert masks.transposed(encode(frame)) == encode(np.ascontiguousarray(frame.T))


# ---------------------------------------------------------------- pasting ---------------------------------------------


def pasted_by_torch(probabilities: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The full frame (height, width) float as Mask R-CNN implementations paste it."""
    import torch

    height, width = size
    x0, y0, x1, y1 = (float(v) for v in box)
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    source = torch.from_numpy(probabilities.astype(np.float64))[None, None]
    return torch.nn.functional.grid_sample(source, grid, align_corners=False, padding_mode="zeros")[0, 0].numpy()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 28),
    st.tuples(st.integers(1, 40), st.integers(1, 47)),
    st.tuples(st.floats(-20, 45), st.floats(-20, 45), st.floats(0.5, 60), st.floats(0.5, 60)),
)
def test_pasting_is_grid_samples(seed: int, side: int, size: tuple[int, int], place: tuple[float, ...]) -> None:
    probabilities = np.random.default_rng(seed).random((side, side)).astype(np.float32)
    x, y, w, h = place
    box = np.array([x, y, x + w, y + h])
    pixel_box, grid = masks.paste_roi(probabilities, box, size)
    expected = pasted_by_torch(probabilities, box, size) * 255
    assert 0 <= pixel_box[0] <= pixel_box[2] <= size[1] and 0 <= pixel_box[1] <= pixel_box[3] <= size[0]
    frame = frame_of(pixel_box, grid, size)
    np.testing.assert_allclose(frame, expected, atol=0.5 + 1e-3)  # nothing is lost outside the pixel box either


def test_pasting_a_box_that_is_none_or_elsewhere() -> None:
    ones = np.ones((14, 14), np.float32)
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (50, 50, 60, 60), (-30, -30, -10, -10)):
        pixel_box, grid = masks.paste_roi(ones, np.array(box, np.float32), (20, 20))
        assert pixel_box.tolist() == [0, 0, 0, 0] and grid.shape == (0, 0)


# ---------------------------------------------------------------- overlap ---------------------------------------------


@given(hnp.arrays(np.uint8, (2, 9, 11)), st.data())
def test_overlap_is_that_of_the_full_frames(pair: np.ndarray, data: st.DataObject) -> None:
    crops = []
    for frame in pair:
        x0, y0 = data.draw(st.integers(0, 10)), data.draw(st.integers(0, 8))
        x1, y1 = data.draw(st.integers(x0, 11)), data.draw(st.integers(y0, 9))
        frame[:y0], frame[y1:], frame[:, :x0], frame[:, x1:] = 0, 0, 0, 0
        crops.append((frame[y0:y1, x0:x1].copy(), np.array([x0, y0, x1, y1])))
    a, b = pair >= masks.FOREGROUND
    (grid_a, box_a), (grid_b, box_b) = crops
    assert masks.crop_intersection(grid_a, box_a, grid_b, box_b) == (a & b).sum()
    union = (a | b).sum()
    assert masks.crop_iou(grid_a, box_a, grid_b, box_b) == pytest.approx((a & b).sum() / union if union else 0.0)


def test_tight_box() -> None:
    assert masks.tight_box(TOY) == (1, 1, 4, 4)
    assert masks.tight_box(np.zeros((3, 3))) == (0, 0, 0, 0)
    assert masks.tight_box(np.ones((1, 2))) == (0, 0, 2, 1)
