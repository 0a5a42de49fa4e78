"""From what an RoI network says about a view to Detections in the original image."""

from __future__ import annotations

import numpy as np

from pipeline.masks import paste_roi
from pipeline.records import Detections, Image
from pipeline.views import View


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
