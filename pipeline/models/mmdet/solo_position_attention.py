"""SOLO's mask head with a choice of coordinates, and with position attention, for MMDetection's configs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from mmdet.models.dense_heads import SOLOHead
from mmdet.models.utils import generate_coordinate
from mmdet.registry import MODELS
from torch.nn import functional

from pipeline.models.position_attention import attention_logits, coordinates


@MODELS.register_module()
class PositionSOLOHead(SOLOHead):  # type: ignore[misc]
    """SOLO's head; how it knows where a pixel is can be chosen.

    Args:
        coordinates: what the mask branch gets beside the features: nothing (None); ``mmdet``, from -1 to 1, both
            included; ``paper``, equation 1 of the paper, see `pipeline.models.position_attention`.
        attention: whether the attention branch is added to the mask branch, before the sigmoid.
        attention_scale: multiplies its dot products; 1 as in the paper.
        more: see `SOLOHead`.
    """

    def __init__(
        self,
        *,
        coordinates: Literal["mmdet", "paper"] | None = "paper",
        attention: bool = False,
        attention_scale: float = 1.0,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if coordinates not in (None, "mmdet", "paper"):
            raise ValueError(f"coordinates is {coordinates!r}; it must be None, 'mmdet' or 'paper'")
        self.coordinates = coordinates
        self.attention = attention
        self.attention_scale = attention_scale

    def forward(self, x: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Masks and classes of every level, as `SOLOHead.forward` gives them.

        Args:
            x: a (B, C, h, w) for each level of the feature pyramid.

        Returns:
            masks: (B, S * S, 2 h, 2 w) logits; in evaluation (B, S * S, H, W) probabilities, of one size for all levels.
            classes: (B, classes, S, S) logits; in evaluation probabilities, 0 where a neighbour's is larger.
        """
        features = self.resize_feats(x)
        masks = [self.mask_logits(level, k) for k, level in enumerate(features)]
        classes = [self.class_logits(level, k) for k, level in enumerate(features)]
        if not self.training:
            height, width = features[0].shape[-2:]
            size = (2 * height, 2 * width)
            masks = [functional.interpolate(m.sigmoid(), size=size, mode="bilinear") for m in masks]
            classes = [_peaks(c.sigmoid()) for c in classes]
        return masks, classes

    def mask_logits(self, features: torch.Tensor, level: int) -> torch.Tensor:
        """(B, S * S, 2 h, 2 w) of a level's features (B, C, h, w): the mask branch and the attention branch."""
        maps = torch.cat([features, self._coordinates(features)], dim=1)  # (B, C + 2, h, w)
        for convolution in self.mask_convs:
            maps = convolution(maps)
        maps = functional.interpolate(maps, scale_factor=2, mode="bilinear")
        logits: torch.Tensor = self.conv_mask_list[level](maps)
        if self.attention:
            size = (logits.shape[-2], logits.shape[-1])
            logits = logits + attention_logits(features, self.num_grids[level], size, self.attention_scale)
        return logits

    def _coordinates(self, features: torch.Tensor) -> torch.Tensor:
        if self.coordinates is None:  # channels of nothing, so that pretrained weights fit and the rest starts alike
            return torch.zeros_like(features[:, :2])
        if self.coordinates == "paper":
            return coordinates(features)
        theirs: torch.Tensor = generate_coordinate(features.shape, features.device)
        return theirs

    def class_logits(self, features: torch.Tensor, level: int) -> torch.Tensor:
        """(B, classes, S, S) of a level's features (B, C, h, w), cut into the grid before convolution `cls_down_index`."""
        maps = features
        for k, convolution in enumerate(self.cls_convs):
            if k == self.cls_down_index:
                maps = functional.interpolate(maps, size=self.num_grids[level], mode="bilinear")
            maps = convolution(maps)
        logits: torch.Tensor = self.conv_cls(maps)
        return logits


def _peaks(scores: torch.Tensor) -> torch.Tensor:
    """Scores (B, classes, S, S) with 0 where the cell above, to the left or between them has a larger one."""
    largest = functional.max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (largest == scores)
