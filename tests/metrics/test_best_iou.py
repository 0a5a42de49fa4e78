"""The mean best IoU against SegPC-2021's own metric, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.masks import crop_to_rle
from pipeline.metrics import segpc
from pipeline.metrics.best_iou import best_iou
from pipeline.records import Dataset, Detections, Image, Instance


def instance(number: int, grid: np.ndarray, box: np.ndarray, size: tuple[int, int], **more: object) -> Instance:
    x0, y0, x1, y1 = box.tolist()
    facts = {"image_id": 1, "category_id": 1, **more}
    return Instance(
        number, rle=crop_to_rle(grid, box, size), box=(x0, y0, x1 - x0, y1 - y0), area=float((grid > 0).sum()), **facts
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_segpc_s_measure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = segpc.FRAME
    place = rng.integers(0, 60, (20, 2))
    boxes = np.concatenate([place, place + rng.integers(5, 30, (20, 2))], axis=1).astype(np.int32)
    grids = [np.where(rng.random((y1 - y0, x1 - x0)) < 0.8, 255, 0).astype(np.uint8) for x0, y0, x1, y1 in boxes]
    image = rng.integers(1, 3, 20)
    true = [instance(k + 1, grids[k], boxes[k], size, image_id=int(image[k])) for k in range(8)]
    truth = Dataset([Image(k, f"{k}.png", *size) for k in (1, 2, 3)], {1: "cell"}, true)
    found = Detections.build(image[8:], np.ones(12, np.int64), rng.random(12), boxes[8:], boxes[8:], grids[8:], "m")
    records = found.to_coco(dict.fromkeys((1, 2, 3), size))
    expected = segpc.best_overlaps(truth, records, 1).score
    assert expected > 0.05
    assert best_iou(truth, found) == pytest.approx(expected)
    assert best_iou(truth, records) == pytest.approx(expected)


def test_categories_crowds_and_nothing() -> None:
    size, square = (20, 60), np.full((10, 10), 255, np.uint8)
    boxes = [np.array([x, 0, x + 10, 10]) for x in (0, 20, 40)]
    true = [
        instance(1, square, boxes[0], size),
        instance(2, square, boxes[1], size, category_id=2),
        instance(3, square, boxes[2], size, crowd=True),
    ]
    truth = Dataset([Image(1, "1.png", *size)], {1: "a", 2: "b"}, true)
    shifted = np.array([[2, 0, 12, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.int32)
    found = Detections.build(1, np.ones(3, np.int64), np.ones(3), shifted, shifted, [square] * 3, "m")
    assert best_iou(truth, found) == pytest.approx((80 / 120 + 0) / 2)  # the second is of the other category
    assert best_iou(truth, Detections.empty()) == 0
    assert best_iou(Dataset(truth.images, truth.categories, true[2:]), found) is None
