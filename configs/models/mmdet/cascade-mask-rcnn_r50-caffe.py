"""Cascade Mask R-CNN, ResNet-50-FPN in Caffe's style (BGR, no division), multi-scale 3x as MMDetection ships it; COCO weights."""

_base_ = "mmdet::cascade_rcnn/cascade-mask-rcnn_r50-caffe_fpn_ms-3x_coco.py"

model = dict(test_cfg=dict(rpn=dict(nms_pre=3000, max_per_img=3000), rcnn=dict(max_per_img=1000)))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "cascade_rcnn/cascade_mask_rcnn_r50_caffe_fpn_mstrain_3x_coco/"
    "cascade_mask_rcnn_r50_caffe_fpn_mstrain_3x_coco_20210707_002651-6e29b3a6.pth"
)
