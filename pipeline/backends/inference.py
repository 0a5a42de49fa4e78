"""Inference of a network with RoI masks: every image under every view, back to Detections in the original image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.backends import PredictJob
from pipeline.backends.samples import bgr_tensor, read_image
from pipeline.masks import paste_roi
from pipeline.records import Detections, Image
from pipeline.views import View, parse


@dataclass
class Found:
    """What a network says about one image.

    Attributes:
        boxes: (N, 4) float x0, y0, x1, y1 in the pixels that the network was given.
        scores: (N,) in 0..1.
        labels: (N,) int64 class index 0..C-1.
        masks: (N, M, M) probabilities over the boxes.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


def predict(job: PredictJob, look: Callable[[torch.Tensor], Found]) -> Iterator[tuple[Image, Detections]]:
    """Yield every image of the job with all its views' Detections.

    Args:
        look: the network: a (3, H, W) uint8 BGR image → what it finds there.
    """
    category_ids = np.array(sorted(job.images.categories), np.int32)
    views = [(name, parse(name)) for name in job.views]
    for image in job.images.images:
        pixels = read_image(job.images.path(image))
        tables = []
        for name, view in views:
            with torch.inference_mode():
                found = look(bgr_tensor(view.apply(pixels)))
            tables.append(
                detections(
                    view,
                    image,
                    found.boxes.float().cpu().numpy(),
                    found.scores.float().cpu().numpy(),
                    category_ids[found.labels.cpu().numpy()],
                    found.masks.float().cpu().numpy(),
                    f"{job.title}/{name}",
                )
            )
        yield image, Detections.concatenate(tables)


def detections(
    view: View,
    image: Image,
    boxes: np.ndarray,
    scores: np.ndarray,
    categories: np.ndarray,
    masks: np.ndarray,
    source: str,
) -> Detections:
    """Paste RoI masks at the original's resolution and turn them back.

    The view's scale is undone on the float boxes, so no mask is resampled twice; its turn is undone exactly.

    Args:
        boxes: (N, 4) float boxes in the pixels of the view.
        scores: (N,) in 0..1.
        categories: (N,) the competition's category ids.
        masks: (N, M, M) float32 probabilities over the boxes.
    """
    height, width = view.turned_size(image.height, image.width)
    boxes = view.unscale_boxes(np.asarray(boxes, np.float32).reshape(-1, 4), image.height, image.width)
    pasted = [paste_roi(mask, box, (height, width)) for mask, box in zip(masks, boxes, strict=True)]
    kept = [k for k, (_, grid) in enumerate(pasted) if grid.size]
    table = Detections.build(
        image.id,
        categories[kept],
        scores[kept],
        boxes[kept],
        [pasted[k][0] for k in kept],
        [pasted[k][1] for k in kept],
        source,
    )
    return view.unturn(table, image.height, image.width)
