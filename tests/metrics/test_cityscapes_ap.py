"""Cityscapes' own AP: each rule by hand, and the whole against the rule written out plainly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks import crop_to_rle, rle_to_crop, tight_box
from pipeline.metrics.cityscapes_ap import THRESHOLDS, evaluate
from pipeline.records import Dataset, Image, Instance

SIZE = (40, 60)
CAR, BUS = 26, 28


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def rle_of(mask: np.ndarray) -> dict:
    x0, y0, x1, y1 = tight_box(mask)
    return crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), mask.shape, threshold=1)


def truth_of(*masks: np.ndarray, crowds: tuple[int, ...] = (), category: int = CAR) -> Dataset:
    instances = [
        Instance(k + 1, 1, category, rle_of(m), (0, 0, 1, 1), float(m.sum()), k in crowds) for k, m in enumerate(masks)
    ]
    return Dataset([Image(1, "a.png", *SIZE)], {CAR: "car", BUS: "bus"}, instances)


def found_of(*rows: tuple[np.ndarray, float], category: int = CAR) -> list[dict]:
    return [{"image_id": 1, "category_id": category, "score": s, "segmentation": rle_of(m)} for m, s in rows]


def test_perfect_and_empty() -> None:
    truth = truth_of(box(0, 10, 0, 20), box(20, 30, 0, 20))
    records = found_of((box(0, 10, 0, 20), 0.9), (box(20, 30, 0, 20), 0.3))
    result = evaluate(truth, records)
    assert result.ap() == pytest.approx(1) and result.ap50() == pytest.approx(1)
    assert result.classes() == {"car": pytest.approx(1), "bus": None}
    assert evaluate(truth, []).ap() == 0
    assert evaluate(truth_of(), records).ap() == -1


def test_overlap_must_be_above_the_threshold() -> None:
    """20x10 against 10x10 inside it: IoU exactly 0.5, which COCO would take."""
    truth = truth_of(box(0, 20, 0, 10))
    assert evaluate(truth, found_of((box(0, 10, 0, 10), 1.0))).ap50() == 0
    assert evaluate(truth, found_of((box(0, 11, 0, 10), 1.0))).ap50() == pytest.approx(1)


def test_curve_by_hand() -> None:
    """Scores 0.9 right, 0.8 wrong, 0.7 right, of two truths. Points (recall, precision) by score: 0.7 (1, 2/3),
    0.8 (1/2, 1/2), 0.9 (1/2, 1), end (0, 1). Widths are half the distance of a point's neighbours: 1/4, 1/4, 1/4, 1/4."""
    truth = truth_of(box(0, 10, 0, 20), box(20, 30, 0, 20))
    records = found_of((box(0, 10, 0, 20), 0.9), (box(12, 18, 30, 50), 0.8), (box(20, 30, 0, 20), 0.7))
    assert evaluate(truth, records).ap50() == pytest.approx((2 / 3 + 1 / 2 + 1 + 1) / 4)


def test_equal_scores_are_one_point() -> None:
    truth = truth_of(box(0, 10, 0, 20))
    records = found_of((box(0, 10, 0, 20), 0.5), (box(20, 30, 0, 20), 0.5))
    assert evaluate(truth, records).ap50() == pytest.approx((1 / 2 + 1) / 2)
    assert evaluate(truth, records[::-1]).ap50() == pytest.approx((1 / 2 + 1) / 2)


def test_the_worse_of_two_that_find_one_truth_is_wrong() -> None:
    """The curve is that of `test_curve_by_hand`: 0.9 is right, 0.4 wrong, 0.2 right."""
    truth = truth_of(box(0, 10, 0, 20), box(20, 30, 0, 20))
    records = found_of((box(0, 10, 0, 20), 0.4), (box(0, 10, 0, 19), 0.9), (box(20, 30, 0, 20), 0.2))
    assert evaluate(truth, records).ap50() == pytest.approx((2 / 3 + 1 / 2 + 1 + 1) / 4)


def test_small_truths_and_groups_are_neither_missed_nor_mistakes() -> None:
    big, small, group = box(0, 10, 0, 20), box(20, 29, 0, 11), box(20, 35, 30, 50)
    truth = truth_of(big, small, group, crowds=(2,))
    assert evaluate(truth, found_of((big, 0.5))).ap() == pytest.approx(1)
    assert evaluate(truth, found_of((big, 0.5), (small, 0.9), (group, 0.8))).ap() == pytest.approx(1)
    assert evaluate(truth_of(big, box(20, 30, 0, 10)), found_of((big, 0.5))).ap() < 1  # 100 pixels do count


@pytest.mark.parametrize(("rows", "wrong"), [(10, False), (6, False), (5, True), (0, True)])
def test_on_void_is_excused_above_the_threshold(rows: int, wrong: bool) -> None:
    """A detection of 10 rows finds nothing; at t = 0.5 it is excused when more than 5 of its rows are void."""
    truth = truth_of(box(0, 10, 0, 20))
    records = found_of((box(0, 10, 0, 20), 0.5), (box(20, 30, 0, 20), 0.9))
    void = box(20, 20 + rows, 0, 60) > 0
    result = evaluate(truth, records, lambda image: void)
    assert (result.ap50() < 1) == wrong


