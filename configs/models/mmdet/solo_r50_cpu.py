"""SOLO as in solo_r50, slim: ResNet-18 of half width, FPN of 64 channels, head of 32, smaller S. Random weights."""

_base_ = "./solo_r50.py"

model = dict(
    backbone=dict(depth=18, base_channels=32, stem_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    mask_head=dict(
        in_channels=64,
        feat_channels=32,
        # cells of 8 to 24 pixels in an image of 192 a side, 11 to 32 in one of 256
        num_grids=[24, 20, 16, 12, 8],
        scale_ranges=((1, 24), (16, 40), (32, 64), (48, 128), (96, 2048)),
        norm_cfg=dict(num_groups=4),
    ),
)
load_from = None
