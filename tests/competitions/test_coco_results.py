"""Submissions as COCO results: reading, writing, and every fault in plain words."""

import copy
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats import coco_results
from pipeline.competitions.formats.coco_results import check, check_records, read_ids, read_records, write_zip
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Detections, Image

IDS = Dataset([Image(1, "a.png", 40, 50), Image(2, "b.png", 30, 20)], {1: "cell"})


def record(image_id: int = 1, x: int = 5, y: int = 6, side: int = 8, score: float = 0.5) -> dict[str, Any]:
    image = IDS.image[image_id]
    rle = crop_to_rle(
        np.ones((side, side), np.uint8), (x, y, x + side, y + side), (image.height, image.width), threshold=1
    )
    box = [float(x), float(y), float(side), float(side)]
    return {"image_id": image_id, "bbox": box, "score": score, "category_id": 1, "segmentation": rle}


def good() -> list[dict[str, Any]]:
    return [record(1, 5, 6, score=0.9), record(1, 20, 21, score=0.8), record(2, 3, 4, score=0.7)]


def found(records: Any, limit: int | None = 100) -> list[Problem]:
    return check_records(records, IDS, [1], limit)


def texts(records: Any, limit: int | None = 100) -> list[str]:
    return [str(problem) for problem in found(records, limit)]


def changed(**changes: Any) -> list[dict[str, Any]]:
    """Good records, the second of which has these changes; None removes a key."""
    records = good()
    for key, value in changes.items():
        if value is None:
            del records[1][key]
        else:
            records[1][key] = value
    return records


# ---------------------------------------------------------------- records ---------------------------------------------


def test_good_records_have_no_problem() -> None:
    assert found(good()) == []


def test_misspelt_key_names_the_right_one() -> None:
    records = good()
    records[1]["segmenation"] = records[1].pop("segmentation")
    (problem,) = found(records)
    assert problem.severity == "error" and problem.place == "record 1"
    assert problem.text == "the key 'segmenation' should be 'segmentation'"


def segmentation(**changes: Any) -> dict[str, Any]:
    return {"segmentation": {**record()["segmentation"], **changes}}


