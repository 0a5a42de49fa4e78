"""SOLO as in solo_r50, slim: ResNet-18 of half width, 64 channels, finer grids for 256-pixel images. Random weights."""

_base_ = "./solo_r50.py"

model = dict(
    backbone=dict(depth=18, base_channels=32, stem_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    mask_head=dict(
        in_channels=64,
        feat_channels=64,
        # cells of 11 to 32 pixels in a 256-pixel image
        num_grids=[24, 20, 16, 12, 8],
        scale_ranges=((1, 24), (16, 40), (32, 64), (48, 128), (96, 2048)),
        norm_cfg=dict(num_groups=8),
    ),
)
load_from = None
