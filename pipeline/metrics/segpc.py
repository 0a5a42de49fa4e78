"""SegPC-2021's metric: the mean over all true cells of the best IoU that any predicted cell of the image has with it.

Both are compared at 1080x1440, the size that submissions have; larger masks are brought to it by taking the nearest
pixel, as the organisers' converter and scorer do with OpenCV's INTER_NEAREST: target pixel i is source pixel
``floor(i * source / target)``, the factor in double precision as OpenCV computes it. A cell is nucleus and cytoplasm
together. Nothing is matched one to one, so repeated and false predictions cost nothing, and there are no confidences. An
image without predictions gives its cells 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.masks import crop_intersection, rle_to_crop
from pipeline.records import Dataset, compressed

FRAME = (1080, 1440)
"""Rows and columns of every submitted mask."""

_Crop = tuple[np.ndarray, np.ndarray]
"""Half-open box (4,) int64 x0, y0, x1, y1, and the pixels in it, uint8 of 0 and 1."""


def nearest(source: int, target: int) -> np.ndarray:
    """(target,) int64: the source pixel that OpenCV's INTER_NEAREST takes for each target pixel along an axis."""
    factor = 1.0 / (target / source)
    return np.minimum(np.floor(np.arange(target) * factor).astype(np.int64), source - 1)


def to_frame(box: Sequence[int] | np.ndarray, crop: np.ndarray, size: Sequence[int]) -> _Crop:
    """A crop of an image of `size` (height, width) as it is at `FRAME`; its box may come out empty."""
    x0, y0, x1, y1 = (int(v) for v in box)
    if tuple(size) == FRAME:
        return np.array([x0, y0, x1, y1], np.int64), crop
    rows, columns = nearest(int(size[0]), FRAME[0]), nearest(int(size[1]), FRAME[1])
    top, bottom = np.searchsorted(rows, [y0, y1])
    left, right = np.searchsorted(columns, [x0, x1])
    taken = crop[np.ix_(rows[top:bottom] - y0, columns[left:right] - x0)]
    return np.array([left, top, right, bottom], np.int64), taken


def from_frame(box: Sequence[int] | np.ndarray, crop: np.ndarray, size: Sequence[int]) -> _Crop | None:
    """A crop at `FRAME` as one of an image of `size` (height, width), such that `to_frame` gives it back.

    A pixel of the image belongs to the last pixel of the frame that is taken from its place or from before it. Where no
    side of the image is shorter than the frame's, nothing is ever lost on the way; elsewhere None may come back.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    if not crop.any():
        return np.zeros(4, np.int64), np.zeros((0, 0), np.uint8)
    rows = np.searchsorted(nearest(int(size[0]), FRAME[0]), np.arange(int(size[0])), side="right") - 1
    columns = np.searchsorted(nearest(int(size[1]), FRAME[1]), np.arange(int(size[1])), side="right") - 1
    top, bottom = np.searchsorted(rows, [y0, y1])
    left, right = np.searchsorted(columns, [x0, x1])
    found = crop[np.ix_(rows[top:bottom] - y0, columns[left:right] - x0)]
    place = np.array([left, top, right, bottom], np.int64)
    back_place, back = to_frame(place, found, size)
    same = np.array_equal(back_place, [x0, y0, x1, y1]) and np.array_equal(back, crop)
    return (place, found) if same else None


@dataclass(frozen=True)
class Overlaps:
    """Every true cell's best IoU, by image id in the truth's order."""

    best: dict[int, list[float]]

    @property
    def cells(self) -> int:
        return sum(len(values) for values in self.best.values())

    @property
    def score(self) -> float:
        """The mean over all cells of all images; 0 where there is no cell."""
        return sum(sum(values) for values in self.best.values()) / self.cells if self.cells else 0.0

    def found(self, iou: float) -> int:
        return sum(value >= iou for values in self.best.values() for value in values)


def best_overlaps(truth: Dataset, records: Sequence[Mapping[str, Any]], category_id: int) -> Overlaps:
    """The best IoU of every true instance of a category with the predictions of that category.

    Args:
        truth: images with their instances, masks of any size.
        records: COCO results, masks of the images' sizes or of `FRAME`; scores and boxes are not looked at, and neither
            are images that the truth does not have.

    Raises:
        ValueError: a record lacks what is needed, a mask is damaged or has another size.
    """
    found: dict[int, list[_Crop]] = defaultdict(list)
    for number, record in enumerate(records):
        try:
            image = truth.image.get(record["image_id"])
            if image is None or record["category_id"] != category_id:
                continue
            rle = compressed(record["segmentation"], (image.height, image.width))
            if tuple(rle["size"]) not in ((image.height, image.width), FRAME):
                raise ValueError(
                    f"the mask's size {rle['size']} is neither the image's, {[image.height, image.width]}, "
                    f"nor {list(FRAME)}"
                )
            found[image.id].append(_framed(rle))
        except KeyError as error:
            raise ValueError(f"record {number} has no {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"record {number}: {error}") from error
    best = {}
    for image in truth.images:
        cells = [a for a in truth.by_image[image.id] if a.category_id == category_id]
        best[image.id] = [_best(_framed(cell.rle), found[image.id]) for cell in cells]
    return Overlaps(best)


def _framed(rle: dict[str, Any]) -> _Crop:
    box, crop = rle_to_crop(rle)
    return to_frame(box, crop, rle["size"])


def _best(cell: _Crop, predictions: Sequence[_Crop]) -> float:
    box, crop = cell
    area, best = int(crop.sum()), 0.0
    for other_box, other in predictions:
        if (np.minimum(box[2:], other_box[2:]) <= np.maximum(box[:2], other_box[:2])).any():
            continue
        common = crop_intersection(crop, box, other, other_box, threshold=1)
        best = max(best, common / (area + int(other.sum()) - common))
    return best
