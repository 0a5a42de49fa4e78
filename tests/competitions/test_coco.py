"""COCO: drawn sets in every layout and with every fault, submissions, and the published results."""

import json
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.competitions import CompetitionError
from pipeline.competitions.coco import COCO_IDS, COMPETITION
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Detections
from tests.metrics.test_coco_summary import PUBLISHED, by_pycocotools

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "coco"
SIZE = (30, 40)


def picture() -> bytes:
    rng = np.random.default_rng(0)
    return cv2.imencode(".png", rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))[1].tobytes()


def annotations() -> list[dict[str, Any]]:
    """A polygon in two parts, a compressed RLE, and a crowd as run lengths."""
    disc = cv2.circle(np.zeros(SIZE, np.uint8), (10, 20), 6, 1, -1)
    rle = coco_mask.encode(np.asfortranarray(disc))
    return [
        {"id": 7, "image_id": 42, "category_id": 90, "iscrowd": 0, "area": 50.0, "bbox": [1, 1, 8, 8],
         "segmentation": [[1, 1, 9, 1, 9, 7], [20, 20, 30, 20, 30, 25, 20, 25]]},
        {"id": 5, "image_id": 42, "category_id": 3, "iscrowd": 0, "area": float(disc.sum()), "bbox": [4, 14, 13, 13],
         "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()}},
        {"id": 9, "image_id": 43, "category_id": 3, "iscrowd": 1, "area": 200, "bbox": [0, 0, 10, 20],
         "segmentation": {"size": list(SIZE), "counts": [300, 200, 700]}},
    ]  # fmt: skip


def truth_json(part: str = "train", first: int = 42) -> dict[str, Any]:
    images = [{"id": first + k, "file_name": f"{part}-{k}.png", "height": 30, "width": 40} for k in range(2)]
    value: dict[str, Any] = {
        "images": images,
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    }
    return value | ({"annotations": annotations()} if part == "train" else {})


def official(folder: Path) -> dict[str, bytes]:
    """The files of COCO's own layout, by name."""
    files = {
        "annotations/instances_train2017.json": json.dumps(truth_json()).encode(),
        "annotations/captions_train2017.json": b"not looked at",
        "annotations/instances_val2017.json": json.dumps(truth_json("val")).encode(),
        "annotations/image_info_test2017.json": b"not looked at",
        "annotations/image_info_test-dev2017.json": json.dumps(truth_json("test", 100)).encode(),
    }
    for part in ("train", "val", "test"):
        files |= {f"{part}2017/{part}-{k}.png": picture() for k in range(2)}
    files["val2017/train-0.png"] = b"another image of that name"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def read(path: Path, target: Path, **options: Any) -> Any:
    return COMPETITION.read(path, options, 0, target)


def kinds(prepared: Any) -> list[tuple[str, str]]:
    return [(p.severity, p.kind) for p in prepared.integrity.problems]


# ---------------------------------------------------------------- reading ---------------------------------------------


def test_folder_zip_tar_and_zips_in_a_folder_are_the_same(tmp_path: Path) -> None:
    files = official(tmp_path / "folder")
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tmp_path / "folder", "coco")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"coco/{name}", content)
    (tmp_path / "zips").mkdir()
    for part in ("annotations", "train2017", "val2017", "test2017"):
        with zipfile.ZipFile(tmp_path / "zips" / f"{part}.zip", "w") as archive:
            for name, content in files.items():
                if name.startswith(part):
                    archive.writestr(name, content)
    found = [read(tmp_path / name, tmp_path / f"out-{name}") for name in ("folder", "whole.zip", "whole.tar", "zips")]
    for prepared in found:
        assert prepared.train.instances == found[0].train.instances
        assert prepared.train.images == found[0].train.images and prepared.test.images == found[0].test.images
        assert prepared.train.categories == prepared.test.categories == {3: "car", 90: "toothbrush"}
        assert prepared.integrity.problems == []
        for dataset in (prepared.train, prepared.test):
            assert all(dataset.path(image).read_bytes() == picture() for image in dataset.images)
    assert [image.id for image in found[0].test.images] == [100, 101] and found[0].test.instances == []


