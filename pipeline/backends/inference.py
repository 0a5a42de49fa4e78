"""Inference: every image under every view, tile by tile where it is large, back to Detections in the original image.

An image is read once for all its views. Whole in memory are its pixels, (H, W, 3) uint8, and what is found in it; with
``predict.tile`` set, the network, its activations and its masks never see more than a tile under a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from pipeline import tiles
from pipeline.backends import PredictJob
from pipeline.backends.found import Found, detections
from pipeline.backends.samples import bgr_tensor, stained_image
from pipeline.experiment import PredictSettings
from pipeline.records import Detections, Image
from pipeline.tiles import Tile
from pipeline.views import View, parse

Look = Callable[[list[torch.Tensor]], list[Found]]
"""A network: images, each (3, H, W) uint8 BGR, all of one size → what it finds in each."""


def predict(job: PredictJob, look: Look) -> Iterator[tuple[Image, Detections]]:
    """Yield every image of the job with all its views' Detections."""
    category_ids = np.array(sorted(job.images.categories), np.int32)
    views = [parse(name) for name in job.views]
    sources = [f"{job.title}/{name}" for name in job.views]
    for image in job.images.images:
        pixels = stained_image(job.images.path(image), job.model.stain)
        yield image, look_at(pixels, image.id, views, sources, category_ids, job.settings, look)


def look_at(
    pixels: np.ndarray,
    image_id: int,
    views: list[View],
    sources: list[str],
    category_ids: np.ndarray,
    settings: PredictSettings,
    look: Look,
) -> Detections:
    """One image's Detections under all views, view by view.

    Tiles are cut from the original, so `settings.tile` is in its pixels; the views then apply to each tile. Tiles and views
    that the network sees at one size go through it `settings.batch` at a time.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        sources: what the detections of each view are called.
    """
    height, width = pixels.shape[:2]
    tiled = settings.tile is not None
    windows = [Tile(0, 0, width, height, (False,) * 4)]
    if settings.tile is not None:
        windows = tiles.layout(height, width, settings.tile.size, settings.tile.overlap)
    by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for v, view in enumerate(views):
        for t, tile in enumerate(windows):
            by_size.setdefault(view.size(*tile.size), []).append((v, t))
    tables: dict[tuple[int, int], Detections] = {}
    for same in by_size.values():
        for first in range(0, len(same), settings.batch):
            chunk = same[first : first + settings.batch]
            shown = [bgr_tensor(views[v].apply(_window(pixels, windows[t]))) for v, t in chunk]
            with torch.inference_mode():
                answers = look(shown)
            for (v, t), found in zip(chunk, answers, strict=True):
                tables[v, t] = detections(
                    views[v],
                    image_id,
                    windows[t].size,
                    found,
                    category_ids,
                    sources[v],
                    settings.score_threshold,
                    cap=not tiled,
                )
    if not tiled:
        return Detections.concatenate([tables[v, 0] for v in range(len(views))])
    joined = [tiles.join(windows, [tables[v, t] for t in range(len(windows))]) for v in range(len(views))]
    return Detections.concatenate(joined)


def _window(pixels: np.ndarray, tile: Tile) -> np.ndarray:
    return pixels[tile.y0 : tile.y1, tile.x0 : tile.x1]
