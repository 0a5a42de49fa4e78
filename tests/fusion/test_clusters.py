"""Clusters against ensemble_boxes 1.0.9, and what it cannot do: membership, pixels, masks, zero scores, real errors."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import numpy as np
import pytest
from ensemble_boxes import weighted_boxes_fusion

from pipeline.fusion.clusters import Clusters, Method, cluster
from pipeline.fusion.crops import Crops

Problem = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]
CONFIDENCES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")


def problem(rng: np.random.Generator, objects: int, sources: int, labels: int, size: float) -> Problem:
    """Normalised boxes, scores and labels of every source: jittered sightings of common objects."""
    centre, sides = rng.uniform(0.05, 0.95, (objects, 2)), rng.uniform(size / 2, size * 2, (objects, 2))
    label = rng.integers(0, labels, objects)
    boxes, scores, kinds = [], [], []
    for _ in range(sources):
        seen = rng.random(objects) < 0.8
        n = int(seen.sum())
        middle = centre[seen] + rng.normal(0, size / 8, (n, 2))
        half = sides[seen] * rng.uniform(0.8, 1.2, (n, 2)) / 2
        boxes.append(np.clip(np.concatenate([middle - half, middle + half], axis=1), 0, 1))
        scores.append(rng.random(n))
        kinds.append(label[seen])
    return boxes, scores, kinds


def ours(given: Problem, weights: Any, **settings: Any) -> Clusters:
    boxes, scores, kinds = given
    source = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    return cluster(np.concatenate(boxes), np.concatenate(scores), np.concatenate(kinds), source, weights, **settings)


def as_set(label: np.ndarray, score: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Rows (label, score, box) in an order that float32 rounding does not change."""
    rows = np.column_stack([label, score, box])
    return rows[np.lexsort(rows[:, ::-1].round(4).T)]


