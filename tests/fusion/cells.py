"""Drawn cells and imperfect voters: what a network of a fold under a view might say of an image."""

from __future__ import annotations

import numpy as np

from pipeline import masks
from pipeline.fusion.crops import Crops
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Detections, Image, Instance

SIZE = (120, 140)


def ellipse(cy: float, cx: float, ry: float, rx: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A soft ellipse as a full frame (height, width) uint8; its outline is where the value is 128."""
    y, x = np.mgrid[: size[0], : size[1]]
    distance = np.hypot((y + 0.5 - cy) / ry, (x + 0.5 - cx) / rx)
    return np.clip(128 + 255 * (1 - distance) * min(ry, rx) / 3, 0, 255).astype(np.uint8)


def table(frames: list[np.ndarray], score: list[float], source: str = "m/0/identity", image_id: int = 1) -> Detections:
    """One detection a frame, with tight mask boxes; the regressed box is the foreground's."""
    boxes, mask_boxes, grids = [], [], []
    for frame in frames:
        x0, y0, x1, y1 = masks.tight_box(frame)
        mask_boxes.append((x0, y0, x1, y1))
        boxes.append(masks.tight_box(frame >= masks.FOREGROUND))
        grids.append(frame[y0:y1, x0:x1])
    return Detections.build(image_id, 1, score, boxes, np.array(mask_boxes).reshape(-1, 4), grids, source)


def frames_of(crops: Crops, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    out = []
    for i in range(len(crops)):
        frame = np.zeros(size, np.uint8)
        x0, y0, x1, y1 = crops.box[i]
        frame[y0:y1, x0:x1] = crops.crop(i)
        out.append(frame)
    return out


def scene(seed: int, count: int = 12) -> np.ndarray:
    """(count, 4) centre y, x and radii of cells that hardly touch."""
    rng = np.random.default_rng(seed)
    cells: list[tuple[float, float, float, float]] = []
    for _ in range(2000):
        cell = rng.uniform(10, SIZE[0] - 10), rng.uniform(10, SIZE[1] - 10), rng.uniform(5, 9), rng.uniform(5, 9)
        if all(np.hypot(cell[0] - c[0], cell[1] - c[1]) > 17 for c in cells):
            cells.append(cell)
        if len(cells) == count:
            break
    return np.array(cells)


def truth(images: int, count: int = 12) -> Dataset:
    """Images 1..`images`, each the scene of its own id."""
    instances = []
    for image_id in range(1, images + 1):
        for cell in scene(image_id, count):
            mask = ellipse(*cell) >= masks.FOREGROUND
            x0, y0, x1, y1 = masks.tight_box(mask)
            rle = crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), SIZE, threshold=1)
            box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
            instances.append(Instance(len(instances) + 1, image_id, 1, rle, box, float(mask.sum())))
    files = [Image(i, f"{i}.png", *SIZE, group=str(i)) for i in range(1, images + 1)]
    return Dataset(files, {1: "cell"}, instances)


def sighting(image_id: int, source: str, seed: int, noise: float = 1.0, false: int = 6, count: int = 12) -> Detections:
    """What one voter finds: most cells, displaced, and some things that are none, with scores that hardly tell."""
    rng = np.random.default_rng([seed, image_id])
    frames, score = [], []
    for cell in scene(image_id, count):
        if rng.random() < 0.9:
            frames.append(ellipse(*(cell + rng.normal(0, noise, 4))))
            score.append(rng.uniform(0.3, 1))
    for _ in range(false):
        frames.append(ellipse(rng.uniform(5, SIZE[0]), rng.uniform(5, SIZE[1]), rng.uniform(3, 9), rng.uniform(3, 9)))
        score.append(rng.uniform(0.2, 0.9))
    return table(frames, score, source, image_id)