def test_partly_on_a_group_is_excused_like_void() -> None:
    truth = truth_of(box(0, 10, 0, 20), box(20, 26, 0, 60), crowds=(1,))
    records = found_of((box(0, 10, 0, 20), 0.5), (box(20, 30, 0, 20), 0.9))
    assert evaluate(truth, records).ap50() == pytest.approx(1)
    buses = truth_of(box(20, 26, 0, 60), crowds=(0,), category=BUS)
    elsewhere = Dataset(truth.images, truth.categories, [truth.instances[0], *buses.instances])
    assert evaluate(elsewhere, records).ap50() < 1


def test_all_ignored_is_zero() -> None:
    """The official script stops with an IndexError there."""
    truth = truth_of(box(0, 10, 0, 20))
    void = box(20, 40, 0, 60) > 0
    assert evaluate(truth, found_of((box(20, 30, 0, 20), 0.9)), lambda image: void).ap() == 0


def test_unknown_images_and_categories() -> None:
    truth, records = truth_of(box(0, 10, 0, 20)), found_of((box(0, 10, 0, 20), 0.5))
    assert evaluate(truth, [*records, {**records[0], "category_id": 99, "score": 1.0}]).ap() == pytest.approx(1)
    with pytest.raises(ValueError, match="does not have.*7"):
        evaluate(truth, [{**records[0], "image_id": 7}])


def plainly(truth: Dataset, records: list[dict], void: dict[int, np.ndarray]) -> np.ndarray:
    """(classes, thresholds) AP, pixel by pixel and one after another."""

    def full(rle: dict) -> np.ndarray:
        frame = np.zeros(SIZE, bool)
        (x0, y0, x1, y1), mask = rle_to_crop(rle)
        frame[y0:y1, x0:x1] = mask > 0
        return frame

    table = np.full((len(truth.categories), len(THRESHOLDS)), np.nan)
    for k, category in enumerate(truth.categories):
        for n, t in enumerate(THRESHOLDS):
            points: list[tuple[float, int]] = []
            missed = total = 0
            for image in truth.images:
                own = [a for a in truth.instances if (a.image_id, a.category_id) == (image.id, category)]
                masks = [full(a.rle) for a in own]
                counts = [not a.crowd and m.sum() >= 100 for a, m in zip(own, masks, strict=True)]
                scores: dict[int, list[float]] = {g: [] for g, c in enumerate(counts) if c}
                for r in records:
                    if (r["image_id"], r["category_id"]) != (image.id, category) or not full(r["segmentation"]).any():
                        continue
                    mask = full(r["segmentation"])
                    over = [g for g, m in enumerate(masks) if (mask & m).sum() / (mask | m).sum() > t]
                    for g in over:
                        if counts[g]:
                            scores[g].append(r["score"])
                    if not over:
                        ignored = (mask & void[image.id]).sum()
                        for a, m in zip(own, masks, strict=True):
                            ignored += (mask & m).sum() * (int(a.crowd) + int(m.sum() < 100))
                        if ignored / mask.sum() <= t:
                            points.append((r["score"], 0))
                for found in scores.values():
                    total += 1
                    missed += not found
                    points += [(s, int(i == 0)) for i, s in enumerate(sorted(found, reverse=True))]
            if not total:
                continue
            curve = [(0.0, 1.0)]
            for level in sorted({s for s, _ in points}, reverse=True):
                kept = [right for s, right in points if s >= level]
                curve.append((sum(kept) / total, sum(kept) / len(kept)))
            recalls = [0.0, *(r for r, _ in curve), curve[-1][0]]
            table[k, n] = sum(p * (recalls[i + 2] - recalls[i]) / 2 for i, (_, p) in enumerate(curve))
    return table


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_equals_the_rule_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [Image(k, f"{k}.png", *SIZE) for k in (1, 2)]
    instances: list[Instance] = []
    records: list[dict] = []
    void = {}
    for image in images:
        owner = np.zeros(SIZE, np.int32)
        for k in range(1, rng.integers(2, 8)):
            y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
            owner[y : y + rng.integers(4, 20), x : x + rng.integers(4, 20)] = k
        void[image.id] = (owner == 0) & (np.arange(SIZE[1]) < rng.integers(0, 40))
        for k in np.unique(owner[owner > 0]):
            mask, category = (owner == k).astype(np.uint8), int(rng.choice([CAR, CAR, BUS]))
            instances.append(
                Instance(
                    len(instances) + 1, image.id, category, rle_of(mask), (0, 0, 1, 1), 1.0, bool(rng.random() < 0.2)
                )
            )
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, tuple(rng.integers(-2, 3, 2)), (0, 1))
                records += [
                    {**r, "image_id": image.id}
                    for r in found_of((moved, float(rng.integers(1, 6) / 6)), category=category)
                ]
        extra = box(*sorted(rng.choice(40, 2, False).tolist()), *sorted(rng.choice(60, 2, False).tolist()))
        records += [{**r, "image_id": image.id} for r in found_of((extra, 0.5))]
    truth = Dataset(images, {CAR: "car", BUS: "bus"}, instances)
    result = evaluate(truth, records, lambda image: void[image.id])
    np.testing.assert_allclose(result.table, plainly(truth, records, void), rtol=0, atol=1e-12)
    mixed = [records[i] for i in rng.permutation(len(records))]
    np.testing.assert_array_equal(evaluate(truth, mixed, lambda image: void[image.id]).table, result.table)