def assert_equal_sets(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    for one, other in ((a, b), (b, a)):
        for row in one:  # rounding may change the order of near neighbours: look for the nearest row
            assert np.abs(other - row).max(axis=1).min() < 2e-6


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_wbf_is_ensemble_boxes_as_a_set(confidence: Any) -> None:
    """A thousand random problems, 250 for each confidence type: one to five sources with weights, one to three labels,
    one to 39 objects of many sizes, with and without a skip threshold.

    Compared are the sets of (label, score, box), every row to 2e-6 in each of its numbers, which is what the reference's
    float32 sums leave of normalised coordinates; their order is not, because it sorts those float32 scores unstably. The
    boxes are cut to 0..1 beforehand, as the reference cuts its input, and both drop those without extent. No two scores
    are equal: the reference's order among equals is not defined, and with it its clusters.
    """
    rng = np.random.default_rng(CONFIDENCES.index(confidence))
    for _ in range(250):
        sources = int(rng.integers(1, 6))
        given = problem(rng, int(rng.integers(1, 40)), sources, int(rng.integers(1, 4)), rng.uniform(0.03, 0.3))
        weights = rng.uniform(0.5, 3, sources)
        iou, skip = rng.uniform(0.3, 0.7), float(rng.choice([0, 0.2]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty boxes, which both drop
            box, score, label = weighted_boxes_fusion(
                *given, weights=weights, iou_thr=iou, skip_box_thr=skip, conf_type=confidence
            )
        found = ours(given, weights, iou=iou, skip=skip, confidence=confidence)
        assert_equal_sets(as_set(found.category, found.score, found.box), as_set(label, score, box))


def test_pixels_give_what_normalised_coordinates_give() -> None:
    boxes, scores, kinds = given = problem(np.random.default_rng(2), 50, 4, 1, 0.1)
    for method in get_args(Method):
        small = ours(given, np.ones(4), iou=0.5, method=method)
        large = ours(([b * 1000 for b in boxes], scores, kinds), np.ones(4), iou=0.5, method=method)
        np.testing.assert_array_equal(small.member, large.member)
        np.testing.assert_allclose(large.box, small.box * 1000)
        np.testing.assert_allclose(large.score, small.score)


@pytest.mark.parametrize("iou", [0.0, 0.1, 0.5, 0.9])
def test_bins_find_what_a_full_search_finds(iou: float) -> None:
    """Objects of very different sizes; the plain double loop is the definition."""
    rng = np.random.default_rng(int(iou * 10))
    centre, sides = rng.uniform(0, 100, (150, 2)), 10 ** rng.uniform(0, 2, (150, 2))
    centre = np.concatenate([centre, centre + sides * rng.normal(0, 0.03, (150, 2))])
    sides = np.concatenate([sides, sides])
    box = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    score = rng.random(300)
    found = cluster(box, score, np.zeros(300), np.arange(300) % 3, np.ones(3), iou=iou)
    fused: list[tuple[np.ndarray, float]] = []
    member = np.full(300, -1)
    for i in np.argsort(-score):
        best, best_iou = -1, iou
        for k, (other, _) in enumerate(fused):
            w = np.minimum(box[i, 2:], other[2:]) - np.maximum(box[i, :2], other[:2])
            common = np.prod(np.maximum(w, 0))
            overlap = common / (np.prod(box[i, 2:] - box[i, :2]) + np.prod(other[2:] - other[:2]) - common)
            if overlap > best_iou:
                best, best_iou = k, overlap
        if best < 0:
            fused.append((box[i], score[i]))
            best = len(fused) - 1
        else:
            mean, weight = fused[best]
            fused[best] = (mean * weight + box[i] * score[i]) / (weight + score[i]), weight + score[i]
        member[i] = best
    assert len(found) == len(fused)
    for k in range(len(fused)):  # the same partition, whatever the clusters' numbers
        assert len(set(found.member[member == k])) == 1
    assert (np.bincount(found.member) > 1).any()


def test_membership_and_order() -> None:
    box = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [1, 0, 11, 10], [0, 1, 10, 11], [51, 50, 61, 60]], float)
    found = cluster(box, [0.5, 0.9, 0.8, 0.1, 0.7], [1] * 5, [0, 0, 1, 2, 1], np.ones(3), iou=0.5)
    assert found.member.tolist() == [1, 0, 1, 1, 0]
    assert found.founder.tolist() == [1, 2]
    np.testing.assert_allclose(found.score, [1.6 / 2 * 2 / 3, 1.4 / 3])
    np.testing.assert_allclose(found.box[1], (0.5 * box[0] + 0.8 * box[2] + 0.1 * box[3]) / 1.4)
    assert (np.diff(found.score) <= 0).all()


def test_agreement_is_a_fraction_of_all_voters_even_those_who_saw_nothing() -> None:
    box, score = [[0, 0, 10, 10]], [0.8]
    assert cluster(box, score, [1], [0], np.ones(1)).score[0] == pytest.approx(0.8)
    assert cluster(box, score, [1], [0], np.ones(4)).score[0] == pytest.approx(0.2)
    aware = cluster(box, score, [1], [0], [1, 3], confidence="absent_model_aware_avg")
    assert aware.score[0] == pytest.approx(0.8 / 4)


def test_categories_never_meet() -> None:
    found = cluster([[0, 0, 10, 10]] * 4, [0.9, 0.8, 0.7, 0.6], [3, 5, 3, 5], [0, 0, 1, 1], np.ones(2))
    assert found.category.tolist() == [3, 5] and found.member.tolist() == [0, 1, 0, 1]


def test_zero_scores_are_no_nan() -> None:
    box = np.array([[0, 0, 10, 10], [0, 0, 12, 10], [40, 40, 50, 50]], float)
    for confidence in CONFIDENCES:
        found = cluster(box, np.zeros(3), [1] * 3, [0, 1, 0], [1, 2], iou=0.5, confidence=confidence)
        assert len(found) == 2 and np.isfinite(found.box).all() and (found.score == 0).all()
        assert [0, 0, 11, 10] in found.box.tolist()


def test_who_does_not_vote() -> None:
    box = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 9], [0, 0, 10, 10]], float)
    found = cluster(box, [0.9, 0.1, 0.9, 0.8], [1] * 4, [0, 1, 0, -1], np.ones(2), skip=0.2)
    assert found.member.tolist() == [0, -1, -1, -1] and len(found) == 1
    assert len(cluster(np.zeros((0, 4)), [], [], [], np.ones(2))) == 0
    assert len(cluster(box, [0.1] * 4, [1] * 4, [0] * 4, np.ones(2), skip=0.5)) == 0


