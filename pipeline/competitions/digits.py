"""A competition that the project draws from handwritten digits: ten classes, scattered on a canvas.

The digits are MNIST's where `data.path` leads to its files (a folder or zip, at any depth)::

    train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz]       60,000 digits of 28x28
    t10k-images-idx3-ubyte[.gz],  t10k-labels-idx1-ubyte[.gz]        10,000; either pair will do

and scikit-learn's 1,797 of 8x8 where there is no path. They are turned and scaled a little, coloured, and laid on an uneven
ground with specks; `style: plain` lays them as MNIST has them, upright in squares of 28x28, white on black. `touching: never`
keeps a gap between them; with `freely` they touch, and lie on top of each other; the truth is what can be seen of each. No digit
is in the training and in the test images.

The toy data of Image Segmentation with Transformers (M. Schmidt-Mengin, 2021), easy and hard, is ``{size: 64, digits: 4,
fewest: 1, style: plain}`` with `touching` never and freely.

The same seed, options and digits give the same images. The truth of the test images is kept apart, in hidden/test_truth.json.

Submission: a zip with one member results.json, COCO results, category n + 1 for the digit n. Metric: COCO's segm AP; beside it
class accuracy and Dice, see `Digits.score`.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, chosen_options
from pipeline.competitions.formats.archive import Archive, is_stray
from pipeline.competitions.formats.coco_competition import IOU, CocoCompetition
from pipeline.competitions.formats.drawn import instance_of, write_png
from pipeline.competitions.formats.stored import remove_others
from pipeline.masks import tight_box
from pipeline.metrics import scene
from pipeline.metrics.coco_ap import IOUS, THRESHOLDS, Evaluation, evaluate, match
from pipeline.metrics.dice import best_dice, overlaps_by_image
from pipeline.records import Dataset, Image, Instance

TRUTH = Path("hidden") / "test_truth.json"

HEIGHT = (26, 42)
"""Of a digit on the canvas before it is turned, in pixels."""

INK = 0.5
"""A pixel is the digit's where at least so much of it is ink, of 1."""

GAP = 2
"""Pixels between digits that never touch."""

SQUARE = 28
"""Side of a plain digit's picture."""

LEAST_SEEN = 0.6
"""In the scene, a digit is not laid where it would leave less than this of another in sight; plain ones lie anywhere, as
long as something of each is seen."""

TEST_SHARE = 6
"""Where there is one set of digits, every sixth is for the test images."""

MAX_IDX_BYTES = 1 << 28


class DigitsOptions(Options):
    """What is drawn."""

    images: int = Field(40, ge=2)
    """Images to learn from."""
    test_images: int = Field(10, ge=1)
    """Images to predict."""
    size: int = Field(192, ge=64)
    """Side of an image in pixels."""
    digits: int = Field(12, ge=1)
    """Most digits that are tried on an image."""
    fewest: int | None = Field(None, ge=1)
    """Least digits that are tried on an image; null for half of `digits`."""
    touching: Literal["never", "freely"] = "never"
    """Whether digits may lie on each other."""
    style: Literal["scene", "plain"] = "scene"
    """Digits of many colours and sizes on a textured ground, or MNIST's own pictures."""

    @model_validator(mode="after")
    def _fewest_is_not_more(self) -> DigitsOptions:
        if self.least > self.digits:
            raise ValueError(f"data.options.fewest is {self.fewest}, more than digits, {self.digits}")
        return self

    @property
    def least(self) -> int:
        """`fewest`, or its default."""
        return (self.digits + 1) // 2 if self.fewest is None else self.fewest


