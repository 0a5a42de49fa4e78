"""Cascade Mask R-CNN, ResNet-18 of half width for small objects, 64 channels in FPN and heads. Random weights."""

_base_ = "./cascade-mask-rcnn_r18_slim.py"

model = dict(
    backbone=dict(base_channels=32, stem_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256]),
    rpn_head=dict(anchor_generator=dict(scales=[4, 8])),
)