def test_polygons_run_lengths_and_crowds(tmp_path: Path) -> None:
    official(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    polygon, disc, crowd = train.instances
    assert (polygon.id, polygon.category_id, polygon.area) == (7, 90, 50.0)
    expected = coco_mask.merge(coco_mask.frPyObjects(annotations()[0]["segmentation"], *SIZE))["counts"].decode()
    assert polygon.rle == {"size": list(SIZE), "counts": expected}
    assert disc.rle == annotations()[1]["segmentation"] and disc.box == (4.0, 14.0, 13.0, 13.0)
    assert crowd.crowd and rle_to_crop(crowd.rle)[1].sum() == 200
    train.write(tmp_path / "out" / "train.json")
    assert Dataset.read(tmp_path / "out" / "train.json").instances == train.instances


def test_images_of_a_folder_are_linked_not_copied(tmp_path: Path) -> None:
    official(tmp_path / "data")
    for _ in range(2):  # reading again finds its own links
        prepared = read(tmp_path / "data", tmp_path / "out")
    path = prepared.train.path(prepared.train.images[0])
    assert os.path.samefile(path, tmp_path / "data" / "train2017" / "train-0.png")
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_images_of_an_earlier_reading_go(tmp_path: Path) -> None:
    official(tmp_path / "data")
    (tmp_path / "out" / "images" / "train").mkdir(parents=True)
    (tmp_path / "out" / "images" / "train" / "old.jpg").write_bytes(b"x")
    read(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out" / "images" / "train" / "old.jpg").exists()


def test_other_layouts(tmp_path: Path) -> None:
    """train.json beside train/, Roboflow's, and one file for all."""
    for name, test in (("train.json", "val.json"), ("train/_annotations.coco.json", None)):
        data = tmp_path / name.replace("/", "-")
        files = {name: truth_json()} | ({test: truth_json("val")} if test else {})
        for file, value in files.items():
            (data / file).parent.mkdir(parents=True, exist_ok=True)
            (data / file).write_text(json.dumps(value))
        for part in ("train", "val"):
            for k in range(2):
                (data / part).mkdir(exist_ok=True)
                (data / part / f"{part}-{k}.png").write_bytes(picture())
        prepared = read(data, tmp_path / "out" / data.name)
        assert len(prepared.train.instances) == 3 and len(prepared.test.images) == (2 if test else 0)
        assert kinds(prepared) == ([] if test else [("warning", "no test images")])
    single = tmp_path / "single"
    single.mkdir()
    (single / "all.json").write_text(json.dumps(truth_json()))
    for k in range(2):
        (single / f"train-{k}.png").write_bytes(picture())
    prepared = read(single, tmp_path / "out" / "single", test="all.json")
    assert [i.id for i in prepared.train.images] == [i.id for i in prepared.test.images] == [42, 43]
    assert prepared.test.instances == []


def test_options_choose_files_and_folders(tmp_path: Path) -> None:
    official(tmp_path / "data")
    chosen = {"test": "instances_val2017.json", "test_images": "val2017"}
    assert [i.file_name for i in read(tmp_path / "data", tmp_path / "out", **chosen).test.images] == [
        "images/test/val-0.png", "images/test/val-1.png",
    ]  # fmt: skip
    for options, expected in (
        ({"trian": "x"}, "did you mean 'train'"),
        ({"train": "instances_train.json"}, "data.options.train: there is no such file"),
        ({"train": 3}, "data.options.train: .*it is 3"),
        ({"train_images": "nowhere"}, "no usable training image(.|\n)*not among the files"),
        ({"train": "image_info_test-dev2017.json"}, "no list of annotations"),
        ({"train": "captions_train2017.json"}, "is not JSON"),
    ):
        with pytest.raises(CompetitionError, match=expected):
            read(tmp_path / "data", tmp_path / "bad", **options)
    (tmp_path / "data" / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(CompetitionError, match="several annotation files for training.*data.options.train"):
        read(tmp_path / "data", tmp_path / "bad")


def spoilt(**changes: Any) -> dict[str, Any]:
    value = truth_json()
    value["annotations"][1] |= changes
    return value


@pytest.mark.parametrize(
    ("changes", "kept", "severity", "expected"),
    [
        ({"segmentation": []}, 2, "error", "no usable mask .the segmentation has no polygon"),
        ({"segmentation": [[1, 2, 3, 4]]}, 2, "error", "no polygon"),
        ({"segmentation": [[1, 2, 3, 4, float("inf"), 6]]}, 2, "error", "not finite"),
        ({"segmentation": [[1, 2, 3, 4, 1e12, 6]]}, 2, "error", "far outside"),
        ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, 2, "error", "not a list of numbers"),
        ({"segmentation": "abc"}, 2, "error", "neither polygons nor an RLE"),
        ({"segmentation": {"size": [40, 30], "counts": [1200]}}, 2, "error", "size is .40, 30., the image's .30, 40."),
        ({"segmentation": {"size": [30, 40], "counts": [5]}}, 2, "error", "cover 5 pixels"),
        ({"segmentation": {"size": [30, 40], "counts": [[5]]}}, 2, "error", "not a flat list"),
        ({"segmentation": {"size": [30, 40], "counts": [1200]}}, 2, "warning", "is empty"),
        ({"segmentation": [[50, 50, 60, 50, 60, 60]]}, 2, "warning", "is empty"),
        ({"category_id": 4}, 2, "error", "category that is not listed"),
        ({"image_id": 4}, 2, "error", "image that is not listed"),
        ({"image_id": None}, 2, "warning", "has no image_id"),
        ({"area": 1e5}, 3, "warning", "100000, mask 113.*another area than its mask"),
        ({"id": 0}, 3, "warning", "pycocotools counts a detection that finds it as false"),
        ({"id": 9}, 3, "warning", "has no id of its own"),
    ],
)
def test_faults_of_annotations(tmp_path: Path, changes: dict, kept: int, severity: str, expected: str) -> None:
    official(tmp_path / "data")
    (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text(json.dumps(spoilt(**changes)))
    prepared = read(tmp_path / "data", tmp_path / "out")
    assert len(prepared.train.instances) == kept
    assert len({a.id for a in prepared.train.instances}) == kept
    (problem,) = prepared.integrity.problems
    assert problem.severity == severity and re.search(expected, str(problem)), problem


def test_faults_of_images(tmp_path: Path) -> None:
    official(tmp_path / "data")
    value = truth_json()
    good = value["images"][0]
    value["images"] += [
        {**good, "id": 50, "file_name": "gone.png"}, {**good, "id": 51, "file_name": "cut.png"},
        {**good, "id": 52, "height": 31}, {**good, "id": 42}, {"id": 53}, 7,
        {**good, "id": 54, "file_name": "../../../train2017/train-1.png"},
    ]  # fmt: skip
    (tmp_path / "data" / "train2017" / "cut.png").write_bytes(picture()[:20])
    (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text(json.dumps(value))
    prepared = read(tmp_path / "data", tmp_path / "out")
    assert [image.id for image in prepared.train.images] == [42, 43, 54]
    names = [image.file_name for image in prepared.train.images]
    assert names == ["images/train/42-train-0.png", "images/train/43-train-1.png", "images/train/54-train-1.png"]
    assert sorted(kinds(prepared)) == sorted(
        [
            ("error", "missing image"),
            ("error", "damaged image"),
            ("error", "image size"),
            *[("error", "image entry")] * 2,
        ]
    )
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(tmp_path / "data")]
    assert all(p.is_relative_to(tmp_path / "out" / "images") for p in outside)


def test_data_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, expected in (
        (None, "needs its files"), (tmp_path / "nowhere", "no data at"), (tmp_path / "empty", "no .json at all"),
    ):  # fmt: skip
        with pytest.raises(CompetitionError, match=expected):
            COMPETITION.read(path, {}, 0, tmp_path / "out")


def test_missing() -> None:
    assert len(COMPETITION.missing([])) == 2
    assert COMPETITION.missing(["a/annotations/instances_val2014.json", "a/val2014/x.JPG"]) == []
    assert len(COMPETITION.missing(["annotations/instances_val2014.json"])) == 1
    assert len(COMPETITION.missing(["dataset/test_img_ids.json", "dataset/test/x.png"])) == 2  # VRDL 2021's


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-3, 60) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["size", "counts", "id", "image_id"]), inner, max_size=3)
        ),
        max_leaves=10,
    ),
    key=st.sampled_from(
        ["id", "image_id", "category_id", "segmentation", "area", "iscrowd", "images", "categories", "all"]
    ),
)
def test_any_value_anywhere_is_reported_or_refused(tmp_path: Path, value: Any, key: str) -> None:
    if not (tmp_path / "data").exists():
        official(tmp_path / "data")
    content = truth_json()
    if key == "all":
        content = value
    elif key in ("images", "categories"):
        content[key] = value
    else:
        content["annotations"][1][key] = value
    (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    try:
        prepared = read(tmp_path / "data", tmp_path / "out")
    except CompetitionError:
        return
    assert prepared.train.images
    prepared.train.write(tmp_path / "out" / "train.json")
    assert Dataset.read(tmp_path / "out" / "train.json").instances == prepared.train.instances


# ---------------------------------------------------------------- submissions -----------------------------------------


def perfect(truth: Dataset) -> list[dict[str, Any]]:
    return [
        {"image_id": a.image_id, "bbox": list(a.box), "score": 0.9 - 0.01 * k, "category_id": a.category_id,
         "segmentation": a.rle}
        for k, a in enumerate(truth.instances)
        if not a.crowd
    ]  # fmt: skip


def test_written_as_the_server_takes_it_and_read_back(tmp_path: Path) -> None:
    official(tmp_path / "data")
    prepared = read(tmp_path / "data", tmp_path / "out")
    records = perfect(prepared.train)
    path = tmp_path / "a.zip"
    COMPETITION.write(Detections.from_coco(records), prepared.train, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["detections_test-dev2017_maskfold_results.json"]
    assert [p for p in COMPETITION.validate(path, prepared.train) if p.severity == "error"] == []
    back = COMPETITION.read_submission(path, prepared.train)
    assert {r["category_id"] for r in back} == {3, 90}
    result = COMPETITION.score(prepared.train, back)
    assert [result[k] for k in ("score", "AP50", "AR100")] == pytest.approx([1, 1, 1])
    assert result["classes"] == {"car": pytest.approx(1), "toothbrush": pytest.approx(1)}
    COMPETITION.write(Detections.from_coco(records), prepared.train, tmp_path / "b.zip")
    assert path.read_bytes() == (tmp_path / "b.zip").read_bytes()


def zipped(path: Path, **members: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name.replace("__", "/").replace("_json", ".json"), json.dumps(value))
    return path


def test_names_of_the_member(tmp_path: Path) -> None:
    official(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    records = [{**r, "image_id": i} for r in perfect(train) for i in (42, 43)]

    def found(**members: Any) -> list[str]:
        path = zipped(tmp_path / "x.zip", **members)
        problems = [p for p in COMPETITION.validate(path, train) if p.kind != "mask"]
        if not any(p.severity == "error" for p in problems):
            assert list(COMPETITION.read_submission(path, train)) == records
        return [str(p) for p in problems]

    assert found(detections_val2017_mine_results_json=records) == []
    (warning,) = found(results_json=records)
    assert warning.startswith("warning") and "COCO's own server asks for" in warning
    (error,) = found(folder__results_json=records)
    assert error.startswith("error") and "no detections_test-dev2017" in error


def test_repairs_go_by_the_sets_own_categories(tmp_path: Path) -> None:
    official(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    records = perfect(train)
    wrong = [{**r, "segmenation": r["segmentation"]} for r in records]
    for record in wrong:
        del record["segmentation"]
    assert COMPETITION.fix(zipped(tmp_path / "x.zip", results_json=wrong), train, tmp_path / "y.zip")
    assert [str(p) for p in COMPETITION.validate(tmp_path / "y.zip", train) if p.severity == "error"] == []
    with zipfile.ZipFile(tmp_path / "y.zip") as archive:
        assert archive.namelist() == [COMPETITION.member]
    assert list(COMPETITION.read_submission(tmp_path / "y.zip", train)) == records


def test_categories_with_gaps_are_told(tmp_path: Path) -> None:
    official(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    records = [{**r, "category_id": 2} for r in perfect(train)]
    problems = COMPETITION.validate(zipped(tmp_path / "x.zip", results_json=records), train)
    assert any("category_id is not one of 3, 90" in str(p) and p.severity == "error" for p in problems)


def test_ids_with_and_without_categories(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(truth_json("test", 100)))
    assert COMPETITION.read_ids(path).categories == {3: "car", 90: "toothbrush"}
    path.write_text(json.dumps(truth_json("test", 100)["images"]))
    assert list(COMPETITION.read_ids(path).categories) == COCO_IDS and len(COCO_IDS) == 80 and 12 not in COCO_IDS
    path.write_text(json.dumps({**truth_json(), "categories": [{"name": "x"}]}))
    with pytest.raises(CompetitionError, match="categories are not a list of"):
        COMPETITION.read_ids(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), prefix=st.sampled_from([b"", b"PK\x03\x04", b"PAR1", b"[{"]))
def test_any_bytes_are_refused_in_words(tmp_path: Path, content: bytes, prefix: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(prefix + content)
    ids = Dataset([], {})
    COMPETITION.validate(path, ids)
    try:
        COMPETITION.read_submission(path, ids)
    except CompetitionError:
        return
    json.loads(prefix + content)


# ---------------------------------------------------------------- real files ------------------------------------------


def needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs the COCO files at {path}")
    return path


def test_published_results(tmp_path: Path) -> None:
    folder = needed(DATA / "eval_reference")
    truth = COMPETITION.read_truth(folder / "instances_val2014_100.json")
    path = folder / "instances_val2014_fakesegm100_results.json"
    result = COMPETITION.score(truth, COMPETITION.read_submission(path, truth))
    assert {k: round(result[k], 3) for k in PUBLISHED} == PUBLISHED
    assert result["score"] == pytest.approx(0.319545, abs=5e-7)
    records = json.loads(path.read_text())
    limited = COMPETITION.score(truth, records, limits=(1, 3, 5))
    assert {k: limited[k] for k in by_pycocotools(truth, records, (1, 3, 5))} == pytest.approx(
        by_pycocotools(truth, records, (1, 3, 5)), abs=1e-12
    )
    assert limited["metric"].endswith("maxDets=5")
    assert COMPETITION.score(truth, [])["score"] == 0
    problems = COMPETITION.validate(path, truth)  # without boxes, as pycocotools takes them
    assert [str(p) for p in problems if p.severity == "error"] == []


def test_small_sets(tmp_path: Path) -> None:
    folder = needed(DATA / "small")
    prepared = read(folder / "faster_coco_eval", tmp_path / "a", train="gt_dataset.json", test="gt_dataset.json")
    raw = json.loads((folder / "faster_coco_eval" / "gt_dataset.json").read_text())
    assert (len(prepared.train.images), len(prepared.train.instances)) == (3, len(raw["annotations"]))
    prepared = read(folder / "sahi", tmp_path / "b", train="combined_coco.json", test="terrain2_coco.json")
    raw = json.loads((folder / "sahi" / "combined_coco.json").read_text())
    assert len(prepared.train.instances) == len(raw["annotations"]) and len(prepared.test.images) == 1
    assert ("warning", "area") in kinds(prepared)  # the set's areas are wrong
    with open(prepared.test.path(prepared.test.images[0]), "rb") as handle:
        assert handle.read(8) == b"\x89PNG\r\n\x1a\n"
