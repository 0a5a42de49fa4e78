"""OpenImages' average precision: by hand, against its public rule written out, and what must not change it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.metrics import coco_ap
from pipeline.metrics.openimages_ap import average_precision, evaluate
from pipeline.records import Dataset, Image, Instance

SIZE = (40, 60)
THRESHOLD = 0.6


def strip(y: int, x0: int, x1: int) -> dict[str, Any]:
    """Ten rows high, so that overlaps are those of the columns."""
    return crop_to_rle(np.ones((10, x1 - x0), np.uint8), (x0, y, x1, y + 10), SIZE, threshold=1)


def dataset(*strips: tuple[int, int, int, int], crowds: tuple[tuple[int, int, int, int], ...] = ()) -> Dataset:
    """Instances by (image, y, x0, x1); crowds get the ids from 100."""
    rows = [(k + 1, s, False) for k, s in enumerate(strips)] + [(100 + k, s, True) for k, s in enumerate(crowds)]
    instances = [
        Instance(number, i, 1, strip(y, x0, x1), (x0, y, x1 - x0, 10), 10.0 * (x1 - x0), crowd)
        for number, (i, y, x0, x1), crowd in rows
    ]
    return Dataset([Image(1, "a.png", *SIZE), Image(2, "b.png", *SIZE)], {1: "vessel"}, instances)


def record(image_id: int, score: float, y: int, x0: int, x1: int, category_id: int = 1) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "segmentation": strip(y, x0, x1),
    }


# ---------------------------------------------------------------- the area under the curve ----------------------------


@pytest.mark.parametrize(
    ("hits", "truths", "expected"),
    [
        ([], 3, 0.0),
        ([True, True], 2, 1.0),
        ([True, False, True], 2, 1 / 2 * 1 + 1 / 2 * 2 / 3),
        ([False, True], 1, 1 / 2),
        # precisions 0, 1/2, 2/3, 2/4, 3/5: the first two hits are both lifted to the 2/3 that comes later
        ([False, True, True, False, True], 4, (2 / 3 + 2 / 3 + 3 / 5) / 4),
        ([False, False], 5, 0.0),
        ([False], 0, -1.0),
    ],
)
def test_area_by_hand(hits: list[bool], truths: int, expected: float) -> None:
    assert average_precision(np.array(hits, bool), truths) == pytest.approx(expected, abs=1e-12)


def test_all_points_are_not_coco_s_101() -> None:
    """One of three found: all points give 1/3, COCO's 101 recalls 34/101."""
    truth = dataset((1, 0, 0, 10), (1, 15, 0, 10), (1, 25, 0, 10))
    records = [record(1, 0.9, 0, 0, 10)]
    assert evaluate(truth, records, 0.5, 1).ap == pytest.approx(1 / 3, abs=1e-12)
    assert coco_ap.evaluate(truth, records, [0.5]).ap() == pytest.approx(34 / 101, abs=1e-12)


# ---------------------------------------------------------------- who is matched --------------------------------------


def test_the_threshold_itself_is_a_match() -> None:
    truth = dataset((1, 0, 0, 10))
    assert evaluate(truth, [record(1, 0.5, 0, 0, 6)], 0.6, 1).ap == 1.0  # 60 / 100
    assert evaluate(truth, [record(1, 0.5, 0, 0, 5)], 0.6, 1).ap == 0.0


def test_a_detection_belongs_to_its_best_truth_even_when_that_is_taken() -> None:
    """Two truths of 20 that share 18 columns; the second detection fits the first truth a little better."""
    truth = dataset((1, 0, 0, 20), (1, 0, 2, 22))
    records = [record(1, 0.9, 0, 0, 20), record(1, 0.8, 0, 0, 20)]
    result = evaluate(truth, records, 0.6, 1)
    assert result.hit.tolist() == [True, False] and result.ap == pytest.approx(1 / 2)
    assert coco_ap.evaluate(truth, records, [0.6]).ap() == pytest.approx(1)  # COCO gives it the one that is left


