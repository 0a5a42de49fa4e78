"""QueryInst, ResNet-50-FPN, 300 queries, multi-scale 3x as MMDetection ships it; COCO weights.

An image of the VRDL set holds up to 1,900 nuclei, and a network of 300 queries finds 300 at most: train on crops and
predict on tiles (``predict.tile``) that hold fewer. See docs/papers.md.
"""

_base_ = "mmdet::queryinst/queryinst_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py"

load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "queryinst/queryinst_r50_fpn_300_proposals_crop_mstrain_480-800_3x_coco/"
    "queryinst_r50_fpn_300_proposals_crop_mstrain_480-800_3x_coco_20210904_101802-85cffbd8.pth"
)
