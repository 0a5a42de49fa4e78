"""NMS, Soft-NMS, NMW and concatenation: against ensemble_boxes 1.0.9 by box, against their definitions by mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ensemble_boxes import nms, non_maximum_weighted, soft_nms
from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

from pipeline.fusion.clusters import cluster
from tests.fusion.test_clusters import as_set, assert_equal_sets, crops, ours, problem

SOFT = ("soft-nms-linear", "soft-nms-gaussian")


def cases(seed: int, count: int = 100) -> Any:
    """Random problems with weights: one to four sources, one to three labels, many sizes; no equal scores."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        sources = int(rng.integers(1, 5))
        given = problem(rng, int(rng.integers(1, 40)), sources, int(rng.integers(1, 4)), rng.uniform(0.03, 0.3))
        if not any(len(boxes) for boxes in given[0]):  # the reference's NMS fails on nothing
            continue
        yield given, rng.uniform(0.5, 3, sources), rng.uniform(0.3, 0.7), float(rng.choice([0, 0.2]))


def test_nms_is_ensemble_boxes_as_a_set() -> None:
    """The reference's scores are votes over the sum of the weights, ours over the largest: compared on its scale."""
    for (boxes, scores, kinds), weights, iou, _ in cases(1):
        box, score, label = nms(boxes, list(scores), kinds, iou_thr=iou, weights=weights)
        found = ours((boxes, scores, kinds), weights, method="nms", iou=iou)
        ratio = weights.max() / weights.sum()
        assert_equal_sets(as_set(found.category, found.score * ratio, found.box), as_set(label, score, box))


@pytest.mark.filterwarnings("ignore:Zero area")
def test_nmw_is_ensemble_boxes_as_a_set() -> None:
    for given, weights, iou, skip in cases(2):
        box, score, label = non_maximum_weighted(*given, weights=weights, iou_thr=iou, skip_box_thr=skip)
        found = ours(given, weights, method="nmw", iou=iou, skip=skip)
        assert_equal_sets(as_set(found.category, found.score, found.box), as_set(label, score, box))


@pytest.mark.parametrize("method", SOFT)
def test_soft_nms_keeps_what_ensemble_boxes_keeps(method: Any) -> None:
    """Which detections are left, with their own scores: the reference drops by decayed scores and returns the others."""
    for (boxes, scores, kinds), weights, iou, _ in cases(3):
        sigma, floor = 0.4, 0.05
        box, score, label = soft_nms(
            boxes, list(scores), kinds, method=1 + SOFT.index(method), iou_thr=iou, sigma=sigma, thresh=floor, weights=weights
        )  # fmt: skip
        total, most = weights.sum(), weights.max()
        found = ours((boxes, scores, kinds), weights, method=method, iou=iou, sigma=sigma, floor=floor * total / most)
        own = found.vote[found.founder] / total
        assert_equal_sets(as_set(found.category, own, found.box), as_set(label, score, box))


@pytest.mark.parametrize("method", SOFT)
def test_soft_nms_decays_as_ensemble_boxes_does(method: Any) -> None:
    """The decayed scores, which the reference's inner function leaves in its argument."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        boxes, scores, _ = problem(rng, int(rng.integers(1, 40)), 3, 1, rng.uniform(0.03, 0.3))
        box, score = np.concatenate(boxes), np.concatenate(scores)
        whole = (box[:, 2:] > box[:, :2]).all(axis=1)
        box, score = box[whole], score[whole]
        left = score.copy()
        rows = cpu_soft_nms_float(box.copy(), left, 0.5, 0.5, 0.001, 1 + SOFT.index(method))
        found = cluster(box, score, np.ones(len(box)), np.zeros(len(box)), [1.0], method=method, iou=0.5)
        assert set(found.founder.tolist()) == set(rows.tolist())
        np.testing.assert_allclose(found.score, np.sort(left[left > 0.001])[::-1], atol=1e-12)
        assert (np.bincount(found.member[found.member >= 0]) == 1).all()  # each by itself, with its own mask


def discs(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :70]
    centres, radii = rng.uniform(0, 60, (count, 2)), 10 ** rng.uniform(0.3, 1.2, count)
    frames = [(np.hypot(y - c[0], x - c[1]) < r) * np.uint8(255) for c, r in zip(centres, radii, strict=True)]
    return [frame for frame in frames if frame.any()]


def by_definition(method: str, overlap: np.ndarray, score: np.ndarray, threshold: float) -> dict[int, float]:
    """The score of each that stands, from all pairs' overlaps."""
    now, left, out = score.copy(), set(range(len(score))), {}
    while left:
        i = max(left, key=lambda k: now[k])
        left.remove(i)
        out[i] = now[i]
        for j in list(left):
            if method == "nms" and overlap[i, j] > threshold:
                left.remove(j)
            elif method == "soft-nms-linear" and overlap[i, j] > threshold:
                now[j] *= 1 - overlap[i, j]
            elif method == "soft-nms-gaussian":
                now[j] *= np.exp(-(overlap[i, j] ** 2) / 0.5)
    return {i: s for i, s in out.items() if method == "nms" or s > 0.001}


