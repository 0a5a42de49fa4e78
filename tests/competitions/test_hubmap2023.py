"""HuBMAP 2023: a drawn copy of its layout with every fault."""

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.backends.samples import read_image
from pipeline.competitions import CompetitionError, Prepared
from pipeline.competitions.formats.openimages_csv import encode_mask
from pipeline.competitions.hubmap2023 import COMPETITION
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

SIDE = 512
VESSEL = [[100, 100], [160, 95], [170, 150], [120, 170], [100, 100]]
OTHER = [[300, 300], [340, 300], [340, 360], [300, 360], [300, 300]]
GLOMERULUS = [[0, 0], [90, 0], [90, 90], [0, 90], [0, 0]]
UNSURE = [[400, 20], [460, 20], [460, 60], [400, 60], [400, 20]]
META = "id,source_wsi,dataset,i,j\naaa,1,1,0,512\nbbb,2,2,512,512\nccc,6,3,0,0\nttt,1,1,9,9\n"


def tif(seed: int, shape: tuple[int, ...] = (SIDE, SIDE, 3)) -> bytes:
    """Flat colours, so that the tests are quick; the seed is in the first channel."""
    pixels = np.zeros(shape, np.uint8)
    pixels[..., :] = np.arange(1, shape[2] + 1 if len(shape) > 2 else 2) * 20
    pixels[0, 0] = seed
    good, content = cv2.imencode(".tif", pixels)
    assert good
    return content.tobytes()


def annotation(kind: str, *rings: Any) -> dict[str, Any]:
    return {"type": kind, "coordinates": list(rings)}


def tiles() -> dict[str, list[Any]]:
    return {
        "bbb": [annotation("blood_vessel", OTHER), annotation("glomerulus", GLOMERULUS)],
        "aaa": [
            annotation("blood_vessel", VESSEL),
            annotation("unsure", UNSURE),
            annotation("blood_vessel", OTHER),
            annotation("glomerulus", GLOMERULUS),
        ],
    }


def lines(annotated: dict[str, list[Any]]) -> bytes:
    return "".join(json.dumps({"id": k, "annotations": v}) + "\n" for k, v in annotated.items()).encode()


def layout(annotated: dict[str, list[Any]] | None = None) -> dict[str, bytes]:
    files = {f"train/{name}.tif": tif(k) for k, name in enumerate(("aaa", "bbb", "ccc"))}
    files["test/72e40acccadf.tif"] = tif(9)
    files["polygons.jsonl"] = lines(tiles() if annotated is None else annotated)
    files["tile_meta.csv"] = META.encode()
    files["wsi_meta.csv"] = b"source_wsi,age\n1,58\n"
    files["sample_submission.csv"] = (
        b"id,height,width,prediction_string\n72e40acccadf,512,512,0 1.0 eNoLTDAwyrM3yI/PMwcAE94DZA==\n"
    )
    return files


def pack(files: dict[str, bytes], path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def read(files: dict[str, bytes], tmp_path: Path, **options: Any) -> Prepared:
    return COMPETITION.read(pack(files, tmp_path / "hubmap.zip"), options, 0, tmp_path / "data")


def rle_of(*rings: Any) -> dict[str, Any]:
    flat = [[float(v) for point in ring for v in point] for ring in rings]
    rle = coco_mask.merge(coco_mask.frPyObjects(flat, SIDE, SIDE))
    return {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}


# ---------------------------------------------------------------- reading ---------------------------------------------


@pytest.mark.parametrize("prefix", ["", "hubmap-hacking-the-human-vasculature/"])
@pytest.mark.parametrize("how", ["zip", "unpacked", "zip in a folder"])
def test_zip_folder_and_nesting_give_the_same(tmp_path: Path, prefix: str, how: str) -> None:
    path = pack(layout(), tmp_path / "hubmap.zip", prefix)
    if how == "zip in a folder":  # as the Kaggle command leaves it
        path = tmp_path / "folder"
        path.mkdir()
        (tmp_path / "hubmap.zip").rename(path / "hubmap-hacking-the-human-vasculature.zip")
    elif how == "unpacked":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "folder")
        path = tmp_path / "folder"
    prepared = COMPETITION.read(path, {}, 0, tmp_path / "data")
    assert prepared.integrity.problems[0].kind == "tile without annotation"  # ttt, of dataset 1
    assert len(prepared.integrity.problems) == 1
    assert [(i.id, i.file_name, i.group) for i in prepared.train.images] == [
        (1, "images/train/aaa.tif", "wsi-1"),
        (2, "images/train/bbb.tif", "wsi-2"),
    ]
    assert [(i.id, i.file_name) for i in prepared.test.images] == [(1, "images/test/72e40acccadf.tif")]
    assert prepared.train.categories == prepared.test.categories == {1: "blood_vessel"}
    for dataset in (prepared.train, prepared.test):
        for image in dataset.images:
            picture = read_image(dataset.path(image))  # as training and prediction read it
            assert picture.shape == (SIDE, SIDE, 3) and picture[9, 9].tolist() == [60, 40, 20]
    first, unsure, second = prepared.train.by_image[1]
    assert first.rle == rle_of(VESSEL) and second.rle == rle_of(OTHER) and not first.crowd
    assert unsure.rle == rle_of(UNSURE) and unsure.crowd and unsure.category_id == 1
    box, mask = rle_to_crop(second.rle)
    assert second.box == (box[0], box[1], box[2] - box[0], box[3] - box[1]) and second.area == mask.sum()
    assert [a.id for a in prepared.train.instances] == [1, 2, 3, 4]
    facts = prepared.integrity.facts
    assert (facts["train_images"], facts["train_instances"], facts["tiles_without_annotation"]) == (2, 4, 2)


