"""Training samples: no instance lost, none moved, and the same sample for the same seed and number."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.backends.samples import Samples, read_image
from pipeline.experiment import Augmentation, TrainSettings
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Image, Instance

COLOURS = {1: (255, 0, 0), 2: (0, 255, 0)}


def drawn(folder: Path, height: int = 90, width: int = 70) -> Dataset:
    """Two images of coloured rectangles on black: the colour of a pixel says which class it must belong to."""
    rng = np.random.default_rng(0)
    images, instances = [], []
    for image_id in (5, 9):
        pixels = np.zeros((height, width, 3), np.uint8)
        for k in range(4):
            category = 1 + k % 2
            x0, y0 = 2 + 17 * k, int(rng.integers(0, height - 22))
            x1, y1 = x0 + 14, y0 + 20
            pixels[y0:y1, x0:x1] = COLOURS[category]
            rle = crop_to_rle(np.ones((y1 - y0, x1 - x0), np.uint8), (x0, y0, x1, y1), (height, width), 1)
            instances.append(
                Instance(
                    len(instances) + 1,
                    image_id,
                    category,
                    rle,
                    (x0, y0, x1 - x0, y1 - y0),
                    float((x1 - x0) * (y1 - y0)),
                )
            )
        cv2.imwrite(str(folder / f"{image_id}.png"), pixels[:, :, ::-1])
        images.append(Image(image_id, f"{image_id}.png", height, width))
    return Dataset(images, {1: "red", 2: "green"}, instances, folder)


@pytest.mark.parametrize(
    "augment", [[], [{"name": "D4", "p": 1.0}], [{"name": "Affine", "p": 1.0, "args": {"rotate": [-40, 40]}}]]
)
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)])
def test_masks_stay_on_their_objects(tmp_path: Path, augment: list, scale: tuple) -> None:
    settings = TrainSettings(crop=64, scale=scale, augment=augment)
    seen = 0
    for sample in map(Samples(drawn(tmp_path), settings, 7, 30).__getitem__, range(30)):
        assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8
        assert len(sample.labels) == len(sample.boxes) == len(sample.masks)
        for label, box, frame in zip(sample.labels, sample.boxes, sample.masks.bitmaps(), strict=True):
            inner = cv2.erode(frame, np.ones((5, 5), np.uint8)).astype(bool)
            if inner.any():  # interpolation blurs the rim only
                colour = np.median(sample.image[inner], axis=0)
                assert tuple(colour > 127) == tuple(np.array(COLOURS[label + 1]) > 127)
            ys, xs = np.nonzero(frame)
            assert tuple(box) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        coloured = (sample.image.max(axis=2) > 200).sum()
        assert abs(int(sample.masks.area().sum()) - int(coloured)) <= 0.25 * coloured + 60
        seen += len(sample.labels)
    assert seen >= 30


def test_scaling_moves_no_mask_off_its_object(tmp_path: Path) -> None:
    """Over many scales the masks' centres are those of the bright pixels, on average to a tenth of a pixel."""
    dataset = drawn(tmp_path)
    samples = Samples(dataset, TrainSettings(crop=128, scale=(0.6, 1.9)), 1, 60)
    shifts = []
    for k in range(60):
        sample = samples[k]
        bright = sample.image.max(axis=2).astype(float)
        for (x0, y0, x1, y1), crop in zip(sample.masks.box, sample.masks.crops, strict=True):
            if min(x0, y0) < 3 or max(x1, y1) > 125:
                continue  # cut off by the window
            y, x = np.mgrid[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2]
            light, mask = bright[y, x], np.pad(crop, 2).astype(float)
            shifts.append([(axis * mask).sum() / mask.sum() - (axis * light).sum() / light.sum() for axis in (y, x)])
    assert len(shifts) > 30
    np.testing.assert_allclose(np.mean(shifts, axis=0), 0, atol=0.1)


