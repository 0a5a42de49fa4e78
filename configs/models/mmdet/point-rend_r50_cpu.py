"""PointRend, ResNet-18 of half width, 64 channels in FPN and heads: trains on two CPU cores in minutes. Random weights."""

_base_ = "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-3x_coco.py"

model = dict(
    # fresh weights want inputs of unit variance; Caffe's style, which the full model needs for its weights, has none
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        depth=18,
        base_channels=32,
        stem_channels=32,
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4, 8])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, fc_out_channels=256),
        point_head=dict(in_channels=64, fc_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=500),
        rcnn=dict(sampler=dict(num=96, pos_fraction=0.33)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=2000, max_per_img=2000),
        # 7 cells a side become 56 in three steps: more than a nucleus has pixels
        rcnn=dict(score_thr=0.05, max_per_img=1000, subdivision_steps=3),
    ),
)
