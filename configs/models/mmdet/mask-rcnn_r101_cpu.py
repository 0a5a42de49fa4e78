"""Mask R-CNN, ResNet-101 of a quarter of the width: the depth of the full model on two CPU cores. Random weights.

The widths at the four levels are twice those of the slim ResNet-18 beside it, as bottlenecks have them; the
multiplications are about as many, so that depth is what differs.
"""

_base_ = "./mask-rcnn_r18w32_slim.py"

model = dict(
    backbone=dict(depth=101, base_channels=16, stem_channels=32),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
