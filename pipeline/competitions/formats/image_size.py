"""How large an image file is, from its head alone: decoding COCO's 118,000 training images would take ten minutes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol


class _Files(Protocol):
    """An `Archive` or a `Bundle`."""

    def read(self, name: str) -> bytes: ...
    def file(self, name: str) -> Path | None: ...


def size_of(files: _Files, name: str) -> tuple[int, int]:
    """Height and width in pixels, as stored (a camera's note on how it was held is not looked at).

    Raises:
        ValueError: it is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(files.file(name) or io.BytesIO(files.read(name))) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(what) from error
