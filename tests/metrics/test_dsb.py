"""The DSB rule: by hand, against a plain dense implementation, and its properties."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks import crop_to_rle
from pipeline.metrics.dsb import _pairs, evaluate, summary
from pipeline.metrics.spans import Spans, overlaps
from pipeline.records import Dataset, Image, Instance

SIZE = (20, 30)


def strip(x0: int, x1: int, y: int = 0) -> np.ndarray:
    """A mask of one row, (H, W) uint8."""
    frame = np.zeros(SIZE, np.uint8)
    frame[y, x0:x1] = 1
    return frame


def rle(frame: np.ndarray) -> dict[str, Any]:
    return crop_to_rle(frame, (0, 0, frame.shape[1], frame.shape[0]), frame.shape, threshold=1)


def truth_of(*images: list[np.ndarray], category: int = 1) -> Dataset:
    masks = [(k, frame) for k, frames in enumerate(images, start=1) for frame in frames]
    return Dataset(
        [Image(k, f"{k}.png", *SIZE) for k in range(1, len(images) + 1)],
        {1: "nucleus"},
        [Instance(n, k, category, rle(f), (0, 0, 0, 0), float(f.sum())) for n, (k, f) in enumerate(masks, start=1)],
    )


def records_of(*images: list[np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"image_id": k, "category_id": 1, "score": 1.0, "segmentation": rle(frame)}
        for k, frames in enumerate(images, start=1)
        for frame in frames
    ]


def plain(true: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The rule written out over a dense matrix, for masks that share no pixels."""
    if not true and not found:
        return 1.0
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in true] for a in found]).reshape(len(found), len(true))
    values = []
    for t in np.arange(0.5, 1.0, 0.05):
        hits = int((iou > t + 1e-12).sum())
        values.append(hits / (len(true) + len(found) - hits))
    return float(np.mean(values))


# ---------------------------------------------------------------- by hand ---------------------------------------------


def test_the_worked_example_of_the_formats() -> None:
    """2 truths, 3 predictions, best IoUs 0.92, 0.61 and 0."""
    true = [np.zeros((100, 100), np.uint8) for _ in range(2)]
    true[0].ravel()[:100] = 1
    true[1].ravel()[5000:5100] = 1
    found = [np.zeros((100, 100), np.uint8) for _ in range(3)]
    found[0].ravel()[:92] = 1
    found[1].ravel()[5000:5061] = 1
    found[2].ravel()[9000:9009] = 1
    data = Dataset(
        [Image(1, "1.png", 100, 100)],
        {1: "nucleus"},
        [Instance(k, 1, 1, rle(f), (0, 0, 0, 0), float(f.sum())) for k, f in enumerate(true, start=1)],
    )
    result = summary(data, records_of(found))
    assert result["score"] == pytest.approx(0.35, abs=1e-12)
    assert [round(v, 4) for v in result["precision"].values()] == [0.6667] * 3 + [0.25] * 6 + [0.0]
    assert list(result["true_positives"].values()) == [2] * 3 + [1] * 6 + [0]


@pytest.mark.parametrize(("pixels", "of"), [(n, 20) for n in range(10, 20)] + [(3, 5), (7, 10), (11, 20)])
def test_an_iou_of_exactly_the_threshold_is_not_above_it(pixels: int, of: int) -> None:
    result = summary(truth_of([strip(0, of)]), records_of([strip(0, pixels)]))
    expected = sum(20 * pixels > t * of for t in range(10, 20)) / 10
    assert result["score"] == pytest.approx(expected, abs=1e-12)
    below = round(20 * pixels / of) - 10
    assert list(result["true_positives"].values()) == [1] * below + [0] * (10 - below)


def test_images_with_nothing_in_them() -> None:
    assert summary(truth_of([]), [])["score"] == 1.0  # nothing to find and nothing found: perfect
    assert summary(truth_of([]), records_of([strip(0, 1)]))["score"] == 0.0
    assert summary(truth_of([strip(0, 9)]), [])["score"] == 0.0
    both = summary(truth_of([], [strip(0, 9)]), records_of([], [strip(0, 9)]))
    assert both["score"] == 1.0 and both["images_without_truth"] == 1
    with pytest.raises(ValueError, match="no images"):
        summary(Dataset([], {1: "nucleus"}), [])


def test_images_count_alike_however_many_masks_they_hold() -> None:
    many = [strip(0, 20, y) for y in range(0, 20, 2)]
    result = summary(truth_of(many, [strip(0, 20)]), records_of(many, []))
    assert result["score"] == 0.5 and result["truths"] == 11 and result["detections"] == 10


def test_a_truth_matched_by_two_predictions() -> None:
    """Both above 0.5, which only overlapping masks can be: one is true, the other false."""
    result = summary(truth_of([strip(0, 10)]), records_of([strip(0, 9), strip(1, 10)]))
    assert list(result["true_positives"].values()) == [1] * 8 + [0] * 2  # 0.90 is not above 0.90
    assert result["score"] == pytest.approx(8 * 0.5 / 10)


def test_overlapping_masks_are_paired_as_often_as_can_be() -> None:
    """The first prediction fits both truths, the second only the first truth: a greedy pairing could lose one."""
    true = [strip(0, 10), strip(1, 11)]
    found = [strip(0, 11), strip(0, 8)]
    result = evaluate(truth_of(true), records_of(found))
    assert result.matched[0].tolist() == [2, 2, 2, 2, 2, 2, 1, 1, 1, 0]
    again = evaluate(truth_of(true), records_of(found[::-1]))
    np.testing.assert_array_equal(again.matched, result.matched)


