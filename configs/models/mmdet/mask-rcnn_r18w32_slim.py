"""Mask R-CNN, ResNet-18 of half width for small objects, 64 channels in FPN and heads: the fastest on CPU. Random weights."""

_base_ = "./mask-rcnn_r18_slim.py"

model = dict(
    backbone=dict(base_channels=32, stem_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256]),
    # anchors from 16 px: at a scale of 1.5 the nuclei of most tissues are 20 to 45 px
    rpn_head=dict(anchor_generator=dict(scales=[4, 8])),
    train_cfg=dict(rcnn=dict(sampler=dict(num=96, pos_fraction=0.33))),
)
