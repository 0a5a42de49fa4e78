from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masks import crop_to_rle
from pipeline.metrics import coco_ap
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.report.verdicts import Verdict, best_threshold, choose, judge

SIZE = (50, 60)


def instance(
    number: int, image_id: int, x: int, y: int, side: int = 10, category: int = 1, crowd: bool = False
) -> Instance:
    rle = crop_to_rle(np.ones((side, side), np.uint8), (x, y, x + side, y + side), SIZE, threshold=1)
    return Instance(number, image_id, category, rle, (x, y, side, side), side * side, crowd)


def dataset(instances: list[Instance], images: int = 2) -> Dataset:
    return Dataset([Image(k + 1, f"{k + 1}.png", *SIZE) for k in range(images)], {1: "one", 2: "two"}, instances)


def squares(rows: list[tuple[int, float, int, int]], side: int = 10, category: int = 1) -> Detections:
    """Detections from (image id, score, x, y)."""
    boxes = np.array([(x, y, x + side, y + side) for _, _, x, y in rows]).reshape(-1, 4)
    grids = [np.full((side, side), 255, np.uint8)] * len(rows)
    return Detections.build([r[0] for r in rows], category, [r[1] for r in rows], boxes, boxes, grids)


def test_found_missed_and_false_are_told_apart() -> None:
    truth = dataset([instance(1, 1, 0, 0), instance(2, 1, 20, 20), instance(3, 2, 5, 5)])
    found = squares([(1, 0.9, 1, 0), (1, 0.8, 40, 0), (2, 0.3, 5, 5)])
    match = coco_ap.match(truth, found)
    by_id = {v.image.id: v for v in judge(truth, found, match, 0.5)}
    assert by_id[1] == Verdict(truth.images[0], found=[0], matched=[0], missed=[1], false=[1])
    assert by_id[2] == Verdict(truth.images[1], found=[], matched=[], missed=[2], false=[])
    assert by_id[1].f1 == pytest.approx(0.5)
    assert [v.image.id for v in judge(truth, found, match, 0.0)] == [2, 1]  # the perfect one first


def test_what_lies_on_a_crowd_is_neither_false_nor_missed() -> None:
    truth = dataset([instance(1, 1, 0, 0, side=30, crowd=True)], images=1)
    found = squares([(1, 0.9, 3, 3)])
    (verdict,) = judge(truth, found, coco_ap.match(truth, found), 0.0)
    assert (verdict.found, verdict.missed, verdict.false, verdict.f1) == ([], [], [], 1.0)


def test_another_class_finds_nothing() -> None:
    truth = dataset([instance(1, 1, 0, 0, category=2)], images=1)
    found = squares([(1, 0.9, 0, 0)], category=1)
    (verdict,) = judge(truth, found, coco_ap.match(truth, found), 0.0)
    assert (verdict.found, verdict.missed, verdict.false) == ([], [0], [0])


def test_nothing_found_at_all() -> None:
    truth = dataset([instance(1, 1, 0, 0)])
    found = Detections.empty()
    match = coco_ap.match(truth, found)
    assert best_threshold(found, match, 1) == 0.0
    assert [(v.image.id, len(v.missed)) for v in judge(truth, found, match, 0.0)] == [(2, 0), (1, 1)]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=12), st.integers(0, 5))
def test_the_threshold_is_where_f1_is_greatest(rows: list[tuple[int, bool]], missed: int) -> None:
    """Against trying every score; scores in fifths, so that many are equal."""
    score = np.array([s / 5 for s, _ in rows])
    hit = np.array([h for _, h in rows])
    truths = int(hit.sum()) + missed
    n = len(rows)
    found = squares([(1, float(s), 0, 0) for s in score])
    match = coco_ap.Match(np.where(hit, 0, -1), np.zeros(n), np.zeros(n), np.zeros(n, bool), np.ones(n, bool))

    def f1(threshold: float) -> float:
        kept = score >= threshold
        return 2 * hit[kept].sum() / (kept.sum() + truths)

    threshold = best_threshold(found, match, truths)
    if hit.any():
        assert f1(threshold) == pytest.approx(max(f1(t) for t in score))
    else:
        assert threshold == 0.0


def verdict(number: int, found: int, missed: int, false: int) -> Verdict:
    rows = list(range(100))
    return Verdict(Image(number, f"{number}.png", *SIZE), rows[:found], rows[:found], rows[:missed], rows[:false])


@given(st.integers(0, 30))
def test_best_median_and_worst_are_different_images(count: int) -> None:
    verdicts = [verdict(k, 30 - k, k, 0) for k in range(count)]
    groups = choose(verdicts)
    shown = [v.image.id for _, group in groups for v in group]
    assert len(shown) == len(set(shown)) == min(count, 9)
    if count > 3:
        assert groups[0][0] == "Best" and groups[0][1][0].image.id == 0
        assert groups[-1][0] == "Worst" and groups[-1][1][0].image.id == count - 1
    if count > 20:
        middle = [v.image.id for v in dict(groups)["Median"]]
        assert abs(np.mean(middle) - (count - 1) / 2) <= 1


def test_images_that_tell_nothing_are_not_shown_beside_others() -> None:
    groups = choose([verdict(1, 0, 0, 0), verdict(2, 3, 1, 0)])
    assert [v.image.id for _, group in groups for v in group] == [2]
    assert [v.image.id for _, group in choose([verdict(1, 0, 0, 0)]) for v in group] == [1]
