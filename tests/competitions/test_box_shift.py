"""Boxes and masks that lie one pixel apart all over a file, drawn and real."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.competitions.formats.box_shift import direction, regressed_from_one, tight_shift
from pipeline.competitions.formats.coco_results import check_records
from pipeline.competitions.vrdl2021 import COMPETITION
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Image

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vrdl2021" / "submissions"
SIZE = (200, 240)
IDS = Dataset([Image(1, "a.png", *SIZE)], {1: "cell"})


def drawn(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tight boxes (N, 4) x, y, width, height, and boxes regressed from them as loosely as the ten submissions' are."""
    rng = np.random.default_rng(seed)
    mask = np.column_stack([rng.integers(4, 200, count), rng.integers(4, 160, count), *rng.integers(9, 30, (2, count))])
    corners = rng.normal((-0.3, -0.2, 1.0, 1.8), (0.5, 0.4, 0.7, 0.9), (count, 4))
    given = mask.astype(float)
    given[:, :2] += corners[:, :2]
    given[:, 2:] += corners[:, 2:] - corners[:, :2]
    return mask.astype(float), given


def records(given: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for k, (box, (x, y, w, h)) in enumerate(zip(given, mask.astype(int), strict=True)):
        rle = crop_to_rle(np.ones((h, w), np.uint8), (x, y, x + w, y + h), SIZE, threshold=1)
        score = round(0.9 - k / 1000, 4)
        found.append({"image_id": 1, "bbox": box.tolist(), "score": score, "category_id": 1, "segmentation": rle})
    return found


def told(given: np.ndarray, mask: np.ndarray) -> list[str]:
    return [str(p) for p in check_records(records(given, mask), IDS, [1], None)]


def test_regressed_boxes_moved_by_one_are_told_and_others_are_not() -> None:
    mask, given = drawn()
    assert told(given, mask) == []
    (problem,) = told(given + (1, 1, 0, 0), mask)
    assert problem.startswith("warning: most records: bbox begins inside its mask") and "count from 0" in problem
    assert not regressed_from_one(given[:20] + (1, 1, 0, 0), mask[:20])  # too few to tell


def test_dilated_masks_and_wide_boxes_are_not_taken_for_a_shift() -> None:
    mask, given = drawn()
    assert told(mask + (1, 1, -2, -2), mask) == []  # masks that were grown by a pixel after their boxes were made
    assert told(mask - (2, 2, -4, -4), mask) == []
    assert told(mask - (0, 0, 1, 1), mask) == []  # corners of the last pixel, not behind it


@pytest.mark.parametrize("shift", [(-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1)])
def test_masks_moved_against_tight_boxes_are_told(shift: tuple[int, int]) -> None:
    mask, _ = drawn()
    assert told(mask, mask) == []
    (problem,) = told(mask + (*shift, 0, 0), mask)
    opposite = direction((-shift[0], -shift[1]))
    assert problem.startswith("warning: all records: ") and f"the masks lie one pixel {opposite} of" in problem


def test_some_that_are_cut_off_at_the_edge_do_not_hide_the_shift() -> None:
    mask, _ = drawn()
    given = mask + (1, 1, 0, 0)
    given[:5, 2:] -= 1
    assert tight_shift(given, mask) == (1, 1)
    given[:12, 2:] -= 1
    assert tight_shift(given, mask) is None
    assert "boxes count from 0" in told(mask + (1, 1, 0, 0), mask)[0]


def test_directions_in_words() -> None:
    assert [direction(s) for s in ((1, 1), (-1, -1), (0, 1), (-1, 0))] == [
        "right and down",
        "left and up",
        "down",
        "left",
    ]


def real() -> list[Path]:
    if not REAL.exists():
        pytest.skip(f"needs the competition's submissions at {REAL}")
    return sorted(REAL.glob("*.zip"))


def test_every_real_submission_is_told_once_its_boxes_are_moved() -> None:
    ids = Dataset([Image(k, f"{k}.png", 1000, 1000) for k in range(1, 7)], {1: "nucleus"})
    for path in real():
        own = list(COMPETITION.read_submission(path))
        assert check_records(own, ids, [1], 100) == [], path
        moved = copy.deepcopy(own)
        for r in moved:
            r["bbox"] = [r["bbox"][0] + 1, r["bbox"][1] + 1, *r["bbox"][2:]]
        problems = [p for p in check_records(moved, ids, [1], 100) if "out of the image" not in p.text]
        assert [(p.severity, "as if counted from 1" in p.text) for p in problems] == [("warning", True)], path


def test_real_masks_moved_against_their_own_boxes_are_told() -> None:
    ids = Dataset([Image(k, f"{k}.png", 1000, 1000) for k in range(1, 7)], {1: "nucleus"})
    own = copy.deepcopy(list(COMPETITION.read_submission(real()[0])))
    for r in own:
        (x0, y0, x1, y1), crop = rle_to_crop(r["segmentation"])
        r["bbox"] = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
        kept = crop[: 999 - y0, : 999 - x0]
        box = (x0 + 1, y0 + 1, x0 + 1 + kept.shape[1], y0 + 1 + kept.shape[0])
        r["segmentation"] = crop_to_rle(np.ascontiguousarray(kept), box, (1000, 1000), threshold=1)
    (problem,) = [p for p in check_records(own, ids, [1], 100) if "the same mask" not in p.text]
    assert problem.severity == "warning" and "one pixel right and down" in problem.text
