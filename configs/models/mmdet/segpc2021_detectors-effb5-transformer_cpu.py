"""DetectoRS, slim, on EfficientNet-Lite0 transformer-assisted by ViT-tiny/16: for two CPU cores. Random weights."""

_base_ = "./segpc2021_detectors-effb5_cpu.py"

_assisted = dict(assistant=dict(timm="vit_tiny_patch16_224"))
model = dict(backbone=_assisted, neck=dict(in_channels=[192] * 4, rfp_backbone=_assisted))