def test_crowds_and_empty_truths_are_nothing_to_find() -> None:
    data = truth_of([strip(0, 9), strip(0, 0), strip(0, 30, 5)])
    crowd = data.instances[2]
    data.instances[2] = Instance(crowd.id, 1, 1, crowd.rle, crowd.box, crowd.area, crowd=True)
    result = summary(data, records_of([strip(0, 9)]))
    assert result["score"] == 1.0 and result["truths"] == 1
    assert summary(data, records_of([strip(0, 9), strip(0, 0)]))["score"] == 0.5  # an empty prediction is a false one


def test_classes_are_those_of_images() -> None:
    data = truth_of([strip(0, 9)], [strip(0, 9)], [])
    data.categories.update({2: "astro", 3: "cort"})
    second = data.instances[1]
    data.instances[1] = Instance(second.id, 2, 2, second.rle, second.box, second.area)
    result = summary(data, records_of([strip(0, 9)], [], []))
    assert result["classes"] == {"nucleus": 1.0, "astro": 0.0, "cort": None}
    assert result["score"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": 7}, "record 0 speaks of image 7"),
        ({"segmentation": {"size": [30, 20], "counts": "0"}}, r"size \[30, 20\] is not the image's \[20, 30\]"),
        ({"segmentation": {"size": [20, 30], "counts": "zz"}}, "a record of image 1 .* is damaged"),
        ({"segmentation": {}}, "has no 'counts'"),
    ],
)
def test_what_cannot_be_scored(change: dict[str, Any], expected: str) -> None:
    record = {**records_of([strip(0, 5)])[0], **change}
    with pytest.raises(ValueError, match=expected):
        evaluate(truth_of([strip(0, 5)]), [record])


# ---------------------------------------------------------------- against other implementations -----------------------


def scattered(seed: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truths and predictions cut from label maps, so that neither share pixels among themselves."""
    rng = np.random.default_rng(seed)
    true, found = np.zeros(SIZE, np.int64), np.zeros(SIZE, np.int64)
    for k in range(1, count + 1):
        y, x = int(rng.integers(0, SIZE[0] - 4)), int(rng.integers(0, SIZE[1] - 5))
        h, w = int(rng.integers(2, 7)), int(rng.integers(2, 8))
        true[y : y + h, x : x + w] = k
        if rng.random() < 0.85:
            dy, dx = (int(v) for v in rng.integers(0, 2, 2))
            found[y + dy : y + h, x : x + w - dx] = k
    return tuple([(labels == k).astype(np.uint8) for k in range(1, count + 1) if (labels == k).any()] for labels in (true, found))  # type: ignore[return-value]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_as_the_plain_rule_computes(seed: int) -> None:
    cases = [scattered(100 * seed + k, 3 + 4 * k) for k in range(5)]
    result = summary(truth_of(*(t for t, _ in cases)), records_of(*(f for _, f in cases)))
    assert result["score"] == pytest.approx(np.mean([plain(t, f) for t, f in cases]), abs=1e-12)
    assert 0.05 < result["score"] < 0.95


def test_overlaps_are_those_of_full_frames() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        a = [(rng.random(SIZE) < rng.uniform(0, 0.4)).astype(np.uint8) for _ in range(6)]
        b = [strip(*sorted(rng.integers(0, 31, 2)), int(rng.integers(20))) for _ in range(9)] + [strip(0, 0)]
        spans = [Spans.of([rle(frame) for frame in frames], SIZE[0]) for frames in (a, b)]
        shared = np.array([[int((x & y).sum()) for y in b] for x in a])
        row, column, common = overlaps(*spans)
        dense = np.zeros_like(shared)
        dense[row, column] = common
        np.testing.assert_array_equal(dense, shared)
        assert (common > 0).all() and (np.diff(row) >= 0).all()
        assert spans[0].area.tolist() == [int(frame.sum()) for frame in a]
    assert [len(part) for part in overlaps(Spans.of([], 9), Spans.of([], 9))] == [0, 0, 0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=14, unique=True))
def test_pairs_are_as_many_as_can_be(edges: list[tuple[int, int]]) -> None:
    edges = sorted(edges)
    row, column = (np.array([e[k] for e in edges], np.int64) for k in (0, 1))
    best = max(
        len(chosen)
        for size in range(min(len(edges), 5) + 1)
        for chosen in itertools.combinations(edges, size)
        if len({r for r, _ in chosen}) == len({c for _, c in chosen}) == size
    )
    assert _pairs(row, column, 5, 5) == best


# ---------------------------------------------------------------- properties ------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 12), st.randoms(use_true_random=False))
def test_the_order_of_anything_changes_nothing(seed: int, count: int, random: Any) -> None:
    cases = [scattered(seed, count), scattered(seed + 1, count + 2)]
    truth, records = truth_of(*(t for t, _ in cases)), records_of(*(f for _, f in cases))
    score = summary(truth, records)["score"]
    random.shuffle(records)
    random.shuffle(truth.images)
    random.shuffle(truth.instances)
    again = Dataset(truth.images, truth.categories, truth.instances)
    assert summary(again, records)["score"] == score


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_perfect_submissions_score_one_and_false_masks_never_help(seed: int, count: int) -> None:
    true, found = scattered(seed, count)
    assert summary(truth_of(true, []), records_of(true, []))["score"] == 1.0
    before = summary(truth_of(true), records_of(found))["score"]
    rng = np.random.default_rng(seed)
    free = np.argwhere(~np.any([np.zeros(SIZE, bool), *(f > 0 for f in (*found, *true))], axis=0))
    if len(free):  # a mask on background
        y, x = free[rng.integers(len(free))]
        assert summary(truth_of(true), records_of([*found, strip(x, x + 1, y)]))["score"] <= before
    if found:  # the same mask once more
        assert summary(truth_of(true), records_of([*found, found[0]]))["score"] <= before
