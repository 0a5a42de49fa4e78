"""Pictures for a page: image windows as data URIs, masks as SVG paths that stay sharp and can be switched off."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np


class UnreadableImageError(ValueError):
    """An image file that no decoder takes. The message names the file."""


def read_image(path: Path) -> np.ndarray:
    """An image as something to look at, whatever its depth and channels.

    Returns:
        (H, W, 3) uint8, RGB. Alpha is dropped, grey is repeated, and more than 8 bits are stretched between the 0.5 and
        99.5 percentiles.

    Raises:
        UnreadableImageError: there is no such file, or it cannot be decoded.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UnreadableImageError(f"{path} is missing or not an image")
    if image.dtype != np.uint8:
        low, high = np.percentile(image, (0.5, 99.5))
        image = (np.clip((image.astype(np.float32) - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.shape[2] < 3:
        return np.repeat(image[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(image[:, :, 2::-1])


def picture(image: np.ndarray, window: tuple[int, int, int, int], longest: int = 640) -> str:
    """A window of an image as a JPEG data URI, scaled down until its longer side has at most `longest` pixels.

    Args:
        image: (H, W, 3) uint8, RGB.
        window: half-open box ``x0, y0, x1, y1`` inside the image.
    """
    import cv2

    x0, y0, x1, y1 = window
    part = image[y0:y1, x0:x1]
    scale = longest / max(part.shape[:2])
    if scale < 1:
        size = (max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", part[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def outline(mask: np.ndarray, corner: tuple[int, int], coarseness: float = 0.5) -> str:
    """The borders of a mask as SVG path data, through the centres of its border pixels, holes included.

    Args:
        mask: (h, w) uint8 or bool, non-zero is object.
        corner: where the mask's first pixel lies, ``(x, y)``, in the picture's pixels.
        coarseness: how far, in pixels, the path may leave the border.

    Returns:
        Moves and relative lines in whole pixels; the group that holds the path shifts it by half a pixel. A single
        pixel becomes a dot. Empty for an empty mask.
    """
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, coarseness, closed=True)[:, 0, :].astype(int) + np.array(corner)  # (K, 2)
        steps = " ".join(f"{dx} {dy}" for dx, dy in np.diff(points, axis=0)) or "0 0"
        parts.append(f"M{points[0, 0]} {points[0, 1]}l{steps}z")
    return "".join(parts)
