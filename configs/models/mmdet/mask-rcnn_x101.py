"""Mask R-CNN, ResNeXt-101-32x8d-FPN (Caffe2's: BGR), multi-scale 3x as MMDetection ships it; COCO weights."""

_base_ = "mmdet::mask_rcnn/mask-rcnn_x101-32x8d_fpn_ms-poly-3x_coco.py"

model = dict(test_cfg=dict(rpn=dict(nms_pre=3000, max_per_img=3000), rcnn=dict(max_per_img=1000)))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "mask_rcnn/mask_rcnn_x101_32x8d_fpn_mstrain-poly_3x_coco/"
    "mask_rcnn_x101_32x8d_fpn_mstrain-poly_3x_coco_20210607_161042-8bd2c639.pth"
)
