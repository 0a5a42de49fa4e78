"""Room at the right and at the bottom for networks that halve their input, or cut it into patches."""

from __future__ import annotations

import torch
from torch.nn import functional


def padded(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Images (B, C, H, W) with zeros added until both sides are multiples; the image keeps its upper left corner."""
    height, width = images.shape[-2:]
    return functional.pad(images, (0, -width % multiple, 0, -height % multiple))
