"""Average precision against pycocotools, on drawn and on published data."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.masks import crop_to_rle, tight_box
from pipeline.metrics.coco_ap import RECALLS, THRESHOLDS, evaluate, match
from pipeline.records import Dataset, Detections, Image, Instance

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco" / "eval_reference"


def blob(rng: np.random.Generator, height: int, width: int, near: tuple[int, int, int, int] | None = None) -> dict:
    """A random ellipse as a full-image RLE; near another's box it overlaps it at will."""
    if near is None:
        cy, cx, ry, rx = rng.integers(0, height), rng.integers(0, width), rng.integers(1, 9), rng.integers(1, 9)
    else:
        cy, cx, ry, rx = (int(v) for v in np.array(near) + rng.integers(-2, 3, 4))
    y, x = np.mgrid[:height, :width]
    mask = (((y - cy) / max(ry, 1)) ** 2 + ((x - cx) / max(rx, 1)) ** 2 <= 1).astype(np.uint8)
    x0, y0, x1, y1 = tight_box(mask)
    rle = crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), (height, width), threshold=1)
    return {
        "rle": rle,
        "ellipse": (cy, cx, ry, rx),
        "box": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "area": float(mask.sum()),
    }


def draw(seed: int, *, first_id: int = 1, boxes: bool = True, crowds: bool = True) -> tuple[Dataset, list[dict]]:
    """A random truth (some images without instances, some classes without any) and results around and beside it."""
    rng = np.random.default_rng(seed)
    sizes = [(40, 47), (33, 25), (60, 60), (31, 64)]
    images = [Image(10 * k + 3, f"{k}.png", *size) for k, size in enumerate(sizes)]
    categories = {1: "a", 4: "b", 7: "never there"}
    instances: list[Instance] = []
    results = []
    for image in images[: rng.integers(1, 5)]:
        for _ in range(rng.integers(0, 14)):
            thing = blob(rng, image.height, image.width)
            category = int(rng.choice([1, 4]))
            crowd = bool(crowds and rng.random() < 0.15)
            box = (thing["box"][0], thing["box"][1], thing["box"][2], thing["box"][3])
            instances.append(
                Instance(first_id + len(instances), image.id, category, thing["rle"], box, thing["area"], crowd)
            )
            for _ in range(rng.integers(0, 4)):
                guess = blob(rng, image.height, image.width, thing["ellipse"])
                results.append((image, int(rng.choice([category, category, category, 1, 4, 7, 99])), guess))
    for image in images:
        results += [
            (image, int(rng.choice([1, 4, 7])), blob(rng, image.height, image.width)) for _ in range(rng.integers(0, 6))
        ]
    records = []
    for k in rng.permutation(len(results)):
        image, category, guess = results[k]
        record = {
            "image_id": image.id,
            "category_id": category,
            "score": float(rng.integers(0, 12) / 12),
        }  # ties abound
        if boxes:
            record["bbox"] = [v - (30.0 if rng.random() < 0.05 and i == 2 else 0) for i, v in enumerate(guess["box"])]
        records.append({**record, "segmentation": guess["rle"]})
    return Dataset(images, categories, instances), records


def by_pycocotools(truth: Dataset, records: list[dict], thresholds: np.ndarray, max_detections: int) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth.to_coco()))
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(records))), "segm")
        evaluation.params.iouThrs = np.asarray(thresholds)
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def assert_equal_to_pycocotools(
    truth: Dataset, records: list[dict], thresholds: np.ndarray, max_detections: int
) -> None:
    ours = evaluate(truth, records, thresholds, max_detections)
    theirs = by_pycocotools(truth, records, thresholds, max_detections).eval["precision"][:, :, :, 0, 0]  # (T, R, K)
    for k, category_id in enumerate(sorted(truth.categories)):
        curve = ours.rankings[category_id].precision()
        if curve is None:
            assert (theirs[:, :, k] == -1).all()
        else:
            np.testing.assert_allclose(curve, theirs[:, :, k], rtol=0, atol=1e-12)
    counted = theirs[theirs > -1]
    assert ours.ap() == pytest.approx(counted.mean() if counted.size else -1, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), first_id=st.sampled_from([0, 1]), boxes=st.booleans())
