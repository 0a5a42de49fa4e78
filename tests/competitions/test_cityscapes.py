"""Cityscapes: drawn scenes in its layout, its own submission form, and the real frame."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.competitions import CompetitionError
from pipeline.competitions.cityscapes import CLASSES, COMPETITION, FIVE, THINGS
from pipeline.competitions.formats import png
from pipeline.competitions.formats.label_map import objects
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections, Image

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cityscapes"
SIZE = (32, 64)
FRAMES = {"train": ["aachen_000000_000019", "aachen_000001_000019", "bonn_000000_000019"], "val": ["ulm_000000_000019"]}


def labels() -> np.ndarray:
    """Road below sky; cars 26003 and 26007, a group of persons 24, a caravan 29001, a trailer group 30, void 3."""
    ids = np.full(SIZE, 23, np.uint16)
    ids[16:] = 7
    ids[10:22, 2:14], ids[12:20, 12:30] = 26003, 26007
    ids[8:24, 34:40], ids[9:19, 42:50], ids[20:24, 52:60], ids[:2] = 24, 29001, 30, 3
    return ids


def encode(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def scenes(folder: Path, splits: dict[str, list[str]] = FRAMES) -> dict[str, bytes]:
    files = {}
    for split, frames in splits.items():
        for frame in frames:
            city = frame.split("_")[0]
            files[f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png"] = encode(np.full((*SIZE, 3), 90, np.uint8))
            files[f"gtFine/{split}/{city}/{frame}_gtFine_instanceIds.png"] = encode(labels())
            files[f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"] = b"not looked at"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def read(path: Path, target: Path, seed: int = 0, **options: Any) -> Any:
    return COMPETITION.read(path, options, seed, target)


def perfect(truth: Dataset) -> list[dict[str, Any]]:
    return [
        {"image_id": a.image_id, "bbox": list(a.box), "score": 1 - 0.01 * k, "category_id": a.category_id, "segmentation": a.rle}
        for k, a in enumerate(truth.instances)
        if not a.crowd
    ]  # fmt: skip


# ---------------------------------------------------------------- reading ---------------------------------------------


def test_instances_groups_and_ignored_classes(tmp_path: Path) -> None:
    scenes(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    assert len(train.images) == 3 and train.categories == THINGS
    found = {(a.category_id, a.crowd, a.box, a.area) for a in train.by_image[1]}
    first = float((labels() == 26003).sum())
    assert found == {
        (24, True, (34.0, 8.0, 6.0, 16.0), 96.0),
        (26, False, (2.0, 10.0, 12.0, 12.0), first),
        (26, False, (12.0, 12.0, 18.0, 8.0), 144.0),
    }
    assert first == 144 - 16  # the second car lies over the first
    assert len({a.id for a in train.instances}) == 9


def test_semantic_maps(tmp_path: Path) -> None:
    scenes(tmp_path / "data")
    prepared = read(tmp_path / "data", tmp_path / "out")
    train = prepared.train
    ids = cv2.imread(str(train.root / train.images[0].semantic), cv2.IMREAD_UNCHANGED)
    expected = np.where(labels() >= 1000, labels() // 1000, labels())
    expected[labels() == 29001] = 255
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.uint8 and train.semantic_classes == CLASSES
    assert [image.semantic for image in prepared.test.images] == [""] and prepared.test.instances == []
    train.write(tmp_path / "out" / "train.json")
    again = Dataset.read(tmp_path / "out" / "train.json")
    assert (again.images, again.instances, again.semantic_classes) == (train.images, train.instances, CLASSES)


def test_zips_folders_and_flat_files_are_the_same(tmp_path: Path) -> None:
    files = scenes(tmp_path / "folder")
    (tmp_path / "zips").mkdir()
    for package in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(tmp_path / "zips" / f"{package}_trainvaltest.zip", "w") as archive:
            for name, content in files.items():
                if name.startswith(package):
                    archive.writestr(name, content)
    one, other = (read(tmp_path / name, tmp_path / f"out-{name}") for name in ("folder", "zips"))
    assert one.train.instances == other.train.instances and one.train.images == other.train.images
    assert one.test.images == other.test.images and one.integrity.problems == []
    flat = tmp_path / "flat"
    flat.mkdir()
    for name, content in files.items():
        (flat / Path(name).name).write_bytes(content)
    prepared = read(flat, tmp_path / "out-flat")
    assert len(prepared.train.images) == 4 and prepared.test.images == []
    assert [p.kind for p in prepared.integrity.problems] == ["no test images"]


def test_groups_of_folds_splits_and_drawn_images(tmp_path: Path) -> None:
    scenes(tmp_path / "data", {**FRAMES, "test": ["berlin_000000_000019"]})

    def groups(**options: Any) -> list[str]:
        return [image.group for image in read(tmp_path / "data", tmp_path / "out", **options).train.images]

    assert groups() == ["aachen", "aachen", "bonn"]
    assert groups(group="sequence") == ["aachen_000000", "aachen_000001", "bonn_000000"]
    prepared = read(tmp_path / "data", tmp_path / "out")
    assert prepared.test.images[0].file_name == "images/test/berlin_000000_000019_leftImg8bit.png"
    assert read(tmp_path / "data", tmp_path / "out", test="val").test.images[0].group == "ulm"
    drawn = [read(tmp_path / "data", tmp_path / "out", seed=s, train_images=2).train.images for s in range(8)]
    assert {len(images) for images in drawn} == {2} and len(
        {tuple(i.file_name for i in images) for images in drawn}
    ) > 1
    assert drawn[3] == read(tmp_path / "data", tmp_path / "out", seed=3, train_images=2).train.images


def test_classes(tmp_path: Path) -> None:
    scenes(tmp_path / "data")
    assert read(tmp_path / "data", tmp_path / "out", classes=5).train.categories == FIVE
    train = read(tmp_path / "data", tmp_path / "out", classes=["bus", "person"]).train
    assert train.categories == {24: "person", 28: "bus"} and {a.category_id for a in train.instances} == {24}
    assert train.semantic_classes == CLASSES


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clases": 5}, "did you mean 'classes'"),
        ({"classes": 6}, "data.options.classes: 8, 5, or a list"),
        ({"classes": ["caravan"]}, "data.options.classes: 8, 5, or a list"),
        ({"classes": []}, "data.options.classes: 8, 5, or a list"),
        ({"group": "country"}, "data.options.group: .*'city' or 'sequence'"),
        ({"train": "trian"}, "data.options.train: .*'train', 'val' or 'test'"),
        ({"test": "test"}, "no images of split 'test'"),
        ({"train_images": 0}, "data.options.train_images: .*1 .it is 0"),
        ({"train_images": 9}, "there are only 3 images"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    scenes(tmp_path / "data")
    with pytest.raises(CompetitionError, match=expected):
        read(tmp_path / "data", tmp_path / "out", **options)


def test_damaged_scenes(tmp_path: Path) -> None:
    scenes(tmp_path / "data")
    place = tmp_path / "data" / "gtFine" / "train" / "aachen"
    (place / "aachen_000000_000019_gtFine_instanceIds.png").write_bytes(encode(labels()[:20]))
    (place / "aachen_000001_000019_gtFine_instanceIds.png").unlink()
    prepared = read(tmp_path / "data", tmp_path / "out")
    assert [image.group for image in prepared.train.images] == ["bonn"]
    texts = [str(p) for p in prepared.integrity.problems]
    assert len(texts) == 2 and "is 64x20, the image 64x32; the scene is left out" in texts[0]
    assert "has no aachen_000001_000019_gtFine_instanceIds.png" in texts[1]
    (tmp_path / "data" / "leftImg8bit" / "val" / "ulm" / "ulm_000000_000019_leftImg8bit.png").write_bytes(b"x")
    with pytest.raises(CompetitionError, match="every scene of the test must be whole"):
        read(tmp_path / "data", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(CompetitionError, match="is it the folder with leftImg8bit and gtFine"):
        read(tmp_path / "none", tmp_path / "out")
    with pytest.raises(CompetitionError, match="needs its files"):
        COMPETITION.read(None, {}, 0, tmp_path / "out")


def test_missing(tmp_path: Path) -> None:
    assert len(COMPETITION.missing([])) == 2
    assert COMPETITION.missing(list(scenes(tmp_path))) == []


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 12), width=st.integers(1, 12))
def test_objects_of_a_label_map(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.array([0, 1, 7, 26003, 33999])
    picture = values[rng.integers(0, 5, (height, width))].astype(np.int32)
    painted = np.zeros_like(picture)
    for value, (x0, y0, x1, y1), crop in objects(picture):
        assert crop[[0, -1]].any(axis=1).all() and crop[:, [0, -1]].any(axis=0).all()
        painted[y0:y1, x0:x1][crop > 0] = value
    np.testing.assert_array_equal(painted, picture)


def test_label_maps_that_are_none() -> None:
    for bad in (np.zeros((2, 2, 3), int), np.full((2, 2), -1), np.full((2, 2), 1 << 30)):
        with pytest.raises(ValueError):
            list(objects(bad))
    assert list(objects(np.zeros((0, 5), int))) == []


# ---------------------------------------------------------------- scoring ---------------------------------------------


def test_perfect_detections_score_one_everywhere(tmp_path: Path) -> None:
    scenes(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    result = COMPETITION.score(train, perfect(train))
    ones = ("score", "AP50", "official_ap", "official_ap50", "pq", "sq", "rq")
    assert {k: result[k] for k in ones} == pytest.approx(dict.fromkeys(ones, 1.0))
    assert result["official_classes"]["car"] == pytest.approx(1) and result["official_classes"]["bus"] is None
    assert result["iou_classes"]["car"] == 1.0
    group = 96 / (32 * 64 - 2 * 64 - 80 - 32)  # of the pixels that count, the persons' group is not found
    assert result["pixel_accuracy"] == pytest.approx(1 - group)
    assert json.loads(json.dumps(result)) == result
    whole = COMPETITION.score(train, [])
    assert (whole["score"], whole["official_ap"], whole["pq"]) == (0, 0, 0)


def test_void_of_the_official_rule(tmp_path: Path) -> None:
    """A group of trailers is void to it, a single caravan is not; to the panoptic quality both are."""
    scenes(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out", train_images=1).train

    def with_extra(value: int) -> dict[str, Any]:
        mask = (labels() == value).astype(np.uint8)
        rle = crop_to_rle(mask, (0, 0, SIZE[1], SIZE[0]), SIZE, threshold=1)
        extra = {"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0, "category_id": 26, "segmentation": rle}
        return COMPETITION.score(train, [*perfect(train), extra])

    assert with_extra(30)["official_ap"] == pytest.approx(1)
    assert with_extra(29001)["official_ap"] < 1
    assert with_extra(30)["pq"] == with_extra(29001)["pq"] == 1.0
    assert with_extra(7)["official_ap"] < 1 and with_extra(7)["pq"] < 1


def test_truth_from_the_organisers_zip(tmp_path: Path) -> None:
    files = scenes(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "gtFine.zip", "w") as archive:
        for name, content in files.items():
            if name.startswith("gtFine"):
                archive.writestr(name, content)
    truth = COMPETITION.read_truth(tmp_path / "gtFine.zip")
    assert [i.file_name for i in truth.images] == ["images/truth/ulm_000000_000019_leftImg8bit.png"]  # val alone
    ids = COMPETITION.read_ids(tmp_path / "data")
    assert len(ids.images) == 4 and ids.images[0].height == 32
    same = read(tmp_path / "data", tmp_path / "out", train="val", test="val").train
    assert truth.instances == same.instances
    assert COMPETITION.score(truth, perfect(truth)) == COMPETITION.score(same, perfect(same))
    (tmp_path / "empty").mkdir()
    for read_it in (COMPETITION.read_truth, COMPETITION.read_ids):
        with pytest.raises(CompetitionError, match="holds no"):
            read_it(tmp_path / "empty")


# ---------------------------------------------------------------- submissions -----------------------------------------


def submission(tmp_path: Path) -> tuple[Path, Dataset, list[dict[str, Any]]]:
    scenes(tmp_path / "data")
    train = read(tmp_path / "data", tmp_path / "out").train
    path = tmp_path / "a.zip"
    records = [r for r in perfect(train) if r["image_id"] != 2]
    COMPETITION.write(Detections.from_coco(records), train, path)
    return path, train, records


def test_official_zip(tmp_path: Path) -> None:
    path, train, records = submission(tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert sorted(n for n in names if n.endswith(".txt")) == [f"{frame}.txt" for frame in FRAMES["train"]]
        assert archive.read("aachen_000001_000019.txt") == b""
        name, label, confidence = archive.read("aachen_000000_000019.txt").decode().splitlines()[0].split(" ")
        assert (name, label, float(confidence)) == ("aachen_000000_000019_000.png", "26", records[0]["score"])
        mask = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, labels() == 26003)
    assert COMPETITION.validate(path, train) == []
    assert COMPETITION.read_submission(path, train) == records
    assert {r["image_id"] for r in COMPETITION.read_submission(path)} == {1, 3}  # numbered by name
    COMPETITION.write(Detections.from_coco(records), train, tmp_path / "b.zip")
    assert path.read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_coco_results(tmp_path: Path) -> None:
    _, train, records = submission(tmp_path)
    path = tmp_path / "a.json"
    COMPETITION.write(Detections.from_coco(records), train, path)
    assert COMPETITION.read_submission(path, train) == json.loads(path.read_text()) == records
    problems = COMPETITION.validate(path, train)
    assert all(p.severity == "warning" for p in problems) and any("its own zip" in p.text for p in problems)
    path.write_text(json.dumps([{**record, "category_id": str(record["category_id"])} for record in records]))
    assert COMPETITION.fix(path, train, tmp_path / "b.zip")
    assert COMPETITION.read_submission(tmp_path / "b.zip", train) == records


def changed(path: Path, **changes: str | bytes | None) -> Path:
    """A copy with members replaced, added or (None) taken away; __ in a name is a dot, ___ a slash."""
    target = path.with_name("changed.zip")
    new = {name.replace("___", "/").replace("__", "."): content for name, content in changes.items()}
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as archive:
        members = {name: old.read(name) for name in old.namelist()} | new
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return target


TEXT, MASK = "aachen_000000_000019__txt", "aachen_000000_000019_000__png"
GOOD = "aachen_000000_000019_000.png"


@pytest.mark.parametrize(
    ("changes", "severity", "expected"),
    [
        ({"bonn_000000_000019__txt": None}, "error", "bonn_000000_000019: has no text file"),
        ({"x___aachen_000000_000019_pred__txt": ""}, "error", "has several text files"),
        ({"berlin_000000_000019__txt": ""}, "warning", "belongs to none of the test images"),
        ({TEXT: f"{GOOD} 26 0.5\n\n{GOOD} 26 0.5 "}, "error", "line 2: is blank"),
        ({TEXT: f"{GOOD} 26\n"}, "error", "is not `mask label confidence`"),
        ({TEXT: f"{GOOD}  26 0.5\n"}, "error", "is not separated by single spaces"),
        ({TEXT: f"{GOOD},26, 0.5\n"}, "error", "is not separated by single spaces"),
        ({TEXT: f"my {GOOD} 26 0.5\n"}, "error", "is not `mask label confidence`"),
        ({TEXT: f"\ufeff{GOOD} 26 0.5\n"}, "error", "begins with a byte order mark"),
        ({TEXT: f"/{GOOD} 26 0.5\n"}, "error", "points outside"),
        ({TEXT: f"../{GOOD} 26 0.5\n"}, "error", "points outside"),
        ({TEXT: "gone.png 26 0.5\n"}, "error", r"names a mask that is not there"),
        ({TEXT: f"{GOOD} car 0.5\n"}, "error", "is no number"),
        ({TEXT: f"{GOOD} 26 nan\n"}, "error", "is no number"),
        ({TEXT: f"{GOOD} 26 1.5\n"}, "warning", r"confidence outside 0..1: .*|outside 0..1"),
        ({TEXT: f"{GOOD} 13 0.5\n"}, "error", "label that is none of 24 person.*looks like a train id"),
        ({TEXT: f"{GOOD} 29 0.5\n"}, "error", "label that is none of"),
        ({TEXT: f"{GOOD} 26 0.5\n{GOOD} 26 0.4\n"}, "warning", "names a mask that an earlier line names"),
        ({TEXT: b"\xff\xfe"}, "error", "cannot be read"),
        ({MASK: b"no png"}, "error", "no usable PNG"),
        ({MASK: encode(np.zeros((8, 8), np.uint8))}, "error", "is 8x8, its image 64x32"),
        ({MASK: encode(np.zeros(SIZE, np.uint8))}, "warning", "is empty"),
    ],
)
def test_faults(tmp_path: Path, changes: dict[str, Any], severity: str, expected: str) -> None:
    path, train, _ = submission(tmp_path)
    problems = COMPETITION.validate(changed(path, **changes), train)
    assert any(p.severity == severity and re.search(expected, str(p)) for p in problems), problems
    assert severity == "error" or all(p.severity == "warning" for p in problems)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((23, 25), "the label looks counted from 23: then every record's is one too low"),
        ((34, 27), "the label looks counted from 25: then every record's is one too high"),
        ((0, 2), "the label looks like the place in the list of ids"),
    ],
)
def test_labels_off_by_one(tmp_path: Path, labels: tuple[int, int], expected: str) -> None:
    path, train, _ = submission(tmp_path)
    text = f"{GOOD} {labels[0]} 0.5\naachen_000000_000019_001.png {labels[1]} 0.4\n"
    with zipfile.ZipFile(path) as archive:
        others = {name.replace(".", "__"): "" for name in archive.namelist() if name.endswith(".txt")}
    problems = COMPETITION.validate(changed(path, **(others | {TEXT: text})), train)
    assert [p.severity for p in problems if expected in p.text] == ["error"], problems


def test_a_submission_of_nothing(tmp_path: Path) -> None:
    path, train, _ = submission(tmp_path)
    with zipfile.ZipFile(path) as archive:
        texts = [name.replace(".", "__") for name in archive.namelist() if name.endswith(".txt")]
    empty = changed(path, **dict.fromkeys(texts, ""))
    assert [(p.severity, p.text) for p in COMPETITION.validate(empty, train)] == [
        ("warning", "names no instance at all")
    ]
    bare = changed(path, **dict.fromkeys(texts, None), results__txt="[]")
    with pytest.raises(CompetitionError, match="no text file of any test image"):
        COMPETITION.fix(bare, train, tmp_path / "fixed.zip")


def test_spacing_and_byte_order_marks_are_repaired(tmp_path: Path) -> None:
    path, train, records = submission(tmp_path)
    first, second = (records[k]["score"] for k in (0, 1))
    text = f"\ufeff{GOOD}, 26,{first}\naachen_000000_000019_001.png\t26  {second}\n"
    changes = COMPETITION.fix(changed(path, **{TEXT: text}), train, tmp_path / "fixed.zip")
    assert len(changes) == 2 and "single spaces" in "".join(changes)
    assert COMPETITION.read_submission(tmp_path / "fixed.zip", train) == records


def test_any_non_zero_pixel_is_the_object(tmp_path: Path) -> None:
    path, train, records = submission(tmp_path)
    mask = (labels() == 26003).astype(np.uint8)
    mask[10, 3] = 200
    back = COMPETITION.read_submission(changed(path, **{MASK: encode(mask)}), train)
    assert back == records


def test_repairs(tmp_path: Path) -> None:
    path, train, records = submission(tmp_path)
    text = f"{GOOD} 26 {records[0]['score']}\n\naachen_000000_000019_001.png 26 {records[1]['score']}\n"
    broken = changed(path, **{TEXT: text, "aachen_000001_000019__txt": None})
    changes = COMPETITION.fix(broken, train, tmp_path / "fixed.zip")
    assert len(changes) == 2 and "blank lines are removed" in changes[0] + changes[1]
    assert COMPETITION.validate(tmp_path / "fixed.zip", train) == []
    assert COMPETITION.read_submission(tmp_path / "fixed.zip", train) == records
    for bad, expected in ((path, "nothing to repair"), (changed(path, **{MASK: b"x"}), "with certainty")):
        with pytest.raises(CompetitionError, match=expected):
            COMPETITION.fix(bad, train, tmp_path / "no.zip")
    assert not (tmp_path / "no.zip").exists()


def test_images_of_other_names_cannot_be_submitted(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="a.png is not named <city>_"):
        COMPETITION.write(Detections.empty(), Dataset([Image(1, "a.png", 3, 4)], {}), tmp_path / "x.zip")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.binary(max_size=40) | st.text("ab./\\ 0126.5en\n\r\t-", max_size=40).map(str.encode),
    mask=st.binary(max_size=30),
)
def test_any_text_and_mask_are_reported_or_refused(tmp_path: Path, text: bytes, mask: bytes) -> None:
    ids = Dataset([Image(1, "aachen_000000_000019_leftImg8bit.png", *SIZE)], THINGS)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("aachen_000000_000019.txt", text)
        archive.writestr("a.png", encode(np.ones(SIZE, np.uint8))[:33] + mask)
    errors = [p for p in COMPETITION.validate(path, ids) if p.severity == "error"]
    try:
        COMPETITION.read_submission(path, ids)
    except CompetitionError:
        assert errors


def test_masks_are_written_as_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (5, 8), (7, 13), (32, 64)):
        frame = (rng.random((height, width)) < 0.3).astype(np.uint8)
        box, crop = rle_to_crop(crop_to_rle(frame, (0, 0, width, height), (height, width), threshold=1))
        content = png.write_mask(crop, box, height, width)
        np.testing.assert_array_equal(
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) > 0, frame > 0
        )
        back = png.read_mask(content, height, width)
        np.testing.assert_array_equal(back.crop, crop)
        assert back.box.tolist() == box.tolist() and back.binary


# ---------------------------------------------------------------- real files ------------------------------------------


def test_real_frame(tmp_path: Path) -> None:
    if not REAL.exists():
        pytest.skip(f"needs the Cityscapes frame at {REAL}")
    prepared = read(REAL, tmp_path / "out")
    train = prepared.train
    (image,) = train.images
    assert (image.height, image.width, image.group) == (128, 256, "frankfurt")
    raw = cv2.imread(str(REAL / "gtFine" / "frankfurt_000000_000294_gtFine_instanceIds.png"), cv2.IMREAD_UNCHANGED)
    single = [int(v) for v in np.unique(raw) if v >= 1000 and v // 1000 in THINGS]
    groups = [int(v) for v in np.unique(raw) if int(v) in THINGS]
    assert sum(not a.crowd for a in train.instances) == len(single) > 0
    assert sum(a.crowd for a in train.instances) == len(groups)
    assert sum(a.area for a in train.instances) == np.isin(raw, single + groups).sum()
    known = cv2.imread(str(REAL / "gtFine" / "frankfurt_000000_000294_gtFine_labelIds.png"), cv2.IMREAD_UNCHANGED)
    ids = cv2.imread(str(train.root / image.semantic), cv2.IMREAD_UNCHANGED)
    evaluated = np.isin(known, list(CLASSES))
    np.testing.assert_array_equal(ids[evaluated], known[evaluated])
    COMPETITION.write(Detections.from_coco(perfect(train)), train, tmp_path / "a.zip")
    assert COMPETITION.validate(tmp_path / "a.zip", train) == []
    result = COMPETITION.score(train, COMPETITION.read_submission(tmp_path / "a.zip", train))
    assert result["score"] == pytest.approx(1) and result["pq"] == 1.0
