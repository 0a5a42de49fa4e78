"""Sparse overlaps against pycocotools' dense table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.masks import crop_to_rle
from pipeline.metrics.overlaps import Groups, Masks, overlaps


def random_rle(rng: np.random.Generator, height: int, width: int) -> dict:
    kind = rng.integers(5)
    mask = np.zeros((height, width), np.uint8)
    if kind == 0:
        mask = (rng.random((height, width)) < 0.4).astype(np.uint8)
    elif kind == 1:
        mask[:] = 1
    elif kind > 2:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = 1
    return crop_to_rle(mask, (0, 0, width, height), (height, width), threshold=1)


def one_group(a: int, b: int) -> Groups:
    same = np.zeros(max(a, b), np.int64)
    return Groups.make((same[:a], same[:a]), (same[:b], same[:b]), np.zeros(a))


def dense(a: list[dict], b: list[dict], crowd: np.ndarray) -> np.ndarray:
    pairs = overlaps(Masks.pack(a), Masks.pack(b), one_group(len(a), len(b)), crowd)
    table = np.zeros((len(a), len(b)))
    for r in range(len(a)):
        for p in range(pairs.start[r], pairs.start[r + 1]):
            table[r, pairs.other[p]] = pairs.iou[p]
    return table


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 12), width=st.integers(1, 12))
def test_equals_pycocotools(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    a = [random_rle(rng, height, width) for _ in range(rng.integers(1, 6))]
    b = [random_rle(rng, height, width) for _ in range(rng.integers(1, 6))]
    crowd = rng.random(len(b)) < 0.3
    np.testing.assert_array_equal(dense(a, b, crowd), coco_mask.iou(a, b, crowd.astype(int).tolist()))
    np.testing.assert_array_equal(Masks.pack(a).areas, coco_mask.area(a))


def test_masks_of_other_sizes_share_nothing() -> None:
    a = crop_to_rle(np.ones((4, 6), np.uint8), (0, 0, 6, 4), (4, 6), threshold=1)
    b = crop_to_rle(np.ones((6, 4), np.uint8), (0, 0, 4, 6), (6, 4), threshold=1)
    assert dense([a], [b], np.zeros(1, bool)) == 0
    assert dense([a], [a], np.zeros(1, bool)) == 1


def text_of(runs: list[int]) -> str:
    """Run lengths as they are, empty ones too, which no encoder writes."""
    return coco_mask.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))["counts"].decode()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([0, 3, 0, 3, 4], [0, 3, 0, 3, 4]),  # both pause after three pixels, and pycocotools ends there
        ([2, 3, 0, 3, 2], [2, 3, 0, 3, 2]),
        ([2, 3, 0, 3, 2], [2, 6, 2]),
        ([0, 0, 5, 5], [0, 0, 5, 5]),
        ([5, 5, 0], [5, 5, 0]),
    ],
)
def test_empty_runs_mean_what_they_mean_to_pycocotools(one: list[int], two: list[int]) -> None:
    a, b = ({"size": [1, 10], "counts": text_of(runs)} for runs in (one, two))
    assert dense([a], [b], np.zeros(1, bool)) == coco_mask.iou([a], [b], [0])


@pytest.mark.parametrize("counts", ["", "~", "o", "5", "5o", "523OO23", "\x00"])
def test_damage_names_the_mask(counts: str) -> None:
    good = {"size": [4, 5], "counts": "523OO22"}
    with pytest.raises(ValueError, match="mask 1: the RLE"):
        _ = Masks.pack([good, {"size": [4, 5], "counts": counts}]).areas


@settings(max_examples=200, deadline=None)
@given(counts=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_text_is_a_mask_or_refused(counts: str) -> None:
    masks = Masks.pack([{"size": [9, 11], "counts": counts}])
    try:
        (area,) = masks.areas
    except ValueError:
        return
    assert area == coco_mask.area([{"size": [9, 11], "counts": counts}])[0]
    assert 0 <= area <= 99


def test_groups_keep_images_and_categories_apart_and_rank_by_score() -> None:
    category, image = np.array([2, 1, 1, 1, 1]), np.array([5, 7, 5, 5, 5])
    groups = Groups.make(
        (category, image), (np.array([1, 3]), np.array([5, 5])), np.array([0.1, 0.2, 0.3, 0.9, 0.3]), 2
    )
    assert groups.key.tolist() == [[1, 5], [1, 7], [2, 5], [3, 5]]
    assert groups.a_rows.tolist() == [3, 2, 1, 0] and groups.a.tolist() == [0, 2, 3, 4, 4]
    assert groups.b_rows.tolist() == [0, 1] and groups.b.tolist() == [0, 1, 1, 1, 2]


def test_nothing_with_nothing() -> None:
    pairs = overlaps(Masks.pack([]), Masks.pack([]), one_group(0, 0))
    assert pairs.start.tolist() == [0] and pairs.iou.tolist() == []