def test_overlapping_instances_keep_all_their_pixels(tmp_path: Path) -> None:
    dataset = drawn(tmp_path)
    size = (90, 70)
    boxes = [(10, 10, 40, 50), (20, 20, 50, 60), (25, 5, 35, 80)]
    dataset.instances = [
        Instance(k + 1, 5, 1, crop_to_rle(np.ones((b[3] - b[1], b[2] - b[0]), np.uint8), b, size, 1), (0, 0, 1, 1), 1.0)
        for k, b in enumerate(boxes)
    ]
    samples = Samples(dataset.subset([5]), TrainSettings(crop=96), 0, 1)
    assert sorted(samples[0].masks.area()) == sorted((b[2] - b[0]) * (b[3] - b[1]) for b in boxes)


def test_a_sample_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    settings = TrainSettings(
        crop=64, scale=(0.7, 1.5), augment=[Augmentation(name="D4", p=1.0), Augmentation(name="GaussNoise")]
    )
    dataset = drawn(tmp_path)
    first, again = Samples(dataset, settings, 3, 20), Samples(dataset, settings, 3, 20)
    late = again[13]
    for k in range(13):
        first[k]
    np.testing.assert_array_equal(first[13].image, late.image)
    np.testing.assert_array_equal(first[13].boxes, late.boxes)
    assert not np.array_equal(Samples(dataset, settings, 4, 20)[13].image, late.image)


def test_every_image_comes_up_equally_often(tmp_path: Path) -> None:
    dataset = drawn(tmp_path)
    cv2.imwrite(str(tmp_path / "9.png"), np.full((90, 70, 3), 77, np.uint8))
    samples = Samples(dataset, TrainSettings(crop=64), 0, 40)
    assert sum(int((samples[k].image == 77).all()) for k in range(40)) == 20


def test_an_image_without_instances_gives_an_empty_sample(tmp_path: Path) -> None:
    dataset = drawn(tmp_path)
    dataset.instances = []
    sample = Samples(dataset, TrainSettings(crop=64), 0, 2)[0]
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,) and len(sample.masks) == 0


def test_one_of_the_listed_scales_is_drawn(tmp_path: Path) -> None:
    """A square of 16 pixels comes at two sizes and at no other."""
    image = np.zeros((64, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "square.png"), image)
    rle = crop_to_rle(np.ones((16, 16), np.uint8), (24, 24, 40, 40), (64, 64), 1)
    truth = [Instance(1, 1, 1, rle, (24, 24, 16, 16), 256.0)]
    dataset = Dataset([Image(1, "square.png", 64, 64)], {1: "square"}, truth, root=tmp_path)
    samples = Samples(dataset, TrainSettings(crop=256, scales=[0.5, 2.0]), 0, 30)
    sides = Counter(float(samples[i].boxes[0, 2] - samples[i].boxes[0, 0]) for i in range(30))
    assert sides.keys() == {8.0, 32.0} and min(sides.values()) > 5


def test_images_are_resized_by_their_shorter_side(tmp_path: Path) -> None:
    """Boxes of 14 x 20 pixels in 90 x 70: the shorter side, 70, comes out as 35 or 140, where the longer would exceed 150."""
    settings = TrainSettings(crop=1.0, shortest_edge=[35, 140], longest_edge=150)
    samples = Samples(drawn(tmp_path), settings, 0, 30)
    shapes = Counter(samples[i].image.shape for i in range(30))
    assert shapes.keys() == {(45, 35, 3), (150, 117, 3)} and min(shapes.values()) > 5  # 70 * 150 / 90 = 116.7
    for sample in (samples[i] for i in range(30)):
        scale = sample.image.shape[0] / 90
        assert len(sample.boxes) == 4  # the whole image
        np.testing.assert_allclose(sample.boxes[:, 2] - sample.boxes[:, 0], 14 * scale, atol=1)
        np.testing.assert_allclose(sample.boxes[:, 3] - sample.boxes[:, 1], 20 * scale, atol=1)


