"""How large an image file is, from its head alone: decoding COCO's 118,000 training images would take ten minutes."""

from __future__ import annotations

import io
from pathlib import Path


def size_of(source: bytes | Path) -> tuple[int, int]:
    """Height and width in pixels, as stored (a camera's note on how it was held is not looked at).

    Raises:
        ValueError: it is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(what) from error
