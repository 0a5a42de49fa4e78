"""VRDL 2025: a drawn copy of its layout with every fault, the metric against pycocotools, and the real files."""

import contextlib
import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline import competitions
from pipeline.backends import samples
from pipeline.competitions import CompetitionError, Prepared
from pipeline.competitions.vrdl2025 import COMPETITION
from pipeline.experiment import load
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.report import outlines
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vrdl2025"
SIZE = (40, 50)
TRAIN = ["0aaa-1", "0bbb-2", "0ccc-3"]
TEST = ["9aaa-1", "9bbb-2"]


def tif(pixels: np.ndarray) -> bytes:
    good, content = cv2.imencode(".tif", pixels)
    assert good
    return content.tobytes()


def picture(seed: int) -> np.ndarray:
    """BGR and alpha."""
    colours = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    return np.dstack([colours, np.full(SIZE, 255, np.uint8)])


def numbers(**squares: tuple[int, int, int]) -> np.ndarray:
    """Squares as n<number>=(x, y, side) in a float64 image."""
    pixels = np.zeros(SIZE, np.float64)
    for name, (x, y, side) in squares.items():
        pixels[y : y + side, x : x + side] = int(name[1:])
    return pixels


def layout() -> dict[str, bytes]:
    files = {f"train/{name}/image.tif": tif(picture(k)) for k, name in enumerate(TRAIN)}
    # numbers run on across the classes, with gaps; 1000 does not fit 8 bits, 1256 would be 232 again
    files[f"train/{TRAIN[0]}/class1.tif"] = tif(numbers(n1=(1, 2, 5), n2=(10, 2, 5)))
    files[f"train/{TRAIN[0]}/class2.tif"] = tif(
        numbers(n3=(20, 2, 5), n1000=(30, 2, 5), n1256=(40, 2, 5), n232=(1, 20, 5))
    )
    two_parts = numbers(n1=(1, 2, 5))
    two_parts[30:34, 40:44] = 1
    files[f"train/{TRAIN[1]}/class4.tif"] = tif(two_parts)
    files[f"train/{TRAIN[2]}/class2.tif"] = tif(numbers(n1=(1, 2, 5)))
    files[f"train/{TRAIN[2]}/class3.tif"] = tif(numbers(n2=(1, 10, 5)))
    files |= {f"test_release/{name}.tif": tif(picture(10 + k)) for k, name in enumerate(TEST)}
    ids = [
        {"file_name": f"{name}.tif", "id": 2 - k, "height": SIZE[0], "width": SIZE[1]} for k, name in enumerate(TEST)
    ]
    files["test_image_name_to_ids.json"] = json.dumps(ids).encode()
    return files


def pack(files: dict[str, bytes], path: Path, prefix: str = "./") -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(prefix.removeprefix("./") + name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as bundle:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))
    return path


def read(files: dict[str, bytes], tmp_path: Path, **options: Any) -> Prepared:
    return COMPETITION.read(pack(files, tmp_path / "hw3-data-release.tar.gz"), options, 0, tmp_path / "data")


def kinds(prepared: Prepared) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in prepared.integrity.problems:
        found.setdefault(problem.kind, []).append(problem.place)
    return found


# ---------------------------------------------------------------- reading ---------------------------------------------


@pytest.mark.parametrize("container", ["x.tar", "x.tar.gz", "x.zip", "folder"])
@pytest.mark.parametrize("prefix", ["./", "release/"])
def test_every_container_and_nesting_give_the_same(tmp_path: Path, container: str, prefix: str) -> None:
    path = tmp_path / container
    if container == "folder":
        for name, content in layout().items():
            place = path / prefix / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    else:
        pack(layout(), path, prefix)
    target = tmp_path / "data"
    prepared = COMPETITION.read(path, {}, 0, target)
    assert prepared.integrity.problems == []
    assert [image.file_name for image in prepared.train.images] == [f"images/train/{name}.tif" for name in TRAIN]
    assert [(image.id, image.file_name) for image in prepared.test.images] == [
        (1, f"images/test/{TEST[1]}.tif"),
        (2, f"images/test/{TEST[0]}.tif"),
    ]
    first = prepared.train.by_image[1]
    assert [instance.category_id for instance in first] == [1, 1, 2, 2, 2, 2]
    assert [instance.box[:2] for instance in first] == [(1, 2), (10, 2), (20, 2), (1, 20), (30, 2), (40, 2)]
    assert all(instance.area == 25 for instance in first)
    (parted,) = prepared.train.by_image[2]
    assert parted.box == (1.0, 2.0, 43.0, 32.0) and parted.area == 25 + 16 and parted.category_id == 4
    assert prepared.integrity.facts["instances_in_parts"] == 1
    assert prepared.integrity.facts["instances_per_class"] == {
        "epithelial": 2, "lymphocyte": 5, "neutrophil": 1, "macrophage": 1,
    }  # fmt: skip
    assert [i.id for i in prepared.train.instances] == list(range(1, 10))
    assert sorted(p.name for p in target.iterdir()) == ["images"]