class Digits(CocoCompetition):
    name = "digits"
    options = DigitsOptions
    metric = "segm AP (mean over IoU 0.50:0.95 and classes) maxDets=100"
    member = "results.json"
    ious: Sequence[float] = IOUS
    categories: Mapping[int, str] = {digit + 1: str(digit) for digit in range(10)}
    download = (
        "nothing to get: without data.path the project draws it from scikit-learn's digits; with MNIST:\n"
        "for f in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do\n"
        "  curl -fL --create-dirs -o data/mnist/$f-ubyte.gz https://ossci-datasets.s3.amazonaws.com/mnist/$f-ubyte.gz; done"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        found = _pairs(names)
        if any(len(pair) == 2 for pair in found.values()):
            return []
        have = {kind for pair in found.values() for kind in pair}
        return [f"<set>-{kind}-ubyte[.gz]" for kind in ("images-idx3", "labels-idx1") if kind[:6] not in have] or [
            "images and labels of the same set"
        ]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Draw the images.

        Args:
            path: MNIST's files; scikit-learn's digits where it is None.
            options: see `DigitsOptions`.
        """
        chosen = chosen_options(self.options, options)
        for_train, for_test = _sklearn_digits() if path is None else _mnist(path)
        train = self._part("train", chosen.images, for_train, chosen, seed, target)
        truth = self._part("test", chosen.test_images, for_test, chosen, seed, target)
        remove_others(target, train, truth)
        truth.write(target / TRUTH)
        facts = {
            "competition": self.name,
            "source": "scikit-learn's digits" if path is None else str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(truth.images),
        }
        return Prepared(train, Dataset(truth.images, truth.categories, root=target), Integrity(facts=facts))

    def _part(self, part: str, count: int, glyphs: _Glyphs, options: DigitsOptions, seed: int, target: Path) -> Dataset:
        stream = {"train": 0, "test": 1}[part]
        side, most = options.size, options.digits
        order = np.random.default_rng([seed, stream, 0]).permutation(len(glyphs.labels))
        images: list[Image] = []
        instances: list[Instance] = []
        for k in range(count):
            # every image has digits of its own, as long as there are any left
            own = glyphs.take(order[np.arange(k * most, (k + 1) * most) % len(order)])
            rng = np.random.default_rng([seed, stream, 1, k])
            picture, labels, digits = draw(
                rng, side, own, options.least, options.touching == "freely", options.style == "plain"
            )
            image = Image(k + 1, f"images/{part}/{part}-{k + 1:03d}.png", side, side)
            write_png(picture, target / image.file_name)
            images.append(image)
            for number, digit in enumerate(digits, start=1):
                instances.append(instance_of(len(instances) + 1, image, digit + 1, labels == number))
        return Dataset(images, dict(self.categories), instances, target)

    def evaluate(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> Evaluation:
        return evaluate(truth, records, THRESHOLDS, self.max_detections or len(records))

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """COCO's AP, with two numbers that say where it was lost, and the measures of `metrics.scene`.

        ``ap50``: at IoU 0.5 alone. ``class_accuracy``: of the digits that were found at all, the share that was read right:
        detections are matched to truths as COCO does at IoU 0.5 but whatever their class, and of the matched ones those of
        the right class are counted; null where nothing was found. ``digits`` and ``digits_found``: how many there are, and of
        how many that is. ``assigned_class_accuracy``: of all digits, see below. ``dice``: how well shapes fit, see
        `metrics.dice.best_dice`.
        """
        evaluation = self.evaluate(truth, records)
        right = read_right(truth, records)
        return {
            **self.summary(truth, evaluation, records),
            "ap50": evaluation.ap(IOU),
            "class_accuracy": float(np.mean(right)) if right else None,
            "digits_found": len(right),
            "digits": len(truth.instances),
            "assigned_class_accuracy": assigned_class_accuracy(truth, records),
            "dice": best_dice(truth, records),
            **scene.measure(truth, records),
        }


def read_right(truth: Dataset, records: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each detection that matches a truth at IoU 0.5, whatever the class, whether its class is right."""
    blind = Dataset(truth.images, {1: "object"}, [replace(a, category_id=1) for a in truth.instances], truth.root)
    matched = match(blind, [{**record, "category_id": 1} for record in records], IOU)
    return [
        truth.instances[index].category_id == record["category_id"]
        for record, index, hit in zip(records, matched.truth.tolist(), matched.true_positive.tolist(), strict=True)
        if hit
    ]


def assigned_class_accuracy(truth: Dataset, records: Sequence[Mapping[str, Any]]) -> float:
    """The share of all true digits whose own detection has the right class; -1 where there are none.

    Each digit of an image is given at most one detection and each detection one digit, so that the sum of their IoU is the
    highest possible, whatever class and score: what a network with queries is trained on, asked of its result. A digit that
    gets none, or one that does not meet it, counts as read wrong.
    """
    from scipy.optimize import linear_sum_assignment

    right = 0
    for instances, found, iou in overlaps_by_image(truth, records):
        for k, i in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
            right += bool(iou[k, i] > 0) and found[k]["category_id"] == instances[i].category_id
    total = sum(not instance.crowd for instance in truth.instances)
    return right / total if total else -1.0


# ---------------------------------------------------------------- the digits ------------------------------------------


@dataclass(frozen=True)
class _Glyphs:
    """Digits as ink: `pixels` (N, H, W) uint8, 255 is black, and `labels` (N,) uint8 of 0..9."""

    pixels: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> _Glyphs:
        return _Glyphs(self.pixels[rows], self.labels[rows])

    def divided(self) -> tuple[_Glyphs, _Glyphs]:
        """For training and for testing."""
        test = np.arange(len(self.labels)) % TEST_SHARE == TEST_SHARE - 1
        return self.take(np.flatnonzero(~test)), self.take(np.flatnonzero(test))


def _sklearn_digits() -> tuple[_Glyphs, _Glyphs]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _Glyphs(np.round(digits.images * 255 / 16).astype(np.uint8), digits.target.astype(np.uint8)).divided()


def _pairs(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Names of ``images`` and ``labels`` files by set (folder and train or t10k)."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        plain = PurePosixPath(name).name.removesuffix(".gz").replace(".", "-")
        for kind, end in (("images", "-images-idx3-ubyte"), ("labels", "-labels-idx1-ubyte")):
            if plain.endswith(end) and not is_stray(name):
                place = str(PurePosixPath(name).parent / plain.removesuffix(end))
                found.setdefault(place, {}).setdefault(kind, name)
    return found


def _mnist(path: Path) -> tuple[_Glyphs, _Glyphs]:
    """MNIST's training digits for training and its test digits for testing; one set alone is divided.

    Raises:
        CompetitionError: there is no whole set at `path`, or a file is damaged.
    """
    with Archive(path) as archive:
        sets = {place: pair for place, pair in _pairs(archive.names).items() if len(pair) == 2}
        if not sets:
            shown = ", ".join(archive.names[:5]) or "nothing"
            raise CompetitionError(
                f"{path} holds no MNIST: a set is t10k-images-idx3-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz], "
                f"or the same of train; it has {shown}. Without data.path scikit-learn's digits are used"
            )
        read: dict[str, _Glyphs] = {}
        for place, pair in sorted(sets.items()):
            pixels = parse_idx(archive.read(pair["images"]), 3, f"{pair['images']} in {path}")
            labels = parse_idx(archive.read(pair["labels"]), 1, f"{pair['labels']} in {path}")
            if len(pixels) != len(labels):
                raise CompetitionError(f"{path}: {place} has {len(pixels):,} images and {len(labels):,} labels")
            if len(labels) < TEST_SHARE or labels.max() > 9 or not pixels.size:
                raise CompetitionError(f"{path}: {place} does not hold digits")
            read.setdefault(
                "train" if PurePosixPath(place).name.startswith("train") else "test", _Glyphs(pixels, labels)
            )
    if len(read) == 2:
        return read["train"], read["test"]
    (only,) = read.values()
    return only.divided()


def parse_idx(content: bytes, dimensions: int, place: str) -> np.ndarray:
    """An IDX file of bytes, packed with gzip or not, as a uint8 array (LeCun's format: magic, sizes, values).

    Raises:
        CompetitionError: it is not, or it is cut off; `place` names it.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(MAX_IDX_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise CompetitionError(f"{place} is damaged: {error}; download it again") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise CompetitionError(f"{place} is no IDX file of bytes in {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", content[4:start])
    if math.prod(sizes) != len(content) - start:
        raise CompetitionError(
            f"{place} holds {len(content) - start:,} values, not the {math.prod(sizes):,} of its sizes {list(sizes)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


# ---------------------------------------------------------------- drawing ---------------------------------------------


def draw(
    rng: np.random.Generator, side: int, glyphs: _Glyphs, fewest: int, freely: bool, plain: bool = False
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw one image.

    Args:
        rng: decides everything.
        side: height and width in pixels.
        glyphs: the digits to lay, in this order.
        fewest: so many of them are tried at least; what finds no place is left out.
        freely: whether they may touch and cover each other.
        plain: upright, white on black, instead of the scene.

    Returns:
        image: (side, side, 3) uint8 RGB.
        labels: (side, side) int32, the digit that is on top in each pixel, from 1; 0 for none.
        digits: 0..9 of each.
    """
    canvas = np.zeros((side, side, 3)) if plain else _ground(rng, side)
    labels = np.zeros((side, side), np.int32)
    digits: list[int] = []
    whole: list[int] = []
    most = len(glyphs.labels)
    for k in range(int(rng.integers(fewest, most + 1))):
        for _attempt in range(30):
            ink = (_upright if plain else _laid)(rng, glyphs.pixels[k], side)
            mask = ink >= INK
            area = int(mask.sum())
            if not area or not _fits(mask, labels, whole, freely, 0.0 if plain else LEAST_SEEN):
                continue
            shade = np.ones(3) if plain else rng.uniform(0.75, 1.0, 3) * rng.uniform(0.8, 1.0)
            canvas[:] = canvas * (1 - ink[:, :, None]) + shade * ink[:, :, None]
            digits.append(int(glyphs.labels[k]))
            whole.append(area)
            labels[mask] = len(digits)
            break
    if not plain:
        canvas += rng.normal(0, 0.02, canvas.shape)
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8), labels, digits


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float64 in 0..1: dark, uneven, with specks that are no digits."""
    import cv2

    colour = rng.uniform(0.1, 0.3, 3)
    light = cv2.resize(rng.normal(0, 1, (5, 5)), (side, side), interpolation=cv2.INTER_CUBIC)
    canvas = colour * np.ones((side, side, 1)) + 0.06 * np.asarray(light)[:, :, None]
    for _ in range(int(rng.integers(0, side // 16))):
        x, y = (int(v) for v in rng.integers(0, side, 2))
        shade = float(rng.uniform(0.3, 0.7))
        cv2.circle(canvas, (x, y), int(rng.integers(1, 3)), (shade, shade, shade), -1, cv2.LINE_AA)
    return canvas


def _laid(rng: np.random.Generator, glyph: np.ndarray, side: int) -> np.ndarray:
    """(side, side) float64 in 0..1: a glyph's ink, turned, scaled and put somewhere, its centre on the canvas."""
    import cv2

    x0, y0, x1, y1 = tight_box((glyph >= 255 * INK).astype(np.uint8))
    height = float(rng.uniform(*HEIGHT))
    angle = float(rng.uniform(-25, 25))
    x, y = (float(v) for v in rng.uniform(height / 2, side - height / 2, 2))
    centre = ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2)
    to_canvas = cv2.getRotationMatrix2D(centre, angle, height / max(y1 - y0, 1))
    to_canvas[:, 2] += (x - centre[0], y - centre[1])
    ink = cv2.warpAffine(glyph.astype(np.float32) / 255, to_canvas, (side, side), flags=cv2.INTER_CUBIC)
    return np.clip(ink, 0, 1).astype(np.float64)


