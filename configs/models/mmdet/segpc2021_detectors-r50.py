"""DetectoRS, HTC without its semantic branch on ResNet-50 with SAC and RFP; COCO weights. SegPC-2021 paper: 0.9219 mIoU."""

_base_ = "mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py"

_sac = dict(
    type="DetectoRS_ResNet",
    conv_cfg=dict(type="ConvAWS"),
    sac=dict(type="SAC", use_deform=True),
    stage_with_sac=(False, True, True, True),
)
model = dict(
    backbone=dict(output_img=True, **_sac),
    neck=dict(
        type="RFP",
        rfp_steps=2,
        aspp_out_channels=64,
        aspp_dilations=(1, 3, 6, 1),
        rfp_backbone=dict(
            depth=50,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            frozen_stages=1,
            norm_cfg=dict(type="BN", requires_grad=True),
            norm_eval=True,
            style="pytorch",
            rfp_inplanes=256,
            pretrained="torchvision://resnet50",
            **_sac,
        ),
    ),
    test_cfg=dict(rpn=dict(nms_pre=3000, max_per_img=3000), rcnn=dict(max_per_img=1000)),
)
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/"
    "detectors/detectors_htc_r50_1x_coco/detectors_htc_r50_1x_coco-329b1453.pth"
)
