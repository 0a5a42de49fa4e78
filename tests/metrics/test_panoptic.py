"""Panoptic quality by hand, by its formula, and the painting of detections side by side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks import crop_to_rle, tight_box
from pipeline.metrics.panoptic import Panoptic, paint


def row(text: str) -> np.ndarray:
    """A map of one row: a digit for each pixel, . for 0."""
    return np.array([[0 if c == "." else int(c) for c in text]])


def quality(truth: str, found: str, true: dict[int, int], guessed: dict[int, int], **more: object) -> Panoptic:
    panoptic = Panoptic()
    panoptic.add(row(truth), true, row(found), guessed, **more)  # type: ignore[arg-type]
    return panoptic


def test_equation_1_by_hand() -> None:
    """Class 5: one match of IoU 3/4, one false, one missed: PQ = 0.75 / (1 + 1/2 + 1/2)."""
    panoptic = quality("1111..22..", "111....333"[:10], {1: 5, 2: 5}, {1: 5, 3: 5})
    assert panoptic.classes()[5].pq == pytest.approx(0.75 / 2)
    assert panoptic.classes()[5].sq == pytest.approx(0.75)
    assert panoptic.classes()[5].rq == pytest.approx(1 / 2)


def test_iou_of_exactly_one_half_is_no_match() -> None:
    panoptic = quality("1111", "11..", {1: 5}, {1: 5})
    assert panoptic.classes()[5].pq == 0
    assert vars(panoptic.tallies[5]) == {"iou": 0.0, "true_positives": 0, "false_positives": 1, "false_negatives": 1}
    assert quality("111.", "11..", {1: 5}, {1: 5}).classes()[5].pq == pytest.approx(2 / 3)


def test_classes_do_not_match_each_other_and_are_averaged() -> None:
    panoptic = quality("1122", "1122", {1: 5, 2: 6}, {1: 5, 2: 7})
    assert {c: q.pq for c, q in panoptic.classes().items()} == {5: 1.0, 6: 0.0, 7: 0.0}
    mean = panoptic.mean()
    assert mean is not None and mean.pq == pytest.approx(1 / 3)
    assert Panoptic().mean() is None


def test_void_is_taken_out_of_what_was_found() -> None:
    """Four of the found six pixels are the truth, two are void: IoU 4/4, not 4/6."""
    void = row("....11....") > 0
    panoptic = quality("1111......", "111111....", {1: 5}, {1: 5}, void=void)
    assert panoptic.classes()[5].pq == 1.0
    assert quality("1111......", "111111....", {1: 5}, {1: 5}).classes()[5].pq == pytest.approx(4 / 6)


@pytest.mark.parametrize(("void", "false"), [("..1111", 0), ("...111", 1), ("....11", 1)])
def test_found_mostly_on_void_counts_neither_way(void: str, false: int) -> None:
    """Of six pixels four are void, which is more than half; three are not."""
    panoptic = quality("......", "111111", {}, {1: 5}, void=row(void) > 0)
    assert sum(tally.false_positives for tally in panoptic.tallies.values()) == false


def test_crowds_excuse_what_lies_on_them_and_are_not_missed() -> None:
    crowd = frozenset({1})
    assert quality("1111..", "222...", {1: 5}, {2: 5}, crowds=crowd).tallies == {}
    other = quality("1111..", "222...", {1: 5}, {2: 6}, crowds=crowd)  # a crowd of another class is no excuse
    assert other.tallies[6].false_positives == 1
    assert quality("1111..", "......", {1: 5}, {}, crowds=crowd).tallies == {}
    assert quality("11....", "1111..", {1: 5}, {1: 5}, crowds=crowd).tallies[5].false_positives == 1


def test_images_are_added_up_before_dividing() -> None:
    panoptic = Panoptic()
    panoptic.add(row("1111"), {1: 5}, row("1111"), {1: 5})
    panoptic.add(row("1111"), {1: 5}, row("...."), {})
    assert panoptic.classes()[5].pq == pytest.approx(1 / 1.5)


def test_pixels_without_a_category_are_refused() -> None:
    with pytest.raises(ValueError, match="no category"):
        quality("1122", "....", {1: 5}, {})
    with pytest.raises(ValueError, match="one shape"):
        Panoptic().add(row("11"), {1: 5}, row("111"), {1: 5})


def by_the_formula(truth: np.ndarray, true: dict, found: np.ndarray, guessed: dict, void: np.ndarray) -> dict:
    """Per class (IoU sum, TP, FP, FN), segment by segment."""
    counts = {c: [0.0, 0, 0, 0] for c in (1, 2)}
    matched = set()
    for t, category in true.items():
        a = (truth == t) & ~void
        if not a.any():
            continue
        ious = {}
        for f, other in guessed.items():
            b = (found == f) & ~void
            if category == other and b.any():
                ious[f] = (a & b).sum() / (a | b).sum()
        hit = [f for f, v in ious.items() if v > 0.5]
        if hit:
            counts[category][0] += ious[hit[0]]
            counts[category][1] += 1
            matched.add(hit[0])
        else:
            counts[category][3] += 1
    for f, category in guessed.items():
        b = found == f
        if f not in matched and b.any() and (b & void).sum() <= b.sum() / 2:
            counts[category][2] += 1
    return {c: v for c, v in counts.items() if any(v)}


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_equals_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def segments() -> tuple[np.ndarray, dict[int, int]]:
        labels = np.zeros((12, 14), np.int32)
        for k in range(1, rng.integers(2, 8)):
            y, x = rng.integers(0, 12), rng.integers(0, 14)
            labels[y : y + rng.integers(2, 8), x : x + rng.integers(2, 8)] = k
        return labels, {int(k): int(rng.integers(1, 3)) for k in np.unique(labels) if k}

    truth, true = segments()
    found, guessed = segments() if seed % 3 else (np.roll(truth, 1, axis=0), dict(true))
    void = (rng.random(truth.shape) < 0.2) & (truth == 0)
    panoptic = Panoptic()
    panoptic.add(truth, true, found, guessed, void=void)
    ours = {c: [t.iou, t.true_positives, t.false_positives, t.false_negatives] for c, t in panoptic.tallies.items()}
    expected = by_the_formula(truth, true, found, guessed, void)
    assert ours.keys() == expected.keys()
    for category in ours:
        assert ours[category] == pytest.approx(expected[category])


def record(mask: np.ndarray, score: float, category: int = 1) -> dict:
    x0, y0, x1, y1 = tight_box(mask)
    rle = crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), mask.shape, threshold=1)
    return {"image_id": 1, "category_id": category, "score": score, "segmentation": rle}


def strip(first: int, last: int) -> np.ndarray:
    mask = np.zeros((3, 20), np.uint8)
    mask[:, first:last] = 1
    return mask


def test_painting_gives_each_pixel_to_the_best() -> None:
    segments, categories = paint((3, 20), [record(strip(0, 10), 0.7, 4), record(strip(6, 16), 0.9, 8)])
    assert segments[1].tolist() == [2] * 6 + [1] * 10 + [0] * 4
    assert categories == {1: 8, 2: 4}


def test_painting_leaves_out_the_doubtful_and_the_hidden() -> None:
    top = record(strip(4, 16), 0.9)
    assert paint((3, 20), [top, record(strip(0, 8), 0.49)])[1] == {1: 1}
    assert paint((3, 20), [top, record(strip(0, 8), 0.5)])[1] == {1: 1, 2: 1}  # half of it is hidden, no more
    assert paint((3, 20), [top, record(strip(1, 8), 0.8)])[1] == {1: 1}
    assert paint((3, 20), [top, record(strip(1, 8), 0.8)], most_hidden=0.99)[1] == {1: 1, 2: 1}
    assert paint((3, 20), [top, record(strip(5, 9), 0.8)], most_hidden=1)[1] == {1: 1}
    empty = record(np.zeros((3, 20), np.uint8), 1.0)
    assert paint((3, 20), [empty])[1] == {}
    assert paint((3, 21), [top])[1] == {}  # a mask of another size


def test_painting_does_not_hang_on_the_order_of_rows() -> None:
    rows = [record(strip(0, 10), 0.7, 4), record(strip(6, 16), 0.7, 8), record(strip(2, 12), 0.7, 4)]
    one, other = paint((3, 20), rows), paint((3, 20), rows[::-1])
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]