def test_every_stage_reads_the_stored_images(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path)
    for dataset, first in ((prepared.train, 0), (prepared.test, 10)):
        for image in dataset.images:
            expected = picture(first + (TRAIN + TEST).index(Path(image.file_name).stem) % 3)[:, :, 2::-1]
            for reader in (samples.read_image, outlines.read_image):
                np.testing.assert_array_equal(reader(dataset.path(image)), expected)


def test_grey_images_are_read(tmp_path: Path) -> None:
    files = layout()
    grey = picture(0)[:, :, 0]
    files[f"train/{TRAIN[0]}/image.tif"] = tif(grey)
    prepared = read(files, tmp_path)
    pixels = samples.read_image(prepared.train.path(prepared.train.images[0]))
    np.testing.assert_array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))


def test_every_survivable_fault_is_collected(tmp_path: Path) -> None:
    files = layout()

    def add(name: str, image: bytes | None, **classes: bytes) -> None:
        if image is not None:
            files[f"train/{name}/image.tif"] = image
        files.update({f"train/{name}/{key}.tif": content for key, content in classes.items()})

    image, good = tif(picture(7)), tif(numbers(n1=(3, 3, 4)))
    transparent = picture(7)
    transparent[5, 5, 3] = 0
    infinite = numbers(n1=(3, 3, 4))
    infinite[0, 0] = np.nan
    add("a-alpha", tif(transparent), class1=good)
    add("b-broken-image", image[:300], class1=good)
    add("c-broken-class", image, class1=good, class2=good[:300])
    add("d-empty-class", image, class1=good, class3=tif(numbers()))
    add("e-fractions", image, class1=tif(numbers(n1=(3, 3, 4)) / 2))
    add("f-size", image, class1=tif(np.zeros((9, 9))))
    add("g-nan", image, class1=tif(infinite))
    add("h-negative", image, class1=tif(-numbers(n1=(3, 3, 4))))
    add("i-no-image", None, class1=good)
    add("j-no-class", image)
    add("k-overlap", image, class1=good, class2=tif(numbers(n2=(5, 5, 4))))
    add("l-empty", image, class1=tif(numbers()))
    files["train/Thumbs.db"] = b""
    files[f"train/{TRAIN[0]}/class5.tif"] = good
    files[f"train/{TRAIN[0]}/.class1.tif"] = good
    files["test_release/unknown.tif"] = image
    prepared = read(files, tmp_path)
    assert kinds(prepared) == {
        "alpha": ["train/a-alpha/image.tif"],
        "damaged image": ["train/b-broken-image/image.tif"],
        "damaged class file": [
            f"train/{name}/class{k}.tif"
            for name, k in (("c-broken-class", 2), ("e-fractions", 1), ("f-size", 1), ("g-nan", 1), ("h-negative", 1))
        ],
        "empty class file": ["train/d-empty-class/class3.tif", "train/l-empty/class1.tif"],
        "no image": ["train/i-no-image"],
        "image without cells": ["train/j-no-class", "train/l-empty"],
        "overlapping masks": ["train/k-overlap"],
        "stray files": [str(tmp_path / "hw3-data-release.tar.gz")],
        "unknown id": ["test_release/unknown.tif"],
    }
    texts = " ".join(str(problem) for problem in prepared.integrity.problems)
    assert "9x9 pixels, the image is 50x40" in texts and "4 pixels lie in cells of two classes" in texts
    assert "3 files that are no part" in texts and "fractions" in texts
    kept = [Path(image.file_name).stem for image in prepared.train.images]
    assert kept == [*TRAIN, "a-alpha", "d-empty-class", "k-overlap"]
    stored = sorted(path.stem for path in (tmp_path / "data" / "images" / "train").iterdir())
    assert stored == kept


def test_images_of_an_earlier_reading_go(tmp_path: Path) -> None:
    read(layout(), tmp_path)
    read({name: content for name, content in layout().items() if TRAIN[0] not in name}, tmp_path)
    stored = sorted(path.stem for path in (tmp_path / "data" / "images" / "train").iterdir())
    assert stored == TRAIN[1:]


def test_an_image_without_background(tmp_path: Path) -> None:
    files = layout()
    files[f"train/{TRAIN[2]}/class3.tif"] = tif(np.full(SIZE, 7.0))
    instance = read(files, tmp_path).train.by_image[3][-1]
    assert instance.area == SIZE[0] * SIZE[1] and instance.category_id == 3


