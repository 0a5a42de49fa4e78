"""The scattered digits: drawing, MNIST's files, and the three numbers of the score."""

import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.competitions import CompetitionError
from pipeline.competitions.digits import COMPETITION, GAP, TRUTH, assigned_class_accuracy, parse_idx, read_right
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.metrics.coco_ap import evaluate
from pipeline.records import Dataset, Detections
from pipeline.stages.score import score_files
from pipeline.stages.validate import validate_files

MNIST = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist"
OPTIONS = {"images": 5, "test_images": 2, "size": 128, "digits": 8}


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def glyphs(count: int, seed: int = 0) -> tuple[bytes, bytes]:
    """Images and labels: a bar that tells the label by its place."""
    labels = np.random.default_rng(seed).integers(0, 10, count).astype(np.uint8)
    pixels = np.zeros((count, 28, 28), np.uint8)
    for k, label in enumerate(labels):
        pixels[k, 4:24, 6 + label : 12 + label] = 255
    return idx(pixels), idx(labels)


def mnist(folder: Path, part: str = "t10k", count: int = 120, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in zip(("images-idx3", "labels-idx1"), glyphs(count, len(part)), strict=True):
        name = f"{part}-{kind}-ubyte" + (".gz" if packed else "")
        (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_of(dataset: Dataset, image_id: int) -> np.ndarray:
    """Instances as a label map; a pixel in two of them fails."""
    image = dataset.image[image_id]
    labels = np.zeros((image.height, image.width), np.int32)
    for instance in dataset.by_image[image_id]:
        (x0, y0, x1, y1), mask = rle_to_crop(instance.rle)
        part = labels[y0:y1, x0:x1]
        assert not part[mask > 0].any()
        part[mask > 0] = instance.id
        assert instance.area == mask.sum() > 0 and instance.box == (x0, y0, x1 - x0, y1 - y0)
    return labels


# ---------------------------------------------------------------- drawing ---------------------------------------------


def test_same_seed_same_bytes_other_seed_other_images(tmp_path: Path) -> None:
    path = mnist(tmp_path / "mnist")
    first = COMPETITION.read(path, OPTIONS, 3, tmp_path / "a")
    assert COMPETITION.read(path, OPTIONS, 3, tmp_path / "b").train.instances == first.train.instances
    assert files(tmp_path / "a") == files(tmp_path / "b")
    other = COMPETITION.read(path, OPTIONS, 4, tmp_path / "c")
    assert first.train.instances != other.train.instances
    assert files(tmp_path / "a") != files(tmp_path / "c")
    fewer = COMPETITION.read(path, {**OPTIONS, "images": 2}, 3, tmp_path / "a")  # the first images stay; the rest goes
    assert fewer.train.instances == first.train.instances[: len(fewer.train.instances)]
    assert sorted(name for name in files(tmp_path / "a") if "/train/" in name) == [
        f"images/train/train-00{k}.png" for k in (1, 2)
    ]


@pytest.mark.parametrize("touching", ["never", "freely"])
def test_digits_keep_apart_or_cover_each_other(tmp_path: Path, touching: str) -> None:
    options = {**OPTIONS, "images": 6, "digits": 14, "touching": touching}
    train = COMPETITION.read(None, options, 1, tmp_path).train
    close = 0
    for image in train.images:
        labels = labels_of(train, image.id)
        own = train.by_image[image.id]
        assert len(own) >= 3
        for instance in own:
            mask = (labels == instance.id).astype(np.uint8)
            around = cv2.dilate(mask, np.ones((2 * GAP + 1, 2 * GAP + 1), np.uint8)) > 0
            close += bool((labels[around & (labels != instance.id)] > 0).any())
    assert close == 0 if touching == "never" else close > 10


def test_truth_lies_on_the_digits(tmp_path: Path) -> None:
    """Digits are brighter than what surrounds them: a shifted or flipped truth would not be."""
    train = COMPETITION.read(None, {**OPTIONS, "size": 160}, 1, tmp_path).train
    right, flipped = [], []
    for image in train.images:
        picture = cv2.imread(str(train.path(image)), cv2.IMREAD_GRAYSCALE).astype(float)
        mask = labels_of(train, image.id) > 0
        ground = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)) == 0
        right.append(picture[mask].mean() - picture[ground].mean())
        flipped.append(picture[:, ::-1][mask].mean() - picture[ground].mean())
    assert min(right) > 60 and np.mean(flipped) < 0.6 * np.mean(right)


