"""Sartorius 2021: a tiny competition drawn in its exact layout, with its faults."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.competitions import CompetitionError, Prepared
from pipeline.competitions.formats.kaggle_rle import from_rle
from pipeline.competitions.sartorius import COMPETITION, WRONG, group_of
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

HEIGHT, WIDTH = 520, 704
HEADER = [
    "id", "annotation", "width", "height", "cell_type", "plate_time", "sample_date", "sample_id", "elapsed_timedelta",
]  # fmt: skip
IMAGES = {
    "0030fd0e6378": ("shsy5y", "shsy5y[diff]_E10-4_Vessel-714_Ph_3"),
    "0140b3c8f445": ("astro", "astros[cereb]_F10-1_Vessel-361_Ph_1"),
    "01ae5a43a2ab": ("cort", "cort[debris]_B4-2_Vessel-361_Ph_2"),
    "026b3c2c4b32": ("cort", "cort[debris]_B4-3_Vessel-361_Ph_2"),
}
TEST = ["7ae19de7bc2a", "d48ec7815252", "d8bfd1dafdc4"]


def cell(y: int, x: int, radius: int = 9) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


CELLS = [cell(100, 200), cell(300, 500), cell(50, 690, 12)]


def plain(frame: np.ndarray) -> str:
    """Row by row, as the 1st and 11th places decode train.csv."""
    flat = np.concatenate([[0], frame.ravel(), [0]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges))


def png(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    image = np.random.default_rng(seed).integers(120, 136, size).astype(np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def table(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def rows_of(name: str, frames: list[np.ndarray], kind: str, sample: str) -> list[list[Any]]:
    tail = [WIDTH, HEIGHT, kind, "11h30m00s", "2019-06-16", sample, "0 days 11:30:00"]
    return [[name, plain(frame), *tail] for frame in frames]


def layout(**frames: list[np.ndarray]) -> dict[str, bytes]:
    """Every image with the cells of `CELLS`, unless `frames` says others."""
    rows: list[list[Any]] = [HEADER]
    files: dict[str, bytes] = {}
    for k, (name, (kind, sample)) in enumerate(IMAGES.items()):
        files[f"train/{name}.png"] = png(k)
        rows += rows_of(name, frames.get(f"i{name}", CELLS), kind, sample)
    for k, name in enumerate(TEST):
        files[f"test/{name}.png"] = png(20 + k)
    files["train.csv"] = table(rows)
    files["sample_submission.csv"] = table([["id", "predicted"], *([name, ""] for name in TEST)])
    files["train_semi_supervised/cort[debris]_B4_Vessel-361_2019_11h_Ph_2.png"] = png(30)
    files["LIVECell_dataset_2021/annotations/LIVECell/livecell_coco_train.json"] = b"{}"
    return files


def read(files: dict[str, bytes], tmp_path: Path, **options: Any) -> Prepared:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "sartorius-cell-instance-segmentation.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return COMPETITION.read(path, options, 0, tmp_path / "data")


def kinds(prepared: Prepared) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in prepared.integrity.problems:
        found.setdefault(problem.kind, []).append(problem.place)
    return found


# ---------------------------------------------------------------- reading ---------------------------------------------


def test_the_layout_is_read(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path)
    assert kinds(prepared) == {"not read": ["train_semi_supervised/", "LIVECell_dataset_2021/"]}
    assert [i.file_name for i in prepared.train.images] == [
        f"images/train/{kind}/{name}.png" for name, (kind, _) in IMAGES.items()
    ]
    assert prepared.train.categories == {1: "shsy5y", 2: "astro", 3: "cort"}
    assert [a.category_id for a in prepared.train.instances] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    for instance, frame in zip(prepared.train.instances, CELLS * 4, strict=True):
        (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
        whole = np.zeros_like(frame)
        whole[y0:y1, x0:x1] = mask
        np.testing.assert_array_equal(whole, frame)
        assert instance.box == (x0, y0, x1 - x0, y1 - y0) and instance.area == frame.sum()
    assert [COMPETITION.stratum(i) for i in prepared.train.images] == ["shsy5y", "astro", "cort", "cort"]
    assert [(i.id, i.file_name, i.height, i.width) for i in prepared.test.images] == [
        (k, f"images/test/{name}.png", HEIGHT, WIDTH) for k, name in enumerate(TEST, start=1)
    ]
    assert all(d.path(i).exists() for d in (prepared.train, prepared.test) for i in d.images)
    assert COMPETITION.missing(list(layout())) == [] and len(COMPETITION.missing([])) == 3


def test_a_folder_with_an_outer_folder(tmp_path: Path) -> None:
    for name, content in layout().items():
        (tmp_path / "in" / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "x" / name).write_bytes(content)
    prepared = COMPETITION.read(tmp_path / "in", {}, 0, tmp_path / "data")
    assert len(prepared.train.instances) == 12 and len(prepared.test.images) == 3


def test_groups_do_not_leak(tmp_path: Path) -> None:
    """Two positions of one well are one group; of other wells of the plate, others."""
    prepared = read(layout(), tmp_path)
    groups = [image.group for image in prepared.train.images]
    assert groups == [
        "shsy5y[diff]_E10_Vessel-714", "astros[cereb]_F10_Vessel-361", *["cort[debris]_B4_Vessel-361"] * 2,
    ]  # fmt: skip
    sample = "cort[oka-high]_A4-1_Vessel-362_Ph_2"
    assert group_of(sample, "sample") == sample
    assert group_of(sample, "well") == "cort[oka-high]_A4_Vessel-362"
    assert group_of(sample, "culture") == "cort[oka-high]_Vessel-362"
    assert group_of("something", "well") == "something"
    by_sample = read(layout(), tmp_path, group="sample")
    assert len({image.group for image in by_sample.train.images}) == 4


def test_holes_are_filled_when_asked(tmp_path: Path) -> None:
    hollow = CELLS[0] - cell(100, 200, 4)
    files = layout(**{"i0030fd0e6378": [hollow, *CELLS[1:]]})
    as_given, filled = read(files, tmp_path / "a"), read(files, tmp_path / "b", fill_holes=True)
    assert as_given.train.instances[0].area == hollow.sum() and filled.train.instances[0].area == CELLS[0].sum()
    assert kinds(as_given)["hollow masks"] == ["train/0030fd0e6378.png"]
    assert [i.rle for i in as_given.train.instances[1:]] == [i.rle for i in filled.train.instances[1:]]


def wrong_image() -> dict[str, bytes]:
    files = layout()
    files[f"train/{WRONG[0]}.png"] = png(50)
    files["train.csv"] += table(rows_of(WRONG[0], CELLS, "cort", "cort[debris]_C1-1_Vessel-361_Ph_2"))
    return files


def test_wrong_images_are_reported_and_left_out_when_asked(tmp_path: Path) -> None:
    kept, gone = read(wrong_image(), tmp_path / "a"), read(wrong_image(), tmp_path / "b", leave_out_wrong=True)
    assert len(kept.train.images) == 5 and len(gone.train.images) == 4
    for prepared in (kept, gone):
        assert kinds(prepared)["wrong image"] == [f"train/{WRONG[0]}.png"]


def test_every_survivable_fault_is_collected(tmp_path: Path) -> None:
    files = layout(**{"i0030fd0e6378": [CELLS[0], CELLS[0], cell(100, 204), np.zeros_like(CELLS[0])]})
    sample = "cort[debris]_C1-1_Vessel-361_Ph_2"
    more = [
        *rows_of("aaaaaaaaaaaa", CELLS, "cort", sample),  # no image
        *rows_of("bbbbbbbbbbbb", CELLS, "neuron", sample),
        *rows_of("cccccccccccc", CELLS, "cort", sample),
        *rows_of("dddddddddddd", CELLS, "cort", sample),
        ["eeeeeeeeeeee", "366080 2", WIDTH, HEIGHT, "cort", "", "", sample, ""],
    ]
    files["train.csv"] += table(more)
    files["train/bbbbbbbbbbbb.png"] = png(1)
    files["train/cccccccccccc.png"] = png(1)[:80]
    files["train/dddddddddddd.png"] = png(1, (HEIGHT, 700))
    files["train/eeeeeeeeeeee.png"] = png(1)
    files["train/ffffffffffff.png"] = png(1)  # no annotation
    files["sample_submission.csv"] += b"gggggggggggg,\n"
    prepared = read(files, tmp_path)
    assert len(prepared.train.images) == 4
    found = kinds(prepared)
    assert found.pop("not read")
    assert found == {
        "duplicate mask": ["train.csv, line 3"],
        "empty mask": ["train.csv, line 5"],
        "overlapping masks": ["train/0030fd0e6378.png"],
        "no image or no annotation": ["train/aaaaaaaaaaaa.png", "train/ffffffffffff.png"],
        "cell type": ["train.csv, bbbbbbbbbbbb"],
        "damaged image": ["train/cccccccccccc.png", "train/dddddddddddd.png"],
        "damaged mask": ["train.csv, line 27"],
        "image without masks": ["train/eeeeeeeeeeee.png"],
        "unknown id": ["sample_submission.csv"],
    }
    texts = " ".join(map(str, prepared.integrity.problems))
    assert "it is 700x520, train.csv says 704x520" in texts and "ends at pixel 366081" in texts


def two_types() -> dict[str, bytes]:
    files = layout()
    files["train.csv"] += table(rows_of("0030fd0e6378", CELLS[:1], "cort", "x"))
    return files


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({n: d for n, d in layout().items() if n != "train.csv"}, "holds no train.csv; is it the data of Sartorius"),
        ({n: d for n, d in layout().items() if not n.startswith("train/")}, "holds no train/ beside train.csv"),
        ({n: d for n, d in layout().items() if not n.startswith("test/")}, "there is no test/<id>.png"),
        ({**layout(), "train.csv": b"id,width\na,1\n"}, "has no column annotation and no column cell_type"),
        ({**layout(), "train.csv": table([HEADER])}, "(?s)no usable training image.*is not in train.csv"),
        (
            {**layout(), f"test/{TEST[1]}.png": b"x"},
            f"every test image must be whole(?s:.*){TEST[1]}.png: it is not a PNG",
        ),
        (two_types(), "line 14: 0030fd0e6378 is of two cell types"),
    ],
)
def test_what_cannot_be_survived(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(files, tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fil_holes": True}, "did you mean 'fill_holes'"),
        ({"fill_holes": "yes"}, "fill_holes: .*boolean .it is 'yes'"),
        ({"group": "plate"}, "group: .*'well', 'sample' or 'culture' .it is 'plate'"),
        ({"livecell": "nowhere.json"}, "data.options.livecell: .*nowhere.json"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        read(layout(), tmp_path, **options)
    with pytest.raises(CompetitionError, match="needs its zip"):
        COMPETITION.read(None, {}, 0, tmp_path)


def test_livecell_joins_when_asked(tmp_path: Path) -> None:
    """Images of the line that both sets have, found in the data or beside the json; polygons are rasterised."""
    names = [
        "SHSY5Y_Phase_A10_1_00d04h00m_1.tif",
        "SHSY5Y_Phase_A10_1_00d08h00m_1.tif",
        "A172_Phase_A7_1_00d00h00m_1.tif",
    ]
    polygon = [[10, 10, 30, 10, 30, 40, 10, 40]]
    document = {
        "images": [{"id": k, "file_name": n, "height": 52, "width": 70} for k, n in enumerate([*names, "SHSY5Y_lost.tif"])],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": k + 1, "image_id": k, "category_id": 1, "segmentation": polygon, "bbox": [10, 10, 20, 30], "area": 600}
            for k in range(4)
        ],
    }  # fmt: skip
    (tmp_path / "livecell.json").write_text(json.dumps(document))
    tif = cv2.imencode(".tif", np.full((52, 70), 128, np.uint8))[1].tobytes()
    files = {**layout(), f"LIVECell_dataset_2021/images/livecell_train_val_images/SHSY5Y/{names[0]}": tif}
    (tmp_path / names[1]).write_bytes(tif)
    prepared = read(files, tmp_path, livecell=str(tmp_path / "livecell.json"))
    added = prepared.train.images[4:]
    assert [Path(i.file_name).stem + ".tif" for i in added] == names[:2]
    assert {i.group for i in added} == {"LIVECell SHSY5Y_Phase_A10"} and COMPETITION.stratum(added[0]) == "shsy5y"
    assert [a.category_id for a in prepared.train.by_image[added[0].id]] == [1]
    assert cv2.imread(str(prepared.train.path(added[1]))).shape == (52, 70, 3)
    assert "1 images of the line SHSY5Y are neither in the data" in " ".join(map(str, prepared.integrity.problems))
    Dataset.read(_written(prepared, tmp_path))


def _written(prepared: Prepared, tmp_path: Path) -> Path:
    prepared.train.write(tmp_path / "train.json")
    return tmp_path / "train.json"


# ---------------------------------------------------------------- submissions -----------------------------------------


def submitted(prepared: Prepared, path: Path) -> Path:
    boxes, masks = zip(*(rle_to_crop(a.rle) for a in prepared.train.instances[:3]), strict=True)
    grids = [m * np.uint8(255) for m in masks]
    COMPETITION.write(Detections.build([1, 1, 3], 2, [0.9, 0.8, 0.7], boxes, boxes, grids), prepared.test, path)
    return path


def test_what_is_written_is_row_major_and_valid(tmp_path: Path) -> None:
    prepared = read(layout(), tmp_path)
    path = submitted(prepared, tmp_path / "submission.csv")
    (tmp_path / "sample.csv").write_bytes(layout()["sample_submission.csv"])
    for ids in (tmp_path / "sample.csv", _test(prepared, tmp_path)):
        assert validate_files("sartorius", ids, path) == ([], True)
    with open(path, newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows == [
        ["id", "predicted"], [TEST[0], plain(CELLS[0])], [TEST[0], plain(CELLS[1])], [TEST[1], ""], [TEST[2], plain(CELLS[2])],
    ]  # fmt: skip


def _test(prepared: Prepared, tmp_path: Path) -> Path:
    prepared.test.write(tmp_path / "test.json")
    return tmp_path / "test.json"


def test_columns_instead_of_rows_are_told(tmp_path: Path) -> None:
    """The evaluation page says top to bottom, but the data are numbered along the rows."""
    prepared = read(layout(), tmp_path)
    right = submitted(prepared, tmp_path / "submission.csv")
    masks = [[a.rle for a in prepared.train.instances[:3]][k] for k in (0, 1, 2)]
    many = [crop_to_rle(cell(60 + 60 * k, 350), (0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH), 1) for k in range(6)]
    lines = [f"{TEST[k % 3]},{from_rle(rle, 'columns')}" for k, rle in enumerate([*masks, *many])]
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("\n".join(["id,predicted", *lines]) + "\n")
    problems = COMPETITION.validate(wrong, prepared.test)
    assert [p.kind for p in problems if p.severity == "error"] == ["order"]
    assert "numbered column by column; this competition numbers them row by row" in problems[0].text
    COMPETITION.fix(wrong, prepared.test, tmp_path / "fixed.csv")
    assert COMPETITION.validate(tmp_path / "fixed.csv", prepared.test) == []
    fixed = COMPETITION.read_submission(tmp_path / "fixed.csv", prepared.test)
    assert sorted(r["segmentation"]["counts"] for r in fixed) == sorted(r["counts"] for r in [*masks, *many])
    assert right.exists()


def test_train_csv_is_the_truth(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(layout()["train.csv"])
    truth = COMPETITION.read_truth(tmp_path / "train.csv")
    assert len(truth.images) == 4 and len(truth.instances) == 12
    rows = [[name, plain(frame)] for name in IMAGES for frame in CELLS[: 3 if name < "0141" else 1]]
    (tmp_path / "s.csv").write_bytes(table([["id", "predicted"], *rows]))
    result = score_files("sartorius", tmp_path / "train.csv", tmp_path / "s.csv")
    assert result["classes"] == {"shsy5y": 1.0, "astro": pytest.approx(1.0), "cort": pytest.approx(1 / 3)}
    assert result["score"] == pytest.approx(2 / 3)
