"""VRDL 2021: a drawn copy of its layout with every fault, and the real files where they are."""

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.competitions import CompetitionError, Prepared
from pipeline.competitions.vrdl2021 import COMPETITION, TRUTH_CAP
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vrdl2021"
SIZE = (50, 60)
TRAIN = ["TCGA-18-0001-01Z-00-DX1", "TCGA-18-0002-01Z-00-DX1", "TCGA-B0-0003-01Z-00-DX1"]
TEST = ["TCGA-A7-0004-01Z-00-DX1", "TCGA-ZZ-0005-01Z-00-DX1"]


def png(pixels: np.ndarray) -> bytes:
    good, content = cv2.imencode(".png", pixels)
    assert good
    return content.tobytes()


def square(x: int, y: int, side: int = 6) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + side, x : x + side] = 255
    return mask


def layout() -> dict[str, bytes]:
    """File contents by name, as handed out: masks at (5, 7), (20, 7), (35, 7)."""
    rng = np.random.default_rng(0)
    files = {}
    for name in TRAIN:
        files[f"train/{name}/images/{name}.png"] = png(rng.integers(0, 256, (*SIZE, 3), np.uint8))
        for k in range(3):
            files[f"train/{name}/masks/mask_{k + 1:04d}.png"] = png(square(5 + 15 * k, 7))
    ids = []
    for k, name in enumerate(TEST):
        files[f"test/{name}.png"] = png(rng.integers(0, 256, (*SIZE, 3), np.uint8))
        ids.append({"file_name": f"{name}.png", "height": SIZE[0], "id": 2 - k, "width": SIZE[1]})
    files["test_img_ids.json"] = json.dumps(ids).encode()
    return files


