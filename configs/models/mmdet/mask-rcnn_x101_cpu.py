"""Mask R-CNN, ResNeXt-101 (8 groups of 4) of a quarter of the width: trains on two CPU cores. Random weights."""

_base_ = "./mask-rcnn_r101_cpu.py"

custom_imports = dict(imports=["pipeline.models.mmdet.fresh_resnext"], allow_failed_imports=False)

model = dict(backbone=dict(type="FreshResNeXt", groups=8, base_width=4))