@pytest.mark.parametrize("scale", [1.0, 0.7, 1.6])
def test_a_part_of_each_side_is_shown(tmp_path: Path, scale: float) -> None:
    settings = TrainSettings(crop=0.9, scale=(scale, scale), augment=[Augmentation(name="D4", p=1.0)])
    samples = Samples(drawn(tmp_path), settings, 0, 30)
    rows, columns = round(0.9 * 90 * scale), round(0.9 * 70 * scale)
    assert {samples[i].image.shape for i in range(30)} == {(rows, columns, 3), (columns, rows, 3)}
    for sample in (samples[i] for i in range(30)):
        assert len(sample.boxes) >= 3  # the four stand 17 pixels apart, and 7 are cut off
        for label, frame in zip(sample.labels, sample.masks.bitmaps(), strict=True):
            inner = cv2.erode(frame, np.ones((5, 5), np.uint8)).astype(bool)
            assert not inner.any() or tuple(np.median(sample.image[inner], axis=0) > 127) == tuple(
                np.array(COLOURS[label + 1]) > 127
            )


@pytest.mark.parametrize(("height", "width"), [(3, 200), (90, 70), (1, 1)])
def test_small_extents_are_not_stretched(tmp_path: Path, height: int, width: int) -> None:
    cv2.imwrite(str(tmp_path / "small.png"), np.full((height, width, 3), 9, np.uint8))
    data = Dataset([Image(1, "small.png", height, width)], {1: "red"}, [], tmp_path)
    for settings in (
        {"crop": 0.05, "scale": [2, 2]},
        {"crop": 1.0, "scale": [0.01, 0.01]},
        {"crop": 1.0, "scale": [9, 9]},
    ):
        samples = Samples(data, TrainSettings.model_validate(settings), 0, 1)
        (high, wide), (rows, columns) = samples._sizes(np.random.default_rng(0), height, width)
        assert samples[0].image.shape[:2] == (rows, columns) and min(rows, columns) >= 8
        assert rows / high == pytest.approx(columns / wide, rel=1 / 16)  # but for rounding


def test_the_part_that_is_cut_out_is_what_is_resized(tmp_path: Path) -> None:
    """The document of VRDL 2025: relative crops from nine tenths up, whose shorter side is then one of those listed."""
    settings = TrainSettings.model_validate({"crop": [0.6, 1.0], "shortest_edge": [40, 80]})
    samples = Samples(drawn(tmp_path), settings, 0, 40)
    shapes = [samples[i].image.shape[:2] for i in range(40)]
    assert {min(shape) for shape in shapes} == {40, 80}
    ratios = [high / wide for high, wide in shapes]  # of 90 x 70; each side's part is drawn by itself
    assert min(ratios) < 1.05 and max(ratios) > 1.55
    assert min(ratios) > 0.6 * 90 / 70 - 0.05 and max(ratios) < 90 / 70 / 0.6 + 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop": 31}, "32 or more pixels, a part of each side"),
        ({"crop": 64.5}, "32 or more pixels, a part of each side"),
        ({"crop": 0}, "32 or more pixels, a part of each side"),
        ({"crop": True}, "32 or more pixels, a part of each side"),
        ({"crop": [0.9]}, "32 or more pixels, a part of each side"),
        ({"crop": [0.9, 0.8]}, "32 or more pixels, a part of each side"),
        ({"crop": [0.9, 64]}, "32 or more pixels, a part of each side"),
        ({"scales": [1.0], "shortest_edge": [400]}, "give one of them"),
        ({"longest_edge": 400}, "nothing without shortest_edge"),
        ({"shortest_edge": [200, 800], "longest_edge": 600}, "600, is below a shortest_edge"),
        ({"crop": float("inf")}, "32 or more pixels, a part of each side"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainSettings.model_validate(settings)
    whole = TrainSettings.model_validate({"crop": 1.0, "shortest_edge": [400]})
    assert TrainSettings.model_validate_json(whole.model_dump_json()) == whole and isinstance(whole.crop, float)
    assert isinstance(TrainSettings.model_validate({"crop": 64.0}).crop, int)


def test_images_of_every_kind_become_rgb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "rgb.png"), rgb[:, :, ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), rgb)
    rgba = np.dstack([rgb[:, :, ::-1], np.full((5, 7), 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "rgba.png"), rgba)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), rgb)
    cv2.imwrite(str(tmp_path / "grey.png"), rgb[:, :, 0])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(rgb[:, :, :1], 3, axis=2))
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[:, :, 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[:, :, 0], rgb[:, :, 0])
    (tmp_path / "torn.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="torn.png"):
        read_image(tmp_path / "torn.png")
