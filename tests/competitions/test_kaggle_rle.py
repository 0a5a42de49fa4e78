"""Kaggle's run lengths in both orders: the toy mask by hand, a plain encoder, round trips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.competitions.formats.kaggle_rle import Order, from_rle, numbers, parse, tidy, to_rle
from pipeline.masks import crop_to_rle

TOY = {"size": [4, 5], "counts": "523OO22"}
frames = hnp.arrays(np.uint8, st.tuples(st.integers(1, 13), st.integers(1, 13)), elements=st.integers(0, 1))


def plain(frame: np.ndarray, order: Order) -> str:
    """The encoder that every kernel on Kaggle has: over the flattened frame with a 0 at both ends."""
    flat = np.concatenate([[0], frame.flatten("F" if order == "columns" else "C"), [0]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges))


def coco(frame: np.ndarray) -> dict[str, Any]:
    return crop_to_rle(frame, (0, 0, frame.shape[1], frame.shape[0]), frame.shape, threshold=1)


@pytest.mark.parametrize(("order", "text"), [("columns", "6 2 11 1 14 3"), ("rows", "7 1 9 1 12 3 19 1")])
def test_the_toy_mask_of_the_formats(order: Order, text: str) -> None:
    assert from_rle(TOY, order) == text
    assert to_rle(parse(text), (4, 5), order) == TOY


@settings(deadline=None)
@given(frames, st.sampled_from(["columns", "rows"]))
def test_as_the_plain_encoder_writes_and_back(frame: np.ndarray, order: Order) -> None:
    text = from_rle(coco(frame), order)
    assert text == plain(frame, order)
    assert to_rle(parse(text), frame.shape, order) == coco(frame)


def test_a_run_that_goes_on_in_the_next_line_is_one_run() -> None:
    frame = np.zeros((3, 4), np.uint8)
    frame[1:, 1:3] = 1  # the foot of column 1 and the head of column 2 do not touch, for row 0 is empty
    frame[0, 2] = 1
    assert from_rle(coco(frame), "columns") == "5 5"
    assert from_rle(coco(frame), "rows") == "3 1 6 2 10 2"
    assert from_rle(coco(np.ones((3, 4), np.uint8)), "rows") == "1 12"


@settings(deadline=None)
@given(frames, st.sampled_from(["columns", "rows"]), st.randoms(use_true_random=False))
def test_runs_in_any_order_split_anyhow_are_the_same_mask(frame: np.ndarray, order: Order, random: Any) -> None:
    runs = []
    for start, length in parse(from_rle(coco(frame), order)).tolist():
        cut = random.randint(1, length)
        runs += [(start, cut), (start + cut, length - cut)] if cut < length else [(start, length)]
        if random.random() < 0.3:
            runs.append((start, random.randint(1, length)))
    random.shuffle(runs)
    assert to_rle(np.array(runs, np.int64).reshape(-1, 2), frame.shape, order) == coco(frame)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=9))
def test_tidy_runs_ascend_and_cover_the_same_pixels(runs: list[tuple[int, int]]) -> None:
    def pixels(pairs: Any) -> set[int]:
        return {start + k for start, length in pairs for k in range(length)}

    tidied = tidy(np.array(runs, np.int64).reshape(-1, 2))
    assert pixels(tidied.tolist()) == pixels(runs)
    assert (tidied[1:, 0] > tidied[:-1].sum(axis=1)).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3", "3 numbers are no pairs"),
        ("1 2.0", "'2.0' is not a whole number"),
        ("1 -2", "'-2' is not"),
        ("a b", "'a' is not"),
        ("1 ²", "is not a whole number"),
        ("1_0 2", "'1_0' is not"),
        ("9" * 30 + " 1", "is not a whole number"),
        ("0 3", "starts at 0; positions count from 1"),
        ("3 0", "length 0"),
    ],
)
def test_what_is_no_run_lengths(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse(text)


def test_blank_is_no_mask() -> None:
    assert parse("").shape == parse("  ").shape == (0, 2)
    assert to_rle(parse(""), (4, 5), "rows") == coco(np.zeros((4, 5), np.uint8))
    assert from_rle(coco(np.zeros((4, 5), np.uint8)), "columns") == ""


@pytest.mark.parametrize("order", ["columns", "rows"])
def test_runs_beyond_the_image(order: Order) -> None:
    assert to_rle(parse("20 1"), (4, 5), order) == coco(_last())
    with pytest.raises(ValueError, match="ends at pixel 21, an image of height 4 and width 5 has 20"):
        to_rle(parse("20 2"), (4, 5), order)


def _last() -> np.ndarray:
    frame = np.zeros((4, 5), np.uint8)
    frame[3, 4] = 1
    return frame


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="0123456789 .-+_x\t\n²", max_size=30))
def test_any_text_is_run_lengths_or_a_clear_error(text: str) -> None:
    try:
        runs = numbers(text)
    except ValueError:
        return
    assert runs.shape[1] == 2 and runs.dtype == np.int64
