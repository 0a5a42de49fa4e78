"""Mask R-CNN, ResNeXt-101 (8 groups of 4) of a quarter of the width: trains on two CPU cores. Random weights."""

_base_ = "./mask-rcnn_r101_cpu.py"

model = dict(backbone=dict(type="ResNeXt", groups=8, base_width=4))
