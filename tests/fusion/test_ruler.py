"""The ruler against a plain computation, against COCO's AP in the limit, and its bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fusion.match import Overlaps, truths
from pipeline.fusion.ruler import Ranked, Ruler
from pipeline.records import Detections
from tests.fusion.cells import sighting, truth


def plain(true: np.ndarray, weight: np.ndarray, wanted: float) -> float:
    """Interpolated precision summed over true positives, each repeated as often as its image was drawn."""
    flags = np.repeat(true, weight)
    precision = np.cumsum(flags) / np.arange(1, len(flags) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * flags).sum() / wanted)


def test_values() -> None:
    rng = np.random.default_rng(0)
    ranked = Ranked(rng.random(60) < 0.6, rng.integers(0, 4, 60), np.array([12.0, 20, 9, 15]))
    ruler = Ruler()
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 3], [0, 0, 0, 5]], float)
    values = ruler.values({(1, 0.5): ranked}, weights)
    assert values.shape == (1, 3)
    assert values[0, 0] == pytest.approx(plain(ranked.true, np.ones(60, int), 56))
    # drawing an image n times puts its rows n times into the ranking, one beside the other
    for k in (1, 2):
        expected = plain(ranked.true, weights[k, ranked.image].astype(int), weights[k] @ ranked.wanted)
        assert values[0, k] == pytest.approx(expected, abs=0.02)


def test_a_perfect_list_is_one_and_an_empty_one_zero() -> None:
    dataset = truth(2)
    true = list(truths(dataset, [1, 2]).values())
    exact = [sighting(i, "a", 0, noise=0, false=0) for i in (1, 2)]
    ruler = Ruler(max_detections=5)
    assert ruler.value(ruler.sheet(exact, true)) == pytest.approx(1)
    assert ruler.value(ruler.sheet([Detections.empty()] * 2, true)) == 0
    everything = Ruler(max_detections=None)
    assert everything.value(everything.sheet(exact, true)) == pytest.approx(
        sum(len(e) for e in exact) / sum(len(t.category) for t in true)
    )


def test_only_the_best_of_an_image_count() -> None:
    dataset = truth(1)
    true = list(truths(dataset, [1]).values())
    found = sighting(1, "a", 0, noise=0, false=8)
    for limit in (1, 4, 100):
        ruler = Ruler(max_detections=limit)
        ranked = ruler.sheet([found], true)[1, 0.5]
        assert len(ranked.true) == min(limit, len(found))
        assert ranked.wanted.tolist() == [min(limit, 12)]


def test_the_gain_of_a_better_ranking_and_of_none() -> None:
    dataset = truth(8)
    true = list(truths(dataset, range(1, 9)).values())
    found = [sighting(i, "a", 0) for i in range(1, 9)]
    ruler = Ruler(max_detections=10)
    before = ruler.sheet(found, true)
    better = []
    for detections, t in zip(found, true, strict=True):
        right, _ = Overlaps.of(detections, t).matched(detections.score)
        copy = Detections(**vars(detections))
        copy.score = np.where(right, detections.score, detections.score * 0.1)
        better.append(copy)
    after = ruler.sheet(better, true)
    gain = ruler.gain(after, before)
    assert gain.mean > 0.05 and gain.low > 0 and gain.often == 1 and gain.worse == []
    back = ruler.gain(before, after)
    assert back.mean == pytest.approx(-gain.mean) and back.worse == [1]
    none = ruler.gain(before, before)
    assert (none.mean, none.low, none.high, none.often, none.worse) == (0, 0, 0, 0, [])
    assert ruler.gain(after, before) == gain  # the same draws every time


def test_nothing_to_find() -> None:
    dataset = truth(1)
    dataset.instances.clear()
    ruler = Ruler()
    sheet = ruler.sheet([sighting(1, "a", 0)], list(truths(dataset, [1]).values()))
    assert sheet == {} and ruler.value(sheet) == 0 and ruler.gain(sheet, sheet).mean == 0


def test_several_overlaps_are_averaged() -> None:
    dataset = truth(3)
    true = list(truths(dataset, [1, 2, 3]).values())
    found = [sighting(i, "a", 0, noise=1.0) for i in (1, 2, 3)]
    each = [Ruler(12, (iou,)) for iou in (0.5, 0.7, 0.9)]
    alone = [ruler.value(ruler.sheet(found, true)) for ruler in each]
    assert alone[0] > alone[1] > alone[2]
    together = Ruler(12, (0.5, 0.7, 0.9))
    assert together.value(together.sheet(found, true)) == pytest.approx(np.mean(alone))
    exact = [sighting(i, "a", 0, noise=0.0) for i in (1, 2, 3)]
    gain = together.gain(together.sheet(exact, true), together.sheet(found, true))
    assert gain.mean > 0 and gain.worse == []
    assert together.gain(together.sheet(found, true), together.sheet(exact, true)).worse == [1]


def test_a_rare_category_is_judged_on_the_draws_that_hold_it() -> None:
    """Category 2 is in one of twenty images and goes from right to missed: a loss, though most draws do not have it."""
    every = np.arange(20)
    common = Ranked(np.ones(20, bool), every, np.ones(20))
    rare = np.zeros(20)
    rare[3] = 1
    before = {(1, 0.5): common, (2, 0.5): Ranked(np.array([True]), np.array([3]), rare)}
    after = {(1, 0.5): common, (2, 0.5): Ranked(np.zeros(0, bool), np.zeros(0, int), rare)}
    assert Ruler().gain(after, before).worse == [2]


def test_draws_without_anything_to_find_say_nothing() -> None:
    only = np.zeros(20)
    only[:2] = 1
    before = {(1, 0.5): Ranked(np.zeros(2, bool), np.arange(2), only)}
    after = {(1, 0.5): Ranked(np.ones(2, bool), np.arange(2), only)}
    gain = Ruler().gain(after, before)
    assert (gain.mean, gain.low, gain.high, gain.often) == (1, 1, 1, 1)
