"""SegPC's mean best IoU: by hand, against the formula written out over whole frames, and its laws."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.metrics.segpc import FRAME, best_overlaps, from_frame, nearest, to_frame
from pipeline.records import Dataset, Image, Instance

CELL = 1


def truth_of(masks: dict[int, list[np.ndarray]]) -> Dataset:
    """True cells by image id, as whole frames."""
    images = [Image(i, f"{i}.bmp", *frames[0].shape) for i, frames in masks.items()]
    instances = []
    for i, frames in masks.items():
        for frame in frames:
            instances.append(Instance(len(instances) + 1, i, CELL, rle_of(frame), (0, 0, 1, 1), 1.0))
    return Dataset(images, {1: "cell", 2: "nucleus"}, instances)


def rle_of(frame: np.ndarray) -> dict[str, Any]:
    height, width = frame.shape
    return crop_to_rle(frame.astype(np.uint8), (0, 0, width, height), (height, width), threshold=1)


def record(image_id: int, frame: np.ndarray, category_id: int = CELL) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "score": 0.5, "segmentation": rle_of(frame)}


def rectangle(x: int, y: int, w: int, h: int, size: tuple[int, int] = FRAME) -> np.ndarray:
    frame = np.zeros(size, np.uint8)
    frame[y : y + h, x : x + w] = 1
    return frame


def written_out(truth: dict[int, list[np.ndarray]], found: dict[int, list[np.ndarray]]) -> float:
    """The rule over whole frames, as FORMATS.md states it."""
    total, cells = 0.0, 0

    def resized(mask: np.ndarray) -> np.ndarray:
        if mask.shape == FRAME:
            return mask > 0
        return cv2.resize(mask.astype(np.float32), FRAME[::-1], interpolation=cv2.INTER_NEAREST) > 0

    for image_id, masks in truth.items():
        predictions = [resized(mask) for mask in found.get(image_id, [])]
        for mask in masks:
            cell = resized(mask)
            values = [(cell & p).sum() / union for p in predictions if (union := (cell | p).sum())]
            total += max(values, default=0.0)
            cells += 1
    return total / cells


# ---------------------------------------------------------------- resizing --------------------------------------------

SIZES = [
    (1920, 2560),
    (1536, 2040),
    (1080, 1440),
    (384, 512),
    (386, 512),
    (1, 1),
    (1079, 1441),
    (2500, 33),
    (777, 2999),
]


@pytest.mark.parametrize("size", SIZES)
def test_nearest_is_opencvs(size: tuple[int, int]) -> None:
    pixels = ((np.arange(size[0])[:, None] * 7919 + np.arange(size[1]) * 104729) % 251).astype(np.uint8)
    expected = cv2.resize(pixels, FRAME[::-1], interpolation=cv2.INTER_NEAREST)
    ours = pixels[np.ix_(nearest(size[0], FRAME[0]), nearest(size[1], FRAME[1]))]
    np.testing.assert_array_equal(ours, expected)


@settings(max_examples=60, deadline=None)
@given(source=st.integers(1, 4000), target=st.sampled_from(FRAME))
def test_nearest_is_opencvs_for_any_length(source: int, target: int) -> None:
    pixels = np.arange(source, dtype=np.float32)[None]
    expected = cv2.resize(pixels, (target, 1), interpolation=cv2.INTER_NEAREST)[0]
    np.testing.assert_array_equal(nearest(source, target), expected)


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 1000))
def test_a_crop_is_resized_as_its_frame(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(size[1])), int(rng.integers(size[0]))
    x1, y1 = (int(rng.integers(low + 1, high + 1)) for low, high in ((x0, size[1]), (y0, size[0])))
    crop = rng.integers(0, 2, (y1 - y0, x1 - x0)).astype(np.uint8)
    frame = np.zeros(size, np.uint8)
    frame[y0:y1, x0:x1] = crop
    expected = cv2.resize(frame, FRAME[::-1], interpolation=cv2.INTER_NEAREST)
    box, ours = to_frame((x0, y0, x1, y1), crop, size)
    assert expected.sum() == ours.sum()
    np.testing.assert_array_equal(expected[box[1] : box[3], box[0] : box[2]], ours)


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 1000))
def test_the_way_to_the_image_and_back_loses_nothing(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(FRAME[1])), int(rng.integers(FRAME[0]))
    x1, y1 = int(rng.integers(x0 + 1, FRAME[1] + 1)), int(rng.integers(y0 + 1, FRAME[0] + 1))
    crop = rng.integers(0, 2, (y1 - y0, x1 - x0)).astype(np.uint8)
    crop[0, 0] = 1
    own = from_frame((x0, y0, x1, y1), crop, size)
    if size[0] >= FRAME[0] and size[1] >= FRAME[1]:
        assert own is not None
    if own is not None:
        box, back = to_frame(*own, size)
        assert box.tolist() == [x0, y0, x1, y1]
        np.testing.assert_array_equal(back, crop)


def test_what_was_enlarged_comes_back_to_a_small_image() -> None:
    size = (384, 512)
    crop = np.random.default_rng(0).integers(0, 2, (20, 30)).astype(np.uint8)
    own = from_frame(*to_frame((100, 50, 130, 70), crop, size), size)
    assert own is not None and own[0].tolist() == [100, 50, 130, 70]
    np.testing.assert_array_equal(own[1], crop)


# ---------------------------------------------------------------- the score -------------------------------------------


def test_the_worked_example() -> None:
    """GT A and B; predictions of IoU 0.8 and 0.5 with A, and one that touches nothing: (0.8 + 0) / 2."""
    a, b = rectangle(0, 0, 10, 10), rectangle(500, 500, 7, 7)
    found = [rectangle(0, 0, 10, 8), rectangle(0, 0, 5, 10), rectangle(900, 900, 4, 4)]
    overlaps = best_overlaps(truth_of({7: [a, b]}), [record(7, f) for f in found], CELL)
    assert overlaps.best == {7: [0.8, 0.0]} and overlaps.score == 0.4
    assert overlaps.found(0.5) == 1 and overlaps.cells == 2


def test_cells_are_averaged_over_all_images_not_image_by_image() -> None:
    one, three = [rectangle(0, 0, 4, 4)], [rectangle(20 * k, 0, 4, 4) for k in range(3)]
    truth = truth_of({1: one, 2: three})
    assert best_overlaps(truth, [record(2, mask) for mask in three], CELL).score == 0.75
    assert best_overlaps(truth, [], CELL).score == 0.0
    assert best_overlaps(Dataset([], {}), [], CELL).score == 0.0


def test_nuclei_and_unknown_images_are_not_looked_at() -> None:
    mask = rectangle(3, 3, 4, 4)
    truth = truth_of({1: [mask]})
    assert best_overlaps(truth, [record(1, mask, 2), record(9, mask)], CELL).score == 0.0


def test_a_cell_that_vanishes_at_the_frame_scores_zero() -> None:
    size = (1920, 2560)
    taken = set(nearest(2560, 1440).tolist())
    x = next(x for x in range(2560) if x not in taken)
    mask = rectangle(x, 100, 1, 50, size)
    assert best_overlaps(truth_of({1: [mask]}), [record(1, mask)], CELL).score == 0.0


def drawn(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[np.ndarray]:
    return [
        rectangle(
            int(rng.integers(0, size[1] // 2)), int(rng.integers(0, size[0] // 2)),
            int(rng.integers(1, size[1] // 2)), int(rng.integers(1, size[0] // 2)), size,
        )
        for _ in range(count)
    ]  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([(48, 64), (1080, 1440), (1200, 1500)]))
def test_equal_to_the_rule_written_out(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    truth = {k: drawn(rng, size, int(rng.integers(1, 3))) for k in (1, 2)}
    found = {1: drawn(rng, size, 2) + drawn(rng, FRAME, 1), 2: []}
    records = [record(i, mask) for i, masks in found.items() for mask in masks]
    ours = best_overlaps(truth_of(truth), records, CELL).score
    assert ours == pytest.approx(written_out(truth, found), abs=1e-12)
    shuffled = [records[k] for k in rng.permutation(len(records))]
    assert best_overlaps(truth_of(truth), shuffled, CELL).score == ours
    assert best_overlaps(truth_of(truth), records + records, CELL).score == ours
    assert best_overlaps(truth_of(truth), records + [record(2, drawn(rng, size, 1)[0])], CELL).score >= ours
    perfect = [record(i, mask) for i, masks in truth.items() for mask in masks]
    assert best_overlaps(truth_of(truth), perfect, CELL).score == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"segmentation": None}, "record 0: "),
        ({"segmentation": {"size": [5, 5], "counts": "i0"}}, r"record 0: .*neither the image's, \[48, 64\], nor"),
        ({"segmentation": {"size": [48, 64], "counts": "~"}}, "record 0: "),
        ({"image_id": [1]}, "record 0: "),
        ({"category_id": ...}, "record 0 has no 'category_id'"),
    ],
)
def test_bad_records_are_named(changes: dict[str, Any], expected: str) -> None:
    mask = rectangle(3, 3, 4, 4, (48, 64))
    bad = {k: v for k, v in {**record(1, mask), **changes}.items() if v is not ...}
    with pytest.raises(ValueError, match=expected):
        best_overlaps(truth_of({1: [mask]}), [bad], CELL)


def test_polygons_and_list_counts_are_taken() -> None:
    mask = rectangle(3, 3, 4, 4, (48, 64))
    truth = truth_of({1: [mask]})
    counts = [3 * 48 + 3, 4, 44, 4, 44, 4, 44, 4, 48 * 57 + 41]
    listed = {**record(1, mask), "segmentation": {"size": [48, 64], "counts": counts}}
    assert rle_to_crop(listed["segmentation"])[1].sum() == 16
    assert best_overlaps(truth, [listed], CELL).score == 1.0
    polygon = {**record(1, mask), "segmentation": [[3, 3, 7, 3, 7, 7, 3, 7]]}
    assert best_overlaps(truth, [polygon], CELL).score == 1.0