@pytest.mark.parametrize("method", ["nms", *SOFT])
def test_suppression_by_mask(method: Any) -> None:
    frames = discs(5, 150)
    n = len(frames)
    flat = np.stack([f.ravel() > 0 for f in frames]).astype(float)
    common = flat @ flat.T
    overlap = common / (flat.sum(axis=1)[:, None] + flat.sum(axis=1)[None] - common)
    score = np.random.default_rng(6).random(n)
    found = cluster(np.zeros((n, 4)), score, [1] * n, [0] * n, [1.0], method=method, iou=0.3, masks=crops(frames))
    expected = by_definition(method, overlap, score, 0.3)
    assert set(found.founder.tolist()) == set(expected)
    np.testing.assert_allclose(found.score, [expected[i] for i in found.founder.tolist()])
    assert len(expected) < n if method == "nms" else min(expected.values()) < score.min()


def test_nmw_by_mask_weighs_by_the_masks_overlap() -> None:
    frame = np.zeros((3, 20, 30), np.uint8)
    frame[0, :10, :10], frame[1, :10, 2:12], frame[2, :10, 20:] = 255, 255, 255
    box = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [20, 0, 30, 10]], float)
    found = cluster(box, [0.8, 0.6, 0.4], [1] * 3, [0, 1, 0], [1, 1], method="nmw", iou=0.5, masks=crops(list(frame)))
    iou = 80 / 120
    assert found.member.tolist() == [0, 0, 1]
    np.testing.assert_allclose(found.share, [1, iou, 1])
    np.testing.assert_allclose(found.box[0], (0.8 * box[0] + 0.6 * iou * box[1]) / (0.8 + 0.6 * iou))
    assert found.score.tolist() == [0.8, 0.4]


def test_nms_and_concatenate() -> None:
    box = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [30, 30, 40, 40]], float)
    kept = cluster(box, [0.6, 0.5, 0.4], [1] * 3, [0, 1, 0], [1, 1], method="nms", iou=0.5)
    np.testing.assert_array_equal(kept.box, box[[0, 2]])
    assert kept.score.tolist() == [0.6, 0.4] and kept.member.tolist() == [0, 0, 1] and kept.share.tolist() == [1, 0, 1]
    every = cluster(box, [0.6, 0.5, 0.4], [1] * 3, [0, 1, 0], [1, 1], method="concatenate")
    np.testing.assert_array_equal(every.box, box)
    assert every.member.tolist() == [0, 1, 2]


def test_zero_scores_are_no_nan() -> None:
    """The reference's NMW divides by their sum. Soft-NMS leaves nothing: 0 is not above its floor."""
    box = np.array([[0, 0, 10, 10], [0, 0, 12, 10], [40, 40, 50, 50]], float)
    for method, count in (("nms", 2), ("nmw", 2), ("soft-nms-linear", 0), ("soft-nms-gaussian", 0), ("concatenate", 3)):
        found = cluster(box, np.zeros(3), [1] * 3, [0, 1, 0], [1, 2], iou=0.5, method=method)  # type: ignore[arg-type]
        assert len(found) == count and np.isfinite(found.box).all() and (found.score == 0).all()


@pytest.mark.parametrize("method", SOFT)
def test_voters_do_not_decay_themselves(method: Any) -> None:
    box = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11]], float)
    found = cluster(box, [0.9, 0.8, 0.7], [1] * 3, [0, 0, 1], np.ones(2), iou=0.5, method=method, one_per_source=True)
    assert found.score[:2].tolist() == [0.9, 0.8] and found.score[2] < 0.3


@pytest.mark.parametrize("method", ["wbf", "nmw", "nms", *SOFT, "concatenate"])
def test_every_category_has_its_own_thresholds(method: Any) -> None:
    box = np.array([[0, 0, 10, 10], [2, 0, 12, 10]] * 2, float)  # IoU 2/3
    score, category, source = [0.9, 0.5, 0.9, 0.5], [1, 1, 2, 2], [0, 1, 0, 1]
    each = cluster(box, score, category, source, [1, 1], method=method, iou={1: 0.8, 2: 0.5})
    for kind, iou in ((1, 0.8), (2, 0.5)):
        alone = cluster(box[:2], score[:2], [kind] * 2, source[:2], [1, 1], method=method, iou=iou)
        assert each.score[each.category == kind].tolist() == alone.score.tolist()
    skipped = cluster(box, score, category, source, [1, 1], method=method, skip={1: 0.6, 2: 0.1})
    assert (skipped.member >= 0).tolist() == [True, False, True, True]


@pytest.mark.parametrize("method", ["wbf", "nmw", "nms", *SOFT, "concatenate"])
def test_nothing_and_one(method: Any) -> None:
    assert len(cluster(np.zeros((0, 4)), [], [], [], [1.0], method=method)) == 0
    one = cluster([[0, 0, 3, 4]], [0.5], [7], [99], np.ones(100), method=method, confidence="max")
    assert one.score.tolist() == [0.5] and one.category.tolist() == [7] and one.box.tolist() == [[0, 0, 3, 4]]
    mask = crops([np.full((4, 3), 255, np.uint8)])
    assert len(cluster([[0, 0, 3, 4]], [0.5], [7], [0], [1.0], method=method, masks=mask)) == 1
