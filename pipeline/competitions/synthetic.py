"""A competition that the project draws itself: four kinds of cells, so that a whole run needs no download.

Cells come in clumps and lie on top of each other; the truth is what can be seen of each, so masks touch but share no
pixel. The light is uneven, the slides are stained differently, there is noise and debris, classes are missing from some
images and one training image holds no cell at all. Three images come from one slide and share its stain: one group.

The same seed and options give the same bytes. The test images come as ids only; their truth is kept apart, in
hidden/test_truth.json, for `score` to look at when all is done. Each drawing is its own semantic map too, in which 0 is the
background and each kind has its category's number: in semantic/train, and for the test images in hidden/semantic/test.

Submission: a zip with one member results.json, COCO results. Metric: segm AP50, the mean over classes, 100 detections
an image and class; beside it pixel accuracy, class IoU and panoptic quality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.competitions import Integrity, Options, Prepared, chosen_options
from pipeline.competitions.formats.coco_competition import CocoCompetition
from pipeline.competitions.formats.drawn import instance_of, write_png
from pipeline.masks import tight_box
from pipeline.metrics import scene
from pipeline.metrics.coco_ap import Evaluation
from pipeline.records import Dataset, Image, Instance

IMAGES_PER_SLIDE = 3

LEAST_SEEN = 0.6
"""A cell is not drawn where it would leave less than this of another in sight, or show less of itself."""

TRUTH = Path("hidden") / "test_truth.json"

BACKGROUND = 0
"""In the semantic maps."""


@dataclass(frozen=True)
class _Kind:
    """One class of cells: how its outline runs and what is inside.

    `outline` gives radii, as a multiple of the cell's size, at angles; `inside` gives darkness in about 0..1 from the
    distance to the centre (1 at the outline), coordinates along and across the cell in pixels, and noise in -1..1.
    """

    name: str
    size: tuple[float, float]
    stretch: tuple[float, float]
    colour: tuple[float, float, float]
    outline: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    inside: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _smooth_outline(angle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 + 0.05 * np.sin(2 * angle + rng.uniform(0, 6.3)) + 0.04 * np.sin(3 * angle + rng.uniform(0, 6.3))


def _spiky_outline(angle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    points = int(rng.integers(6, 9))
    return 0.78 + 0.24 * np.cos(points * angle + rng.uniform(0, 6.3)) + 0.03 * np.sin(2 * angle + rng.uniform(0, 6.3))


KINDS = {
    1: _Kind(
        "round", (9, 13), (1.0, 1.15), (0.42, 0.30, 0.62), _smooth_outline,
        lambda r, along, across, noise: 0.55 + 0.45 * (r < 0.45) + 0.05 * noise,
    ),
    2: _Kind(
        "spindle", (16, 21), (1.9, 2.4), (0.80, 0.42, 0.55), _smooth_outline,
        lambda r, along, across, noise: 0.60 + 0.22 * np.sin(along * 1.3) + 0.05 * noise,
    ),
    3: _Kind(
        "spiky", (12, 16), (1.0, 1.2), (0.24, 0.36, 0.66), _spiky_outline,
        lambda r, along, across, noise: 0.70 + 0.35 * noise,
    ),
    4: _Kind(
        "ring", (14, 19), (1.0, 1.25), (0.62, 0.44, 0.30), _smooth_outline,
        lambda r, along, across, noise: 0.22 + 0.70 * (r > 0.74) + 0.04 * noise,
    ),
}  # fmt: skip


class SyntheticOptions(Options):
    """What is drawn."""

    images: int = Field(24, ge=2)
    """Images to learn from."""
    test_images: int = Field(6, ge=1)
    """Images to predict."""
    size: int = Field(256, ge=64)
    """Side of an image in pixels."""
    cells: int = Field(22, ge=1)
    """Most cells of an image."""
    cell_size: int = Field(100, ge=50)
    """Of the cells, in percent."""


class Synthetic(CocoCompetition):
    name = "synthetic"
    options = SyntheticOptions
    metric = "segm AP50 (mean over classes) maxDets=100"
    member = "results.json"
    categories: Mapping[int, str] = {number: kind.name for number, kind in KINDS.items()}
    download = "nothing to get: the project draws it"

    def missing(self, names: Sequence[str]) -> list[str]:
        return ["files: this competition has none, the project draws it"]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Draw the images.

        Args:
            path: not used.
            options: see `SyntheticOptions`.
        """
        chosen = chosen_options(self.options, options)
        train = self._part("train", chosen.images, chosen, seed, target, target)
        truth = self._part("test", chosen.test_images, chosen, seed, target, (target / TRUTH).parent)
        truth.write(target / TRUTH)
        facts = {
            "competition": self.name,
            "source": "drawn",
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(truth.images),
        }
        test = [replace(image, semantic="") for image in truth.images]
        return Prepared(train, Dataset(test, truth.categories, root=target), Integrity(facts=facts))

    def summary(self, truth: Dataset, evaluation: Evaluation, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**super().summary(truth, evaluation, records), **scene.measure(truth, records)}

    def _part(self, part: str, count: int, options: SyntheticOptions, seed: int, target: Path, maps: Path) -> Dataset:
        """Draw the images of a part below `target` and their semantic maps below `maps`."""
        stream = {"train": 0, "test": 1}[part]
        side = options.size
        empty = int(np.random.default_rng([seed, stream]).integers(count)) if part == "train" and count >= 4 else -1
        images: list[Image] = []
        instances: list[Instance] = []
        for k in range(count):
            slide = k // IMAGES_PER_SLIDE
            stain = np.random.default_rng([seed, stream, 0, slide]).uniform(-0.07, 0.07, 3)
            rng = np.random.default_rng([seed, stream, 1, k])
            picture, labels, kinds = draw(rng, side, 0 if k == empty else options.cells, stain, options.cell_size / 100)
            name = f"{part}/{part}-{k + 1:03d}.png"
            image = Image(k + 1, f"images/{name}", side, side, f"{part}-slide-{slide + 1}", f"semantic/{name}")
            write_png(picture, target / image.file_name)
            write_png(np.array([BACKGROUND, *kinds], np.uint8)[labels], maps / image.semantic)
            images.append(image)
            for number, kind in enumerate(kinds, start=1):
                instances.append(instance_of(len(instances) + 1, image, kind, labels == number))
        for folder in (target / "images" / part, maps / "semantic" / part):
            for path in folder.glob("*.png"):  # of an earlier drawing with more images
                if path.name not in {Path(image.file_name).name for image in images}:
                    path.unlink()
        return Dataset(images, dict(self.categories), instances, target, {BACKGROUND: "background", **self.categories})


