"""DetectoRS, ResNet-50 of quarter width, 64 channels in FPN and heads: trains on two CPU cores in minutes. Random weights."""

_base_ = "./segpc2021_detectors-r50.py"


def _stage(stds):
    return dict(
        type="Shared2FCBBoxHead",
        in_channels=64,
        fc_out_channels=256,
        roi_feat_size=7,
        num_classes=80,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
        reg_class_agnostic=True,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
    )


def _masks(**more):
    return dict(
        type="HTCMaskHead",
        num_convs=2,
        in_channels=64,
        conv_out_channels=64,
        num_classes=80,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        **more,
    )


def _sampling(iou):
    return dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=iou,
            neg_iou_thr=iou,
            min_pos_iou=iou,
            ignore_iof_thr=-1,
        ),
        sampler=dict(type="RandomSampler", num=32, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        mask_size=28,
        pos_weight=-1,
        debug=False,
    )


_slim = dict(
    base_channels=16,
    stem_channels=16,
    frozen_stages=-1,
    norm_eval=False,
    init_cfg=None,
    pretrained=None,
    sac=dict(use_deform=False),  # deformable convolutions take most of the time on a CPU
)
model = dict(
    backbone=_slim,
    neck=dict(
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        aspp_out_channels=16,
        rfp_backbone=dict(rfp_inplanes=64, **_slim),
    ),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[8])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=[
            _stage([0.1, 0.1, 0.2, 0.2]),
            _stage([0.05, 0.05, 0.1, 0.1]),
            _stage([0.033, 0.033, 0.067, 0.067]),
        ],
        mask_roi_extractor=dict(out_channels=64),
        mask_head=[_masks(with_conv_res=False), _masks(), _masks()],
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=250),
        rcnn=[_sampling(0.5), _sampling(0.6), _sampling(0.7)],
    ),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000), rcnn=dict(score_thr=0.05, max_per_img=1000)),
)
load_from = None
