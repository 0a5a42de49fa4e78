"""QueryInst, ResNet-18 of half width, 64 channels, 3 stages, 100 queries: trains on two CPU cores. Random weights.

Crops in training and tiles in prediction (``predict.tile``) must hold fewer objects than there are queries. They start on
a grid: from whole images, as the full model's do, a first step reaches the coarsest feature maps alone (docs/papers.md).
"""

_base_ = "mmdet::queryinst/queryinst_r50_fpn_1x_coco.py"

custom_imports = dict(imports=["pipeline.models.mmdet.spread_queries"], allow_failed_imports=False)

_stages, _queries = 3, 100
_relu = dict(type="ReLU", inplace=True)


def _dynamic(size, **more):
    return dict(
        type="DynamicConv",
        in_channels=64,
        feat_channels=16,
        out_channels=64,
        input_feat_shape=size,
        act_cfg=_relu,
        norm_cfg=dict(type="LN"),
        **more,
    )


_boxes = dict(
    type="DIIHead",
    num_classes=80,
    num_ffn_fcs=2,
    num_heads=8,
    num_cls_fcs=1,
    num_reg_fcs=2,
    feedforward_channels=256,
    in_channels=64,
    dropout=0.0,
    ffn_act_cfg=_relu,
    dynamic_conv_cfg=_dynamic(7),
    loss_bbox=dict(type="L1Loss", loss_weight=5.0),
    loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
    bbox_coder=dict(
        type="DeltaXYWHBBoxCoder", clip_border=False, target_means=[0.0] * 4, target_stds=[0.5, 0.5, 1.0, 1.0]
    ),
)
_masks = dict(
    type="DynamicMaskHead",
    dynamic_conv_cfg=_dynamic(14, with_proj=False),
    num_convs=2,
    num_classes=80,
    roi_feat_size=14,
    in_channels=64,
    conv_kernel_size=3,
    conv_out_channels=64,
    class_agnostic=False,
    norm_cfg=dict(type="BN"),
    upsample_cfg=dict(type="deconv", scale_factor=2),
    loss_mask=dict(type="DiceLoss", loss_weight=8.0, use_sigmoid=True, activate=False, eps=1e-5),
)
_learning = dict(
    assigner=dict(
        type="HungarianAssigner",
        match_costs=[
            dict(type="FocalLossCost", weight=2.0),
            dict(type="BBoxL1Cost", weight=5.0, box_format="xyxy"),
            dict(type="IoUCost", iou_mode="giou", weight=2.0),
        ],
    ),
    sampler=dict(type="PseudoSampler"),
    pos_weight=1,
    mask_size=28,
)

model = dict(
    backbone=dict(depth=18, base_channels=32, stem_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(type="SpreadQueries", num_proposals=_queries, proposal_feature_channel=64),
    roi_head=dict(
        num_stages=_stages,
        stage_loss_weights=[1] * _stages,
        proposal_feature_channel=64,
        bbox_roi_extractor=dict(out_channels=64),
        mask_roi_extractor=dict(out_channels=64),
        bbox_head=[_boxes] * _stages,
        mask_head=[_masks] * _stages,
    ),
    train_cfg=dict(rcnn=[_learning] * _stages),
    test_cfg=dict(rcnn=dict(max_per_img=_queries)),
)