def test_every_detection_counts_and_other_classes_do_not() -> None:
    truth = dataset((1, 0, 0, 10))
    noise = [record(1, 0.9, 20, x, x + 1) for x in range(50)] * 4
    result = evaluate(truth, [*noise, record(1, 0.1, 0, 0, 10)], THRESHOLD, 1)
    assert result.ap == pytest.approx(1 / 201)
    other = [{**row, "category_id": 2} for row in noise]
    assert evaluate(truth, [*other, record(1, 0.1, 0, 0, 10)], THRESHOLD, 1).ap == 1.0


def test_ranking_is_over_all_images() -> None:
    truth = dataset((1, 0, 0, 10), (2, 0, 0, 10))
    records = [record(1, 0.9, 0, 0, 10), record(1, 0.7, 20, 0, 10), record(2, 0.5, 0, 0, 10)]
    assert evaluate(truth, records, THRESHOLD, 1).ap == pytest.approx((1 + 2 / 3) / 2)


def test_regions_to_ignore() -> None:
    truth = dataset((1, 0, 0, 10), crowds=((1, 20, 0, 30),))
    records = [record(1, 0.9, 20, 5, 15), record(1, 0.8, 20, 25, 35), record(1, 0.7, 0, 0, 10)]
    assert evaluate(truth, records, THRESHOLD, 1).ap == pytest.approx(1 / 3)  # a crowd is not there unless ignored
    result = evaluate(truth, records, THRESHOLD, 1, ignore={100})
    assert result.ignored.tolist() == [True, False, False]  # the second lies in it by half of itself
    assert result.ap == pytest.approx(1 / 2)
    # a true positive in a region is one
    assert evaluate(truth, records, THRESHOLD, 1, ignore={1, 100}).hit.tolist() == [False, False, True]


def test_nothing_there() -> None:
    assert evaluate(dataset(), [], THRESHOLD, 1).ap == -1.0
    assert evaluate(dataset(), [record(1, 0.5, 0, 0, 5)], THRESHOLD, 1).ap == -1.0
    assert evaluate(dataset((1, 0, 0, 10)), [], THRESHOLD, 1).ap == 0.0


