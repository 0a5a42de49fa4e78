"""Detections and datasets: building, choosing, COCO and Parquet round trips, empty and single-row tables, streaming."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline import masks, records
from pipeline.experiment import PROJECT
from pipeline.records import GRID_CAP, Dataset, Detections, DetectionsWriter, Image, Instance

SIZE = (60, 70)


def random_table(
    seed: int, count: int, source: str = "m/0/identity", images: int = 3, extra: tuple[str, ...] = ()
) -> Detections:
    """`count` soft rectangles on images 1..`images` of `SIZE`; some grids are empty."""
    rng = np.random.default_rng(seed)
    boxes, grids = [], []
    for i in range(count):
        x0, y0 = rng.integers(0, SIZE[1] - 1), rng.integers(0, SIZE[0] - 1)
        x1, y1 = rng.integers(x0 + 1, SIZE[1] + 1), rng.integers(y0 + 1, SIZE[0] + 1)
        if i % 7 == 6:
            x1, y1 = x0, y0
        boxes.append((x0, y0, x1, y1))
        grids.append(rng.integers(0, 256, (y1 - y0, x1 - x0), np.uint8))
    return Detections.build(
        rng.integers(1, images + 1, count),
        rng.integers(1, 4, count),
        rng.random(count),
        rng.uniform(-3, 70, (count, 4)),
        np.array(boxes).reshape(count, 4),
        grids,
        source,
        {name: rng.random(count) for name in extra},
    )


def assert_same(a: Detections, b: Detections) -> None:
    for name in ("image_id", "category_id", "score", "box", "mask_box", "shape", "offset", "pixels"):
        left, right = getattr(a, name), getattr(b, name)
        np.testing.assert_array_equal(left, right, err_msg=name)
        assert left.dtype == right.dtype and left.shape == right.shape, name
    assert [a.sources[i] for i in a.source] == [b.sources[i] for i in b.source]
    assert a.extra.keys() == b.extra.keys()
    for name in a.extra:
        np.testing.assert_array_equal(a.extra[name], b.extra[name])


# ---------------------------------------------------------------- datasets --------------------------------------------


def test_semantic_maps_go_with_the_images(tmp_path: Path) -> None:
    images = [Image(1, "a.png", 4, 5, "g", "maps/a.png"), Image(2, "b.png", 4, 5)]
    data = Dataset(images, {3: "car"}, root=tmp_path, semantic_classes={0: "road", 3: "car"})
    data.write(tmp_path / "x.json")
    raw = json.loads((tmp_path / "x.json").read_text())
    assert raw["images"][0]["semantic"] == "maps/a.png" and "semantic" not in raw["images"][1]
    assert raw["semantic_classes"] == [{"id": 0, "name": "road"}, {"id": 3, "name": "car"}]
    again = Dataset.read(tmp_path / "x.json")
    assert (again.images, again.semantic_classes) == (images, data.semantic_classes)
    assert again.subset([2]).semantic_classes == data.semantic_classes
    assert "semantic_classes" not in Dataset(images[1:], {}).to_coco()


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000, '{"images": 3}', '{"images": ["a"]}', '{"images": [{"id": Infinity}]}', '{"images": [[]]}',
        '{"images": [], "annotations": 3}', '{"images": [], "annotations": [3]}', '{"images": [], "semantic_classes": [3]}',
        '{"images": [{"id": 1, "file_name": "a", "height": 4, "width": 5}], "annotations": [{"id": 1, "image_id": 1, '
        '"category_id": 1, "segmentation": [[1, 2, 1e300, 4, 5, 6]]}]}',
        '{"images": [{"id": 1, "file_name": "a", "height": 4, "width": 5}], "annotations": [{"id": 1, "image_id": 1, '
        '"category_id": 1, "segmentation": []}]}',
    ],
)  # fmt: skip
def test_files_that_are_no_datasets_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="x.json"):
        Dataset.read(tmp_path / "x.json")


# ---------------------------------------------------------------- building --------------------------------------------


def test_columns_and_their_types() -> None:
    table = random_table(0, 9, extra=("agreement",))
    assert len(table) == 9 and table.sources == ["m/0/identity"]
    assert table.score.dtype == np.float64 and table.box.dtype == np.float32 and table.pixels.dtype == np.uint8
    assert table.offset.shape == (10,) and table.offset[-1] == len(table.pixels)
    assert table.extra["agreement"].dtype == np.float32
    for i in range(9):
        x0, y0, x1, y1 = table.mask_box[i]
        assert table.grid(i).shape == (y1 - y0, x1 - x0) == table.crop(i).shape


def test_a_grid_that_does_not_fit_its_box() -> None:
    with pytest.raises(ValueError, match="does not fit its mask box"):
        Detections.build(1, 1, [0.5], [[0, 0, 2, 2]], [[0, 0, 2, 2]], [np.zeros((2, 3), np.uint8)])


def test_an_object_larger_than_the_cap() -> None:
    side = 3 * GRID_CAP + 5
    y, x = np.mgrid[:side, : side + 40]
    ellipse = ((np.hypot((y - side / 2) / side, (x - side / 2) / side) < 0.45) * 255).astype(np.uint8)
    table = Detections.build(1, 1, [0.5], [[0, 0, 1, 1]], [[10, 20, 10 + side + 40, 20 + side]], [ellipse])
    assert table.shape.tolist() == [[GRID_CAP, GRID_CAP]]
    crop = table.crop(0)
    assert crop.shape == ellipse.shape
    assert masks.crop_iou(crop, table.mask_box[0], ellipse, table.mask_box[0]) > 0.98
    assert int(table.area()[0]) == int((crop >= 128).sum())
    again = Detections.build(
        1, 1, [0.5], [[0, 0, 1, 1]], table.mask_box, [table.grid(0)]
    )  # a grid that is capped already
    np.testing.assert_array_equal(again.pixels, table.pixels)


def test_concatenate() -> None:
    a, b = random_table(1, 5, "a", extra=("q",)), random_table(2, 8, "b")
    both = Detections.concatenate([a, b, Detections.empty(), a])
    assert len(both) == 18 and both.sources == ["a", "b", ""]
    assert [both.sources[i] for i in both.source] == ["a"] * 5 + ["b"] * 8 + ["a"] * 5
    assert np.isnan(both.extra["q"][5:13]).all() and not np.isnan(both.extra["q"][:5]).any()
    for i in range(5):
        np.testing.assert_array_equal(both.grid(i), a.grid(i))
        np.testing.assert_array_equal(both.grid(13 + i), a.grid(i))
    for i in range(8):
        np.testing.assert_array_equal(both.grid(5 + i), b.grid(i))
    assert len(Detections.concatenate([])) == 0


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 12), st.data())
def test_take(seed: int, count: int, data: st.DataObject) -> None:
    table = random_table(seed, count, extra=("q",))
    rows = data.draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=15)) if count else []
    taken = table.take(np.array(rows, np.int64))
    assert len(taken) == len(rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(taken.grid(i), table.grid(row))
        assert taken.score[i] == table.score[row] and taken.extra["q"][i] == table.extra["q"][row]
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    assert_same(table.take(keep), table.take(np.flatnonzero(keep)))
    read = replace(table, pixels=np.frombuffer(table.pixels.tobytes(), np.uint8))  # as from a file, not to be written
    spread = replace(table, pixels=np.repeat(table.pixels, 2)[::2])
    for other in (read, spread):
        assert_same(other.take(np.array(rows, np.int64)), taken)


def test_top() -> None:
    table = random_table(3, 40, images=4)
    table.score[:10] = 0.5  # equal scores keep their order
    best = table.top(3)
    assert (np.diff(best.image_id) >= 0).all()
    for image_id in range(1, 5):
        mine = table.take(table.image_id == image_id)
        expected = mine.take(np.argsort(-mine.score, kind="stable")[:3])
        assert_same(best.take(best.image_id == image_id), expected)
    assert len(table.top(0)) == 0 and len(table.top(1000)) == 40


def test_images_come_ascending_and_whole() -> None:
    table = random_table(4, 30)
    seen = list(table.images())
    assert [image_id for image_id, _ in seen] == sorted(set(table.image_id.tolist()))
    assert sum(len(part) for _, part in seen) == 30
    assert all((part.image_id == image_id).all() for image_id, part in seen)


# ---------------------------------------------------------------- COCO ------------------------------------------------


def test_coco_round_trip() -> None:
    table = random_table(5, 25)
    sizes = dict.fromkeys(range(1, 4), SIZE)
    results = table.to_coco(sizes)
    json.dumps(results)
    for i, record in enumerate(results):
        frame = coco_mask.decode(record["segmentation"])
        x0, y0, x1, y1 = table.mask_box[i]
        np.testing.assert_array_equal(frame[y0:y1, x0:x1], table.crop(i) >= 128)
        assert frame.sum() == table.area()[i]
    back = Detections.from_coco(results, "file")
    np.testing.assert_array_equal(back.score, table.score)
    np.testing.assert_allclose(back.box, table.box, atol=1e-4)
    assert back.to_coco(sizes) == Detections.from_coco(back.to_coco(sizes)).to_coco(sizes)
    assert [r["segmentation"] for r in back.to_coco(sizes)] == [r["segmentation"] for r in results]


def test_a_record_without_a_box_takes_its_masks() -> None:
    record = {"image_id": 3, "category_id": 2, "score": 0.5, "segmentation": {"size": [4, 5], "counts": "523OO22"}}
    table = Detections.from_coco([record])
    assert table.box.tolist() == [[1, 1, 4, 4]] and table.mask_box.tolist() == [[1, 1, 4, 4]]
    assert table.to_coco({3: (4, 5)})[0]["bbox"] == [1, 1, 3, 3]


# ---------------------------------------------------------------- Parquet ---------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(0, 15))
def test_parquet_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    table = Detections.concatenate(
        [random_table(seed, count, "a/0/x", extra=("q",)), random_table(seed + 1, 3, "b/1/y")]
    )
    table.write(path, {"seed": seed})
    by_image = table.take(np.argsort(table.image_id, kind="stable"))
    assert_same(Detections.read(path), by_image)
    assert records.provenance(path) == {"seed": seed}
    assert records.read_sources(path) == table.sources


def test_an_empty_table_keeps_its_voters(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    Detections.empty(["a/0/x", "a/0/y"]).write(path)
    back = Detections.read(path)
    assert len(back) == 0 and back.sources == ["a/0/x", "a/0/y"] == records.read_sources(path)
    assert list(records.read_images(path)) == []


def test_a_single_row_and_rows_without_pixels(tmp_path: Path) -> None:
    for count in (1, 7):
        table = random_table(6, count, images=1)
        table = table.take([count - 1])
        table.write(tmp_path / "t.parquet")
        assert_same(Detections.read(tmp_path / "t.parquet"), table)


def test_streaming_gives_one_image_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    tables = [t for _, t in random_table(7, 50, "a").images()]
    with DetectionsWriter(path, ["b", "a"], ["q"], {"x": 1}) as writer:
        for table in tables:
            writer.add(table)
            writer.add(Detections.empty(["b"]))
        assert not path.exists()
    streamed = list(records.read_images(path))
    assert [t.image_id[0] for t in streamed] == [t.image_id[0] for t in tables]
    for read, table in zip(streamed, tables, strict=True):
        assert np.isnan(read.extra.pop("q")).all()
        assert_same(read, table)
    np.testing.assert_array_equal(streamed[-1].offset[0], 0)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(KeyError), DetectionsWriter(path, ["known"]) as writer:
        writer.add(random_table(8, 3, "unknown"))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_something_else(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is not a Parquet file of detections"):
        Detections.read(tmp_path / "text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(ValueError, match="not written by maskfold"):
        Detections.read(tmp_path / "other")
    pq.write_table(
        pa.table({"a": [1]}).replace_schema_metadata({"maskfold": '{"sources": [""], "provenance": {}}'}),
        tmp_path / "bare",
    )
    with pytest.raises(ValueError, match=r"bare .*has no column image_id, category_id"):
        Detections.read(tmp_path / "bare")
    with pytest.raises(FileNotFoundError):
        Detections.read(tmp_path / "missing")


def test_every_damaged_byte_is_read_over_or_named(tmp_path: Path) -> None:
    """pyarrow finds damage on opening, or only when it comes to a page."""
    toy = Detections.build([1], 1, [0.5], [(0, 0, 2, 2)], [(0, 0, 2, 2)], [np.full((2, 2), 255, np.uint8)])
    toy.write(tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    refused = 0
    for place in range(0, len(content), 3):
        for value in (0, 0x5D, 0xFF):
            (tmp_path / "bad").write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                Detections.read(tmp_path / "bad")
            except ValueError as error:
                assert str(tmp_path / "bad") in str(error)
                refused += 1
    assert refused > 100


# ---------------------------------------------------------------- Dataset ---------------------------------------------


def test_dataset_round_trip(tmp_path: Path) -> None:
    toy = {"size": [4, 5], "counts": "523OO22"}
    dataset = Dataset(
        [Image(2, "b/2.png", 4, 5, "g"), Image(1, "1.png", 4, 5)],
        {1: "cell", 7: "dot"},
        [Instance(5, 2, 7, toy, (1, 1, 3, 3), 6.0), Instance(0, 2, 1, toy, (1, 1, 3, 3), 6.0, True)],
    )
    dataset.write(tmp_path / "d.json")
    back = Dataset.read(tmp_path / "d.json")
    assert (back.images, back.categories, back.instances) == (dataset.images, dataset.categories, dataset.instances)
    assert back.root == tmp_path and back.path(back.images[0]) == tmp_path / "b" / "2.png"
    assert back.by_image[1] == [] and len(back.by_image[2]) == 2
    assert back.subset([1]).instances == [] and [i.id for i in back.subset([1, 2]).images] == [2, 1]


def test_every_kind_of_segmentation_is_read(tmp_path: Path) -> None:
    def annotation(i: int, segmentation: object) -> dict[str, object]:
        return {"id": i, "image_id": 1, "category_id": 1, "segmentation": segmentation}

    toy = {"size": [4, 5], "counts": "523OO22"}
    raw = {
        "images": [{"id": 1, "file_name": "a", "height": 4, "width": 5}],
        "categories": [{"id": 1, "name": "c"}],
        "annotations": [
            annotation(1, toy),
            annotation(2, {"size": [4, 5], "counts": [5, 2, 3, 1, 2, 3, 4]}),
            annotation(3, [[1, 1, 3, 1, 3, 3, 1, 3]]),
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(raw))
    instances = Dataset.read(tmp_path / "a.json").instances
    assert instances[0].rle == instances[1].rle == toy
    assert instances[0].box == (1, 1, 3, 3) and instances[0].area == 6
    assert masks.rle_to_crop(instances[2].rle)[1].sum() == instances[2].area > 0


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", "{}", '{"images": [{"id": 1}]}',
        '{"images": [{"id": 99999999999999999999, "file_name": "a", "height": 4, "width": 5}]}',
    ],
)  # fmt: skip
def test_what_is_not_coco_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        Dataset.read(tmp_path / "x.json")


# ---------------------------------------------------------------- results and memory ----------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_no_and_one_result_make_the_round_trip_too(count: int, tmp_path: Path) -> None:
    table = random_table(9, 1, images=1).take(np.arange(count))
    results = json.loads(json.dumps(table.to_coco({1: SIZE})))
    back = Detections.from_coco(results, "file")
    assert len(back) == count and back.sources == ["file"]
    np.testing.assert_allclose(back.box, table.box, atol=1e-4)
    assert [r["segmentation"] for r in back.to_coco({1: SIZE})] == [r["segmentation"] for r in results]
    back.write(tmp_path / "t.parquet")
    assert_same(Detections.read(tmp_path / "t.parquet"), back)


def test_a_binary_mask_larger_than_the_cap_comes_back_from_results_within_a_bound() -> None:
    y, x = np.mgrid[:700, :900]
    disc = (np.hypot(y - 350, x - 450) < 320).astype(np.uint8)
    rle = masks.crop_to_rle(disc, (0, 0, 900, 700), (700, 900), 1)
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle}]
    again = coco_mask.decode(Detections.from_coco(results).to_coco({1: (700, 900)})[0]["segmentation"])
    assert (again & disc).sum() / (again | disc).sum() > 0.985


_STREAM = """
import resource, sys
import numpy as np
from pipeline.records import Detections, DetectionsWriter, read_images

count, path = int(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(0)
grids = [rng.integers(0, 256, (60, 60), np.uint8) for _ in range(100)]
boxes = np.tile([5, 5, 65, 65], (100, 1))
with DetectionsWriter(path, ["a"]) as writer:
    for image in range(count):
        writer.add(Detections.build(image, 1, np.full(100, 0.5), boxes, boxes, grids, "a"))
for table in read_images(path):
    assert len(table) == 100
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Written and read image by image: 30 and 300 images of 100 masks, 11 MB and 108 MB, take the same memory."""
    peaks = []
    for count in (30, 300):
        call = [sys.executable, "-c", _STREAM, str(count), str(tmp_path / "t.parquet")]
        peaks.append(int(subprocess.run(call, check=True, capture_output=True, text=True, cwd=PROJECT).stdout))
    assert (tmp_path / "t.parquet").stat().st_size > 50e6
    assert peaks[1] - peaks[0] < 25_000  # kilobytes; whole, the larger file would take another 97,000