def pack(files: dict[str, bytes], path: Path, prefix: str = "dataset/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def read(files: dict[str, bytes], tmp_path: Path, **options: Any) -> Prepared:
    return COMPETITION.read(pack(files, tmp_path / "dataset.zip"), options, 0, tmp_path / "data")


def kinds(prepared: Prepared) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in prepared.integrity.problems:
        found.setdefault(problem.kind, []).append(problem.place)
    return found


# ---------------------------------------------------------------- reading ---------------------------------------------


@pytest.mark.parametrize("prefix", ["", "dataset/", "a/dataset/"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_zip_folder_and_nesting_give_the_same(tmp_path: Path, prefix: str, unpacked: bool) -> None:
    path = pack(layout(), tmp_path / "dataset.zip", prefix)
    if unpacked:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "folder")
        path = tmp_path / "folder"
    prepared = COMPETITION.read(path, {}, 0, tmp_path / "data")
    assert prepared.integrity.problems == []
    assert [image.file_name for image in prepared.train.images] == [f"images/train/{name}.png" for name in TRAIN]
    assert [(image.id, image.file_name) for image in prepared.test.images] == [
        (1, f"images/test/{TEST[1]}.png"),
        (2, f"images/test/{TEST[0]}.png"),
    ]
    for dataset in (prepared.train, prepared.test):
        for image in dataset.images:
            picture = cv2.imread(str(dataset.path(image)))
            assert picture is not None and picture.shape == (*SIZE, 3)
    assert [instance.id for instance in prepared.train.instances] == list(range(1, 10))
    instance = prepared.train.by_image[2][1]
    assert instance.box == (20.0, 7.0, 6.0, 6.0) and instance.area == 36.0 and instance.category_id == 1
    box, mask = rle_to_crop(instance.rle)
    assert box.tolist() == [20, 7, 26, 13] and mask.all() and instance.rle["size"] == list(SIZE)
    assert prepared.test.instances == []


def test_written_and_read_again(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path)
    prepared.train.write(tmp_path / "data" / "train.json")
    again = Dataset.read(tmp_path / "data" / "train.json")
    assert again.images == prepared.train.images and again.instances == prepared.train.instances


def test_groups_and_strata(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path)
    assert [image.group for image in prepared.train.images] == ["TCGA-18", "TCGA-18", "TCGA-B0"]
    assert [COMPETITION.stratum(image) for image in prepared.train.images] == ["lung", "lung", "kidney"]
    assert COMPETITION.stratum(prepared.test.images[0]) == "ZZ"  # a site that is not in the table stands for itself
    prepared = read(layout(), tmp_path, group="patient")
    assert [image.group for image in prepared.train.images] == ["TCGA-18-0001", "TCGA-18-0002", "TCGA-B0-0003"]


def test_stray_files_are_left_alone(tmp_path: Path) -> None:
    files = layout()
    first, name = files[f"train/{TRAIN[0]}/masks/mask_0001.png"], TRAIN[0]
    stray = [
        f"train/{name}/masks/.ipynb_checkpoints/mask_0001-checkpoint.png",
        f"train/{name}/masks/mask_0001_aug.png",
        f"train/{name}/images/{name}_aug.png",
        f"train/{name}_aug/images/{name}_aug.png",
        f"train/{name}_aug/masks/mask_0001.png",
        f"train/{name}/masks/notes.txt",
        f"train/{name}/masks/other.png",
        "train/Thumbs.db",
        "test/.ipynb_checkpoints/x-checkpoint.png",
    ]
    prepared = read({**files, **dict.fromkeys(stray, first)}, tmp_path)
    assert len(prepared.train.images) == 3 and len(prepared.train.instances) == 9
    (problem,) = prepared.integrity.problems
    assert problem.kind == "stray files" and problem.text.startswith("9 files")


def test_every_survivable_fault_is_collected(tmp_path: Path) -> None:
    files = layout()
    masks = f"train/{TRAIN[0]}/masks"
    touching, dim = square(5, 7), square(45, 30)
    touching[:] = square(9, 11)  # shares 2 x 2 pixels with the first mask
    dim[30, 45] = 200
    files[f"{masks}/mask_0002.png"] = files[f"{masks}/mask_0002.png"][:60]
    files[f"{masks}/mask_0004.png"] = png(np.zeros(SIZE, np.uint8))
    files[f"{masks}/mask_0005.png"] = files[f"{masks}/mask_0001.png"]
    files[f"{masks}/mask_0006.png"] = png(np.zeros((9, 9), np.uint8))
    files[f"{masks}/mask_0007.png"] = png(touching)
    files[f"{masks}/mask_0008.png"] = png(dim)
    files[f"{masks}/mask_0009.png"] = b""
    for k in range(3):
        del files[f"train/{TRAIN[1]}/masks/mask_{k + 1:04d}.png"]
    files["train/no-image/masks/mask_0001.png"] = files[f"{masks}/mask_0001.png"]
    files["train/broken/images/broken.png"] = files[f"train/{TRAIN[0]}/images/{TRAIN[0]}.png"][:500]
    files["train/broken/masks/mask_0001.png"] = files[f"{masks}/mask_0001.png"]
    files["test/unknown.png"] = files[f"test/{TEST[0]}.png"]
    prepared = read(files, tmp_path)
    assert kinds(prepared) == {
        "damaged mask": [f"{masks}/mask_0002.png", f"{masks}/mask_0006.png", f"{masks}/mask_0009.png"],
        "empty mask": [f"{masks}/mask_0004.png"],
        "duplicate mask": [f"{masks}/mask_0005.png"],
        "values": [f"{masks}/mask_0008.png"],
        "overlapping masks": [f"train/{TRAIN[0]}"],
        "image without masks": [f"train/{TRAIN[1]}"],
        "no image": ["train/no-image"],
        "damaged image": ["train/broken/images"],
        "unknown id": ["test/unknown.png"],
    }
    texts = " ".join(str(problem) for problem in prepared.integrity.problems)
    assert "cut off after 60 bytes" in texts and "9x9 pixels, the image is 60x50" in texts
    assert "the same as mask_0001.png" in texts and "4 pixels lie in more than one mask" in texts
    assert [image.file_name for image in prepared.train.images] == [f"images/train/{TRAIN[k]}.png" for k in (0, 2)]
    assert len(prepared.train.by_image[1]) == 4
    assert prepared.integrity.to_json()["problems"][0].keys() == {"severity", "kind", "file", "text"}


def test_image_under_another_name(tmp_path: Path) -> None:
    files = layout()
    files[f"train/{TRAIN[0]}/images/slide.png"] = files.pop(f"train/{TRAIN[0]}/images/{TRAIN[0]}.png")
    assert read(files, tmp_path).train.images[0].file_name == f"images/train/{TRAIN[0]}.png"


def test_images_of_an_earlier_reading_go(tmp_path: Path) -> None:
    read(layout(), tmp_path)
    files = {name: content for name, content in layout().items() if TRAIN[0] not in name}
    read(files, tmp_path)
    assert not (tmp_path / "data" / "images" / "train" / f"{TRAIN[0]}.png").exists()
    assert (tmp_path / "data" / "images" / "train" / f"{TRAIN[1]}.png").exists()


def without(part: str) -> dict[str, bytes]:
    return {name: content for name, content in layout().items() if not name.startswith(part)}


def with_ids(ids: Any) -> dict[str, bytes]:
    return {**layout(), "test_img_ids.json": ids if isinstance(ids, bytes) else json.dumps(ids).encode()}


def broken_test_image() -> dict[str, bytes]:
    files = layout()
    files[f"test/{TEST[0]}.png"] = files[f"test/{TEST[0]}.png"][:99]
    del files[f"test/{TEST[1]}.png"]
    return files


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (without("train/"), "holds no train/ beside test_img_ids.json"),
        (without("test_img_ids.json"), "holds no test_img_ids.json; is it the dataset.zip"),
        (without("test/"), "not in .*dataset.zip"),
        (with_ids(b"{"), "test_img_ids.json in .* is not JSON"),
        (with_ids([{"file_name": "a.png"}]), "image 0 has no height"),
        (with_ids([]), "no test image"),
        (broken_test_image(), f"(?s)test/{TEST[1]}.png: it is in.*test/{TEST[0]}.png: it is cut off"),
        ({**without("train/"), "train/a/masks/mask_0001.png": png(square(1, 1))}, "(?s)no usable training.*no image"),
    ],
)
def test_what_cannot_be_survived(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(files, tmp_path)


def test_bad_paths_and_options(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="needs its dataset.zip"):
        COMPETITION.read(None, {}, 0, tmp_path)
    with pytest.raises(CompetitionError, match="did you mean 'group'"):
        read(layout(), tmp_path, gruop="site")
    with pytest.raises(CompetitionError, match="'site' or 'patient' .it is 'organ'"):
        read(layout(), tmp_path, group="organ")


# ---------------------------------------------------------------- the metric ------------------------------------------


def random_case(seed: int, first_id: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Up to 130 truths an image and 160 detections, so that the limit of 100 bites; one image has no truth."""
    rng = np.random.default_rng(seed)
    images = [Image(k + 1, f"{k}.png", 200, 180) for k in range(3)]

    def rle(x: int, y: int, w: int, h: int) -> dict[str, Any]:
        x, y = int(np.clip(x, 0, 170)), int(np.clip(y, 0, 190))
        return crop_to_rle(np.ones((h, w), np.uint8), (x, y, x + w, y + h), (200, 180), threshold=1)

    instances, records = [], []
    for image in images[:2]:
        for _ in range(int(rng.integers(60, 130))):
            x, y, w, h = (int(v) for v in (*rng.integers(0, 170, 2), *rng.integers(4, 10, 2)))
            mask = rle(x, y, w, h)
            instances.append(Instance(first_id + len(instances), image.id, 1, mask, (x, y, w, h), float(w * h)))
            if rng.random() < 0.9:
                dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
                score = float(np.clip(rng.normal(0.7, 0.2), 0, 1))
                records.append((image.id, score, rle(x + dx, y + dy, w, h)))
    for image in images:
        for _ in range(60):
            mask = rle(*(int(v) for v in (*rng.integers(0, 170, 2), *rng.integers(4, 10, 2))))
            records.append((image.id, float(np.clip(rng.normal(0.5, 0.2), 0, 1)), mask))
    rows = [
        {"image_id": i, "bbox": [0.0, 0.0, 5.0, 5.0], "score": s, "category_id": 1, "segmentation": m}
        for i, s, m in records
    ]
    return Dataset(images, {1: "nucleus"}, instances), [rows[k] for k in rng.permutation(len(rows))]


@pytest.mark.parametrize("first_id", [0, 1])
@pytest.mark.parametrize("suffix", ["zip", "json", "parquet"])
def test_score_of_files_is_what_the_server_computes(tmp_path: Path, first_id: int, suffix: str) -> None:
    truth, records = random_case(first_id, first_id)
    truth.write(tmp_path / "truth.json")
    submission = tmp_path / f"answer.{suffix}"
    if suffix == "json":
        submission.write_text(json.dumps(records))
    elif suffix == "zip":
        with zipfile.ZipFile(submission, "w") as archive:
            archive.writestr("answer.json", json.dumps(records))
    else:
        Detections.from_coco(records).write(submission)
    result = score_files("vrdl2021", tmp_path / "truth.json", submission)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(records), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert result["score"] == pytest.approx(evaluation.stats[1], abs=1e-9)
    assert 0.2 < result["score"] < 0.95
    assert result["competition"] == "vrdl2021" and result["metric"] == "segm AP50 maxDets=100"
    assert json.loads(json.dumps(result)) == result
    per_image = result["true_positives_per_image"]
    assert list(per_image) == ["1", "2", "3"] and per_image["3"] == 0 < per_image["1"] <= 100
    assert result["true_positives_in_first_100"] == sum(per_image.values())


def test_capped_truths_change_only_crowded_images(tmp_path: Path) -> None:
    truth, records = random_case(4, 1)
    result = COMPETITION.score(truth, records)
    assert result["ap50_capped_truths"] == result["score"]  # no image holds as many as the cap
    size = (1000, 1000)
    boxes = [(12 * (k % 80), 12 * (k // 80), 12 * (k % 80) + 8, 12 * (k // 80) + 8) for k in range(2 * TRUTH_CAP)]
    rles = [crop_to_rle(np.ones((8, 8), np.uint8), box, size, threshold=1) for box in boxes]
    crowded = Dataset(
        [Image(1, "a.png", *size)],
        {1: "nucleus"},
        [Instance(k + 1, 1, 1, rle, (0, 0, 8, 8), 64.0) for k, rle in enumerate(rles)],
    )
    records = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle} for rle in rles[:100]]
    result = COMPETITION.score(crowded, records)
    assert result["score"] == pytest.approx(13 / 101)  # recall ends at 100 / 780
    assert result["ap50_capped_truths"] == pytest.approx(26 / 101)  # recall ends at 100 / 390
    assert result["true_positives_in_first_100"] == 100


def test_nothing_found_scores_zero() -> None:
    truth, _ = random_case(4, 1)
    assert COMPETITION.score(truth, [])["score"] == 0.0


def test_score_says_what_is_wrong(tmp_path: Path) -> None:
    truth, records = random_case(4, 1)
    truth.write(tmp_path / "truth.json")
    submission = tmp_path / "answer.json"
    with pytest.raises(FileNotFoundError, match=r"answer\.json"):
        score_files("vrdl2021", tmp_path / "truth.json", submission)
    submission.write_text(json.dumps([{**records[0], "image_id": 77}]))
    with pytest.raises(ValueError, match="77"):
        score_files("vrdl2021", tmp_path / "truth.json", submission)
    wrong = dict(records[0])
    wrong["segmenation"] = wrong.pop("segmentation")
    submission.write_text(json.dumps([wrong]))
    with pytest.raises(ValueError, match="no 'segmentation'.*validate"):
        score_files("vrdl2021", tmp_path / "truth.json", submission)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        score_files("vrdl2021", tmp_path / "none.json", submission)


# ---------------------------------------------------------------- the real files --------------------------------------


def real(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"needs the competition's files at {path}")
    return path


def test_real_archive(tmp_path: Path) -> None:
    path = real("dataset.zip")
    prepared = COMPETITION.read(path, {}, 0, tmp_path)
    assert (len(prepared.train.images), len(prepared.train.instances)) == (24, 14598)
    assert [image.file_name for image in prepared.test.images][0] == "images/test/TCGA-A7-A13E-01Z-00-DX1.png"
    assert [image.id for image in prepared.test.images] == [1, 2, 3, 4, 5, 6]
    counts = [len(found) for found in prepared.train.by_image.values()]
    assert (min(counts), max(counts)) == (294, 1862)
    assert [problem.kind for problem in prepared.integrity.problems] == ["stray files"]
    assert len({image.group for image in prepared.train.images}) == 15
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path) as archive:  # masks against an ordinary decoder
        for k in rng.integers(0, 24, 12):
            image = prepared.train.images[k]
            own = prepared.train.by_image[image.id]
            number = int(rng.integers(len(own)))
            name = Path(image.file_name).stem
            content = archive.read(f"dataset/train/{name}/masks/mask_{number + 1:04d}.png")
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
            x0, y0, x1, y1 = rle_to_crop(own[number].rle)[0]
            frame = np.zeros_like(pixels)
            frame[y0:y1, x0:x1] = rle_to_crop(own[number].rle)[1] * 255
            np.testing.assert_array_equal(frame, pixels)


def test_real_submissions_are_valid(tmp_path: Path) -> None:
    with zipfile.ZipFile(real("dataset.zip")) as archive:
        (tmp_path / "ids.json").write_bytes(archive.read("dataset/test_img_ids.json"))
    submissions = sorted(real("submissions").glob("*.zip"))
    assert len(submissions) == 10
    for path in submissions:
        assert validate_files("vrdl2021", tmp_path / "ids.json", path) == ([], True), path
        assert len(COMPETITION.read_submission(path)) == 600


def test_real_submission_scored_against_itself(tmp_path: Path) -> None:
    """Another's detections as the truth: a perfect score for itself, and less for the next."""
    first, second = sorted(real("submissions").glob("*.zip"))[-2:]
    records = COMPETITION.read_submission(second)
    instances = [
        Instance(k + 1, r["image_id"], 1, r["segmentation"], tuple(r["bbox"]), 100.0) for k, r in enumerate(records)
    ]
    truth = Dataset([Image(k, f"{k}.png", 1000, 1000) for k in range(1, 7)], {1: "nucleus"}, instances)
    truth.write(tmp_path / "truth.json")
    shutil.copy(second, tmp_path / "answer.zip")
    assert score_files("vrdl2021", tmp_path / "truth.json", tmp_path / "answer.zip")["score"] == pytest.approx(
        1, abs=1e-9
    )
    assert 0.3 < score_files("vrdl2021", tmp_path / "truth.json", first)["score"] < 0.99
