"""Cascade Mask R-CNN, ResNet-50-FPN, as MMDetection ships it; COCO weights."""

_base_ = "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_ms-3x_coco.py"

model = dict(test_cfg=dict(rpn=dict(nms_pre=3000, max_per_img=3000), rcnn=dict(max_per_img=1000)))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "cascade_rcnn/cascade_mask_rcnn_r50_fpn_mstrain_3x_coco/"
    "cascade_mask_rcnn_r50_fpn_mstrain_3x_coco_20210628_164719-5bdc3824.pth"
)