def test_classes_and_datasets(tmp_path: Path) -> None:
    everything = read(layout(), tmp_path, classes=["unsure", "glomerulus", "blood_vessel"]).train
    assert everything.categories == {1: "blood_vessel", 2: "glomerulus", 3: "unsure"}
    assert [(a.category_id, a.crowd) for a in everything.by_image[1]] == [
        (1, False),
        (3, False),
        (1, False),
        (2, False),
    ]
    reviewed = read(layout(), tmp_path, datasets=[1]).train
    assert [i.file_name for i in reviewed.images] == ["images/train/aaa.tif"]
    assert not (tmp_path / "data" / "images" / "train" / "bbb.tif").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class": ["blood_vessel"]}, "did you mean 'classes'"),
        ({"classes": ["glomerulus"]}, "data.options.classes: a list of blood_vessel"),
        ({"classes": "blood_vessel"}, "data.options.classes: a list of blood_vessel"),
        ({"datasets": [3]}, "data.options.datasets.*1 or 2"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(layout(), tmp_path, **options)


def test_every_survivable_fault_is_collected(tmp_path: Path) -> None:
    annotated = tiles()
    annotated["aaa"] += [
        annotation("blood_vessel", VESSEL),
        annotation("vein", VESSEL),
        annotation("blood_vessel"),
        annotation("blood_vessel", [[1, 2], [3, 4]]),
        annotation("blood_vessel", [[1, 2], [3, 4], [1e9, 0]]),
        annotation("blood_vessel", [[1, 2], [3, 4], [None, 0]]),
        annotation("blood_vessel", [[-200, -200], [-100, -200], [-100, -100]]),
        annotation("blood_vessel", [[200, 200], [210, 200], [210, 210]], [[220, 220], [230, 220], [230, 230]]),
        "no annotation",
    ]
    annotated |= {"gone": [annotation("blood_vessel", VESSEL)], "ttt": [], "ccc": []}
    files = layout(annotated)
    files["polygons.jsonl"] += lines({"bbb": tiles()["bbb"]})
    files["train/bbb.tif"] = files["train/bbb.tif"][:200]
    prepared = read(files, tmp_path)
    kinds: dict[str, list[str]] = {}
    for problem in prepared.integrity.problems:
        kinds.setdefault(problem.kind, []).append(problem.place)
    assert kinds == {
        "duplicate tile": ["bbb"],
        "no tile row": ["gone"],
        "no image": ["train/ttt.tif"],
        "damaged image": ["train/bbb.tif"],
        "duplicate mask": ["aaa, annotation 4"],
        "unknown type": ["aaa, annotation 5", "aaa, annotation 12"],
        "damaged polygon": [f"aaa, annotation {k}" for k in (6, 7, 8, 9)],
        "empty mask": ["aaa, annotation 10"],
        "several outlines": ["aaa, annotation 11"],
    }
    assert prepared.train.instances[-1].rle == rle_of(
        [[200, 200], [210, 200], [210, 210]], [[220, 220], [230, 220], [230, 230]]
    )


def without(part: str) -> dict[str, bytes]:
    return {name: content for name, content in layout().items() if not name.startswith(part)}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (without("polygons"), "holds no polygons.jsonl; is it HuBMAP"),
        (without("train/"), "holds no train/ beside polygons.jsonl"),
        (without("tile_meta"), "there is no tile_meta.csv"),
        (without("test/"), "there is no test/<id>.tif"),
        ({**layout(), "tile_meta.csv": b"id,dataset\n"}, "tile_meta.csv.* has no column source_wsi"),
        ({**layout(), "tile_meta.csv": b"\xff\xfe"}, "tile_meta.csv.* is not a text file"),
        ({**layout(), "polygons.jsonl": b'{"id": "aaa"}\n'}, r"line 1 .aaa. has no list of annotations"),
        ({**layout(), "polygons.jsonl": b"[]\n"}, "line 1 is not a tile"),
        ({**layout(), "polygons.jsonl": b"{\n"}, "line 1 is not JSON"),
        ({**layout(), "polygons.jsonl": b"\xff"}, "is not text"),
        ({**layout(), "polygons.jsonl": lines({"ccc": []})}, "no usable training image"),
        ({**layout(), "test/72e40acccadf.tif": b""}, "test/72e40acccadf.tif: it is empty"),
    ],
)
def test_what_cannot_be_survived(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(files, tmp_path)


def test_no_path(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="needs its files: set data.path"):
        COMPETITION.read(None, {}, 0, tmp_path)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(["blood_vessel", "aaa"]),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["id", "annotations", "type", "coordinates"]), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(annotations=st.lists(JSON, max_size=4), raw=st.binary(max_size=40))