def test_a_mask_of_another_size_matches_nothing() -> None:
    wrong = crop_to_rle(np.ones((10, 10), np.uint8), (0, 0, 10, 10), (60, 40), threshold=1)
    records = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": wrong}]
    assert evaluate(dataset((1, 0, 0, 10)), records, THRESHOLD, 1).ap == 0.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": 7}, "record 0: there is no image 7"),
        ({"score": None}, "record 0.*validate"),
        ({"segmentation": {"size": [40, 60], "counts": "0"}}, "record 0: the RLE's runs cover 0 pixels"),
        ({"segmentation": 3}, "record 0"),
    ],
)
def test_bad_records(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        evaluate(dataset((1, 0, 0, 10)), [{**record(1, 0.5, 0, 0, 10), **change}], THRESHOLD, 1)
    with pytest.raises(ValueError, match="has no 'score'"):
        evaluate(dataset((1, 0, 0, 10)), [{"image_id": 1, "segmentation": strip(0, 0, 9)}], THRESHOLD, 1)


# ---------------------------------------------------------------- against the rule written out ------------------------


def frame(rle: dict[str, Any]) -> np.ndarray:
    (x0, y0, x1, y1), crop = rle_to_crop(rle)
    whole = np.zeros(SIZE, bool)
    whole[y0:y1, x0:x1] = crop > 0
    return whole


def written_out(truth: Dataset, records: list[dict[str, Any]], iou: float, ignore: set[int]) -> float:
    """The evaluator's rule on full frames, with its own loops and its own way to the area."""
    scores, labels, truths = [], [], 0
    for image in truth.images:
        wanted = [frame(a.rle) for a in truth.by_image[image.id] if not a.crowd]
        regions = [frame(a.rle) for a in truth.by_image[image.id] if a.id in ignore]
        truths += len(wanted)
        detected = [False] * len(wanted)
        own = sorted((r for r in records if r["image_id"] == image.id), key=lambda r: -r["score"])
        for row in own:
            mask = frame(row["segmentation"])
            overlaps = [(mask & w).sum() / (mask | w).sum() for w in wanted]
            label = False
            if overlaps:
                best = int(np.argmax(overlaps))
                if overlaps[best] >= iou and not detected[best]:
                    detected[best] = label = True
            if not label and any((mask & r).sum() / mask.sum() >= iou for r in regions):
                continue
            scores.append(row["score"])
            labels.append(label)
    order = np.argsort(-np.array(scores), kind="stable")
    labels_by_rank = np.array(labels, float)[order]
    positives, negatives = np.cumsum(labels_by_rank), np.cumsum(1 - labels_by_rank)
    recall = np.concatenate([[0], positives / truths, [1]])
    precision = np.concatenate([[0], positives / (positives + negatives), [0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.where(recall[1:] != recall[:-1])[0] + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


STRIP = st.tuples(st.integers(1, 2), st.integers(0, 30), st.integers(0, 40), st.integers(1, 20)).map(
    lambda s: (s[0], s[1], s[2], s[2] + s[3])
)


@settings(max_examples=150, deadline=None)
@given(
    truths=st.lists(STRIP, min_size=1, max_size=8),
    crowds=st.lists(STRIP, max_size=2),
    moves=st.lists(st.tuples(st.integers(0, 7), st.integers(-2, 2), st.integers(-2, 2)), max_size=14),
    seed=st.integers(0, 99),
)
def test_against_the_rule_written_out(truths: list, crowds: list, moves: list, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = dataset(*truths, crowds=tuple(crowds))
    records = []
    for k, left, right in moves:  # around the truths, with overlaps of them all
        i, y, x0, x1 = [*truths, *crowds][k % (len(truths) + len(crowds))]
        a, b = max(x0 + left, 0), min(x1 + right, SIZE[1])
        if a < b:
            records.append(record(i, float(rng.random()), y, a, b))
    ignore = {100, 101}
    result = evaluate(truth, records, THRESHOLD, 1, ignore)
    assert result.ap == pytest.approx(written_out(truth, records, THRESHOLD, ignore), abs=1e-12)
    shuffled = [records[k] for k in rng.permutation(len(records))]
    assert evaluate(truth, shuffled, THRESHOLD, 1, ignore).ap == result.ap
    extra = record(1, float(rng.random()), 39 - 9, 55, 60)
    if not any(i == 1 and y > 20 and x1 > 55 for i, y, _, x1 in truths):  # certainly false
        assert evaluate(truth, [*records, extra], THRESHOLD, 1).ap <= evaluate(truth, records, THRESHOLD, 1).ap


def test_equal_scores_do_not_depend_on_the_order_of_records() -> None:
    truth = dataset((1, 0, 0, 10), (2, 0, 0, 10))
    records = [record(i, 0.5, y, 0, 10) for i in (1, 2) for y in (0, 15, 28)]
    values = {
        evaluate(truth, [records[k] for k in np.random.default_rng(s).permutation(6)], THRESHOLD, 1).ap
        for s in range(20)
    }
    assert len(values) == 1


@settings(max_examples=40, deadline=None)
@given(places=st.lists(STRIP, min_size=1, max_size=8, unique=True))
def test_a_perfect_submission_scores_one(places: list) -> None:
    apart = [(i, y, x0, x1) for k, (i, y, x0, x1) in enumerate(places) if not any(o[0] == i for o in places[:k])]
    truth = dataset(*apart)
    records = [record(i, 0.3 + 0.1 * i, y, x0, x1) for i, y, x0, x1 in apart]
    assert evaluate(truth, records, THRESHOLD, 1).ap == pytest.approx(1, abs=1e-12)
