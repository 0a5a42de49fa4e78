"""Position attention for SOLO: every grid cell's feature against every other's, as a first guess of its object's mask.

Source: "Research on Instance Segmentation via Transformer" (Jin et al., Xiamen University), section 3.3, equations 1 to 3.
SOLO cuts an image into S x S cells, and one channel of its mask branch answers for each cell. Plain convolutions see the
same thing at two objects that look alike; SOLO tells them apart by two channels of coordinates (equation 1), position
attention by what a cell's feature has in common with each place (equation 3). Nothing here has weights.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def coordinates(features: torch.Tensor) -> torch.Tensor:
    """Equation 1: x = -1 + 2 i / w and y = -1 + 2 j / h of each pixel, in column i and row j counted from 0.

    The last pixel stays 2 / w short of 1; MMDetection's coordinates, i / (w - 1), reach it.

    Args:
        features: (B, C, h, w), for its size, device and type alone.

    Returns:
        (B, 2, h, w): x, then y.
    """
    batch, _, height, width = features.shape
    x = torch.arange(width, device=features.device, dtype=features.dtype) * (2 / width) - 1  # (w,)
    y = torch.arange(height, device=features.device, dtype=features.dtype) * (2 / height) - 1  # (h,)
    both = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])  # (2, h, w)
    return both.expand(batch, -1, -1, -1)


def position_attention(cells: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Equation 3, the dot products of all pairs of cells: F[c, i, j] = <V_c, V_(i S + j)>.

    Args:
        cells: (B, C, S, S), the feature V of each grid cell.
        scale: multiplies the products; the paper has none. 1 / sqrt(C) is what transformers have.

    Returns:
        (B, S * S, S, S): channel i S + j is the map of the cell in row i and column j.
    """
    batch, _, rows, columns = cells.shape
    assert rows == columns, f"a grid has as many rows as columns, not {tuple(cells.shape)}"
    vectors = cells.flatten(2)  # (B, C, S * S)
    products = torch.bmm((vectors * scale).transpose(1, 2), vectors)  # (B, S * S, S * S)
    return products.view(batch, rows * columns, rows, columns)


def attention_logits(features: torch.Tensor, grid: int, size: tuple[int, int], scale: float = 1.0) -> torch.Tensor:
    """The attention branch of section 3.4: what is added to the mask branch's logits.

    Args:
        features: (B, C, h, w), the level's feature map as the mask branch gets it, without coordinates.
        grid: S, the level's cells a side.
        size: (height, width) of the mask branch's maps.
        scale: see `position_attention`.

    Returns:
        (B, S * S, *size).
    """
    # unscaled products of hundreds of channels are more than half precision can hold
    with torch.autocast(features.device.type, enabled=False):
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        cells = functional.interpolate(
            features, size=(grid, grid), mode="bilinear", align_corners=False
        )  # (B, C, S, S)
        maps = position_attention(cells, scale)  # (B, S * S, S, S)
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
