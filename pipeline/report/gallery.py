"""Pictures of the result: training images with what was found, missed and false, test images with the final masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.masks import FOREGROUND, rle_to_crop
from pipeline.metrics.coco_ap import Match
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.report.outlines import outline, picture, read_image
from pipeline.report.verdicts import Verdict

OBJECTS_ACROSS = 12
"""A window shows about this many objects of the image's typical size side by side."""

SMALLEST_WINDOW = 192

FAINTEST = 0.15
"""Opacity of the least sure masks."""

WHOLE = 400
"""Images up to this many pixels a side are shown whole."""


@dataclass(frozen=True)
class Outline:
    """One instance in a picture: SVG path data, its kind (true, found, missed, false or final), and a label."""

    path: str
    kind: str
    label: str
    series: int = 0
    opacity: float = 1.0


@dataclass(frozen=True)
class Picture:
    """A window of an image: JPEG data URI, its box x0, y0, x1, y1 in the image's pixels, and the outlines over it."""

    title: str
    caption: str
    uri: str
    window: tuple[int, int, int, int]
    outlines: list[Outline] = field(default_factory=list)

    @property
    def view_box(self) -> str:
        x0, y0, x1, y1 = self.window
        return f"{x0} {y0} {x1 - x0} {y1 - y0}"


def window(size: Sequence[int], extents: np.ndarray, focus: np.ndarray) -> tuple[int, int, int, int]:
    """The part of an image to show: the whole of it, or where most of the points of interest are.

    Args:
        size: ``(height, width)`` of the image.
        extents: (N,) the objects' longer sides in pixels; the window is `OBJECTS_ACROSS` of their median wide.
        focus: (M, 2) points x, y of which the window should hold as many as possible.

    Returns:
        Half-open box x0, y0, x1, y1 inside the image.
    """
    height, width = int(size[0]), int(size[1])
    side = max(int(OBJECTS_ACROSS * float(np.median(extents))) if len(extents) else 0, SMALLEST_WINDOW)
    across, down = min(side, width), min(side, height)
    if max(width, height) <= WHOLE or (across > 0.8 * width and down > 0.8 * height):
        return 0, 0, width, height
    lefts = np.unique(np.linspace(0, width - across, 1 + 4 * width // across).astype(int))
    tops = np.unique(np.linspace(0, height - down, 1 + 4 * height // down).astype(int))
    if not len(focus):
        focus = np.array([[width / 2, height / 2]])
    inside_x = (focus[None, :, 0] >= lefts[:, None]) & (focus[None, :, 0] < lefts[:, None] + across)  # (L, M)
    inside_y = (focus[None, :, 1] >= tops[:, None]) & (focus[None, :, 1] < tops[:, None] + down)  # (T, M)
    held = inside_y.astype(np.int64) @ inside_x.astype(np.int64).T  # (T, L)
    best = np.argwhere(held == held.max())
    row, column = best[len(best) // 2]  # among equals one that has the points amid it rather than at its edge
    x0, y0 = int(lefts[column]), int(tops[row])
    return x0, y0, x0 + across, y0 + down


def verdict_picture(dataset: Dataset, verdict: Verdict, detections: Detections, match: Match) -> Picture:
    """A training image with its true, found, missed and false instances outlined.

    Raises:
        UnreadableImageError: the image file is missing or broken.
    """
    image, names = verdict.image, dataset.categories
    truth = dataset.by_image[image.id]
    errors = np.concatenate(
        [_true_centres([dataset.instances[k] for k in verdict.missed]), _found_centres(detections.take(verdict.false))]
    )
    extents = np.array([max(t.box[2:]) for t in truth or dataset.instances])
    shown = window((image.height, image.width), extents, errors if len(errors) else _true_centres(truth))
    outlines = []
    for kind, indexes in (("true", verdict.matched), ("missed", verdict.missed)):
        for instance in (dataset.instances[k] for k in indexes):
            if _reaches(_corners(instance), shown):
                outlines.append(Outline(_true_outline(instance), kind, f"{kind}: {names[instance.category_id]}"))
    for kind, rows, overlap in (("found", verdict.found, match.iou), ("false", verdict.false, match.best)):
        for i in rows:
            if _reaches(detections.mask_box[i], shown):
                label = f"{kind}: {_class(names, detections, i)}, score {detections.score[i]:.3f}, IoU {overlap[i]:.2f}"
                outlines.append(Outline(_found_outline(detections, i), kind, label))
    caption = (
        f"{len(verdict.found)} found, {len(verdict.missed)} missed, {len(verdict.false)} false; F1 {verdict.f1:.3f}"
    )
    order = ["true", "found", "missed", "false"]
    outlines.sort(key=lambda o: order.index(o.kind))
    return Picture(image.file_name, caption, picture(read_image(dataset.path(image)), shown), shown, outlines)


def final_picture(dataset: Dataset, image: Image, detections: Detections) -> Picture:
    """A test image with the masks that are handed in, coloured by class, or by turns where there is one class.

    The surest lie on top; less sure ones are fainter.

    Args:
        detections: the image's rows.

    Raises:
        UnreadableImageError: the image file is missing or broken.
    """
    boxes = detections.mask_box
    extents = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    shown = window((image.height, image.width), extents, _found_centres(detections))
    series = {category_id: k for k, category_id in enumerate(dataset.categories)}
    outlines = [
        Outline(
            _found_outline(detections, i),
            "final",
            f"{_class(dataset.categories, detections, i)}, score {detections.score[i]:.3f}",
            series.get(int(detections.category_id[i]), 0) if len(series) > 1 else i,
            round(max(float(detections.score[i]), FAINTEST), 2),
        )
        for i in np.argsort(detections.score, kind="stable").tolist()
        if _reaches(boxes[i], shown)
    ]
    caption = f"{len(detections)} mask{'' if len(detections) == 1 else 's'}"
    if shown != (0, 0, image.width, image.height):
        caption += f", {len(outlines)} of them in this part"
    return Picture(image.file_name, caption, picture(read_image(dataset.path(image)), shown), shown, outlines)


def spread(images: Sequence[Image], count: int) -> list[Image]:
    """At most `count` images, evenly spread over the list."""
    if len(images) <= count:
        return list(images)
    return [images[int(i)] for i in np.linspace(0, len(images) - 1, count).round()]


def _class(names: dict[int, str], detections: Detections, i: int) -> str:
    category_id = int(detections.category_id[i])
    return names.get(category_id, f"class {category_id}")


def _true_outline(instance: Instance) -> str:
    box, mask = rle_to_crop(instance.rle)
    return outline(mask, (int(box[0]), int(box[1])))


def _found_outline(detections: Detections, i: int) -> str:
    x0, y0 = (int(v) for v in detections.mask_box[i, :2])
    return outline(detections.crop(i) >= FOREGROUND, (x0, y0))


def _found_centres(detections: Detections) -> np.ndarray:
    """(N, 2) float64 x, y."""
    boxes = detections.mask_box.astype(np.float64)
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2)


def _true_centres(truth: Sequence[Instance]) -> np.ndarray:
    """(N, 2) float64 x, y."""
    boxes = np.array([t.box for t in truth], np.float64).reshape(-1, 4)
    return np.asarray(boxes[:, :2] + boxes[:, 2:] / 2)


def _corners(instance: Instance) -> tuple[float, float, float, float]:
    x, y, width, height = instance.box
    return x, y, x + width, y + height


def _reaches(box: Iterable[float], shown: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = box
    return bool(x0 < shown[2] and x1 > shown[0] and y0 < shown[3] and y1 > shown[1])