def test_classes_are_the_digits(tmp_path: Path) -> None:
    train = COMPETITION.read(None, {**OPTIONS, "images": 12}, 0, tmp_path).train
    assert train.categories == {k + 1: str(k) for k in range(10)}
    assert {a.category_id for a in train.instances} == set(range(1, 11))
    holes: dict[int, list[bool]] = {c: [] for c in train.categories}  # a 0 has a hole, a 1 has none
    for instance in train.instances:
        _, mask = rle_to_crop(instance.rle)
        outside = cv2.connectedComponents((np.pad(mask, 1) == 0).astype(np.uint8), connectivity=4)[0] - 1
        holes[instance.category_id].append(outside > 1)
    assert np.mean(holes[1]) > 0.6 > 0.2 > np.mean(holes[2])


def test_no_digit_is_in_training_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.competitions import digits

    used: list[set[bytes]] = []
    draw = digits.draw

    def watched(rng: Any, side: int, own: Any, *more: Any) -> Any:
        used.append({glyph.tobytes() for glyph in own.pixels})
        return draw(rng, side, own, *more)

    monkeypatch.setattr(digits, "draw", watched)
    COMPETITION.read(None, OPTIONS, 0, tmp_path)
    train, test = used[:5], used[5:]
    assert len(test) == 2 and not set().union(*train) & set().union(*test)
    assert sum(map(len, train)) == len(set().union(*train)) == 40  # nor on two training images


@pytest.mark.parametrize("touching", ["never", "freely"])
def test_plain_digits_are_mnist_s_own(tmp_path: Path, touching: str) -> None:
    """The paper's toy data: 64x64, one to four digits of 28x28 pixels, as they are."""
    path = mnist(tmp_path / "mnist", count=600)
    options = {"images": 100, "test_images": 1, "size": 64, "digits": 4, "fewest": 1, "style": "plain"}
    train = COMPETITION.read(path, {**options, "touching": touching}, 0, tmp_path / "data").train
    counts = {len(found) for found in train.by_image.values()}
    assert counts == {1, 2, 3, 4}
    covered = 0
    for image in train.images:
        picture = cv2.imread(str(train.path(image)))
        labels = labels_of(train, image.id)
        assert picture.shape == (64, 64, 3) and set(np.unique(picture)) == {0, 255}  # these glyphs have no grey
        np.testing.assert_array_equal(picture.min(axis=2) > 0, labels > 0)
        for instance in train.by_image[image.id]:
            x, y, width, height = instance.box
            whole = instance.area == 20 * 6  # the test's glyphs are bars of 20x6
            covered += not whole
            assert not whole or (width, height) == (6, 20)
    assert covered == 0 if touching == "never" else covered > 5


def test_few_digits(tmp_path: Path) -> None:
    train = COMPETITION.read(None, {**OPTIONS, "images": 30, "fewest": 1, "size": 192}, 0, tmp_path).train
    counts = [len(found) for found in train.by_image.values()]
    assert min(counts) < 4 and max(counts) > 5  # half of eight at least is the default


