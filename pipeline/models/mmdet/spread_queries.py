"""Queries that start spread over the image, for networks that learn from few images and random weights.

Sparse R-CNN and QueryInst start every query's box from the whole image, from where training moves them in hundreds of
thousands of steps. On a grid of small boxes the first step already looks at the finest feature maps and at single objects.
"""

from __future__ import annotations

import math

import torch
from mmdet.models.dense_heads import EmbeddingRPNHead
from mmdet.registry import MODELS


def grid(queries: int, overlap: float = 2.0) -> torch.Tensor:
    """Boxes (Q, 4) as centre x, y, width and height in fractions of the image, row by row over its square grid.

    Args:
        overlap: sides, as a multiple of the grid's step.
    """
    side = math.ceil(math.sqrt(queries))
    cells = torch.arange(side * side)[torch.linspace(0, side * side - 1, queries).round().long()]  # (Q,)
    centres = (torch.stack([cells % side, cells // side], dim=1) + 0.5) / side  # (Q, 2)
    return torch.cat([centres, torch.full((queries, 2), min(overlap / side, 1.0))], dim=1)


@MODELS.register_module()
class SpreadQueries(EmbeddingRPNHead):  # type: ignore[misc]
    """MMDetection's learnt queries, started on a grid instead of on the whole image."""

    def init_weights(self) -> None:
        super().init_weights()
        with torch.no_grad():
            self.init_proposal_bboxes.weight.copy_(grid(self.num_proposals))