def draw(
    rng: np.random.Generator, side: int, cells: int, stain: np.ndarray, zoom: float = 1.0
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw one image.

    Args:
        rng: decides everything.
        side: height and width in pixels.
        cells: most cells; at least half as many are tried.
        stain: (3,) float, the slide's shift of colour.
        zoom: multiplies the cells' sizes.

    Returns:
        image: (side, side, 3) uint8 RGB.
        labels: (side, side) int32, the cell that is on top in each pixel, from 1; 0 for none.
        kinds: category id of each cell.
    """
    import cv2

    canvas = np.ones((side, side, 3)) * (np.array([0.88, 0.83, 0.85]) + stain)
    canvas += 0.07 * _field(rng, side, 5)[:, :, None] + 0.03 * _field(rng, side, 24)[:, :, None]
    _debris(rng, canvas)
    labels, kinds = _cells(rng, canvas, cells, stain, zoom)
    slope = rng.uniform(-0.18, 0.18, 2)
    y, x = np.mgrid[:side, :side] / side - 0.5
    light = 1 + slope[0] * x + slope[1] * y - 0.25 * (x**2 + y**2)
    canvas = cv2.GaussianBlur(canvas * light[:, :, None], (0, 0), 0.7)
    canvas += rng.normal(0, 0.025, canvas.shape)
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8), labels, kinds


def _field(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """(side, side) float64, a smooth random field of standard deviation about 1 with `cells` knots a side."""
    import cv2

    return np.asarray(cv2.resize(rng.normal(0, 1, (cells, cells)), (side, side), interpolation=cv2.INTER_CUBIC))


def _debris(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Specks and fibres, which are no cells, in place."""
    import cv2

    side = len(canvas)
    for _ in range(rng.integers(2, 3 + side // 32)):
        x, y = (int(v) for v in rng.integers(0, side, 2))
        shade = float(rng.uniform(0.35, 0.6))
        if rng.random() < 0.6:
            cv2.circle(canvas, (x, y), int(rng.integers(1, 3)), (shade, shade, shade), -1, cv2.LINE_AA)
        else:
            end = (int(x + rng.integers(-side // 6, side // 6)), int(y + rng.integers(-side // 6, side // 6)))
            cv2.line(canvas, (x, y), end, (shade + 0.2, shade + 0.15, shade + 0.2), 1, cv2.LINE_AA)


def _cells(
    rng: np.random.Generator, canvas: np.ndarray, cells: int, stain: np.ndarray, zoom: float
) -> tuple[np.ndarray, list[int]]:
    """Paint cells on the canvas, in place; return the label map and the cells' kinds."""
    import cv2

    side = len(canvas)
    labels = np.zeros((side, side), np.int32)
    kinds: list[int] = []
    whole: list[int] = []
    places: list[tuple[float, float, float]] = []
    absent = int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15]))
    present = rng.permutation(list(KINDS))[absent:]
    for _ in range(int(rng.integers((cells + 1) // 2, cells + 1)) if cells else 0):
        for _attempt in range(20):
            number = int(rng.choice(present))
            kind = KINDS[number]
            size = float(rng.uniform(*kind.size)) * zoom
            x, y = _place(rng, side, size, places)
            polygon = _polygon(rng, kind, size, x, y)
            region = np.zeros((side, side), np.uint8)
            cv2.fillPoly(region, [np.round(polygon.points * 16).astype(np.int32)], 1, shift=4)
            mask = region > 0
            area = int(mask.sum())
            if area < LEAST_SEEN * polygon.area:
                continue
            covered = np.bincount(labels[mask], minlength=len(kinds) + 1)[1:]
            seen = np.bincount(labels.ravel(), minlength=len(kinds) + 1)[1:] - covered
            if any(s < LEAST_SEEN * w for s, w in zip(seen.tolist(), whole, strict=True)):
                continue
            _paint(rng, canvas, kind, mask, polygon, stain)
            kinds.append(number)
            whole.append(area)
            places.append((x, y, size))
            labels[mask] = len(kinds)
            break
    return labels, kinds


def _place(
    rng: np.random.Generator, side: int, size: float, places: list[tuple[float, float, float]]
) -> tuple[float, float]:
    """A centre: half of the time beside an earlier cell, touching or overlapping it."""
    if places and rng.random() < 0.5:
        x, y, other = places[rng.integers(len(places))]
        angle, distance = rng.uniform(0, 2 * np.pi), (size + other) * rng.uniform(0.7, 1.05)
        x, y = x + distance * np.cos(angle), y + distance * np.sin(angle)
        if 0 <= x < side and 0 <= y < side:
            return float(x), float(y)
    return float(rng.uniform(0, side)), float(rng.uniform(0, side))


@dataclass(frozen=True)
class _Polygon:
    """A cell's outline, (N, 2) x and y in pixels, with the frame that its inside is drawn in."""

    points: np.ndarray
    centre: tuple[float, float]
    turn: float
    radii: tuple[float, float]

    @property
    def area(self) -> float:
        x, y = self.points.T
        return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _polygon(rng: np.random.Generator, kind: _Kind, size: float, x: float, y: float) -> _Polygon:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    stretch = float(rng.uniform(*kind.stretch))
    long, short = (size, size / stretch)
    turn = float(rng.uniform(0, np.pi))
    radius = kind.outline(angle, rng)
    u, v = long * radius * np.cos(angle), short * radius * np.sin(angle)
    points = np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1)
    return _Polygon(points, (x, y), turn, (long, short))


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, kind: _Kind, mask: np.ndarray, polygon: _Polygon, stain: np.ndarray
) -> None:
    """Blend a cell over what is there: darker by `kind.inside`, soft at the edge, in place."""
    import cv2

    x0, y0, x1, y1 = tight_box(mask)
    x0, y0, x1, y1 = max(x0 - 3, 0), max(y0 - 3, 0), min(x1 + 3, mask.shape[1]), min(y1 + 3, mask.shape[0])
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float64)
    dx, dy = x - polygon.centre[0], y - polygon.centre[1]
    along = dx * np.cos(polygon.turn) + dy * np.sin(polygon.turn)
    across = dy * np.cos(polygon.turn) - dx * np.sin(polygon.turn)
    distance = np.hypot(along / polygon.radii[0], across / polygon.radii[1])
    noise = cv2.GaussianBlur(rng.normal(0, 1, distance.shape), (0, 0), 1.0)
    noise = np.clip(noise / (np.abs(noise).max() + 1e-9) * 1.5, -1, 1)
    darkness = np.clip(kind.inside(distance, along, across, noise), 0.05, 1.0) * rng.uniform(0.85, 1.0)
    edge = cv2.GaussianBlur(mask[y0:y1, x0:x1].astype(np.float64), (0, 0), 0.8)
    colour = np.array(kind.colour) + 0.6 * stain + rng.normal(0, 0.03, 3)
    cover = np.clip(edge * (0.35 + 0.6 * darkness), 0, 1)[:, :, None]
    body = colour * (1.25 - 0.5 * darkness)[:, :, None]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - cover) + body * cover


COMPETITION = Synthetic()