def without(part: str) -> dict[str, bytes]:
    return {name: content for name, content in layout().items() if not name.startswith(part)}


def wrong_size() -> dict[str, bytes]:
    return {**layout(), f"test_release/{TEST[0]}.tif": tif(np.zeros((9, 9, 3), np.uint8))}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (without("train/"), "holds no train/ beside test_image_name_to_ids.json"),
        (without("test_image"), "holds no test_image_name_to_ids.json; is it the hw3-data-release.tar.gz"),
        (without("test_release/"), "not in .*tar.gz"),
        (without("train/0") | {"train/x/class1.tif": b""}, "(?s)no usable training image.*no image.tif"),
        ({**layout(), "test_image_name_to_ids.json": b"{"}, "is not JSON"),
        ({**layout(), "test_image_name_to_ids.json": b"[" * 100_000}, "is not JSON"),
        (wrong_size(), "it is 9x9, .* says 50x40"),
    ],
)
def test_what_cannot_be_survived(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(files, tmp_path)
    with pytest.raises(CompetitionError, match="needs its hw3-data-release.tar.gz"):
        COMPETITION.read(None, {}, 0, tmp_path)
    with pytest.raises(CompetitionError, match="there is none here"):
        read(files, tmp_path, group="site")


def test_missing_names_what_is_not_there() -> None:
    names = ["release/" + name for name in layout()]
    assert COMPETITION.missing(names) == [] == COMPETITION.missing(list(layout()))
    assert COMPETITION.missing([n for n in names if "test_release" not in n]) == ["test_release/<uuid>.tif"]
    assert len(COMPETITION.missing([])) == 4


# ---------------------------------------------------------------- the metric ------------------------------------------


def random_case(seed: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Two crowded images of four classes, one of which has no truth; about 1,000 detections an image."""
    rng = np.random.default_rng(seed)
    images = [Image(k, f"{k}.tif", 200, 180) for k in (3, 8)]

    def rle(x: float, y: float, side: int) -> dict[str, Any]:
        x, y = int(np.clip(x, 0, 170)), int(np.clip(y, 0, 190))
        return crop_to_rle(np.ones((side, side), np.uint8), (x, y, x + side, y + side), (200, 180), threshold=1)

    instances, records = [], []
    for image in images:
        for _ in range(330):
            x, y, side, category = (int(v) for v in (*rng.integers(0, 170, 2), rng.integers(4, 8), rng.integers(1, 4)))
            box = (float(x), float(y), float(side), float(side))
            instances.append(Instance(len(instances) + 1, image.id, category, rle(x, y, side), box, float(side**2)))
            for _ in range(3):
                moved = rle(x + rng.integers(-2, 3), y + rng.integers(-2, 3), side)
                score = round(float(np.clip(rng.normal(0.6, 0.2), 0, 1)), 3)
                guess = category if rng.random() < 0.8 else int(rng.integers(1, 5))
                records.append((image.id, guess, score, moved))
    rows = [
        {"image_id": i, "bbox": [0.0, 0.0, 5.0, 5.0], "score": s, "category_id": c, "segmentation": m}
        for i, c, s, m in records
    ]
    return Dataset(images, dict(COMPETITION.categories), instances), [rows[k] for k in rng.permutation(len(rows))]


def test_score_is_pycocotools_at_both_limits(tmp_path: Path) -> None:
    truth, records = random_case(0)
    truth.write(tmp_path / "truth.json")
    with zipfile.ZipFile(tmp_path / "any-name.zip", "w") as archive:
        archive.writestr("test-results.json", json.dumps(records))
    result = score_files("vrdl2025", tmp_path / "truth.json", tmp_path / "any-name.zip")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        for limit in (100, 1000):
            evaluation = COCOeval(coco, coco.loadRes(records), "segm")
            evaluation.params.maxDets = [1, 10, limit]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][0, :, :, 0, 2]
            expected = float(precision[precision > -1].mean())
            assert result["ap50_by_max_detections"][str(limit)] == pytest.approx(expected, abs=1e-9)
    at = result["ap50_by_max_detections"]
    assert result["score"] == at["100"] < at["1000"]
    assert result["classes"]["macrophage"] is None and result["classes"]["epithelial"] > 0
    assert json.loads(json.dumps(result)) == result


def test_how_many_detections_count_is_a_setting() -> None:
    truth, records = random_case(2)
    at = COMPETITION.score(truth, records)["ap50_by_max_detections"]
    for limit in (100, 1000):
        chosen = competitions.get("vrdl2025", limit)
        assert chosen.max_detections == limit and chosen.metric.endswith(f"maxDets={limit}")
        assert chosen.score(truth, records)["score"] == at[str(limit)]
    assert COMPETITION.max_detections == 100 and competitions.get("vrdl2025") is COMPETITION
    with pytest.raises(CompetitionError, match="submission.counted is 300, but what vrdl2021 counts is known: 100"):
        competitions.get("vrdl2021", 300)
    experiment = load("vrdl2025", {"submission.counted": 1000})
    assert competitions.get(experiment.competition, experiment.submission.counted).max_detections == 1000


def test_written_submission_is_valid_and_keeps_many(tmp_path: Path) -> None:
    truth, records = random_case(1)
    COMPETITION.write(Detections.from_coco(records), truth, tmp_path / "out.zip")
    problems = COMPETITION.validate(tmp_path / "out.zip", truth)
    assert not [p for p in problems if p.severity == "error" or p.kind == "count"]  # 1,980, and 1,000 may count
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["test-results.json"]
        assert len(json.loads(archive.read("test-results.json"))) == 1980
    scored = COMPETITION.score(truth, COMPETITION.read_submission(tmp_path / "out.zip"))
    assert scored["detections"] == 1980


# ---------------------------------------------------------------- the real files --------------------------------------


def real(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"needs the competition's files at {path}")
    return path


def test_real_sample(tmp_path: Path) -> None:
    """The one real sample, as the only training image of a tar.gz made here."""
    sample = real("sample-image")
    files = {f"train/2f1e/{p.name}": p.read_bytes() for p in sorted(sample.iterdir())}
    files["test_release/2f1e.tif"] = files["train/2f1e/image.tif"]
    files["test_image_name_to_ids.json"] = json.dumps(
        [{"file_name": "2f1e.tif", "id": 1, "height": 397, "width": 482}]
    ).encode()
    prepared = read(files, tmp_path)
    assert prepared.integrity.problems == []
    assert prepared.integrity.facts["instances_per_class"] == {
        "epithelial": 2, "lymphocyte": 159, "neutrophil": 0, "macrophage": 0,
    }  # fmt: skip
    for category_id in (1, 2):
        pixels = cv2.imread(str(sample / f"class{category_id}.tif"), cv2.IMREAD_UNCHANGED)
        own = [a for a in prepared.train.instances if a.category_id == category_id]
        for instance, number in zip(own, np.unique(pixels)[1:], strict=True):
            expected = coco_mask.encode(np.asfortranarray(pixels == number))["counts"].decode()
            assert instance.rle == {"size": [397, 482], "counts": expected}
    image = samples.read_image(prepared.test.path(prepared.test.images[0]))
    assert image.shape == (397, 482, 3)


def test_real_ids_and_example_submission(tmp_path: Path) -> None:
    ids = COMPETITION.read_ids(real("test_image_name_to_ids.json"))
    assert len(ids.images) == 101 and sorted(ids.image) == list(range(1, 102))
    assert (ids.image[1].file_name[:8], ids.image[1].height, ids.image[1].width) == ("c8cb7626", 446, 512)
    assert (min(i.height for i in ids.images), max(i.width for i in ids.images)) == (33, 1987)
    problems, valid = validate_files("vrdl2025", real("test_image_name_to_ids.json"), real("submission_example.zip"))
    errors = [p for p in problems if p.severity == "error"]
    assert not valid and [("corners" in p.text) for p in errors] == [True]


def test_real_annotations(tmp_path: Path) -> None:
    """50 images' true masks as a submission: a perfect score; a class swapped away costs just that class."""
    plain = tmp_path / "truth.json"
    plain.write_bytes(gzip.decompress(real("val_coco.json.gz").read_bytes()))
    truth = COMPETITION.read_truth(plain)
    assert len(truth.images) == 50 and len(truth.instances) == 6860
    without_zero = Dataset(truth.images, truth.categories, [a for a in truth.instances if a.id], truth.root)
    records = [
        {
            "image_id": a.image_id, "bbox": list(a.box), "score": 0.9,
            "category_id": a.category_id, "segmentation": a.rle,
        }
        for a in without_zero.instances
    ]  # fmt: skip
    result = COMPETITION.score(without_zero, records)
    assert result["ap50_by_max_detections"]["1000"] == pytest.approx(1, abs=1e-9)
    assert result["score"] < 0.9  # up to 772 cells an image: 100 cannot be all of them
    for record in records:
        record["category_id"] = 2 if record["category_id"] == 1 else record["category_id"]
    classes = COMPETITION.score(without_zero, records)["classes"]
    assert classes["class1"] == 0 and classes["class3"] == classes["class4"] == pytest.approx(1, abs=1e-9)


def test_real_folder_is_left_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(real("sample-image"), tmp_path / "in" / "train" / "x")
    with pytest.raises(CompetitionError, match="holds no test_image_name_to_ids.json"):
        COMPETITION.read(tmp_path / "in", {}, 0, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
