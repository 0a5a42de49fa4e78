"""COCO's summary against pycocotools' own, on drawn and on published data."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.masks import crop_to_rle
from pipeline.metrics.coco_summary import LIMITS, summarize
from pipeline.records import Dataset, Image, Instance
from tests.metrics.test_coco_ap import draw

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco" / "eval_reference"


def by_pycocotools(truth: Dataset, records: list[dict], limits: tuple[int, int, int] = LIMITS) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth.to_coco()))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(records))), "segm")
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AR{n}" for n in limits), "ARs", "ARm", "ARl"]
    numbers = dict(zip(names, evaluation.stats.tolist(), strict=True))
    if 100 not in limits:
        assert numbers["AP"] == -1  # its peculiarity
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        numbers["AP"] = float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0
    return numbers


def scaled(truth: Dataset, records: list[dict], factor: float) -> tuple[Dataset, list[dict]]:
    """The same masks with areas and boxes as if larger, so that all ranges of area occur."""
    instances = [
        Instance(a.id, a.image_id, a.category_id, a.rle, a.box, a.area * factor, a.crowd) for a in truth.instances
    ]
    larger = [
        {**r, "bbox": [r["bbox"][0], r["bbox"][1], r["bbox"][2] * factor, r["bbox"][3]]} if "bbox" in r else r
        for r in records
    ]
    return Dataset(truth.images, truth.categories, instances), larger


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    first_id=st.sampled_from([0, 1]),
    boxes=st.booleans(),
    factor=st.sampled_from([1.0, 20.0, 60.0]),
    limits=st.sampled_from([LIMITS, (1, 3, 5), (1, 10, 1000)]),
)
@example(seed=5, first_id=0, boxes=True, factor=20.0, limits=(1, 3, 5))
def test_equals_pycocotools(seed: int, first_id: int, boxes: bool, factor: float, limits: tuple[int, int, int]) -> None:
    truth, records = scaled(*draw(seed, first_id=first_id, boxes=boxes), factor)
    if not records:
        return
    ours = summarize(truth, records, limits).numbers()
    assert ours == pytest.approx(by_pycocotools(truth, records, limits), abs=1e-12)


def distinct(records: list[dict]) -> list[dict]:
    """The same records with scores that are all different: among equals pycocotools goes by the order of rows."""
    return [{**r, "score": 1 / (2 + k)} for k, r in enumerate(records)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_of_rows_is_nothing_and_a_false_detection_never_helps(seed: int) -> None:
    truth, records = draw(seed)
    rng = np.random.default_rng(seed)
    records = distinct(records)
    numbers = summarize(truth, records).numbers()
    assert summarize(truth, [records[i] for i in rng.permutation(len(records))]).numbers() == numbers
    for image in truth.images:
        nowhere = crop_to_rle(np.zeros((0, 0), np.uint8), (0, 0, 0, 0), (image.height, image.width), threshold=1)
        extra = {"image_id": image.id, "category_id": 1, "score": float(rng.random()), "bbox": [0, 0, 9, 9]}
        worse = summarize(truth, [*records, {**extra, "segmentation": nowhere}]).numbers()
        assert all(worse[name] <= numbers[name] + 1e-12 for name in numbers)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_perfect_results_score_one(seed: int) -> None:
    truth, _ = draw(seed)
    records = [
        {"image_id": a.image_id, "category_id": a.category_id, "score": 1.0, "segmentation": a.rle}
        for a in truth.instances
    ]
    assert {round(v, 12) for v in summarize(truth, records, [100]).numbers().values()} <= {1.0, -1.0}


def test_areas_on_the_border_belong_to_both_sides() -> None:
    rle = crop_to_rle(np.ones((32, 32), np.uint8), (0, 0, 32, 32), (50, 50), threshold=1)
    truth = Dataset([Image(1, "a.png", 50, 50)], {1: "a"}, [Instance(1, 1, 1, rle, (0, 0, 32, 32), 1024.0)])
    records = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle}]
    numbers = summarize(truth, records).numbers()
    assert numbers == pytest.approx(by_pycocotools(truth, records), abs=1e-12)
    assert numbers["APs"] == pytest.approx(1) and numbers["APm"] == pytest.approx(1) and numbers["APl"] == -1


def test_no_results_and_no_truth() -> None:
    truth, records = draw(3)
    assert {k: v for k, v in summarize(truth, []).numbers().items() if v} == {
        "APm": -1,
        "APl": -1,
        "ARm": -1,
        "ARl": -1,
    }
    assert set(summarize(Dataset(truth.images, truth.categories), records).numbers().values()) == {-1.0}
    assert set(summarize(Dataset([], {}), []).numbers().values()) == {-1.0}


def test_one_limit_of_any_size() -> None:
    truth, records = draw(11)
    numbers = summarize(truth, records, [7]).numbers()
    assert list(numbers) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR7", "ARs", "ARm", "ARl"]
    assert numbers["AP"] == pytest.approx(by_pycocotools(truth, records, (1, 2, 7))["AP"], abs=1e-12)
    for wrong in ([], [0, 10]):
        with pytest.raises(ValueError, match="limits"):
            summarize(truth, records, wrong)


PUBLISHED = {
    "AP": 0.320, "AP50": 0.562, "AP75": 0.299, "APs": 0.387, "APm": 0.310, "APl": 0.327,
    "AR1": 0.268, "AR10": 0.415, "AR100": 0.417, "ARs": 0.469, "ARm": 0.377, "ARl": 0.381,
}  # fmt: skip
"""val2014_fake_eval_res.txt of the cocoapi."""


def test_published_numbers() -> None:
    if not REFERENCE.exists():
        pytest.skip(f"needs the published COCO results at {REFERENCE}")
    truth = Dataset.read(REFERENCE / "instances_val2014_100.json")
    records = json.loads((REFERENCE / "instances_val2014_fakesegm100_results.json").read_text())
    numbers = summarize(truth, records).numbers()
    assert numbers == pytest.approx(by_pycocotools(truth, records), abs=1e-12)
    assert {name: round(value, 3) for name, value in numbers.items()} == PUBLISHED
    assert (numbers["AP"], numbers["AP50"], numbers["AP75"]) == pytest.approx((0.319545, 0.562288, 0.298927), abs=5e-7)
    loose = summarize(truth, records, (1, 10, 50)).numbers()
    assert loose == pytest.approx(by_pycocotools(truth, records, (1, 10, 50)), abs=1e-12)
