"""ResNeXt for random weights.

MMDetection's ResNet starts each residual branch at nothing, by a scale of 0 in its last normalisation; its ResNeXt means to and
does not, since it asks whether its block *is* ResNet's (`ResNet.__init__`, `block is Bottleneck`). So 33 branches of noise are
added up from the first step on. Published weights hide that. Source of the rule: P. Goyal et al., Accurate, Large Minibatch
SGD (2017), section 5.1.
"""

from __future__ import annotations

from mmdet.models.backbones import ResNeXt
from mmdet.models.backbones.resnext import Bottleneck
from mmdet.registry import MODELS
from torch import nn


@MODELS.register_module()
class FreshResNeXt(ResNeXt):  # type: ignore[misc]
    """MMDetection's ResNeXt whose blocks begin as the identity."""

    def init_weights(self) -> None:
        super().init_weights()
        for block in self.modules():
            if isinstance(block, Bottleneck):
                nn.init.zeros_(block.norm3.weight)
