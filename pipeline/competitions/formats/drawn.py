"""What the competitions have in common that the project draws itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.competitions.formats.stored import store
from pipeline.masks import crop_to_rle, tight_box
from pipeline.records import Image, Instance


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 RGB, or (H, W) uint8, as a PNG."""
    import cv2

    encoded, content = cv2.imencode(".png", picture[:, :, ::-1] if picture.ndim == 3 else picture)
    assert encoded, picture.shape
    store(content.tobytes(), path)


def instance_of(number: int, image: Image, category_id: int, mask: np.ndarray) -> Instance:
    """The instance that covers the pixels of a (H, W) bool mask of the image."""
    x0, y0, x1, y1 = tight_box(mask)
    rle = crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), (image.height, image.width), threshold=1)
    box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
    return Instance(number, image.id, category_id, rle, box, float(mask.sum()))
