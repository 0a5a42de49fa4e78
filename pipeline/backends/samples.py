"""Training samples: augmented crops with their instances, read without a full-frame bitmap.

An image of 1000x1000 with 1,862 nuclei is 1.8 GB as bitmaps. Here the instances are kept as their own small crops; a
sample paints those that a window meets into a label map (a second one where they overlap), augments image and label maps
together, and cuts the instances out again. The cost follows the window, not the image or its number of instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy import ndimage

from pipeline.backends.augmentation import augmentation
from pipeline.backends.instance_crops import InstanceCrops
from pipeline.backends.stain import normalised
from pipeline.experiment import TrainSettings
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset
from pipeline.views import edge_scale

MIN_PIXELS = 4
"""Fragments smaller than this, left at a window's edge, are no objects to learn from."""

IMAGE_CACHE_BYTES = 1 << 30


@dataclass
class Sample:
    """One training sample.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (N,) int64, class index 0..C-1.
        boxes: (N, 4) float32, tight boxes x0, y0, x1, y1.
        masks: the N instances as crops.
    """

    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    masks: InstanceCrops


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB: grey is repeated, alpha dropped, 16 bit scaled down.

    Raises:
        ValueError: the file cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(
            f"{path} cannot be read as an image: it is missing, truncated or none; the stage `prepare` makes it again"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    return np.ascontiguousarray(image[:, :, 2::-1])


def stained_image(path: Path, stain: str | None) -> np.ndarray:
    """Read an image as a model is to see it; `stain` is `ModelSettings.stain`."""
    image = read_image(path)
    return image if stain is None else normalised(image)


def bgr_tensor(image: np.ndarray) -> torch.Tensor:
    """A (H, W, 3) uint8 RGB image as both frameworks take it: (3, H, W) in BGR, their configs' channel order."""
    return torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))


