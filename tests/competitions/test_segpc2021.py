"""SegPC-2021: a drawn copy of its layout with every fault, the way out and back, and the real files."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backends import samples
from pipeline.competitions import CompetitionError, Prepared
from pipeline.competitions.formats import bmp
from pipeline.competitions.segpc2021 import CELL, COMPETITION, NUCLEUS
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import GRID_CAP, Dataset, Detections, Image, Instance
from pipeline.report import outlines
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "segpc2021"
SIZE = (60, 80)


def encoded(pixels: np.ndarray) -> bytes:
    good, content = cv2.imencode(".bmp", pixels)
    assert good
    return content.tobytes()


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def cell(x: int, y: int, side: int = 10, nucleus: int = 4, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[y : y + side, x : x + side] = 20
    mask[y + 2 : y + 2 + nucleus, x + 2 : x + 2 + nucleus] = 40
    return mask


def layout() -> dict[str, bytes]:
    """Two cells in each labelled image, the second of 101 in three channels."""
    files = {}
    for part, numbers in (("train", (101, 1200)), ("validation", (103,)), ("test", (1500, 105))):
        for n in numbers:
            files[f"{part}/x/{n}.bmp"] = encoded(picture(n))
            if part != "test":
                files[f"{part}/y/{n}_1.bmp"] = encoded(cell(5, 7))
                files[f"{part}/y/{n}_2.bmp"] = encoded(cell(30, 20))
    three = np.dstack([cell(30, 20), np.zeros(SIZE, np.uint8), cell(1, 1)])
    files["train/y/101_2.bmp"] = encoded(three)
    return files


def pack(files: dict[str, bytes], path: Path, nest: Any = lambda name: name) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(nest(name), content)
    return path


def read(files: dict[str, bytes], tmp_path: Path, **options: Any) -> Prepared:
    return COMPETITION.read(pack(files, tmp_path / "segpc.zip"), options, 0, tmp_path / "data")


def kinds(prepared: Prepared) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in prepared.integrity.problems:
        found.setdefault(problem.kind, []).append(problem.place)
    return found


def frame_of(instance: Instance, size: tuple[int, int] = SIZE) -> np.ndarray:
    box, crop = rle_to_crop(instance.rle)
    frame = np.zeros(size, np.uint8)
    frame[box[1] : box[3], box[0] : box[2]] = crop
    return frame


# ---------------------------------------------------------------- bitmaps ---------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 81])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bitmaps_are_read_as_opencv_reads_them(width: int, channels: int) -> None:
    shape = (7, width) if channels == 1 else (7, width, channels)
    pixels = np.random.default_rng(width).integers(0, 256, shape, np.uint8)
    found = bmp.parse(encoded(pixels))
    np.testing.assert_array_equal(found.values(), pixels if channels == 1 else pixels[:, :, 0])
    assert (found.height, found.width) == (7, width)


def test_palettes_and_rows_from_the_top() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = bytearray(encoded(pixels))
    content[54 + 4 * 5] = 99  # the blue of index 5
    values = bmp.parse(bytes(content)).values()
    assert values[1, 1] == 99 and values[1, 2] == 6
    content[22:26] = (-3).to_bytes(4, "little", signed=True)
    np.testing.assert_array_equal(bmp.parse(bytes(content)).values(), values[::-1])


@settings(max_examples=300, deadline=20_000)
@given(data=st.data())
def test_damaged_bitmaps_are_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(encoded(cell(5, 7)))
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    try:
        found = bmp.parse(bytes(content))
    except ValueError:
        return
    assert found.values().shape == (found.height, found.width)


# ---------------------------------------------------------------- reading ---------------------------------------------

NESTS = {
    "top": lambda name: name,
    "outer": lambda name: "TCIA_SegPC_dataset/TCIA_SegPC_dataset/" + name,
    "twice": lambda name: "data/" + name.split("/")[0] + "/" + name,
    "upper": lambda name: name.replace("train", "Train").replace(".bmp", ".BMP"),
}


@pytest.mark.parametrize("nest", sorted(NESTS))
@pytest.mark.parametrize("unpacked", [False, True])
def test_any_nesting_gives_the_same(tmp_path: Path, nest: str, unpacked: bool) -> None:
    path = pack(layout(), tmp_path / "segpc.zip", NESTS[nest])
    if unpacked:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "folder")
        path = tmp_path / "folder"
    with zipfile.ZipFile(tmp_path / "segpc.zip") as archive:
        assert COMPETITION.missing(archive.namelist()) == []
    prepared = COMPETITION.read(path, {}, 0, tmp_path / "data")
    assert prepared.integrity.problems == []
    assert [(i.id, i.file_name) for i in prepared.train.images] == [
        (n, f"images/train/{n}.bmp") for n in (101, 103, 1200)
    ]
    assert [(i.id, i.file_name) for i in prepared.test.images] == [(n, f"images/test/{n}.bmp") for n in (105, 1500)]
    assert len(prepared.train.instances) == 12 and prepared.test.instances == []
    for dataset in (prepared.train, prepared.test):
        for image in dataset.images:
            for reader in (samples.read_image, outlines.read_image):
                np.testing.assert_array_equal(reader(dataset.path(image)), picture(image.id)[:, :, ::-1])


def test_each_nucleus_follows_its_cell(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path)
    assert [i.id for i in prepared.train.instances] == list(range(1, 13))
    for image in prepared.train.images:
        own = prepared.train.by_image[image.id]
        assert [i.category_id for i in own] == [CELL, NUCLEUS, CELL, NUCLEUS]
        for k, (x, y) in enumerate([(5, 7), (30, 20)]):
            mask = cell(x, y)
            np.testing.assert_array_equal(frame_of(own[2 * k]), mask > 0)
            np.testing.assert_array_equal(frame_of(own[2 * k + 1]), mask == 40)
            assert own[2 * k].box == (x, y, 10, 10) and own[2 * k].area == 100
            assert own[2 * k + 1].box == (x + 2, y + 2, 4, 4) and own[2 * k + 1].area == 16
    assert prepared.integrity.facts["instances_per_class"] == {"cell": 6, "nucleus": 6}
    assert COMPETITION.stratum(prepared.train.images[0]) == "80x60"


def test_validation_may_be_what_is_predicted(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path, test="validation")
    assert [i.id for i in prepared.train.images] == [101, 1200] and [i.id for i in prepared.test.images] == [103]
    assert prepared.test.instances == []
    with pytest.raises(CompetitionError, match="'test' or 'validation' .it is 'x'"):
        read(layout(), tmp_path, test="x")
    with pytest.raises(CompetitionError, match="did you mean 'test'"):
        read(layout(), tmp_path, tests="test")
    with pytest.raises(CompetitionError, match="needs its images"):
        COMPETITION.read(None, {}, 0, tmp_path)


def test_every_survivable_fault_is_collected(tmp_path: Path) -> None:
    files = layout()
    good = files["train/y/101_1.bmp"]
    files["train/y/101_3.bmp"] = good[:500]
    files["train/y/101_4.bmp"] = encoded(cell(0, 0, size=(9, 9)))
    files["train/y/101_5.bmp"] = encoded(np.zeros(SIZE, np.uint8))
    files["train/y/101_6.bmp"] = good
    files["train/y/101_7.bmp"] = encoded(cell(45, 40, nucleus=0))
    files["train/y/101_10.bmp"] = encoded(cell(60, 40) * 2)
    files["train/x/1.bmp"] = encoded(picture(1))
    files["train/y/2_1.bmp"] = good
    files["train/x/3.bmp"], files["train/y/3_1.bmp"] = encoded(picture(1))[:300], good
    files["train/x/4.bmp"], files["train/y/4_1.bmp"] = encoded(picture(1)), b""
    files["validation/x/101.bmp"], files["validation/y/101_1.bmp"] = encoded(picture(9)), good
    files["train/notes.txt"] = files["train/x/.7.bmp"] = files["train/x/a_b.bmp"] = b""
    prepared = read(files, tmp_path)
    assert kinds(prepared) == {
        "stray files": [str(tmp_path / "segpc.zip")],
        "number twice": ["validation/101"],
        "image without masks": ["train/x/1.bmp", "train/x/4.bmp"],
        "no image": ["train/x/2.bmp"],
        "damaged image": ["train/x/3.bmp"],
        "damaged mask": ["train/y/4_1.bmp", "train/y/101_3.bmp", "train/y/101_4.bmp"],
        "empty mask": ["train/y/101_5.bmp"],
        "duplicate mask": ["train/y/101_6.bmp"],
        "no nucleus": ["train/y/101_7.bmp"],
        "values": ["train/y/101_10.bmp"],
    }
    texts = " ".join(str(problem) for problem in prepared.integrity.problems)
    assert "9x9 pixels, the image is 80x60" in texts and "the same as 101_1.bmp" in texts and "3 files that" in texts
    own = prepared.train.by_image[101]
    assert [i.category_id for i in own] == [1, 2, 1, 2, 1, 1, 2]
    np.testing.assert_array_equal(frame_of(own[6]), cell(60, 40) > 0)  # 40 and 80: all of it is nucleus
    assert sorted(p.name for p in (tmp_path / "data" / "images" / "train").iterdir()) == [
        "101.bmp",
        "103.bmp",
        "1200.bmp",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda files: {"a/b.png": b"x"}, "holds no x/<n>.bmp .*It has a"),
        (lambda files: {k: v for k, v in files.items() if "/y/" not in k}, "(?s)no usable training image.*no masks"),
        (
            lambda files: {**files, "test/x/105.bmp": files["test/x/105.bmp"][:99]},
            "(?s)test image must be whole.*105.bmp",
        ),
    ],
)
def test_what_cannot_be_survived(tmp_path: Path, change: Any, expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(change(layout()), tmp_path)


def test_without_test_images_the_rest_is_read(tmp_path: Path) -> None:
    files = {k: v for k, v in layout().items() if not k.startswith("test/")}
    prepared = read(files, tmp_path)
    assert kinds(prepared) == {"no test images": [str(tmp_path / "segpc.zip")]} and prepared.test.images == []
    assert COMPETITION.missing(list(files)) == ["test/x/<n>.bmp"]


# ---------------------------------------------------------------- truth and ids ---------------------------------------


def test_truth_from_the_masks_counts_every_file(tmp_path: Path) -> None:
    files = layout()
    files["validation/y/103_3.bmp"] = files["validation/y/103_1.bmp"]
    files["validation/y/103_4.bmp"] = encoded(np.zeros(SIZE, np.uint8))
    only = {k: v for k, v in files.items() if k.startswith("validation/y")}
    truth = COMPETITION.read_truth(pack(only, tmp_path / "y.zip"))
    assert [(i.id, i.height, i.width) for i in truth.images] == [(103, *SIZE)]
    cells = [i for i in truth.instances if i.category_id == CELL]
    assert [i.area for i in cells] == [100, 100, 100, 0]
    first = {"image_id": 103, "category_id": CELL, "score": 1.0, "segmentation": cells[0].rle}
    assert COMPETITION.score(truth, [first])["score"] == 0.5  # itself and its copy, of four
    truth.write(tmp_path / "truth.json")
    assert COMPETITION.read_truth(tmp_path / "truth.json").instances == truth.instances


def test_ids_from_the_images_or_a_json(tmp_path: Path) -> None:
    ids = COMPETITION.read_ids(pack(layout(), tmp_path / "segpc.zip"))
    assert ids.images == [Image(n, f"{n}.bmp", *SIZE) for n in (105, 1500)]
    ids.write(tmp_path / "ids.json")
    assert COMPETITION.read_ids(tmp_path / "ids.json").images == ids.images
    only = {k.split("/")[-1]: v for k, v in layout().items() if k.startswith("test/")}
    assert COMPETITION.read_ids(pack(only, tmp_path / "x.zip")).images == ids.images
    with pytest.raises(CompetitionError, match="no file"):
        COMPETITION.read_ids(tmp_path / "none")


# ---------------------------------------------------------------- the way out -----------------------------------------


def detections(rows: list[tuple[int, int, float, tuple[int, int], np.ndarray]]) -> Detections:
    """Rows of image, category, score, corner and binary mask."""
    boxes = [(x, y, x + m.shape[1], y + m.shape[0]) for _, _, _, (x, y), m in rows]
    columns = list(zip(*rows, strict=True))
    return Detections.build(columns[0], columns[1], columns[2], boxes, boxes, [m * np.uint8(255) for m in columns[4]])


def box(height: int, width: int) -> np.ndarray:
    return np.ones((height, width), np.uint8)


TEST = Dataset([Image(7, "images/test/1007.bmp", 1080, 1440), Image(8, "images/test/20.bmp", 1920, 2560)], {1: "cell"})


def text_of(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["submission.txt"]
        return archive.read("submission.txt").decode()


def test_the_written_text(tmp_path: Path) -> None:
    found = detections(
        [
            (7, CELL, 0.5, (3, 2), box(1, 3)),  # its nucleus leaks out, and is cut to the cell
            (7, NUCLEUS, 0.9, (4, 1), box(2, 1)),
            (7, CELL, 0.9, (20, 9), box(1, 2)),  # no nucleus: one pixel is lent
            (7, CELL, 0.4, (30, 9), box(1, 1)),
            (7, NUCLEUS, 0.8, (900, 900), box(5, 5)),  # no cell: not written
            (7, CELL, 0.3, (50, 9), box(1, 2)),  # all nucleus
            (7, NUCLEUS, 0.8, (49, 8), box(5, 5)),
        ]
    )
    path = tmp_path / "out.zip"
    COMPETITION.write(found, TEST, path)
    expected = ["1007", "9,21 9,20", "2,4 2,3;2,5", "9,30 9,30", "9,50 9,51"]
    assert text_of(path) == "\t".join(expected)
    assert [str(p) for p in COMPETITION.validate(path, TEST)] == [
        "warning: image 20: has no line, so its cells score 0"
    ]
    COMPETITION.write(found, TEST, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_a_nucleus_goes_to_the_cell_that_it_shares_most_with(tmp_path: Path) -> None:
    found = detections(
        [
            (7, CELL, 0.9, (0, 0), box(4, 4)),
            (7, CELL, 0.8, (4, 0), box(4, 4)),
            (7, NUCLEUS, 0.9, (3, 1), box(2, 4)),  # 2 pixels in the first, 6 in the second
            (7, NUCLEUS, 0.1, (0, 0), box(2, 3)),  # 6 in the first
        ]
    )
    records = COMPETITION.records(found, TEST)
    assert [r["category_id"] for r in records] == [CELL, NUCLEUS, CELL, NUCLEUS]
    assert [r["bbox"] for r in records] == [[0, 0, 4, 4], [0, 0, 3, 2], [4, 0, 4, 4], [4, 1, 3, 2]]
    assert [r["score"] for r in records] == [0.9, 0.9, 0.8, 0.8]
    COMPETITION.write(found, TEST, tmp_path / "out.zip")
    again = COMPETITION.read_submission(tmp_path / "out.zip", TEST)
    assert [{**r, "score": 0} for r in again] == [{**r, "score": 0} for r in records]


def test_detections_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match=r"not to be submitted: \[9\]"):
        COMPETITION.write(detections([(9, CELL, 0.5, (3, 2), box(1, 3))]), TEST, tmp_path / "out.zip")
    assert not list(tmp_path.iterdir())
    COMPETITION.write(Detections.empty(), TEST, tmp_path / "out.zip")
    assert "holds no cell at all" in str(COMPETITION.validate(tmp_path / "out.zip", TEST)[0])


def random_case(seed: int, sizes: list[tuple[int, int]]) -> tuple[Dataset, Detections]:
    """True cells with nuclei, and detections beside them, some of which are very small."""
    rng = np.random.default_rng(seed)
    images = [Image(k + 1, f"{100 + k}.bmp", *size) for k, size in enumerate(sizes)]
    instances: list[Instance] = []
    rows = []
    for image in images:
        for _ in range(3):
            side = int(rng.integers(1, image.height // 4))
            x, y = (int(rng.integers(0, length - side + 1)) for length in (image.width, image.height))
            for category_id, (u, v, s) in ((CELL, (x, y, side)), (NUCLEUS, (x, y, max(side // 2, 1)))):
                rle = crop_to_rle(box(s, s), (u, v, u + s, v + s), (image.height, image.width), threshold=1)
                instances.append(Instance(len(instances) + 1, image.id, category_id, rle, (u, v, s, s), float(s * s)))
                shape = (int(rng.integers(1, s + 1)), int(rng.integers(1, s + 1)))
                blob = rng.integers(0, 2, shape).astype(np.uint8) if max(shape) <= GRID_CAP else box(*shape)
                rows.append((image.id, category_id, float(rng.random()), (u, v), blob))
    return Dataset(images, {CELL: "cell", NUCLEUS: "nucleus"}, instances), detections(rows)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_submitted_scores_as_what_was_detected(tmp_path: Path, seed: int) -> None:
    """By way of the text: to images larger and smaller than the frame, for nuclei as for cells where no list was empty."""
    truth, found = random_case(seed, [(1920, 2560), (1536, 2040), (96, 128), (1080, 1440)])
    path = tmp_path / "out.zip"
    COMPETITION.write(found, truth, path)
    assert not [p for p in COMPETITION.validate(path, truth) if p.severity == "error"]
    records = COMPETITION.records(found, truth)
    sizes = {image.id: (image.height, image.width) for image in truth.images}
    expected = COMPETITION.score(truth, found.to_coco(sizes))
    assert COMPETITION.score(truth, records)["score"] == pytest.approx(expected["score"], abs=1e-12)
    read = COMPETITION.read_submission(path, truth)
    assert COMPETITION.score(truth, read)["score"] == pytest.approx(expected["score"], abs=1e-12)
    truth.write(tmp_path / "truth.json")
    assert score_files("segpc2021", tmp_path / "truth.json", path)["score"] == pytest.approx(
        expected["score"], abs=1e-12
    )
    assert 0 < expected["score"] < 1
    again = tmp_path / "again.zip"  # what was read is written as it was
    COMPETITION.write(Detections.from_coco(read), truth, again)
    one, other = (sorted(line for line in text_of(p).split("\n")) for p in (path, again))
    assert [sorted(a.split("\t")) for a in one if a.startswith(("100", "101", "103"))] == [
        sorted(b.split("\t")) for b in other if b.startswith(("100", "101", "103"))
    ]


def test_perfect_detections_score_one(tmp_path: Path) -> None:
    truth, _ = random_case(3, [(1920, 2560), (96, 128)])
    records = [
        {"image_id": a.image_id, "category_id": a.category_id, "score": 1.0, "segmentation": a.rle}
        for a in truth.instances
    ]
    result = COMPETITION.score(truth, records)
    assert result["score"] == 1.0 and result["classes"] == {"cell": 1.0, "nucleus": 1.0}
    assert result["truths"] == result["detections"] == result["cells_found_at_0.5"] == 6
    path = tmp_path / "out.zip"
    COMPETITION.write(Detections.from_coco(records), truth, path)
    truth.write(tmp_path / "truth.json")
    assert score_files("segpc2021", tmp_path / "truth.json", path)["score"] == 1.0
    assert json.loads(json.dumps(result)) == result


def test_an_image_that_the_scorer_stops_at_scores_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("submission.txt", "1007\t1,1 2,2\t3,3 \n20\t1,1 1,2\nabc\t1,1 2,2")
    records = COMPETITION.read_submission(path, TEST)
    assert {r["image_id"] for r in records} == {8}
    records = COMPETITION.read_submission(path)
    assert [r["image_id"] for r in records] == [20, 20] and records[0]["segmentation"]["size"] == [1080, 1440]
    with pytest.raises(CompetitionError, match="none.zip"):
        COMPETITION.read_submission(tmp_path / "none.zip")
    path.write_bytes(b"PK nothing")
    with pytest.raises(CompetitionError, match="out.zip"):
        COMPETITION.read_submission(path)


# ---------------------------------------------------------------- the real files --------------------------------------


def real(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"needs the competition's files at {path}")
    return path


def test_real_images(tmp_path: Path) -> None:
    prepared = COMPETITION.read(real("images"), {}, 0, tmp_path)
    facts = prepared.integrity.facts
    assert facts["train_images"] == 16 and set(kinds(prepared)) == {"no test images"}
    assert facts["instances_per_class"] == {"cell": facts["mask_files"], "nucleus": facts["mask_files"]}
    own = prepared.train.by_image[109]
    for k, name in enumerate(sorted((real("images") / "train" / "y").glob("109_*.bmp"))):
        pixels = cv2.imread(str(name), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(frame_of(own[2 * k], pixels.shape), pixels > 0)
        np.testing.assert_array_equal(frame_of(own[2 * k + 1], pixels.shape), pixels == 40)
    held_out = COMPETITION.read(real("images"), {"test": "validation"}, 0, tmp_path / "held-out")
    assert (len(held_out.train.images), len(held_out.test.images)) == (11, 5)
    # the true masks of the five, written out and scored against their files
    truth = COMPETITION.read_truth(real("images") / "validation")
    records = [
        {"image_id": a.image_id, "category_id": a.category_id, "score": 1.0, "segmentation": a.rle}
        for a in truth.instances
    ]
    COMPETITION.write(Detections.from_coco(records), held_out.test, tmp_path / "out.zip")
    held_out.test.write(tmp_path / "ids.json")
    assert validate_files("segpc2021", tmp_path / "ids.json", tmp_path / "out.zip") == ([], True)
    found = COMPETITION.read_submission(tmp_path / "out.zip", truth)
    result = COMPETITION.score(truth, found)
    assert result["score"] == 1.0 and result["truths"] == len(truth.instances) / 2


@pytest.mark.parametrize(("cells", "images", "count"), [("val_cell_t200", 200, 990), ("train_cell_t298", 298, 1643)])
def test_real_polygons(tmp_path: Path, cells: str, images: int, count: int) -> None:
    """The truth at full resolution: a perfect score for itself and, for the first 20 images, by way of the text."""
    path = tmp_path / "truth.json"
    path.write_bytes(gzip.decompress(real(f"{cells}.json.gz").read_bytes()))
    truth = COMPETITION.read_truth(path)
    assert (len(truth.images), len(truth.instances)) == (images, count)
    part = truth.subset([i.id for i in truth.images[:20]])
    records = [
        {"image_id": a.image_id, "category_id": CELL, "score": 1.0, "segmentation": a.rle} for a in part.instances
    ]
    assert COMPETITION.score(part, records)["score"] == 1.0
    COMPETITION.write(Detections.from_coco(records), part, tmp_path / "out.zip")
    assert COMPETITION.validate(tmp_path / "out.zip", part) == []
    read = COMPETITION.read_submission(tmp_path / "out.zip", part)
    # a detection's mask is kept as a grid of at most 128 cells a side, so its edge is not the polygon's to the pixel
    assert COMPETITION.score(part, read)["score"] > 0.98