def test_defaults(tmp_path: Path) -> None:
    prepared = COMPETITION.read(None, {}, 0, tmp_path)
    assert (len(prepared.train.images), len(prepared.test.images)) == (40, 10)
    assert prepared.test.instances == [] and prepared.integrity.problems == []
    counts = [len(found) for found in prepared.train.by_image.values()]
    assert max(counts) <= 12 and min(counts) >= 4
    assert Dataset.read(tmp_path / TRUTH).images == prepared.test.images  # their truth is kept apart


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"digit": 3}, "did you mean 'digits'"),
        ({"images": 1}, "data.options.images: .*2 .it is 1"),
        ({"size": True}, "data.options.size: .*integer"),
        ({"fewest": 0}, "data.options.fewest: .*1 .it is 0"),
        ({"fewest": 13}, "data.options.fewest is 13, more than digits, 12"),
        ({"style": "bold"}, "data.options.style: .*'scene' or 'plain'"),
        ({"touching": "sometimes"}, "data.options.touching: .*'never' or 'freely'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(CompetitionError, match=expected):
        COMPETITION.read(None, options, 0, tmp_path)


# ---------------------------------------------------------------- MNIST's files ---------------------------------------


def test_folder_zip_packed_and_nested_give_the_same(tmp_path: Path) -> None:
    plain, packed = mnist(tmp_path / "plain"), mnist(tmp_path / "packed" / "deep", packed=True)
    with zipfile.ZipFile(tmp_path / "mnist.zip", "w") as archive:
        for path in plain.iterdir():
            archive.write(path, f"MNIST/raw/{path.name}")
    results = []
    for k, path in enumerate((plain, packed.parent, tmp_path / "mnist.zip")):
        results.append(COMPETITION.read(path, OPTIONS, 0, tmp_path / f"data{k}").train.instances)
    assert results[0] == results[1] == results[2] != []


def test_both_sets_are_used_for_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist(tmp_path / "mnist", "train", 90)
    path = mnist(tmp_path / "mnist", "t10k", 60)
    from pipeline.competitions import digits

    train, test = digits._mnist(path)
    assert (len(train.labels), len(test.labels)) == (90, 60)
    for part in ("train-labels-idx1-ubyte", "train-images-idx3-ubyte"):
        (path / part).unlink()
    train, test = digits._mnist(path)
    assert (len(train.labels), len(test.labels)) == (50, 10)


def test_missing_names_what_is_not_there() -> None:
    assert COMPETITION.missing(["a/t10k-images.idx3-ubyte", "a/t10k-labels.idx1-ubyte.gz"]) == []
    assert COMPETITION.missing(["train-images-idx3-ubyte"]) == ["<set>-labels-idx1-ubyte[.gz]"]
    assert COMPETITION.missing([]) == ["<set>-images-idx3-ubyte[.gz]", "<set>-labels-idx1-ubyte[.gz]"]
    assert COMPETITION.missing(["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]) == [
        "images and labels of the same set"
    ]


def test_files_that_are_no_mnist(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompetitionError, match="holds no MNIST.*t10k-images-idx3-ubyte.*it has nothing"):
        COMPETITION.read(tmp_path / "empty", OPTIONS, 0, tmp_path / "data")
    path = mnist(tmp_path / "mnist")
    images, labels = (path / f"t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    whole = labels.read_bytes()
    for content, expected in [
        (whole[:-1], "t10k-labels.* holds 119 values, not the 120 of its sizes"),
        (idx(np.zeros(7, np.uint8)), "has 120 images and 7 labels"),
        (idx(np.full(120, 10, np.uint8)), "does not hold digits"),
        (images.read_bytes(), "no IDX file of bytes in 1 dimensions"),
        (gzip.compress(whole)[:-9], "is damaged.*download it again"),
        (b"", "no IDX file"),
    ]:
        labels.write_bytes(content)
        with pytest.raises(CompetitionError, match=expected):
            COMPETITION.read(path, OPTIONS, 0, tmp_path / "data")


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60), dimensions=st.sampled_from([1, 3]), head=st.booleans())
def test_no_bytes_crash_the_parser(content: bytes, dimensions: int, head: bool) -> None:
    for data in (
        bytes([0, 0, 8, dimensions]) + content if head else content,
        b"\x1f\x8b" + content,
        gzip.compress(content),
    ):
        try:
            assert parse_idx(data, dimensions, "a file").ndim == dimensions
        except CompetitionError as error:
            assert str(error).startswith("a file")


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), packed=st.booleans())
def test_idx_round_trip(shape: tuple[int, int, int], packed: bool) -> None:
    values = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    content = gzip.compress(idx(values)) if packed else idx(values)
    np.testing.assert_array_equal(parse_idx(content, 3, "a file"), values)


def test_the_real_mnist(tmp_path: Path) -> None:
    if not MNIST.exists():
        pytest.skip(f"needs MNIST's test digits at {MNIST}")
    from pipeline.competitions import digits

    train, test = digits._mnist(MNIST)
    assert train.pixels.shape[1:] == (28, 28) and len(train.labels) + len(test.labels) == 10_000
    total = np.bincount(train.labels, minlength=10) + np.bincount(test.labels, minlength=10)
    assert total.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    prepared = COMPETITION.read(MNIST, OPTIONS, 0, tmp_path)
    assert len(prepared.train.instances) > 15
    assert COMPETITION.missing([path.name for path in MNIST.iterdir()]) == []


# ---------------------------------------------------------------- the score -------------------------------------------


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("digits")
    COMPETITION.read(None, OPTIONS, 5, folder)
    return Dataset.read(folder / TRUTH)


def records_of(truth: Dataset) -> list[dict[str, Any]]:
    return [
        {"image_id": a.image_id, "category_id": a.category_id, "score": 1 - k / 1000, "segmentation": a.rle}
        for k, a in enumerate(truth.instances)
    ]


