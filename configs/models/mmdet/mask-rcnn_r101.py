"""Mask R-CNN, ResNet-101-FPN, multi-scale 3x as MMDetection ships it; COCO weights."""

_base_ = "mmdet::mask_rcnn/mask-rcnn_r101_fpn_ms-poly-3x_coco.py"

model = dict(test_cfg=dict(rpn=dict(nms_pre=3000, max_per_img=3000), rcnn=dict(max_per_img=1000)))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "mask_rcnn/mask_rcnn_r101_fpn_mstrain-poly_3x_coco/"
    "mask_rcnn_r101_fpn_mstrain-poly_3x_coco_20210524_200244-5675c317.pth"
)
