"""Repairs of COCO results: what is certain is mended and said, what is not is left, and nothing crashes."""

import copy
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats.coco_fix import fix
from pipeline.competitions.formats.coco_results import check, check_records, write_zip
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Image

IDS = Dataset([Image(1, "a.png", 40, 50), Image(2, "sub/b.png", 30, 20), Image(3, "c.png", 33, 44)], {1: "cell"})
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def frame(image_id: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    image = IDS.image[image_id]
    mask = np.zeros((image.height, image.width), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    height, width = mask.shape
    return crop_to_rle(mask, (0, 0, width, height), (height, width), threshold=1)


def record(image_id: int, x: int, y: int, score: float, width: int = 5, height: int = 8) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "bbox": [float(x), float(y), float(width), float(height)],
        "score": score,
        "category_id": 1,
        "segmentation": rle(frame(image_id, x, y, width, height)),
    }


def good() -> list[dict[str, Any]]:
    return [
        record(1, 5, 6, 0.9),
        record(1, 22, 11, 0.8),
        record(2, 3, 14, 0.7),
        record(3, 30, 1, 0.6),
        record(3, 7, 20, 0.5),
    ]


def repaired(
    tmp_path: Path, content: Any, categories: tuple[int, ...] = (1,)
) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of the repaired copy and what was changed; the container is no part of it."""
    path, target = tmp_path / "in.zip", tmp_path / "out.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("answer.json", json.dumps(content))
    changes = fix(path, "answer.json", IDS, categories, target)
    with zipfile.ZipFile(target) as archive:
        assert archive.namelist() == ["answer.json"]
        return json.loads(archive.read("answer.json")), changes


def each(change: Any) -> list[dict[str, Any]]:
    records = good()
    for r in records:
        change(r)
    return records


def rename(r: dict[str, Any], old: str, new: str) -> None:
    r[new] = r.pop(old)


def as_corners(r: dict[str, Any]) -> None:
    x, y, w, h = r["bbox"]
    r["bbox"] = [x, y, x + w, y + h]


def along_rows(r: dict[str, Any]) -> None:
    mask = pixels(r)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(), [0]])))
    counts = np.diff(np.concatenate([[0], runs, [mask.size]])).tolist()
    text = coco_mask.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)["counts"].decode()
    r["segmentation"] = {"size": list(mask.shape), "counts": text}


def pixels(r: dict[str, Any]) -> np.ndarray:
    (x0, y0, x1, y1), crop = rle_to_crop(r["segmentation"])
    mask = np.zeros(r["segmentation"]["size"], np.uint8)
    mask[y0:y1, x0:x1] = crop
    return mask


def transposed(r: dict[str, Any]) -> None:
    mask = pixels(r)
    r["segmentation"] = rle(np.ascontiguousarray(mask.T))


def list_counts(r: dict[str, Any]) -> None:
    mask = pixels(r)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    r["segmentation"]["counts"] = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def polygon(r: dict[str, Any]) -> None:
    x, y, w, h = r["bbox"]
    r["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]


def moved_by_one(r: dict[str, Any]) -> None:
    r["bbox"] = [r["bbox"][0] + 1, r["bbox"][1] + 1, *r["bbox"][2:]]


CERTAIN: dict[str, tuple[Any, str]] = {
    "misspelt key": (lambda r: rename(r, "segmentation", "segmenation"), "the key 'segmenation' is now 'segmentation'"),
    "two misspelt keys": (lambda r: (rename(r, "bbox", "box"), rename(r, "score", "scores")), "'scores' is now 'score'"),
    "other names": (
        lambda r: (rename(r, "segmentation", "segm"), rename(r, "score", "confidence"), rename(r, "category_id", "label")),
        "the key 'confidence' is now 'score'",
    ),
    "spare key": (lambda r: r.update(area=3), "'area', which means nothing"),
    "ids as text": (lambda r: r.update(image_id=str(r["image_id"])), "image_id is now a number (5 records)"),
    "ids with a point": (lambda r: r.update(image_id=float(r["image_id"])), "image_id is now a number"),
    "file names for ids": (lambda r: r.update(image_id=IDS.image[r["image_id"]].file_name), "image_id is now a number"),
    "stems for ids": (lambda r: r.update(image_id=" abc"[r["image_id"]]), "image_id is now a number"),
    "ids from 0": (lambda r: r.update(image_id=r["image_id"] - 1), "image ids counted from 0"),
    "scores as text": (lambda r: r.update(score=str(r["score"])), "score is now a number"),
    "category from 0": (lambda r: r.update(category_id=0), "category_id is now 1, the only one (5 records)"),
    "category as text": (lambda r: r.update(category_id="1"), "category_id is now a number"),
    "no category": (lambda r: r.pop("category_id"), "category_id is now 1, the only one"),
    "corners": (as_corners, "it was corners (5 records)"),
    "no box": (lambda r: r.pop("bbox"), "bbox made from the mask"),
    "negative box": (lambda r: r.update(bbox=[5, 5, -1, 3]), "bbox made from the mask"),
    "box from 1": (moved_by_one, "boxes counted from 1"),
    "bytes": (lambda r: r["segmentation"].update(counts=repr(r["segmentation"]["counts"].encode())), "way to write bytes"),
    "list of runs": (list_counts, "lists of run lengths compressed (5 records)"),
    "polygons": (polygon, "polygons rasterised"),
    "along the rows": (along_rows, "runs that went along the rows now go down the columns"),
    "rows and corners": (lambda r: (along_rows(r), as_corners(r)), "runs that went along the rows"),
    "swapped size": (lambda r: r["segmentation"]["size"].reverse(), "the masks' size is now [height, width]"),
    "transposed": (transposed, "the masks' size is now [height, width]"),
    "transposed, corners": (lambda r: (transposed(r), as_corners(r)), "the masks' size is now [height, width]"),
    "size as text": (lambda r: r["segmentation"].update(size=[str(v) for v in r["segmentation"]["size"]]), "whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(CERTAIN))
def test_certain_repairs_give_the_good_records_back(tmp_path: Path, what: str) -> None:
    change, expected = CERTAIN[what]
    broken = each(change)
    before = copy.deepcopy(broken)
    records, changes = repaired(tmp_path, broken)
    assert broken == before
    assert any(expected in line for line in changes), changes
    assert records == good()
    assert check_records(records, IDS, [1], 100) == []
    with pytest.raises(CompetitionError, match="nothing that could be repaired"):
        repaired(tmp_path, records)


def test_what_validate_says_of_the_new_faults() -> None:
    listed = [str(p) for p in check_records(each(along_rows), IDS, [1], 100)]
    assert (
        len(listed) == 1 and "runs look as if they went along the rows" in listed[0] and listed[0].startswith("error")
    )
    (problem,) = check_records(each(moved_by_one), IDS, [1], 100)
    assert problem.severity == "warning" and "boxes count from 0" in problem.text
    (problem,) = check_records(each(CERTAIN["bytes"][0]), IDS, [1], 100)
    assert "decode them to text" in problem.text
    classes = each(lambda r: r.update(category_id=r["image_id"] - 1))
    assert any("category_id looks counted from 0" in str(p) for p in check_records(classes, IDS, [1, 2, 3], 100))
    images = each(lambda r: r.update(image_id=r["image_id"] - 1))
    assert any("image_id looks counted from 0" in str(p) for p in check_records(images, IDS, [1], 100))


def test_large_files_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.competitions.formats.faults.LARGE_BYTES", 100)
    write_zip(good(), tmp_path / "in.zip", "answer.json")
    (problem,) = check(tmp_path / "in.zip", "answer.json", IDS, [1], 100)
    assert problem.kind == "file size" and problem.severity == "warning"


def test_records_without_rank_or_pixels_are_left_out(tmp_path: Path) -> None:
    empty = {**record(1, 2, 2, 0.4), "segmentation": rle(np.zeros((40, 50), np.uint8))}
    records, changes = repaired(
        tmp_path,
        [*good(), {**record(1, 1, 1, 0.5), "score": math.nan}, {**record(2, 1, 1, 0.5), "score": math.inf}, empty, 7],
    )
    assert records == good()
    assert "a record left out whose score is not finite, so that it has no rank (2 records)" in changes
    assert "a record left out whose mask is empty" in changes and "entries that are no records left out" in changes


@pytest.mark.parametrize(
    "scores", [[90, 80, 70, 60, 50], [9.5, -3, 0, 1e9, 2], [5e-324 - 1, -1, 1, 0.5, 1 + 1e-15], [7] * 5]
)
def test_scores_are_scaled_in_their_order(tmp_path: Path, scores: list[float]) -> None:
    records, changes = repaired(tmp_path, [{**r, "score": s} for r, s in zip(good(), scores, strict=True)])
    found = [r["score"] for r in records]
    assert all(0 <= s <= 1 for s in found) and "scores scaled to 0..1, in the same order (5 records)" in changes
    for a in range(5):
        for b in range(5):
            assert (found[a] < found[b]) == (scores[a] < scores[b])
    assert [{**r, "score": 0} for r in records] == [{**r, "score": 0} for r in good()]


def test_a_list_inside_an_object(tmp_path: Path) -> None:
    for content in ({"annotations": good(), "info": {}}, {"predictions": good()}):
        records, changes = repaired(tmp_path, content)
        assert records == good() and "taken out of the object" in changes[0]
    with pytest.raises(CompetitionError, match="no list of records"):
        repaired(tmp_path, {"a": good(), "b": good()})


@pytest.mark.parametrize("name", ["answers.json", "dataset/answer.json"])
def test_packing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, json.dumps(good()))
    assert fix(path, "answer.json", IDS, [1], tmp_path / "out.zip") == ["packed alone, as answer.json, into a zip"]
    assert check(tmp_path / "out.zip", "answer.json", IDS, [1], 100) == []
    (tmp_path / "bare.json").write_text(json.dumps(good()))
    fix(tmp_path / "bare.json", "answer.json", IDS, [1], tmp_path / "bare.zip")
    assert (tmp_path / "bare.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()


# ---------------------------------------------------------------- what is not certain ---------------------------------


@pytest.mark.parametrize(
    "content",
    [
        good(),
        each(lambda r: r.update(category_id=r["image_id"] - 1)),  # three classes: background may be meant by 0
        each(lambda r: r.update(image_id=9)),
        each(lambda r: r.pop("score")),
        each(lambda r: rename(r, "segmentation", "shape")),  # what it holds may be the mask: it is not thrown away
        [record(1, 5, 6, 0.9, 8, 8), record(1, 5, 6, 0.5, 8, 8)] * 60,  # repeated, and more than count
        each(lambda r: r["segmentation"].update(size=[80, 100])),
        each(lambda r: r["segmentation"].update(counts="~")),
        each(lambda r: r.update(bbox=[1.0, 1.0, 2.0, 2.0])),  # elsewhere, however they are read
    ],
)
def test_what_is_not_certain_is_left(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CompetitionError, match=r"in\.zip.*nothing that could be repaired"):
        repaired(tmp_path, content, (1, 2, 3))
    assert not (tmp_path / "out.zip").exists()


def test_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="no detection would be left"):
        repaired(tmp_path, [{**record(1, 1, 1, 0.5), "score": math.nan}])
    with pytest.raises(CompetitionError, match="nothing that could be repaired"):
        repaired(tmp_path, [])
    with pytest.raises(CompetitionError, match="no such file"):
        fix(tmp_path / "none.zip", "answer.json", IDS, [1], tmp_path / "out.zip")


def test_the_masks_of_networks_whose_boxes_are_near_are_not_turned(tmp_path: Path) -> None:
    """Boxes that lie a little beside their masks are no reason to read anything in another way."""
    rng = np.random.default_rng(0)
    records = []
    for _ in range(40):
        x, y = int(rng.integers(0, 30)), int(rng.integers(0, 20))
        r = record(1, x, y, 0.5 + float(rng.random()) / 2, 12, 12)
        r["bbox"] = [v + float(rng.normal(0, 1.5)) for v in r["bbox"]]
        records.append(r)
    with pytest.raises(CompetitionError, match="nothing that could be repaired"):
        repaired(tmp_path, records)


# ---------------------------------------------------------------- any content -----------------------------------------

VALUE: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -(2**63)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
MASK = st.fixed_dictionaries(
    {},
    optional={
        "size": st.sampled_from([[40, 50], [50, 40], ["40", 50.0], [0, 0], [10**9, 10**9], [-40, -50], [1]]) | VALUE,
        "counts": st.sampled_from(["523OO22", "b'0'", 'b"\\\\x', "i0", "", [5, 5], [10**30, 1], [2000]])
        | st.text(max_size=9)
        | VALUE,
    },
)
ODD = st.fixed_dictionaries(
    {},
    optional={
        "image_id": st.sampled_from([0, 1, 2, "1", "a.png", 1.0, True, [1]]) | VALUE,
        "imageid": VALUE,
        "bbox": st.sampled_from([[1, 2, 3, 4], [1, 2, -3, 4], [math.nan] * 4, [10**400] * 4]) | VALUE,
        "score": st.sampled_from([0.5, 1e308, -1e308, "0.5", math.nan, 10**400, True]) | VALUE,
        "category_id": st.sampled_from([0, 1, 2, "1", 1.0]) | VALUE,
        "segmentation": MASK
        | st.sampled_from([[[1, 1, 5, 1, 5, 5]], [[1, 1, 1e300, 1, 5, 5]], [1, 1, 5, 1, 5, 5], [[]]])
        | VALUE,
        "segmenation": MASK,
    },
)


@settings(
    max_examples=500, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    content=st.lists(ODD | st.sampled_from(good()) | VALUE, max_size=5)
    | st.dictionaries(st.text(max_size=3), VALUE)
    | VALUE
)
def test_any_json_is_checked_and_repaired_or_left(tmp_path: Path, content: Any) -> None:
    check_records(content, IDS, [1], 100)
    try:
        records, changes = repaired(tmp_path, content)
    except CompetitionError as error:
        assert str(error)
        return
    assert changes and records
    check_records(records, IDS, [1], 100)
    with pytest.raises(CompetitionError, match=r"nothing that could be repaired"):
        repaired(tmp_path, records)


@settings(max_examples=150, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_checked_and_repaired_or_left(tmp_path: Path, data: st.DataObject) -> None:
    write_zip(good(), tmp_path / "good.zip", "answer.json")
    content = bytearray(data.draw(st.sampled_from([(tmp_path / "good.zip").read_bytes(), json.dumps(good()).encode()])))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"in.{data.draw(st.sampled_from(['zip', 'json', 'parquet']))}"
    path.write_bytes(content)
    assert isinstance(check(path, "answer.json", IDS, [1], 100), list)
    try:
        fix(path, "answer.json", IDS, [1], tmp_path / "out.zip")
    except CompetitionError as error:
        assert path.name in str(error)
    path.unlink()


# ---------------------------------------------------------------- the real files --------------------------------------


def real(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"needs the competition's files at {path}")
    return path


def test_the_organisers_own_example_is_repaired(tmp_path: Path) -> None:
    from pipeline.competitions.vrdl2025 import COMPETITION

    ids = COMPETITION.read_ids(real("vrdl2025/test_image_name_to_ids.json"))
    changes = COMPETITION.fix(real("vrdl2025/submission_example.zip"), ids, tmp_path / "out.zip")
    assert changes == ["bbox is now [x, y, width, height], it was corners (2 records)"]
    assert not [p for p in COMPETITION.validate(tmp_path / "out.zip", ids) if p.severity == "error"]
    for record in COMPETITION.read_submission(tmp_path / "out.zip"):
        x0, y0, x1, y1 = rle_to_crop(record["segmentation"])[0]
        x, y, w, h = record["bbox"]
        assert x - 1 < x0 and y - 1 < y0 and x1 < x + w + 1 and y1 < y + h + 1 and max(w, h) < 50


def test_real_submissions_need_no_repair_and_survive_being_broken(tmp_path: Path) -> None:
    from pipeline.competitions.vrdl2021 import COMPETITION

    ids = Dataset([Image(k, f"{k}.png", 1000, 1000) for k in range(1, 7)], {1: "nucleus"})
    path = sorted(real("vrdl2021/submissions").glob("*.zip"))[0]
    with pytest.raises(CompetitionError, match="nothing that could be repaired"):
        COMPETITION.fix(path, ids, tmp_path / "out.zip")
    records = COMPETITION.read_submission(path)
    broken = copy.deepcopy(records)
    for r in broken:
        as_corners(r)
        along_rows(r)
        rename(r, "segmentation", "segmenation")
        r["category_id"] = 0
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("out/answer.json", json.dumps(broken))
    changes = COMPETITION.fix(tmp_path / "in.zip", ids, tmp_path / "out.zip")
    assert len(changes) == 5
    for found, expected in zip(COMPETITION.read_submission(tmp_path / "out.zip"), records, strict=True):
        assert found.pop("bbox") == pytest.approx(expected.pop("bbox"), abs=1e-9)
        assert found == expected
