"""Uncompressed Windows bitmaps as arrays: their pixels lie in the file as they are, so a mask is read without decoding."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

_UNCOMPRESSED = 0
_LARGEST_SIDE = 1 << 16


@dataclass(frozen=True)
class Bmp:
    """A bitmap's first channel (blue, or the index into its palette) and its size.

    Attributes:
        pixels: (H, W) uint8, a view into the file.
        palette: (256,) uint8, each index's blue; None for a bitmap of 24 or 32 bits.
    """

    pixels: np.ndarray
    palette: np.ndarray | None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    def values(self) -> np.ndarray:
        """(H, W) uint8, the first channel; a view unless the palette changes anything."""
        if self.palette is None or np.array_equal(self.palette, np.arange(256, dtype=np.uint8)):
            return self.pixels
        return self.palette[self.pixels]


def parse(content: bytes) -> Bmp:
    """Read a bitmap of 8, 24 or 32 bits a pixel.

    Raises:
        ValueError: it is none, it is cut off, or it is compressed or of another depth.
    """
    if content[:2] != b"BM":
        raise ValueError("it is not a BMP" if content else "it is empty")
    if len(content) < 54:
        raise ValueError(f"it is cut off after {len(content):,} bytes")
    offset, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", content, 10)
    (colours,) = struct.unpack_from("<I", content, 46)
    from_top, height = height < 0, abs(height)
    if compression != _UNCOMPRESSED or bits not in (8, 24, 32):
        raise ValueError(
            f"it is a BMP of {bits} bits a pixel, compression {compression}; plain ones of 8, 24, 32 are read"
        )
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise ValueError(f"it says that it has {width}x{height} pixels")
    stride = (width * bits + 31) // 32 * 4
    if header < 40 or offset < 14 + header or len(content) < offset + stride * height:
        raise ValueError(f"it is cut off after {len(content):,} of {offset + stride * height:,} bytes")
    rows = np.frombuffer(content, np.uint8, stride * height, offset).reshape(height, stride)
    pixels = rows[:, : width * bits // 8 : bits // 8]
    palette = None
    if bits == 8:
        count = min(colours or 256, 256, (offset - 14 - header) // 4)
        palette = np.zeros(256, np.uint8)
        palette[:count] = np.frombuffer(content, np.uint8, 4 * count, 14 + header)[::4]
    return Bmp(pixels if from_top else pixels[::-1], palette)
