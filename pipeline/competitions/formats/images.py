"""Image files of any kind as pixels."""

from __future__ import annotations

import numpy as np


def decode(content: bytes) -> np.ndarray:
    """An image file's pixels as they are stored: (H, W) or (H, W, C) of any dtype, colours as blue, green, red.

    Raises:
        ValueError: it is empty, cut off or not an image.
    """
    import cv2

    if not content:
        raise ValueError("it is empty")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"it cannot be decoded ({error.err})") from error
    if image is None:
        raise ValueError("it cannot be decoded: it is damaged, cut off or no image")
    return np.asarray(image)
