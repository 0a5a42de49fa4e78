"""Detections as maps: perfect ones, missing maps, classes that detections cannot name."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.masks import crop_to_rle, tight_box
from pipeline.metrics.scene import measure, read_map
from pipeline.records import Dataset, Image, Instance

ROAD, SKY, CAR, RIDER = 7, 23, 26, 25


def thing(number: int, category: int, mask: np.ndarray, crowd: bool = False) -> Instance:
    x0, y0, x1, y1 = tight_box(mask)
    rle = crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), mask.shape, threshold=1)
    return Instance(number, 1, category, rle, (x0, y0, x1 - x0, y1 - y0), float(mask.sum()), crowd)


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((10, 20), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def street(folder: Path, with_map: bool = True) -> Dataset:
    """Sky above road; two cars, a rider that is not among the categories, and two rows of void."""
    cars = [thing(1, CAR, box(4, 8, 0, 5)), thing(2, CAR, box(4, 8, 5, 9))]
    labels = np.full((10, 20), SKY, np.uint8)
    labels[5:] = ROAD
    for car in (box(4, 8, 0, 5), box(4, 8, 5, 9)):
        labels[car > 0] = CAR
    labels[box(3, 7, 12, 15) > 0] = RIDER
    labels[:2] = 0
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "map.png"), labels)
    image = Image(1, "a.png", 10, 20, semantic="map.png" if with_map else "")
    classes = {ROAD: "road", SKY: "sky", RIDER: "rider", CAR: "car"} if with_map else {}
    return Dataset([image], {CAR: "car"}, cars, folder, classes)


def perfect(truth: Dataset) -> list[dict]:
    return [
        {"image_id": a.image_id, "category_id": a.category_id, "score": 1.0, "segmentation": a.rle}
        for a in truth.instances
    ]


@pytest.mark.parametrize("with_map", [True, False])
def test_perfect_detections_score_one(tmp_path: Path, with_map: bool) -> None:
    truth = street(tmp_path, with_map)
    result = measure(truth, perfect(truth))
    assert {k: result[k] for k in ("pixel_accuracy", "miou", "pq", "sq", "rq")} == dict.fromkeys(
        ("pixel_accuracy", "miou", "pq", "sq", "rq"), 1.0
    )
    assert result["iou_classes"] == {"rest": 1.0, "car": 1.0} and result["pq_classes"] == {"car": 1.0}


def test_by_hand(tmp_path: Path) -> None:
    """One car missed (16 pixels), one found with a column too much (20 of 24), and one car on void alone."""
    truth = street(tmp_path)
    wide = thing(9, CAR, box(4, 8, 0, 6))
    records = [{**perfect(truth)[0], "segmentation": wide.rle}]
    records.append({**records[0], "score": 0.6, "segmentation": thing(9, CAR, box(0, 2, 0, 9)).rle})
    result = measure(truth, records)
    counted = 8 * 20
    assert result["pixel_accuracy"] == pytest.approx((counted - (16 - 4)) / counted)
    assert result["iou_classes"]["car"] == pytest.approx(24 / 36)
    assert result["iou_classes"]["rest"] == pytest.approx((counted - 36) / (counted - 36 + 12))
    assert result["pq"] == pytest.approx((20 / 24) / 1.5)
    assert result["sq"] == pytest.approx(20 / 24) and result["rq"] == pytest.approx(1 / 1.5)


def test_no_detections_and_other_categories(tmp_path: Path) -> None:
    truth = street(tmp_path)
    records = [{**perfect(truth)[0], "category_id": RIDER}]
    for found in ([], records):
        result = measure(truth, found)
        assert result["pq"] == 0 and result["iou_classes"]["car"] == 0
        assert result["pixel_accuracy"] == pytest.approx(1 - 36 / 160)


def test_a_false_detection_never_helps(tmp_path: Path) -> None:
    truth = street(tmp_path)
    extra = {**perfect(truth)[0], "score": 0.8, "segmentation": thing(9, CAR, box(6, 10, 12, 18)).rle}
    whole, worse = measure(truth, perfect(truth)), measure(truth, [*perfect(truth), extra])
    for key in ("pixel_accuracy", "miou", "pq", "rq"):
        assert worse[key] < whole[key]


def test_a_crowd_is_its_class_and_excuses(tmp_path: Path) -> None:
    truth = street(tmp_path)
    truth = Dataset(truth.images, truth.categories, [truth.instances[0], thing(2, CAR, box(4, 8, 5, 9), True)], tmp_path,
                    truth.semantic_classes)  # fmt: skip
    result = measure(truth, perfect(truth))
    assert result["pq"] == 1.0 and result["miou"] == 1.0


def test_lost_and_wrong_maps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = street(tmp_path)
    (tmp_path / "map.png").unlink()
    assert measure(truth, perfect(truth))["pixel_accuracy"] == 1.0
    assert "no label map" in caplog.text
    cv2.imwrite(str(tmp_path / "map.png"), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="not an 8-bit label map of"):
        measure(truth, perfect(truth))
    with pytest.raises(ValueError, match="missing or not an image"):
        read_map(tmp_path / "none.png", (10, 20))


def test_unknown_image_and_categories_beyond_a_byte(tmp_path: Path) -> None:
    truth = street(tmp_path)
    with pytest.raises(ValueError, match="image id that the truth does not have: 9"):
        measure(truth, [{**perfect(truth)[0], "image_id": 9}])
    with pytest.raises(ValueError, match="stand in a map"):
        measure(Dataset(truth.images, {300: "x"}, [], tmp_path), [])


def test_no_images() -> None:
    result = measure(Dataset([], {1: "a"}), [])
    assert result["pq"] is None and result["pixel_accuracy"] is None
