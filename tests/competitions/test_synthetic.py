"""The drawn competition."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.competitions import CompetitionError
from pipeline.competitions.synthetic import COMPETITION, TRUTH, draw
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset

OPTIONS = {"images": 7, "test_images": 2, "size": 128, "cells": 9}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_images(tmp_path: Path) -> None:
    first = COMPETITION.read(None, OPTIONS, 3, tmp_path / "a")
    again = COMPETITION.read(None, OPTIONS, 3, tmp_path / "b")
    other = COMPETITION.read(None, OPTIONS, 4, tmp_path / "c")
    assert first.train.instances == again.train.instances
    assert content(tmp_path / "a") == content(tmp_path / "b")
    name = "images/train/train-001.png"
    assert content(tmp_path / "a")[name] != content(tmp_path / "c")[name]
    assert first.train.instances != other.train.instances


def test_more_images_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    COMPETITION.read(None, {**OPTIONS, "images": 3}, 3, tmp_path / "a")
    COMPETITION.read(None, {**OPTIONS, "images": 2}, 3, tmp_path / "b")
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert a["images/train/train-001.png"] == b["images/train/train-001.png"]


def test_masks_touch_and_share_no_pixel(tmp_path: Path) -> None:
    prepared = COMPETITION.read(None, OPTIONS, 0, tmp_path)
    touching = 0
    for image in prepared.train.images:
        labels = np.zeros((image.height, image.width), np.int32)
        for instance in prepared.train.by_image[image.id]:
            (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
            part = labels[y0:y1, x0:x1]
            assert not part[mask > 0].any()
            part[mask > 0] = instance.id
            assert instance.area == mask.sum() > 0
            assert instance.box == (x0, y0, x1 - x0, y1 - y0)
        beside = (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] > 0) & (labels[:, :-1] > 0)
        touching += int(beside.any())
    assert touching >= 3


def test_truth_lies_on_the_cells(tmp_path: Path) -> None:
    """Cells are darker than what surrounds them: a shifted or flipped truth would not be."""
    prepared = COMPETITION.read(None, {**OPTIONS, "images": 6}, 1, tmp_path)
    right, flipped = [], []
    for image in prepared.train.images:
        picture = cv2.imread(str(prepared.train.path(image)), cv2.IMREAD_GRAYSCALE).astype(float)
        picture -= cv2.GaussianBlur(picture, (0, 0), 25)
        for instance in prepared.train.by_image[image.id]:
            (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
            right.append(picture[y0:y1, x0:x1][mask > 0].mean())
            flipped.append(picture[:, ::-1][y0:y1, x0:x1][mask > 0].mean())
    assert np.mean(right) < -15 < np.mean(flipped)


def test_defaults_have_all_classes_and_an_empty_image(tmp_path: Path) -> None:
    prepared = COMPETITION.read(None, {}, 7, tmp_path)
    assert (len(prepared.train.images), len(prepared.test.images)) == (24, 6)
    assert {image.height for image in prepared.train.images} == {256}
    kinds = [{i.category_id for i in found} for found in prepared.train.by_image.values()]
    assert set().union(*kinds) == {1, 2, 3, 4}
    assert sum(not found for found in kinds) == 1
    assert 3 <= sum(0 < len(found) < 4 for found in kinds) <= 20
    groups = [image.group for image in prepared.train.images]
    assert len(set(groups)) == 8 and groups[0] == groups[2] != groups[3]


def test_test_truth_is_kept_apart(tmp_path: Path) -> None:
    prepared = COMPETITION.read(None, OPTIONS, 0, tmp_path)
    assert prepared.test.instances == []
    truth = Dataset.read(tmp_path / TRUTH)
    assert [image.id for image in truth.images] == [image.id for image in prepared.test.images] == [1, 2]
    records = [
        {"image_id": i.image_id, "category_id": i.category_id, "score": 1.0, "segmentation": i.rle}
        for i in truth.instances
    ]
    result = COMPETITION.score(truth, records)
    assert result["score"] == pytest.approx(1)
    assert {name for name, value in result["classes"].items() if value} <= {"round", "spindle", "spiky", "ring"}


def test_semantic_maps_say_what_the_instances_say(tmp_path: Path) -> None:
    prepared = COMPETITION.read(None, OPTIONS, 3, tmp_path)
    truth = Dataset.read(tmp_path / TRUTH)
    assert [image.semantic for image in prepared.test.images] == ["", ""] and prepared.test.semantic_classes == {}
    for dataset in (prepared.train, truth):
        assert dataset.semantic_classes == {0: "background", 1: "round", 2: "spindle", 3: "spiky", 4: "ring"}
        for image in dataset.images:
            painted = np.zeros((image.height, image.width), np.uint8)
            for instance in dataset.by_image[image.id]:
                (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
                painted[y0:y1, x0:x1][mask > 0] = instance.category_id
            stored = cv2.imread(str(dataset.root / image.semantic), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(stored, painted)
    COMPETITION.read(None, {**OPTIONS, "images": 2}, 3, tmp_path)
    assert len(list((tmp_path / "semantic" / "train").iterdir())) == 2


def test_scene_measures(tmp_path: Path) -> None:
    COMPETITION.read(None, OPTIONS, 0, tmp_path)
    truth = Dataset.read(tmp_path / TRUTH)
    records = [
        {"image_id": i.image_id, "category_id": i.category_id, "score": 1.0, "segmentation": i.rle}
        for i in truth.instances
    ]
    perfect = COMPETITION.score(truth, records)
    assert {perfect[k] for k in ("pixel_accuracy", "miou", "pq", "sq", "rq")} == {1.0}
    assert set(perfect["iou_classes"]) == {"background", "round", "spindle", "spiky", "ring"}
    worse = COMPETITION.score(truth, records[1:])
    assert all(worse[k] < 1 for k in ("pixel_accuracy", "miou", "pq", "rq")) and worse["sq"] <= 1
    (tmp_path / "elsewhere.json").write_bytes((tmp_path / TRUTH).read_bytes())  # the maps do not go with it
    assert COMPETITION.score(Dataset.read(tmp_path / "elsewhere.json"), records) == perfect


def test_one_image_without_a_cell_option(tmp_path: Path) -> None:
    prepared = COMPETITION.read(None, {"images": 2, "test_images": 1, "size": 64, "cells": 1}, 0, tmp_path)
    assert len(prepared.train.instances) <= 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image": 3}, "did you mean 'images'"),
        ({"images": 1}, "data.options.images: .*2 .it is 1"),
        ({"size": "big"}, "data.options.size: .*integer"),
        ({"cells": 2.5}, "data.options.cells: .*integer"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        COMPETITION.read(None, options, 0, tmp_path)


def test_cells_of_another_size() -> None:
    """A zoom of 1 is what was always drawn; one of 1.5 makes cells of about 1.5 x 1.5 the area, part of them medium to COCO."""

    def areas(*zoom: float) -> np.ndarray:
        labels = [draw(np.random.default_rng([3, k]), 192, 14, np.zeros(3), *zoom)[1] for k in range(6)]
        return np.concatenate([np.bincount(one.ravel())[1:] for one in labels])

    np.testing.assert_array_equal(areas(1.0), areas())
    large = areas(1.5)
    assert 1.8 < large.mean() / areas().mean() < 2.7
    assert 0.2 < (large > 32**2).mean() < 0.6
