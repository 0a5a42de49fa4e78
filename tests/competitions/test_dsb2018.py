"""Data Science Bowl 2018: a drawn copy of its layouts with their faults, and the real files where they are."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.competitions import CompetitionError, Prepared
from pipeline.competitions.dsb2018 import COMPETITION, FORM, modality
from pipeline.competitions.formats.kaggle_rle import from_rle
from pipeline.competitions.formats.rle_csv import write_records, write_rows
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.metrics import dsb
from pipeline.records import Dataset, Detections
from pipeline.stages.fuse import fuse_files
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dsb2018"
SIZE = (40, 60)
TRAIN = ["aaaa01", "aaaa02", "aaaa03"]
TEST = ["bbbb01", "bbbb02"]


def png(pixels: np.ndarray) -> bytes:
    good, content = cv2.imencode(".png", pixels)
    assert good
    return content.tobytes()


def square(x: int, y: int, side: int = 6) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y : y + side, x : x + side] = 255
    return mask


def noise(seed: int, channels: int = 4) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 40, (*SIZE, channels)).astype(np.uint8)
    image[:, :, :3] = image[:, :, :1]
    if channels == 4:
        image[:, :, 3] = 255
    return image


def layout(masks: bool = True) -> dict[str, bytes]:
    """File contents by name: RGBA, RGB and grey images; masks at (5, 7), (20, 7), (35, 7)."""
    files = {}
    for k, name in enumerate(TRAIN):
        picture = noise(k, 3 + k % 2) if k < 2 else noise(k)[:, :, 0]
        files[f"stage1_train/{name}/images/{name}.png"] = png(picture)
        for m in range(3 if masks else 0):
            files[f"stage1_train/{name}/masks/{name}{m}.png"] = png(square(5 + 15 * m, 7))
    for k, name in enumerate(TEST):
        files[f"stage1_test/{name}/images/{name}.png"] = png(noise(9 + k))
    files["stage1_sample_submission.csv"] = ("ImageId,EncodedPixels\n" + "".join(f"{n},1 1\n" for n in TEST)).encode()
    return files


def labels() -> bytes:
    rows = []
    for name in TRAIN:
        for m in range(3):
            mask = square(5 + 15 * m, 7) // 255
            rows.append(f"{name},{from_rle(crop_to_rle(mask, (0, 0, 60, 40), SIZE, 1), 'columns')}")
    return ("ImageId,EncodedPixels\n" + "\n".join(rows)).encode()


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def inner_zips(files: dict[str, bytes]) -> dict[str, bytes]:
    """As Kaggle hands it out: a zip for each part, with the ids at its top."""
    out = {name: data for name, data in files.items() if "/" not in name}
    for part in ("stage1_train", "stage1_test"):
        own = {n.removeprefix(part + "/"): data for n, data in files.items() if n.startswith(part + "/")}
        out[f"{part}.zip"] = zipped(own)
    return out


def read(files: dict[str, bytes], tmp_path: Path, **options: Any) -> Prepared:
    return COMPETITION.read(unpack(files, tmp_path / "in"), options, 0, tmp_path / "data")


def kinds(prepared: Prepared) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in prepared.integrity.problems:
        found.setdefault(problem.kind, []).append(problem.place)
    return found


# ---------------------------------------------------------------- reading ---------------------------------------------


@pytest.mark.parametrize("way", ["unpacked", "nested", "zips", "one zip", "zips in a zip", "no part names"])
def test_every_way_of_handing_it_out_gives_the_same(tmp_path: Path, way: str) -> None:
    files = layout()
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder
    if way in ("unpacked", "nested"):
        unpack({("x/y/" if way == "nested" else "") + name: data for name, data in files.items()}, folder)
    elif way == "zips":
        unpack(inner_zips(files), folder)
    elif way == "no part names":  # the test images are those without masks
        unpack({name.split("/", 1)[-1]: data for name, data in files.items()}, folder)
    else:
        path = folder / "data-science-bowl-2018.zip"
        path.write_bytes(zipped(files if way == "one zip" else inner_zips(files)))
    prepared = COMPETITION.read(path, {}, 0, tmp_path / "data")
    assert prepared.integrity.problems == []
    assert [i.file_name for i in prepared.train.images] == [f"images/train/fluorescence/{n}.png" for n in TRAIN]
    assert [(i.id, i.file_name, i.group) for i in prepared.train.images][0] == (
        1, "images/train/fluorescence/aaaa01.png", "aaaa01",
    )  # fmt: skip
    assert [(i.id, i.file_name, i.height) for i in prepared.test.images] == [
        (k, f"images/test/{name}.png", SIZE[0]) for k, name in enumerate(TEST, start=1)
    ]
    instance = prepared.train.by_image[2][1]
    assert instance.box == (20.0, 7.0, 6.0, 6.0) and instance.area == 36.0
    for dataset in (prepared.train, prepared.test):
        for image in dataset.images:
            assert cv2.imread(str(dataset.path(image))).shape == (*SIZE, 3)
    assert prepared.integrity.facts["modalities"] == {"fluorescence": 3}
    assert {COMPETITION.stratum(image) for image in prepared.train.images} == {"fluorescence 60x40"}


def test_labels_where_the_mask_files_are_missing(tmp_path: Path) -> None:
    by_masks = read(layout(), tmp_path / "a")
    by_labels = read({**layout(masks=False), "stage1_train_labels.csv": labels()}, tmp_path / "b")
    assert by_labels.train.instances == by_masks.train.instances and by_labels.integrity.problems == []
    with_zip = {**layout(masks=False), "stage1_train_labels.csv.zip": zipped({"stage1_train_labels.csv": labels()})}
    assert read(with_zip, tmp_path / "c").train.instances == by_masks.train.instances
    broken = labels().replace(b"aaaa02,", b"aaaa02,9999 1 ")
    faulty = read({**layout(masks=False), "stage1_train_labels.csv": broken}, tmp_path / "d")
    assert [p.kind for p in faulty.integrity.problems] == ["damaged mask"] * 3 + ["image without masks"]
    assert "stage1_train_labels.csv, line 5" in kinds(faulty)["damaged mask"]


def test_the_second_stage_is_predicted_where_it_is_there(tmp_path: Path) -> None:
    files = layout()
    for name in ("cccc01", "cccc02", "cccc03"):
        files[f"stage2_test_final/{name}/images/{name}.png"] = png(noise(30))
    files["stage2_sample_submission_final.csv"] = b"ImageId,EncodedPixels\ncccc01,1 1\ncccc02,1 1\n"
    prepared = read(files, tmp_path)
    assert [Path(i.file_name).stem for i in prepared.test.images] == ["cccc01", "cccc02"]
    assert kinds(prepared) == {"unknown id": ["stage2_test_final/cccc03"]}
    assert prepared.integrity.facts["test_stage"] == 2
    first = read(files, tmp_path, stage=1)
    assert [Path(i.file_name).stem for i in first.test.images] == TEST
    assert not (tmp_path / "data" / "images" / "test" / "cccc01.png").exists()  # of the earlier reading
    with pytest.raises(CompetitionError, match=r"no test images; put stage2_test_final\.zip beside"):
        read(layout(), tmp_path / "other", stage=2)


def test_every_survivable_fault_is_collected(tmp_path: Path) -> None:
    files = layout()
    masks = f"stage1_train/{TRAIN[0]}/masks"
    files[f"{masks}/{TRAIN[0]}1.png"] = files[f"{masks}/{TRAIN[0]}1.png"][:50]
    files[f"{masks}/empty.png"] = png(np.zeros(SIZE, np.uint8))
    files[f"{masks}/again.png"] = files[f"{masks}/{TRAIN[0]}0.png"]
    files[f"{masks}/touching.png"] = png(square(9, 11))
    files[f"stage1_train/{TRAIN[1]}/images/{TRAIN[1]}.png"] = b"\x89PNG\r\n\x1a\nbroken"
    files["stage1_train/none/masks/a.png"] = png(square(1, 1))
    files["stage1_train/bare/images/bare.png"] = png(noise(3))
    files["__MACOSX/stage1_train/x/images/x.png"] = b"x"
    files["stage1_train/aaaa03/masks/.ipynb_checkpoints/x.png"] = b"x"
    files[f"fixes/stage1_train/{TRAIN[2]}/images/{TRAIN[2]}.png"] = png(noise(3))
    prepared = read(files, tmp_path)
    assert kinds(prepared) == {
        "image twice": ["stage1_train (kept: fixes/stage1_train)"],
        "damaged mask": [f"{masks}/{TRAIN[0]}1.png"],
        "empty mask": [f"{masks}/empty.png"],
        "duplicate mask": [f"{masks}/again.png"],
        "overlapping masks": [f"stage1_train/{TRAIN[0]}"],
        "damaged image": [f"stage1_train/{TRAIN[1]}/images"],
        "image without masks": [f"stage1_train/{TRAIN[2]}", "stage1_train/bare"],
        "no image": ["stage1_train/none"],
    }


def test_sixteen_bits_are_stretched_to_eight(tmp_path: Path) -> None:
    files = layout()
    dim = np.linspace(100, 4095, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    files[f"stage1_test/{TEST[0]}/images/{TEST[0]}.png"] = png(dim)
    prepared = read(files, tmp_path)
    stored = cv2.imread(str(prepared.test.path(prepared.test.images[0])), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint8 and stored.min() == 0 and stored.max() == 255


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((14, 14, 14), "fluorescence"),
        ((226, 226, 226), "brightfield"),
        ((180, 162, 201), "histology-purple"),
        ((198, 193, 201), "histology"),
        ((227, 227, 203), "histology"),
    ],
)
def test_modality_is_told_by_the_background(colour: tuple[int, int, int], expected: str) -> None:
    rng = np.random.default_rng(0)
    picture = np.full((30, 30, 3), colour[::-1], np.int64)
    if expected.startswith("histology"):
        picture[:9, :9] = (150, 60, 120)
    picture = np.clip(picture + rng.integers(-2, 3, (30, 30, 1)), 0, 255).astype(np.uint8)
    assert modality(picture) == expected
    assert modality(np.dstack([picture, np.full((30, 30), 255, np.uint8)])) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stage1_train": None}, "no usable training image"),
        ({"stage1_test": None}, r"no test images; put stage1_test or stage2_test_final\.zip beside stage1_train\.zip"),
        ({"stage1_test/bbbb01": None}, "(?s)every test image must be whole.*bbbb01: it is in stage1_sample"),
        ({"stage1_test/bbbb02/images/bbbb02.png": b"no"}, "(?s)every test image.*stage1_test/bbbb02: it is not a PNG"),
        ({"stage1_sample_submission.csv": b"a,b\n"}, "stage1_sample_submission.csv has no column imageid"),
    ],
)
def test_what_cannot_be_survived(tmp_path: Path, change: dict[str, bytes | None], expected: str) -> None:
    files = layout()
    for start, content in change.items():
        files = {n: d for n, d in files.items() if not n.startswith(start)} | ({start: content} if content else {})
    with pytest.raises(CompetitionError, match=expected):
        read(files, tmp_path)


def test_bad_paths_and_options(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="needs its zips"):
        COMPETITION.read(None, {}, 0, tmp_path)
    with pytest.raises(CompetitionError, match="did you mean 'stage'"):
        read(layout(), tmp_path, stages=1)
    with pytest.raises(CompetitionError, match="stage: .*1 or 2 .it is 3"):
        read(layout(), tmp_path, stage=3)


def test_what_is_missing() -> None:
    files = list(layout())
    assert COMPETITION.missing(files) == []
    assert COMPETITION.missing(["x/" + name for name in files]) == []
    assert COMPETITION.missing(["stage1_train.zip", "stage1_test.zip"]) == []
    assert len(COMPETITION.missing([])) == 3
    assert COMPETITION.missing([n for n in files if "masks" not in n]) == [
        "stage1_train/<id>/masks/*.png, or stage1_train_labels.csv"
    ]
    assert COMPETITION.missing(["stage1_train.zip"]) == ["stage1_test or stage2_test_final/<id>/images/<id>.png"]
    assert COMPETITION.missing([n for n in files if "stage1_test" not in n]) == [
        "stage1_test or stage2_test_final/<id>/images/<id>.png"
    ]


# ---------------------------------------------------------------- submissions -----------------------------------------


def test_files_alone_score_validate_and_fuse(tmp_path: Path) -> None:
    """Solution and submissions as CSV, through the commands that work on files alone."""
    rle = {x: from_rle(crop_to_rle(square(x, 7) // 255, (0, 0, 60, 40), SIZE, 1), "columns") for x in (5, 20, 35)}
    truth = tmp_path / "stage1_solution.csv"
    rows = [f"{TEST[0]},{rle[x]},{SIZE[0]},{SIZE[1]},Private" for x in rle]
    truth.write_text(
        "ImageId,EncodedPixels,Height,Width,Usage\n" + "\n".join(rows) + f"\n{TEST[1]},1 1,40,60,Ignored\n"
    )
    contents = {"a": [5, 20, 35], "b": [5, 20], "c": [5, 35]}
    for name, masks in contents.items():
        own = [(TEST[0], rle[x]) for x in masks] + [(TEST[1], "1 1")]
        write_rows(own, tmp_path / f"{name}.csv", FORM)
        assert validate_files("dsb2018", truth, tmp_path / f"{name}.csv") == ([], True)
    assert score_files("dsb2018", truth, tmp_path / "a.csv")["score"] == 1.0
    assert score_files("dsb2018", truth, tmp_path / "b.csv")["score"] == pytest.approx(2 / 3)
    paths = [tmp_path / f"{name}.csv" for name in contents]
    fused = fuse_files("dsb2018", paths, tmp_path / "fused.csv", truth)
    assert fused["problems"] == [] and score_files("dsb2018", truth, tmp_path / "fused.csv")["score"] == 1.0
    fuse_files("dsb2018", [paths[1], paths[1], paths[2]], tmp_path / "fused.csv", truth)
    kept = score_files("dsb2018", truth, tmp_path / "fused.csv")
    assert kept["detections"] == 2  # what one of three has is left out
    with pytest.raises(CompetitionError, match="--ids"):
        fuse_files("dsb2018", paths, tmp_path / "fused.csv")


def test_the_command_line(tmp_path: Path) -> None:
    truth = tmp_path / "stage1_solution.csv"
    truth.write_text("ImageId,EncodedPixels,Height,Width,Usage\naa,1 4,4,5,Public\n")
    submission = tmp_path / "s.csv"
    submission.write_text("ImageId,EncodedPixels\naa,1 3\n")
    base = [sys.executable, "-m", "pipeline"]
    done = subprocess.run(
        [*base, "score", "--competition", "dsb2018", "--truth", str(truth), str(submission)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["competition"] == "dsb2018" and result["metric"] == COMPETITION.metric
    assert result["score"] == 0.5  # an IoU of 3/4 is above 0.50 to 0.70
    done = subprocess.run(
        [*base, "validate", "--competition", "dsb2018", "--ids", str(truth), str(submission)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["valid"] is True


# ---------------------------------------------------------------- the real files --------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    if not (REAL / "stage1_train.zip").exists():
        pytest.skip(f"needs the competition's files at {REAL}")
    return COMPETITION.read(REAL, {}, 0, tmp_path_factory.mktemp("real"))


def test_real_zips(real: Prepared) -> None:
    assert (len(real.train.images), len(real.train.instances), len(real.test.images)) == (221, 9545, 65)
    assert real.integrity.facts["modalities"] == {
        "fluorescence": 185, "histology-purple": 22, "histology": 8, "brightfield": 6,
    }  # fmt: skip
    assert Counter(p.kind for p in real.integrity.problems) == {"overlapping masks": 4}
    counts = [len(found) for found in real.train.by_image.values()]
    assert (min(counts), max(counts)) == (1, 375)
    sample = COMPETITION.read_ids(REAL / "stage1_sample_submission.csv")
    assert [(i.id, Path(i.file_name).stem) for i in sample.images] == [
        (i.id, Path(i.file_name).stem) for i in real.test.images
    ]
    assert COMPETITION.missing([p.name for p in REAL.iterdir()]) == []


def test_real_masks_against_an_ordinary_decoder(real: Prepared) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(REAL / "stage1_train.zip") as archive:
        names = sorted(archive.namelist())
        for k in rng.integers(0, len(real.train.images), 8):
            image = real.train.images[int(k)]
            stem = Path(image.file_name).stem
            own = [n for n in names if n.startswith(f"{stem}/masks/")]
            number = int(rng.integers(len(own)))
            pixels = cv2.imdecode(np.frombuffer(archive.read(own[number]), np.uint8), cv2.IMREAD_GRAYSCALE)
            (x0, y0, x1, y1), mask = rle_to_crop(real.train.by_image[image.id][number].rle)
            frame = np.zeros_like(pixels)
            frame[y0:y1, x0:x1] = mask * 255
            np.testing.assert_array_equal(frame, pixels)


def test_real_sample_submission_is_valid_but_empty(real: Prepared) -> None:
    path = REAL / "stage1_sample_submission.csv"
    for ids in (COMPETITION.read_ids(path), real.test):
        problems = COMPETITION.validate(path, ids)
        assert {p.severity for p in problems} == {"warning"}
        assert "holds no mask at all" in " ".join(map(str, problems))


def as_detections(data: Dataset) -> Detections:
    boxes, masks = zip(*(rle_to_crop(a.rle) for a in data.instances), strict=True)
    ids, scores = [a.image_id for a in data.instances], np.linspace(1, 0.5, len(masks))
    return Detections.build(ids, 1, scores, boxes, boxes, [mask * np.uint8(255) for mask in masks])


def test_real_masks_as_a_submission(real: Prepared, tmp_path: Path) -> None:
    """The truth written, validated, scored; numbered the wrong way, told so and mended."""
    truth = real.train
    path = tmp_path / "s.csv"
    COMPETITION.write(as_detections(truth), truth, path)
    assert COMPETITION.validate(path, truth) == []
    result = COMPETITION.score(truth, COMPETITION.read_submission(path, truth))
    assert result["score"] == 1.0 and result["detections"] == 9545  # the 5 shared pixels cost none of them its match
    assert COMPETITION.score(truth, [_record(a) for a in truth.instances])["score"] == 1.0
    wrong = tmp_path / "rows.csv"
    swapped = FORM.__class__("ImageId", "EncodedPixels", "rows", empty="1 1")
    write_records(COMPETITION.read_submission(path, truth), truth, wrong, swapped)
    errors = [p for p in COMPETITION.validate(wrong, truth) if p.severity == "error"]
    assert "numbered row by row" in errors[0].text and errors[0].kind == "order"
    COMPETITION.fix(wrong, truth, tmp_path / "fixed.csv")
    assert (tmp_path / "fixed.csv").read_bytes() == path.read_bytes()


def _record(instance: Any) -> dict[str, Any]:
    return {"image_id": instance.image_id, "category_id": 1, "score": 1.0, "segmentation": instance.rle}


def test_real_masks_by_the_plain_rule(real: Prepared) -> None:
    """Truths against themselves moved by a pixel or two, beside the dense matrix."""
    some = [i for i in real.train.images if i.height * i.width <= 256 * 320][::12]
    assert len(some) >= 8
    rng = np.random.default_rng(1)
    records, expected = [], []
    for image in some:
        label, moved = (np.zeros((image.height, image.width), np.int32) for _ in range(2))
        for number, instance in enumerate(real.train.by_image[image.id], start=1):
            (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
            label[y0:y1, x0:x1][mask > 0] = number
        dy, dx = (int(v) for v in rng.integers(0, 3, 2))
        moved[dy:, dx:] = label[: image.height - dy, : image.width - dx]
        ids = [n for n in np.unique(moved) if n]
        for n in ids:
            frame = (moved == n).astype(np.uint8)
            rle = crop_to_rle(frame, (0, 0, image.width, image.height), frame.shape, threshold=1)
            records.append({"image_id": image.id, "category_id": 1, "score": 1.0, "segmentation": rle})
        truths = len(real.train.by_image[image.id])
        shared = np.histogram2d(label.ravel(), moved.ravel(), bins=(np.arange(truths + 2), np.arange(truths + 2)))[0]
        union = shared.sum(axis=1)[:, None] + shared.sum(axis=0)[None] - shared
        iou = (shared / np.maximum(union, 1))[1:, 1:]
        hits = np.array([(iou > t + 1e-12).sum() for t in np.arange(0.5, 1, 0.05)])
        expected.append(float((hits / (truths + len(ids) - hits)).mean()))
    result = dsb.summary(real.train.subset(i.id for i in some), records)
    assert result["score"] == pytest.approx(np.mean(expected), abs=1e-9) and 0.2 < result["score"] < 1
