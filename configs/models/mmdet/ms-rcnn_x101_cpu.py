"""Mask Scoring R-CNN on the slim ResNeXt-101 Mask R-CNN: trains on two CPU cores in minutes. Random weights."""

_base_ = "./mask-rcnn_x101_cpu.py"

model = dict(
    type="MaskScoringRCNN",
    roi_head=dict(
        type="MaskScoringRoIHead",
        mask_iou_head=dict(
            type="MaskIoUHead",
            num_convs=4,
            num_fcs=2,
            roi_feat_size=14,
            in_channels=64,
            conv_out_channels=32,
            fc_out_channels=128,
            num_classes=80,
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
