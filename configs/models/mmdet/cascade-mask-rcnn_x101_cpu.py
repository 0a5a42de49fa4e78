"""Cascade Mask R-CNN, ResNeXt-101 (8 groups of 4) of a quarter of the width: trains on two CPU cores. Random weights."""

_base_ = "./cascade-mask-rcnn_r18w32_slim.py"

custom_imports = dict(imports=["pipeline.models.mmdet.fresh_resnext"], allow_failed_imports=False)

model = dict(
    backbone=dict(type="FreshResNeXt", depth=101, groups=8, base_width=4, base_channels=16, stem_channels=32),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