def test_no_polygons_crash_reading(
    tmp_path_factory: pytest.TempPathFactory, annotations: list[Any], raw: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "polygons.jsonl"
    for content in (raw, json.dumps({"id": "aaa", "annotations": annotations}).encode()):
        path.write_bytes(content)
        try:
            truth = COMPETITION.read_truth(path)
        except CompetitionError:
            continue
        assert all(a.area > 0 for a in truth.instances)


# ---------------------------------------------------------------- what is missing -------------------------------------


def test_missing_names_what_is_not_there() -> None:
    names = [f"outer/{name}" for name in layout()]
    assert COMPETITION.missing(list(layout())) == COMPETITION.missing(names) == []
    assert COMPETITION.missing([n for n in names if not n.endswith("tile_meta.csv")]) == ["tile_meta.csv"]
    assert COMPETITION.missing([n for n in names if "/test/" not in n]) == ["test/<id>.tif"]
    assert len(COMPETITION.missing([])) == 4


# ---------------------------------------------------------------- the metric ------------------------------------------


def row(name: str, *masks: tuple[float, dict[str, Any]]) -> str:
    return f"{name},{SIDE},{SIDE}," + " ".join(f"0 {score} {encode_mask(rle)}" for score, rle in masks) + "\n"


HEADER = "id,height,width,prediction_string\n"


def test_score_of_files_by_hand(tmp_path: Path) -> None:
    """Three vessels. In order of confidence: one found, a glomerulus (false), an unsure region (false), one found."""
    truth, submission = tmp_path / "polygons.jsonl", tmp_path / "submission.csv"
    truth.write_bytes(lines(tiles()))
    rows = row("aaa", (0.9, rle_of(VESSEL)), (0.8, rle_of(GLOMERULUS)), (0.7, rle_of(UNSURE))) + row(
        "bbb", (0.6, rle_of(OTHER))
    )
    submission.write_text(HEADER + rows)
    result = score_files("hubmap2023", truth, submission)
    assert result["score"] == pytest.approx((1 + 2 / 4) / 3, abs=1e-12)
    assert result["score_unsure_ignored"] == pytest.approx((1 + 2 / 3) / 3, abs=1e-12)
    assert result["competition"] == "hubmap2023" and result["classes"] == {"blood_vessel": result["score"]}
    assert (result["truths"], result["true_positives"], result["detections"]) == (3, 2, 4)
    assert json.loads(json.dumps(result)) == result


def test_perfect_and_empty_submissions_and_a_coco_truth(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path, classes=["blood_vessel", "glomerulus", "unsure"])
    truth = tmp_path / "train.json"
    prepared.train.write(truth)
    perfect = Detections.from_coco(
        {"image_id": a.image_id, "category_id": a.category_id, "score": 0.5, "segmentation": a.rle}
        for a in prepared.train.instances
    )
    COMPETITION.write(perfect, prepared.train, tmp_path / "perfect.csv")  # glomeruli and unsure ones are not written
    assert score_files("hubmap2023", truth, tmp_path / "perfect.csv")["score"] == pytest.approx(1)
    assert validate_files("hubmap2023", truth, tmp_path / "perfect.csv") == ([], True)
    perfect.write(tmp_path / "perfect.parquet")
    assert score_files("hubmap2023", truth, tmp_path / "perfect.parquet")["score"] == pytest.approx(1)
    COMPETITION.write(Detections.empty(), prepared.train, tmp_path / "empty.csv")
    result = score_files("hubmap2023", truth, tmp_path / "empty.csv")
    assert result["score"] == 0.0 and result["detections"] == 0
    problems, valid = validate_files("hubmap2023", truth, tmp_path / "empty.csv")
    assert valid and [p.severity for p in problems] == ["warning"]
    nothing = Dataset([Image(1, "aaa.tif", SIDE, SIDE)], {1: "blood_vessel"})
    assert COMPETITION.score(nothing, [])["score"] == -1.0 and COMPETITION.score(nothing, [])["classes"] == {
        "blood_vessel": None
    }


def test_iou_of_exactly_six_tenths_counts() -> None:
    square = crop_to_rle(np.ones((10, 10), np.uint8), (0, 0, 10, 10), (SIDE, SIDE), threshold=1)
    part = crop_to_rle(np.ones((10, 6), np.uint8), (0, 0, 6, 10), (SIDE, SIDE), threshold=1)
    truth = Dataset(
        [Image(1, "aaa.tif", SIDE, SIDE)], {1: "blood_vessel"}, [Instance(1, 1, 1, square, (0, 0, 10, 10), 100.0)]
    )
    record = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": part}
    assert COMPETITION.score(truth, [record])["score"] == 1.0


def test_truths_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "polygons.jsonl"
    with pytest.raises(CompetitionError, match="there is no file"):
        COMPETITION.read_truth(path)
    path.write_bytes(lines({"aaa": [annotation("vein", VESSEL)]}))
    with pytest.raises(CompetitionError, match="(?s)is damaged.*unknown type 'vein'"):
        COMPETITION.read_truth(path)
    Dataset([Image(1, "a.tif", SIDE, SIDE)], {1: "nucleus"}).write(tmp_path / "truth.json")
    with pytest.raises(CompetitionError, match="category 1 must be blood_vessel, it is 'nucleus'"):
        COMPETITION.read_truth(tmp_path / "truth.json")


# ---------------------------------------------------------------- ids, validation, repair -----------------------------


def test_ids_from_the_sample_submission(tmp_path: Path) -> None:
    path = tmp_path / "sample_submission.csv"
    path.write_bytes(layout()["sample_submission.csv"])
    ids = COMPETITION.read_ids(path)
    assert ids.images == [Image(1, "72e40acccadf.tif", SIDE, SIDE)]
    path.write_text(HEADER + "b,512,512,\na,500,512,\n")
    assert [(i.id, i.file_name, i.height) for i in COMPETITION.read_ids(path).images] == [
        (1, "a.tif", 500),
        (2, "b.tif", 512),
    ]
    path.write_text(HEADER + "b,512,512,\nb,512,512,\n")
    with pytest.raises(CompetitionError, match="line 3: the id b occurs more than once"):
        COMPETITION.read_ids(path)
    path.write_text(HEADER + "b,512,,\n")
    with pytest.raises(CompetitionError, match="line 2: height and width are '512' and ''"):
        COMPETITION.read_ids(path)


def test_encode_validates_and_fix_mends(tmp_path: Path) -> None:
    ids = tmp_path / "sample_submission.csv"
    ids.write_text(HEADER + "aaa,512,512,\nbbb,512,512,\n")
    spoilt = tmp_path / "submission.csv"
    spoilt.write_text(HEADER + row("train/aaa.tif", (0.5, rle_of(VESSEL))))
    problems, valid = validate_files("hubmap2023", ids, spoilt)
    assert not valid and [p.place for p in problems] == ["line 2 (train/aaa.tif)", "aaa, bbb"]
    assert "ids have no folder and no extension" in problems[0].text
    changes = COMPETITION.fix(spoilt, COMPETITION.read_ids(ids), tmp_path / "fixed.csv")
    assert len(changes) == 2
    assert validate_files("hubmap2023", ids, tmp_path / "fixed.csv") == ([], True)
    assert (tmp_path / "fixed.csv").read_text() == HEADER + row("aaa", (0.5, rle_of(VESSEL))) + "bbb,512,512,\n"