@pytest.mark.parametrize(
    ("changes", "severity", "expected"),
    [
        ({"score": None}, "error", "'score' is missing"),
        ({"area": 3}, "warning", "'area' means nothing"),
        ({"image_id": "1"}, "error", "image_id is not an integer"),
        ({"image_id": True}, "error", "image_id is not an integer"),
        ({"image_id": 3}, "error", r"record 1 \(3\): image_id is not among the test images \(1, 2\)"),
        ({"category_id": 0}, "error", "category_id is not one of 1.*count classes from 0"),
        ({"category_id": 1.0}, "error", "category_id is not an integer"),
        ({"score": "0.5"}, "error", "score is not a number"),
        ({"score": float("nan")}, "error", "score is not finite"),
        ({"score": 1.5}, "error", r"record 1 \(1.5\): the score is outside 0..1"),
        ({"score": -0.1}, "error", "outside 0..1"),
        ({"bbox": [1, 2, 3]}, "error", "bbox is not four numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "error", "bbox is not four numbers"),
        ({"bbox": [1, 2, 3, float("inf")]}, "error", "bbox is not four numbers"),
        ({"bbox": [20, 21, -8, 8]}, "error", "negative width or height"),
        ({"bbox": [20, 21, 8, 80]}, "warning", "reaches out of the image"),
        ({"bbox": [40.0, 2.0, 5.0, 5.0]}, "warning", "different places"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "error", "is a polygon"),
        ({"segmentation": "abc"}, "error", "is not an RLE"),
        ({"segmentation": {"counts": "abc"}}, "error", "is not an RLE"),
        (segmentation(size=[40]), "error", r"not \[height, width\]"),
        (segmentation(size=[50, 40]), "error", r"not the image's; height comes first"),
        (segmentation(size=[80, 100]), "error", r"\[80, 100\], image 1 is \[40, 50\]"),
        (segmentation(counts=[1, 2, 1997]), "error", "list of numbers"),
        (segmentation(counts=7), "error", "not text"),
        (segmentation(counts="~~~"), "error", "run lengths are wrong"),
        (segmentation(counts="523OO22"), "error", "cover 20 pixels.*has 2000"),
        (segmentation(counts="0PP2"), "error", "run lengths are wrong"),
    ],
)
def test_every_fault_has_its_words(changes: dict[str, Any], severity: str, expected: str) -> None:
    problems = found(changed(**changes))
    assert len(problems) == 1, problems
    assert problems[0].severity == severity
    assert re.search(expected, str(problems[0])), problems[0]


def test_mask_past_the_end_and_empty_mask() -> None:
    height, width = 40, 50
    longer = crop_to_rle(np.ones((3, 3), np.uint8), (1, 1, 4, 4), (height, width + 1), threshold=1)["counts"]
    assert "cover 2040 pixels" in texts(changed(**segmentation(counts=longer)))[0]
    empty = crop_to_rle(np.zeros((0, 0), np.uint8), (0, 0, 0, 0), (height, width))["counts"]
    (problem,) = found(changed(**segmentation(counts=empty)))
    assert problem.severity == "error" and "the mask is empty" in problem.text


def test_a_run_so_long_that_sums_wrap_around_is_refused() -> None:
    """Two runs of 2**63 would add up to the image's pixels in 64 bits, and paint far outside of the crop."""
    rle = {"size": [40, 50], "counts": [1 << 62, 1 << 62, 1 << 62, (1 << 62) + 2000]}
    from pipeline.masks import rle_to_crop

    with pytest.raises(ValueError, match="run of"):
        rle_to_crop(rle)
    with pytest.raises(ValueError, match="negative"):
        rle_to_crop({"size": [-40, -50], "counts": [1, 1999]})


def test_corner_boxes_are_found_by_their_masks() -> None:
    records = good()
    for r in records:
        x, y, w, h = r["bbox"]
        r["bbox"] = [x, y, x + w, y + h]
    problems = found(records)
    corner = [p for p in problems if "corners" in p.text]
    assert len(corner) == 1 and corner[0].severity == "error"


def test_some_corner_boxes_among_others_and_boxes_by_their_centre() -> None:
    records = [record(1, 20, 21, score=0.8), record(1, 30, 5), record(2, 3, 4), record(2, 8, 14)]
    x, y, w, h = records[0]["bbox"]
    records[0]["bbox"] = [x, y, x + w - 1, y + h - 1]
    (problem,) = [p for p in found(records) if "out of the image" not in p.text]
    assert problem.severity == "warning" and problem.place == "record 0 (image 1)" and "like corners" in problem.text
    for r in records:
        x, y, w, h = 20 if r is records[0] else r["bbox"][0], r["bbox"][1], 8, 8
        r["bbox"] = [x + w / 2, y + h / 2, w, h]
    (problem,) = found(records)
    assert problem.severity == "warning" and "centre x, centre y" in problem.text


def test_other_names_of_keys_are_told() -> None:
    records = good()
    for r in records:
        r["confidence"], r["mask"] = r.pop("score"), r.pop("segmentation")
    assert [str(p).split(": ", 2)[2] for p in found(records)] == [
        "the key 'confidence' should be 'score'",
        "the key 'mask' should be 'segmentation'",
    ]


@pytest.mark.parametrize(
    ("known", "values", "expected"),
    [
        ([1, 2, 3, 4], [0, 1, 2], "counted from 0: then every record's is one too low"),
        ([1, 2, 3, 4], [2, 3, 5], "counted from 2: then every record's is one too high"),
        ([1, 2, 3, 90], [0, 2, 3], "looks like the place in the list of ids"),
        ([24, 25, 26], [0, 1, 2], "looks like the place in the list of ids"),
        ([24, 25, 26], [23, 24, 24], "counted from 23"),
        ([0, 1, 2], [0, 1, 2], ""),
        ([0, 2, 5], [0, 2, 2], ""),
        ([1, 2, 3, 4], [1, 3, 4], ""),
        ([1, 2, 3, 4], [1, 3, 5], ""),  # one is unknown, and the first is there
    ],
)
def test_category_ids_off_by_one(known: list[int], values: list[int], expected: str) -> None:
    records = good()
    for r, value in zip(records, values, strict=True):
        r["category_id"] = value
    whole = [p for p in check_records(records, IDS, known, 100) if p.place == "all records"]
    assert [p.severity for p in whole] == ["error"] * bool(expected) and all(expected in p.text for p in whole)


def test_a_missing_box_is_no_fault_where_the_scorer_makes_its_own() -> None:
    records = changed(bbox=None)
    assert check_records(records, IDS, [1], 100, box_needed=False) == []
    assert "'bbox' is missing" in texts(records)[0]


def test_a_fault_of_many_records_is_one_problem() -> None:
    records = [record(1, 5, 6, score=1.5 + k) for k in range(7)] + [record(2)]
    listed = texts(records)
    assert sum("outside 0..1" in text for text in listed) == 1
    assert any("record 0 (1.5), record 1 (2.5), record 2 (3.5) and 4 more" in text for text in listed)


def test_all_problems_at_once() -> None:
    records = [*good(), {"image_id": 9}, 7, {**record(), "score": 2.0}]
    listed = "\n".join(texts(records))
    for expected in ("not among the test images", "'bbox' is missing", "record 4 (7)", "outside 0..1"):
        assert expected in listed


def test_structure() -> None:
    assert "the keys annotations" in texts({"annotations": []})[0]
    assert "holds no detections" in texts([])[0]
    assert "is not an object" in texts([*good(), "x"])[0]


def test_too_many_detections_is_a_warning() -> None:
    records = [record(1, x, y, 4, 0.5 + (x + y) / 1000) for x in range(12) for y in range(10)] + [record(2)]
    (problem,) = found(records)
    assert problem.severity == "warning" and "image 1 (120): more than 100 detections" in str(problem)
    assert found(records, None) == []


def test_image_without_detections_and_repeated_masks() -> None:
    assert texts([record(1)]) == ["warning: image 2 (b.png): has no detection in the submission"]
    assert "the same mask more than once" in texts([record(1), record(1, score=0.4), record(2)])[0]


def test_scores_that_are_all_the_same() -> None:
    records = [record(1 + k % 2, k % 7, k % 5) for k in range(30)]
    assert any("more than half of the scores are the same" in text for text in texts(records))


# ---------------------------------------------------------------- containers ------------------------------------------


def checked(path: Path) -> list[str]:
    return [str(problem) for problem in check(path, "answer.json", IDS, [1], 100)]


def test_zip_round_trip_and_same_bytes(tmp_path: Path) -> None:
    records = good()
    write_zip(records, tmp_path / "a.zip", "answer.json")
    write_zip(copy.deepcopy(records), tmp_path / "b.zip", "answer.json")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        (info,) = archive.infolist()
        assert info.filename == "answer.json" and info.compress_type == zipfile.ZIP_DEFLATED
        content = archive.read(info).decode()
    assert content.startswith(
        '[{"image_id":1,"bbox":[5.0,6.0,8.0,8.0],"score":0.9,"category_id":1,"segmentation":{"size"'
    )
    assert read_records(tmp_path / "a.zip", "answer.json") == records
    assert checked(tmp_path / "a.zip") == []


@pytest.mark.parametrize(
    ("members", "expected", "readable"),
    [
        ({"answers_json": good()}, "holds answers.json and no answer.json", True),
        ({"dataset__answer_json": good()}, "holds dataset/answer.json; answer.json must lie at the top", True),
        ({"a_json": good(), "b_json": good()}, "no answer.json", False),
        ({}, "empty archive", False),
        ({"answer_json": good(), "readme": 1}, "warning: .*holds readme beside answer.json", True),
        ({"answer_json": good(), "__MACOSX__._answer_json": 1}, "warning", True),
    ],
)
def test_wrong_members(tmp_path: Path, members: dict[str, Any], expected: str, readable: bool) -> None:
    members = {("__MACOSX/._answer.json" if "MACOSX" in k else k): v for k, v in members.items()}
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            name = name if "MACOSX" in name else name.replace("__", "/").replace("_json", ".json")
            archive.writestr(name, json.dumps(value))
    (problem,) = checked(path)
    assert re.search(expected, problem), problem
    if readable:
        assert read_records(path, "answer.json") == good()
    else:
        with pytest.raises(CompetitionError, match="x.zip"):
            read_records(path, "answer.json")


def test_damaged_containers(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    write_zip(good(), path, "answer.json")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04", whole[:60] + b"\xff\xff" + whole[62:]):
        path.write_bytes(content)
        (problem,) = checked(path)
        assert problem.startswith("error: x.zip: ")
        with pytest.raises(CompetitionError, match="x.zip"):
            read_records(path, "answer.json")
    assert "there is no such file" in checked(tmp_path / "none.zip")[0]
    (tmp_path / "x.json").write_text('[{"image_id": 1')
    assert any("is not JSON" in problem for problem in checked(tmp_path / "x.json"))
    (tmp_path / "y.json").write_text("")
    assert any("is empty" in problem for problem in checked(tmp_path / "y.json"))


def test_absurd_sizes_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_results, "MAX_JSON_BYTES", 10_000)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("answer.json", b" " * 1_000_000)
    assert "unpacks to 1,000,000 bytes" in checked(path)[0]


def test_bare_json_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(good()))
    assert read_records(path, "answer.json") == good()
    (problem,) = checked(path)
    assert problem.startswith("warning") and "takes a zip that holds answer.json" in problem


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_an_error(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("answer.json", json.dumps(good()).encode(encoding))
    (problem,) = checked(path)
    assert problem.startswith("error: x.zip: begins with a byte order mark")
    assert read_records(path, "answer.json") == good()


def test_parquet_of_detections_and_of_records(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    Detections.from_coco(good()).write(path)
    assert read_records(path, "answer.json", IDS) == good()
    assert [p.split(":")[0] for p in checked(path)] == ["warning"]
    with pytest.raises(CompetitionError, match="without the images' sizes"):
        read_records(path, "answer.json")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(good()), path)
    assert read_records(path, "answer.json") == good()
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(CompetitionError, match="x.parquet.*not a readable Parquet"):
        read_records(path, "answer.json", IDS)


def test_records_of_detections_are_ordered_clipped_and_not_empty() -> None:
    mask = np.full((4, 4), 200, np.uint8)
    table = Detections.build(
        [2, 1, 1, 1],
        1,
        [0.9, 0.2, 0.8, 0.7],
        [(1, 1, 5, 5), (-3.126, 2, 60, 7), (9, 9, 9, 9), (5, 5, 9, 9)],
        [(1, 1, 5, 5), (0, 2, 4, 6), (9, 9, 13, 13), (5, 5, 9, 9)],
        [mask, mask, mask, mask // 2],  # the last is below one half everywhere
    )
    records = coco_results.submission_records(table, IDS)
    assert [(r["image_id"], r["score"]) for r in records] == [(1, 0.8), (1, 0.2), (2, 0.9)]
    assert records[0]["bbox"] == [9.0, 9.0, 4.0, 4.0]  # a box without area gives way to the mask's
    assert records[1]["bbox"] == [0.0, 2.0, 50.0, 5.0]
    assert list(records[0]) == ["image_id", "bbox", "score", "category_id", "segmentation"]
    assert coco_results.submission_records(Detections.empty(), IDS) == []


def test_a_box_that_lies_elsewhere_than_its_mask_gives_way_to_it(tmp_path: Path) -> None:
    crumb = np.zeros((10, 18), np.uint8)
    crumb[8:, 1:3] = 140  # what is left of an average of masks: 2x2 pixels in 18x10
    more = np.where(np.arange(18) < 6, crumb.max(axis=1, keepdims=True), 0).astype(
        np.uint8
    )  # 2x6: 12 of 180, above 0.05
    whole = np.full_like(crumb, 255)
    box = (2, 3, 20, 13)
    away = [(60, 3, 70, 13), (20, 3, 2, 13), (np.nan, 3, 20, 13)]  # beyond the image, turned round, not a number
    table = Detections.build(
        1,
        1,
        [0.03, 0.9, 0.8, 0.7, 0.6, 0.5],
        [box, box, box, *away],
        [box] * 6,
        [crumb, whole, more, whole, whole, whole],
    )
    records = coco_results.submission_records(table, IDS)
    every = [2.0, 3.0, 18.0, 10.0]
    assert [r["bbox"] for r in records] == [every, every, every, every, every, [3.0, 11.0, 2.0, 2.0]]
    path = tmp_path / "answer.zip"
    coco_results.write_zip(records, path, "answer.json")
    assert not [line for line in checked(path) if "bbox" in line]


def test_records_on_images_that_are_not_asked_for_are_told() -> None:
    table = Detections.build([5], 1, [0.9], [(1, 1, 5, 5)], [(1, 1, 5, 5)], [np.full((4, 4), 200, np.uint8)])
    with pytest.raises(CompetitionError, match="not to be submitted.*5"):
        coco_results.submission_records(table, IDS)


# ---------------------------------------------------------------- ids -------------------------------------------------


def test_ids_from_a_list_and_from_coco(tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "height": 40, "id": 1, "width": 50}]
    path = tmp_path / "ids.json"
    for value in (rows, {"images": rows, "annotations": [], "categories": []}):
        path.write_text(json.dumps(value))
        assert read_ids(path, {1: "cell"}).images == [Image(1, "a.png", 40, 50)]


TWICE = '[{"file_name": "a", "height": 3, "id": 1, "width": 3}, {"file_name": "b", "height": 3, "id": 1, "width": 3}]'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[", "not JSON"),
        ('{"a": 1}', "neither a list"),
        ("[3]", "neither a list"),
        ('[{"file_name": "a", "height": 3, "id": 1}]', "image 0 has no width"),
        ('[{"file_name": "a", "height": 3, "id": "x", "width": 3}]', "image 0 .a."),
        (TWICE, "the id 1 occurs more than once"),
    ],
)  # fmt: skip
def test_bad_ids_are_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(CompetitionError, match=f"ids.json.*{expected}"):
        read_ids(path, {1: "cell"})
    with pytest.raises(CompetitionError, match="no file"):
        read_ids(tmp_path / "none.json", {1: "cell"})
