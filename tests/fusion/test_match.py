"""True positives against pycocotools' own matching, crowds included."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.fusion.crops import Crops
from pipeline.fusion.match import Overlaps, truths
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Detections, Image, Instance
from tests.fusion.cells import SIZE, ellipse, table


def crowded(seed: int, crowds: int) -> tuple[Dataset, Detections]:
    """Cells of two classes that overlap heavily, and detections of them."""
    rng = np.random.default_rng(seed)
    cells = np.concatenate([rng.uniform(10, 110, (25, 2)), rng.uniform(6, 14, (25, 2))], axis=1)
    instances = []
    for i, cell in enumerate(cells):
        mask = ellipse(*cell) >= 128
        crop = Crops.of(table([mask.astype(np.uint8) * 255], [1]))
        rle = crop_to_rle(crop.crop(0), crop.box[0], SIZE)
        x0, y0, x1, y1 = (float(v) for v in crop.box[0])
        area = float(mask.sum())
        instances.append(Instance(i + 1, 1, 1 + i % 2, rle, (x0, y0, x1 - x0, y1 - y0), area, i < crowds))
    seen = np.concatenate([cells, cells]) + rng.normal(0, 2, (50, 4))
    found = table([ellipse(*np.maximum(cell, 3)) for cell in seen], rng.random(50).tolist())
    found.category_id[:] = 1 + (np.arange(50) % 25) % 2
    return Dataset([Image(1, "a", *SIZE)], {1: "a", 2: "b"}, instances), found


def reference(dataset: Dataset, found: Detections, iou: float) -> tuple[np.ndarray, np.ndarray]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset.to_coco()
        coco.createIndex()
        records: list[dict[str, Any]] = found.to_coco({1: SIZE})
        for record in records:
            del record["bbox"]
        evaluation = COCOeval(coco, coco.loadRes(records), "segm")
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array([iou]), [1000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    true, ignored = np.zeros(len(found), bool), np.zeros(len(found), bool)
    for part in evaluation.evalImgs:
        if part is not None:
            rows = np.array(part["dtIds"]) - 1
            ignored[rows] = part["dtIgnore"][0]
            true[rows] = (part["dtMatches"][0] > 0) & ~ignored[rows]
    return true, ignored


def test_matching_is_cocos() -> None:
    for seed in range(8):
        dataset, found = crowded(seed, crowds=seed % 3 * 2)
        pairs = Overlaps.of(found, truths(dataset, [1])[1])
        for iou in (0.5, 0.75):
            true, ignored = pairs.matched(found.score, iou)
            expected_true, expected_ignored = reference(dataset, found, iou)
            np.testing.assert_array_equal(true, expected_true)
            np.testing.assert_array_equal(ignored, expected_ignored)
            assert 0 < true.sum() < len(found)


def test_another_order_is_another_matching() -> None:
    dataset, found = crowded(1, 0)
    pairs = Overlaps.of(found, truths(dataset, [1])[1])
    a, _ = pairs.matched(found.score)
    b, _ = pairs.matched(1 - found.score)
    assert (a != b).any()
    assert (pairs.best[a | b] >= 0.5).all() and pairs.best.max() <= 1


def test_nothing_to_find_and_nothing_found() -> None:
    dataset, found = crowded(0, 0)
    nothing = Dataset(dataset.images, dataset.categories, [])
    true, ignored = Overlaps.of(found, truths(nothing, [1])[1]).matched(found.score)
    assert not true.any() and not ignored.any()
    pairs = Overlaps.of(Detections.empty(), truths(dataset, [1])[1])
    assert len(pairs.matched(np.zeros(0))[0]) == 0
