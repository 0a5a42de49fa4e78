"""Mask Scoring R-CNN, ResNeXt-101-32x4d-FPN, single scale 1x as MMDetection ships it; COCO weights."""

_base_ = "mmdet::ms_rcnn/ms-rcnn_x101-32x4d_fpn_1x_coco.py"

model = dict(test_cfg=dict(rpn=dict(nms_pre=3000, max_per_img=3000), rcnn=dict(max_per_img=1000)))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "ms_rcnn/ms_rcnn_x101_32x4d_fpn_1x_coco/"
    "ms_rcnn_x101_32x4d_fpn_1x_coco_20200206-81fd1740.pth"
)