class Samples:
    """A map-style data set of `length` samples; sample i depends on the seed and i alone, so a resumed training goes on
    with the samples that it would have seen."""

    def __init__(
        self, images: Dataset, settings: TrainSettings, seed: int, length: int, stain: str | None = None
    ) -> None:
        self.images = images
        self.stain = stain
        self.settings = settings
        self.seed = seed
        self.length = length
        self.category_ids = sorted(images.categories)
        self._pixels: dict[int, np.ndarray] = {}
        self._cached_bytes = 0
        self._crops: dict[int, tuple[np.ndarray, np.ndarray, list[np.ndarray]]] = {}
        if not images.images:
            raise ValueError("there is no training image; look at the folds CSV")

    def __len__(self) -> int:
        return self.length

    @cached_property
    def _augment(self) -> Any:
        return augmentation(self.settings.augment, self.seed)

    def _image(self, index: int) -> np.ndarray:
        if index not in self._pixels:
            image = self.images.images[index]
            pixels = stained_image(self.images.path(image), self.stain)
            if pixels.shape[:2] != (image.height, image.width):
                raise ValueError(
                    f"{self.images.path(image)} is {pixels.shape[0]}x{pixels.shape[1]}, "
                    f"its record says {image.height}x{image.width}"
                )
            if self._cached_bytes + pixels.nbytes > IMAGE_CACHE_BYTES:
                return pixels
            self._pixels[index] = pixels
            self._cached_bytes += pixels.nbytes
        return self._pixels[index]

    def _instances(self, index: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Boxes (N, 4) int32, class indices (N,) and binary crops of an image's instances, without crowds."""
        if index not in self._crops:
            boxes, labels, crops = [], [], []
            for instance in self.images.by_image[self.images.images[index].id]:
                if instance.crowd:
                    continue
                box, mask = rle_to_crop(instance.rle)
                if mask.size:
                    boxes.append(box)
                    labels.append(self.category_ids.index(instance.category_id))
                    crops.append(mask)
            self._crops[index] = (np.array(boxes, np.int32).reshape(-1, 4), np.array(labels, np.int64), crops)
        return self._crops[index]

    def _sizes(self, rng: np.random.Generator, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of what is shown of an image this time, and what it is resized to; see `TrainSettings.crop`."""
        crop = self.settings.crop
        if isinstance(crop, int):
            side = max(round(crop / self._scale(rng, height, width)), 8)
            return (side, side), (crop, crop)
        # as Detectron2's relative_range: the part is cut out first, and its sides are those that are resized
        parts = rng.uniform(crop[0], crop[1], 2).tolist() if isinstance(crop, list) else (crop, crop)
        high, wide = (max(round(part * length), 8) for part, length in zip(parts, (height, width), strict=True))
        scale = max(self._scale(rng, high, wide), 8 / min(high, wide))  # no side below 8, and none stretched
        return (high, wide), (round(high * scale), round(wide * scale))

    def _scale(self, rng: np.random.Generator, height: int, width: int) -> float:
        """By how much what has this size is resized this time."""
        settings = self.settings
        if settings.shortest_edge:
            return edge_scale(height, width, int(rng.choice(settings.shortest_edge)), settings.longest_edge)
        if settings.scales:
            return float(rng.choice(settings.scales))
        low, high = settings.scale
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def __getitem__(self, i: int) -> Sample:
        rng = np.random.default_rng((self.seed, i))
        # every image comes up equally often: a shuffled pass over all of them, then the next
        order = np.random.default_rng((self.seed, 1 << 20, i // len(self.images.images))).permutation(
            len(self.images.images)
        )
        index = int(order[i % len(order)])
        image, (boxes, labels, crops) = self._image(index), self._instances(index)

        (high, wide), (rows, columns) = self._sizes(rng, image.shape[0], image.shape[1])
        for _ in range(10):  # a window with something to learn from, if there is one nearby
            x0, y0 = _place(rng, image.shape[1], wide), _place(rng, image.shape[0], high)
            met = np.flatnonzero(
                (boxes[:, 0] < x0 + wide) & (boxes[:, 2] > x0) & (boxes[:, 1] < y0 + high) & (boxes[:, 3] > y0)
            )
            if met.size or not len(boxes):
                break
        window = _cut(image, x0, y0, wide, high)
        layers = _paint([boxes[k] for k in met], [crops[k] for k in met], x0, y0, wide, high)

        if (high, wide) != (rows, columns):
            smooth = cv2.INTER_AREA if high > rows else cv2.INTER_LINEAR
            window = cv2.resize(window, (columns, rows), interpolation=smooth)
            # INTER_NEAREST takes the pixel at a cell's corner and so moves the objects by up to half a pixel
            layers = [cv2.resize(layer, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT) for layer in layers]
        if self.settings.augment:
            self._augment.set_random_seed(int(rng.integers(1 << 31)))
            done = self._augment(image=window, masks=layers)
            window, layers = done["image"], done["masks"]
        return _cut_out(window, layers, labels[met])


def _place(rng: np.random.Generator, length: int, side: int) -> int:
    """Where a window of `side` begins along an axis; a window longer than the image lies around it."""
    return int(rng.integers(0, length - side + 1)) if length >= side else -int(rng.integers(0, side - length + 1))


def _cut(image: np.ndarray, x0: int, y0: int, wide: int, high: int) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = max(-y0, 0), max(-x0, 0)
    inside = image[max(y0, 0) : min(y0 + high, height), max(x0, 0) : min(x0 + wide, width)]
    if inside.shape[:2] == (high, wide):
        return np.ascontiguousarray(inside)
    window = np.zeros((high, wide, 3), np.uint8)
    window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return window


def _paint(
    boxes: list[np.ndarray], crops: list[np.ndarray], x0: int, y0: int, wide: int, high: int
) -> list[np.ndarray]:
    """Label maps (high, wide) uint16 of the window at (x0, y0); instance k is painted as k + 1 on the first map where it
    covers nobody, so overlapping instances keep all their pixels."""
    layers = [np.zeros((high, wide), np.uint16)]
    for k, (box, crop) in enumerate(zip(boxes, crops, strict=True)):
        left, top = max(int(box[0]), x0), max(int(box[1]), y0)
        right, bottom = min(int(box[2]), x0 + wide), min(int(box[3]), y0 + high)
        if left >= right or top >= bottom:
            continue
        visible = crop[top - box[1] : bottom - box[1], left - box[0] : right - box[0]].astype(bool)
        place = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
        for layer in layers:
            if not layer[place][visible].any():
                break
        else:
            layer = np.zeros((high, wide), np.uint16)
            layers.append(layer)
        layer[place][visible] = k + 1
    return layers


def _cut_out(image: np.ndarray, layers: list[np.ndarray], labels: np.ndarray) -> Sample:
    """The instances of augmented label maps, each as its own tight crop."""
    boxes, found, crops = [], [], []
    for layer in layers:
        for k, place in enumerate(ndimage.find_objects(layer)):
            if place is None:
                continue
            mask = (layer[place] == k + 1).view(np.uint8)
            if np.count_nonzero(mask) < MIN_PIXELS:
                continue
            rows, columns = place
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
            found.append(labels[k])
            crops.append(mask)
    table = np.array(boxes, np.int32).reshape(-1, 4)
    return Sample(
        np.ascontiguousarray(image),
        np.array(found, np.int64),
        table.astype(np.float32),
        InstanceCrops(table, crops, image.shape[0], image.shape[1]),
    )
