"""DetectoRS, slim, on EfficientNet-Lite0 transformer-assisted by ViT-tiny/16: for two CPU cores. Random weights.

The levels at strides 4 to 32 look at the blocks 2 to 5, so that the network without the transformer differs in nothing else.
"""

_base_ = "./segpc2021_detectors-effb5_cpu.py"

_assisted = dict(assistant=dict(timm="vit_tiny_patch16_224"))
model = dict(backbone=_assisted, neck=dict(in_channels=[192] * 4, rfp_backbone=_assisted))
