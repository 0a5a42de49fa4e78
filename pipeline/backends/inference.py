"""Inference: every image under every view, back to Detections in the original image."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from pipeline.backends import PredictJob
from pipeline.backends.found import Found, detections
from pipeline.backends.samples import bgr_tensor, read_image
from pipeline.records import Detections, Image
from pipeline.views import parse

Look = Callable[[list[torch.Tensor]], list[Found]]
"""A network: images, each (3, H, W) uint8 BGR, all of one size → what it finds in each."""


def predict(job: PredictJob, look: Look) -> Iterator[tuple[Image, Detections]]:
    """Yield every image of the job with all its views' Detections."""
    category_ids = np.array(sorted(job.images.categories), np.int32)
    views = [(name, parse(name)) for name in job.views]
    for image in job.images.images:
        pixels = read_image(job.images.path(image))
        tables = []
        for name, view in views:
            with torch.inference_mode():
                found = look([bgr_tensor(view.apply(pixels))])[0]
            tables.append(
                detections(
                    view,
                    image.id,
                    (image.height, image.width),
                    found,
                    category_ids,
                    f"{job.title}/{name}",
                    job.settings.score_threshold,
                )
            )
        yield image, Detections.concatenate(tables)
