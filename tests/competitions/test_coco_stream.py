"""COCO results as columns: the same records, the same scores, and the same words where they are wrong."""

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats import coco_results
from pipeline.competitions.formats.coco_stream import read_results
from pipeline.masks import polygons_to_rle
from pipeline.metrics.coco_ap import evaluate
from pipeline.metrics.results import Results
from tests.metrics.test_coco_ap import draw

TRUTH, RECORDS = draw(21)


def stored(path: Path, value: Any, zipped: bool = False) -> Path:
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("results.json", json.dumps(value))
    else:
        path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("boxes", [False, True])
def test_records_come_back_as_they_were(tmp_path: Path, zipped: bool, boxes: bool) -> None:
    records = RECORDS if boxes else [{k: v for k, v in r.items() if k != "bbox"} for r in RECORDS]
    found = read_results(stored(tmp_path / "x", records, zipped), "results.json", TRUTH)
    assert isinstance(found, Results)
    assert list(found) == records and len(found) == len(records)
    assert found[-1] == records[-1] and found[2:4] == records[2:4]
    with pytest.raises(IndexError):
        found[len(found)]
    assert evaluate(TRUTH, found).ap() == evaluate(TRUTH, records).ap() > 0


def test_polygons_and_ids_written_as_floats(tmp_path: Path) -> None:
    polygon = [[1.0, 1.0, 9.5, 2.0, 5.0, 9.0]]
    record = {"image_id": 3.0, "category_id": 1.0, "score": 1, "segmentation": polygon}
    (found,) = read_results(stored(tmp_path / "x", [record]), "results.json", TRUTH)
    assert found["segmentation"] == polygons_to_rle(polygon, (40, 47))
    assert (found["image_id"], found["category_id"], found["score"]) == (3, 1, 1.0)


def test_no_records(tmp_path: Path) -> None:
    found = read_results(stored(tmp_path / "x", []), "results.json", TRUTH)
    assert list(found) == [] and evaluate(TRUTH, found).ap() == 0


def test_odd_records_are_read_as_they_are(tmp_path: Path) -> None:
    """They cannot be columns; whoever asks for their score is told."""
    wrong = [*RECORDS, {**RECORDS[0], "score": "0.5"}]
    found = read_results(stored(tmp_path / "x", wrong), "results.json", TRUTH)
    assert found == wrong
    with pytest.raises(ValueError, match=f"record {len(RECORDS)} is malformed.*validate"):
        evaluate(TRUTH, found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b'[{"image_id": 1', "is not JSON"),
        (b'{"a": 1}', "an object with the keys a"),
        (b"[1]", "a list of things"),
        (b"PK\x03\x04", "not a whole zip"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_in_the_same_words(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CompetitionError, match=expected):
        read_results(path, "results.json", TRUTH)
    with pytest.raises(CompetitionError, match="there is no such file"):
        read_results(tmp_path / "none.json", "results.json", TRUTH)


def test_columns_take_a_fraction_of_the_memory(tmp_path: Path) -> None:
    path = stored(tmp_path / "x", RECORDS * 200)

    def peak(read: Any) -> int:
        tracemalloc.start()
        kept = read(path, "results.json", TRUTH)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(kept) == len(RECORDS) * 200
        return most

    assert peak(read_results) < peak(coco_results.read_records) / 2


def test_errors_name_the_record() -> None:
    good = RECORDS[0]
    for record, expected in (
        ({k: v for k, v in good.items() if k != "score"}, "record 1 has no 'score'"),
        ({**good, "image_id": "3"}, "record 1 is malformed"),
        ({**good, "image_id": 3.5}, "record 1 is malformed"),
        ({**good, "bbox": [1, 2, 3]}, "record 1: not enough values"),
        ({**good, "segmentation": {"size": [40, 47], "counts": "é"}}, "record 1: .*ascii"),
        ({**good, "segmentation": [[1, 2]]}, "record 1: a polygon has 2 coordinates"),
        ({**good, "segmentation": {"size": [40, 47], "counts": "~"}}, "record 1: the RLE"),
    ):
        with pytest.raises(ValueError, match=expected):
            evaluate(TRUTH, [good, record])


def test_areas_are_the_boxes_or_the_masks() -> None:
    boxed = Results.of(RECORDS, {})
    assert boxed.areas.tolist() == [r["bbox"][2] * r["bbox"][3] for r in RECORDS]
    bare = Results.of([{k: v for k, v in r.items() if k != "bbox"} for r in RECORDS], {})
    np.testing.assert_array_equal(bare.areas, bare.masks.areas)