@pytest.mark.parametrize("max_detections", [1, 3, 100])
def test_equals_pycocotools(seed: int, first_id: int, boxes: bool, max_detections: int) -> None:
    truth, records = draw(seed, first_id=first_id, boxes=boxes)
    if records:
        assert_equal_to_pycocotools(truth, records, THRESHOLDS if seed % 2 else np.array([0.3, 0.5]), max_detections)


def test_annotation_zero_is_found_and_yet_false() -> None:
    """pycocotools marks a match with the annotation's id and takes id 0 for no match."""
    rle = crop_to_rle(np.ones((4, 4), np.uint8), (1, 1, 5, 5), (9, 9), threshold=1)
    for first, expected in ((0, 0.0), (1, 1.0)):
        truth = Dataset([Image(1, "a.png", 9, 9)], {1: "a"}, [Instance(first, 1, 1, rle, (1, 1, 4, 4), 16.0)])
        records = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 1, 4, 4], "segmentation": rle}]
        assert_equal_to_pycocotools(truth, records, THRESHOLDS, 100)
        assert evaluate(truth, records).ap() == pytest.approx(expected, abs=1e-12)
        assert evaluate(truth, records).true_positives(0.5) == {1: 1}
        assert match(truth, records).true_positive.tolist() == [True]


def test_annotations_that_share_an_id() -> None:
    truth, records = draw(5, crowds=False)
    again = [Instance(a.id % 4, a.image_id, a.category_id, a.rle, a.box, a.area) for a in truth.instances]
    assert_equal_to_pycocotools(Dataset(truth.images, truth.categories, again), records, THRESHOLDS, 100)


def test_no_results_at_all() -> None:
    truth, _ = draw(3)
    assert truth.instances
    assert evaluate(truth, []).ap() == 0.0
    assert set(evaluate(truth, []).true_positives(0.5).values()) == {0}


def test_no_truth_at_all() -> None:
    truth, records = draw(3)
    nothing = Dataset(truth.images, truth.categories)
    assert records and evaluate(nothing, records).ap() == -1.0
    assert evaluate(Dataset([], {}), []).ap() == -1.0


def test_detections_give_what_their_records_give() -> None:
    truth, records = draw(11)
    found = Detections.from_coco(records)
    assert evaluate(truth, found).ap() == pytest.approx(evaluate(truth, records).ap(), abs=1e-12)
    np.testing.assert_array_equal(match(truth, found).truth, match(truth, records).truth)


def test_unknown_image_is_refused() -> None:
    truth, records = draw(3)
    with pytest.raises(ValueError, match="image ids that the truth does not have.*999"):
        evaluate(truth, [{**records[0], "image_id": 999}])


def test_mask_that_runs_past_the_end_is_refused() -> None:
    """pycocotools would never come back from it."""
    truth, records = draw(3)
    size = records[0]["segmentation"]["size"]
    record = {**records[0], "segmentation": {"size": size, "counts": [0, size[0] * size[1] + 1]}}
    with pytest.raises(ValueError, match="record 0.*run of"):
        evaluate(truth, [record])


def test_mask_of_another_size_matches_nothing() -> None:
    truth, _ = draw(3, crowds=False)
    target = truth.instances[0]
    other = crop_to_rle(np.ones((4, 4), np.uint8), (1, 1, 5, 5), (9, 9), threshold=1)
    records = [{"image_id": target.image_id, "category_id": target.category_id, "score": 1.0, "segmentation": other}]
    assert_equal_to_pycocotools(truth, records, THRESHOLDS, 100)
    assert match(truth, records).truth.tolist() == [-1]