def test_at_most_one_member_of_a_voter() -> None:
    box = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11]], float)
    free = cluster(box, [0.9, 0.8, 0.7], [1] * 3, [0, 0, 1], np.ones(2), iou=0.5)
    bound = cluster(box, [0.9, 0.8, 0.7], [1] * 3, [0, 0, 1], np.ones(2), iou=0.5, one_per_source=True)
    assert free.member.tolist() == [0, 0, 0]
    assert len(bound) == 2 and bound.member[0] == bound.member[2] != bound.member[1]
    many = np.tile(box[:1], (130, 1))  # more voters than one machine word has bits
    assert len(cluster(many, np.ones(130), [1] * 130, np.arange(130), np.ones(130), one_per_source=True)) == 1
    assert len(cluster(many, np.ones(130), [1] * 130, np.full(130, 129), np.ones(130), one_per_source=True)) == 130


def crops(frames: list[np.ndarray]) -> Crops:
    """Full frames as crops that are their whole frame."""
    height, width = frames[0].shape
    return Crops(
        np.array([[0, 0, width, height]] * len(frames)),
        np.arange(len(frames) + 1) * height * width,
        np.concatenate([f.ravel() for f in frames]),
    )


def test_masks_part_what_boxes_join() -> None:
    """Two long cells crossing like an X: one box, two objects."""
    y, x = np.mgrid[:40, :40]
    falling, rising = (abs(y - x) < 4) * np.uint8(255), (abs(y + x - 39) < 4) * np.uint8(255)
    masks = crops([falling, rising, np.roll(falling, 1, axis=1), np.zeros((40, 40), np.uint8)])
    box = np.array([[0, 0, 40, 40]] * 4, float)
    arguments = (box, [0.9, 0.8, 0.7, 0.6], [1] * 4, [0, 0, 1, 1], np.ones(2))
    by_box, by_mask = cluster(*arguments, iou=0.5), cluster(*arguments, iou=0.5, masks=masks)
    assert len(by_box) == 1
    assert by_mask.member[0] == by_mask.member[2] != by_mask.member[1] and by_mask.member[3] == -1


def test_mask_bins_find_what_a_full_search_finds() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:60, :70]
    frames = []
    for _ in range(150):
        cy, cx, r = rng.uniform(0, 60), rng.uniform(0, 70), 10 ** rng.uniform(0.3, 1.3)
        frames.append((np.hypot(y - cy, x - cx) < r) * np.uint8(255))
    frames = [f for f in frames if f.any()]
    score = rng.random(len(frames))
    found = cluster(
        np.zeros((len(frames), 4)),
        score,
        np.zeros(len(frames)),
        np.zeros(len(frames)),
        [1.0],
        iou=0.4,
        masks=crops(frames),
    )
    founders: list[int] = []
    for i in np.argsort(-score):
        overlaps = [(frames[i] & frames[j] > 0).sum() / (frames[i] | frames[j] > 0).sum() for j in founders]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] <= 0.4:
            founders.append(i)
            best = len(founders) - 1
        assert found.founder[found.member[i]] == founders[best]
    assert len(found) == len(founders) < len(frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [0.5]}, "differ in length"),
        ({"weights": []}, "weights are numbers"),
        ({"weights": [0.0, 0.0]}, "weights are numbers"),
        ({"weights": [-1.0, 2.0]}, "weights are numbers"),
        ({"weights": [1.0]}, "do not fit 1 weights"),
        ({"iou": 1.0}, "threshold"),
        ({"score": [0.5, np.nan]}, "finite"),
        ({"box": [[0, 0, 1, 1], [0, 0, np.inf, 1]]}, "finite"),
        ({"iou": {1: 1.5}}, "threshold"),
        ({"iou": {2: 0.5}}, "no threshold for the category 1"),
        ({"skip": {2: 0.5}}, "no threshold for the categories"),
        ({"sigma": 0.0}, "sigma"),
        ({"floor": -0.1}, "floor"),
        ({"confidence": "mean"}, "confidence"),
        ({"method": "soup"}, "method"),
    ],
)
def test_wrong_arguments_raise(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "box": [[0, 0, 1, 1], [0, 0, 2, 2]], "score": [0.5, 0.6], "category": [1, 1], "source": [0, 1], "weights": [1.0, 1.0],
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        cluster(**{**good, **change})