def _upright(rng: np.random.Generator, glyph: np.ndarray, side: int) -> np.ndarray:
    """(side, side) float64 in 0..1: a glyph's ink in a square of `SQUARE`, put somewhere."""
    import cv2

    x, y = (int(v) for v in rng.integers(0, side - SQUARE + 1, 2))
    ink = np.zeros((side, side))
    ink[y : y + SQUARE, x : x + SQUARE] = cv2.resize(glyph, (SQUARE, SQUARE), interpolation=cv2.INTER_CUBIC)
    return ink / 255


def _fits(mask: np.ndarray, labels: np.ndarray, whole: Sequence[int], freely: bool, least: float) -> bool:
    """Whether a digit can be laid there: none of it cut off, and of the others so much of their ink, and some, in sight."""
    import cv2

    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        return False
    if not freely:
        around = cv2.dilate(mask.astype(np.uint8), np.ones((2 * GAP + 1, 2 * GAP + 1), np.uint8)) > 0
        return not labels[around].any()
    covered = np.bincount(labels[mask], minlength=len(whole) + 1)[1:]
    seen = np.bincount(labels.ravel(), minlength=len(whole) + 1)[1:] - covered
    return all(s > 0 and s >= least * w for s, w in zip(seen.tolist(), whole, strict=True))


COMPETITION = Digits()