def test_true_positives_by_image_and_capped_truths() -> None:
    truth, records = draw(21, crowds=False)
    evaluation = evaluate(truth, records, [0.5], 2)
    found = match(truth, records, 0.5, 2)
    ids = np.array([record["image_id"] for record in records])
    known = np.isin([record["category_id"] for record in records], [1, 4, 7])
    for image_id, count in evaluation.true_positives(0.5).items():
        assert count == int((found.true_positive & (ids == image_id) & known).sum())
    assert evaluation.ap(cap=1000) == evaluation.ap()
    assert evaluation.ap(cap=2) > evaluation.ap() > 0


def test_capped_precision_divides_by_the_cap() -> None:
    """One image with 10 truths of which 2 may be found: recall ends at 2 of 4, not 2 of 10."""
    crops = [(x, 0, x + 3, 3) for x in range(0, 50, 5)]
    rles = [crop_to_rle(np.ones((3, 3), np.uint8), box, (3, 60), threshold=1) for box in crops]
    instances = [Instance(i + 1, 1, 1, rle, (0, 0, 3, 3), 9.0) for i, rle in enumerate(rles)]
    truth = Dataset([Image(1, "a.png", 3, 60)], {1: "a"}, instances)
    records = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": rle} for rle in rles]
    evaluation = evaluate(truth, records, [0.5], 2)
    assert evaluation.ap() == pytest.approx(21 / 101)
    assert evaluation.ap(cap=4) == pytest.approx(51 / 101)
    curve = evaluation.rankings[1].precision(4)
    assert curve is not None
    np.testing.assert_allclose(curve[0], RECALLS <= 0.5)


def test_match_is_one_to_one_and_knows_what_it_missed() -> None:
    mask = np.ones((4, 4), np.uint8)
    rle = crop_to_rle(mask, (1, 1, 5, 5), (9, 9), threshold=1)
    shifted = crop_to_rle(mask, (2, 1, 6, 5), (9, 9), threshold=1)  # IoU 12 / 20
    far = crop_to_rle(mask, (5, 5, 9, 9), (9, 9), threshold=1)
    truth = Dataset(
        [Image(1, "a.png", 9, 9), Image(2, "b.png", 9, 9)],
        {1: "a", 2: "b"},
        [Instance(7, 1, 1, rle, (1, 1, 4, 4), 16.0), Instance(8, 2, 1, rle, (1, 1, 4, 4), 16.0, crowd=True)],
    )
    rows = [
        (1, 1, 0.5, rle),
        (1, 1, 0.9, shifted),
        (1, 2, 0.9, rle),
        (1, 1, 0.4, far),
        (2, 1, 0.9, rle),
        (1, 1, 0.1, rle),
    ]
    records = [{"image_id": i, "category_id": c, "score": s, "segmentation": r} for i, c, s, r in rows]
    found = match(truth, records, 0.5, max_detections=3)
    assert found.truth.tolist() == [-1, 0, -1, -1, 1, -1]
    assert found.true_positive.tolist() == [False, True, False, False, False, False]
    assert found.ignored.tolist() == [False, False, False, False, True, False]
    assert found.ranked.tolist() == [True, True, True, True, True, False]
    np.testing.assert_allclose(found.iou, [0, 0.6, 0, 0, 1, 0])
    np.testing.assert_allclose(found.best, [1, 0.6, 0, 0, 1, 0])


def test_published_reference() -> None:
    if not REFERENCE.exists():
        pytest.skip(f"needs the published COCO results at {REFERENCE}")
    truth = Dataset.read(REFERENCE / "instances_val2014_100.json")
    records = json.loads((REFERENCE / "instances_val2014_fakesegm100_results.json").read_text())
    evaluation = evaluate(truth, records)
    assert evaluation.ap() == pytest.approx(0.319545, abs=5e-7)
    assert evaluation.ap(0.5) == pytest.approx(0.562288, abs=5e-7)
    assert evaluation.ap(0.75) == pytest.approx(0.298927, abs=5e-7)
    assert_equal_to_pycocotools(truth, records, THRESHOLDS, 100)
