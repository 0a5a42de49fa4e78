"""SOLO, ResNet-50-FPN, coordinates as in equation 1 of the position-attention paper; COCO weights."""

_base_ = "mmdet::solo/solo_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["pipeline.models.mmdet.solo_position_attention"], allow_failed_imports=False)

# the rest is the paper's as MMDetection has it: S of 40, 36, 24, 16 and 12, seven convolution groups with GN, focal and
# Dice losses, weighted 1 and 3
model = dict(
    mask_head=dict(type="PositionSOLOHead", coordinates="paper", attention=False),
    test_cfg=dict(nms_pre=1000, max_per_img=1000),
)
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "solo/solo_r50_fpn_3x_coco/solo_r50_fpn_3x_coco_20210901_012353-11d224d7.pth"
)