def test_perfect_and_empty(truth: Dataset) -> None:
    perfect = COMPETITION.score(truth, records_of(truth))
    for key in ("score", "ap50", "class_accuracy", "dice", "pixel_accuracy", "miou", "pq"):
        assert perfect[key] == pytest.approx(1, abs=1e-9)
    empty = COMPETITION.score(truth, [])
    assert (empty["score"], empty["ap50"], empty["class_accuracy"], empty["dice"]) == (0.0, 0.0, None, 0.0)
    assert perfect["metric"] == COMPETITION.metric and set(perfect["classes"]) == {str(k) for k in range(10)}


def test_misread_digits_cost_accuracy_and_not_dice(truth: Dataset) -> None:
    records = records_of(truth)
    for record in records[:3]:
        record["category_id"] = record["category_id"] % 10 + 1
    result = COMPETITION.score(truth, records)
    assert result["dice"] == pytest.approx(1) and result["score"] < 1
    assert result["class_accuracy"] == pytest.approx(1 - 3 / len(records))


def test_accuracy_is_of_what_was_found(truth: Dataset) -> None:
    """A second, better-scored detection of another class takes the truth; what matches nothing does not count."""
    first, second, *_ = records_of(truth)
    column = crop_to_rle(np.ones((128, 1), np.uint8), (0, 0, 1, 128), (128, 128), threshold=1)
    lost = {**first, "segmentation": column}
    wrong = {**first, "category_id": first["category_id"] % 10 + 1, "score": 2.0}
    assert sorted(read_right(truth, [first, second])) == [True, True]
    assert read_right(truth, [first, wrong]) == [False]
    assert sorted(read_right(truth, [second, wrong])) == [False, True]
    assert read_right(truth, []) == []
    assert read_right(truth, [lost, second]) == [True]
    result = COMPETITION.score(truth, [second, wrong])
    assert (result["class_accuracy"], result["digits_found"], result["digits"]) == (0.5, 2, len(truth.instances))


def test_assigned_accuracy_is_of_all_digits(truth: Dataset) -> None:
    """Digits go to the detections that fit them best, one each, whatever these score; none is as bad as a wrong one."""
    everything = records_of(truth)
    total = len(everything)
    assert assigned_class_accuracy(truth, everything) == 1.0
    assert assigned_class_accuracy(truth, []) == 0.0
    assert assigned_class_accuracy(truth, everything[:2]) == pytest.approx(2 / total)
    first = everything[0]
    wrong = {**first, "category_id": first["category_id"] % 10 + 1, "score": 2.0}
    assert assigned_class_accuracy(truth, [wrong, *everything[1:]]) == pytest.approx(1 - 1 / total)
    # a worse fit of the wrong class does not take the digit, however sure it is, and gets no other that it does not meet
    box, crop = rle_to_crop(truth.instances[0].rle)
    half = crop.copy()
    half[: len(half) // 2] = 0
    image = truth.image[first["image_id"]]
    part = crop_to_rle(half, tuple(box), (image.height, image.width), threshold=1)
    assert assigned_class_accuracy(truth, [{**wrong, "segmentation": part}, *everything]) == 1.0
    assert assigned_class_accuracy(truth, [{**wrong, "segmentation": part}, *everything[1:]]) == pytest.approx(
        1 - 1 / total
    )
    assert (
        assigned_class_accuracy(truth, [{**first, "segmentation": part}, *everything[1:]]) == 1.0
    )  # below IoU 0.5 or not
    assert assigned_class_accuracy(Dataset(truth.images, truth.categories, [], truth.root), everything) == -1.0


def test_score_is_coco_s(truth: Dataset) -> None:
    rng = np.random.default_rng(0)
    records = [r for r in records_of(truth) if rng.random() < 0.7]
    for record in records:
        record["score"] = float(rng.random())
        if rng.random() < 0.3:
            record["segmentation"] = truth.instances[int(rng.integers(len(truth.instances)))].rle
    result = COMPETITION.score(truth, records)
    expected = evaluate(truth, records)
    assert result["score"] == expected.ap() and result["ap50"] == expected.ap(0.5)


def test_files_written_are_valid(truth: Dataset, tmp_path: Path) -> None:
    truth.write(tmp_path / "truth.json")
    COMPETITION.write(Detections.from_coco(records_of(truth)), truth, tmp_path / "digits.zip")
    assert validate_files("digits", tmp_path / "truth.json", tmp_path / "digits.zip") == ([], True)
    assert score_files("digits", tmp_path / "truth.json", tmp_path / "digits.zip")["score"] == pytest.approx(1)
    with zipfile.ZipFile(tmp_path / "digits.zip") as archive:
        assert archive.namelist() == ["results.json"]
