"""DetectoRS on EfficientNet-B5 (RFP with feedback on it, too), from the SegPC-2021 paper: 0.8793 mIoU there.

The levels at strides 4 to 32 are the pyramid's. In the authors' code only the first look is an EfficientNet, and the second still
a ResNet-50; here both are. COCO weights for the heads, and the ImageNet weights that the authors took (noisy student).
"""

_base_ = "./segpc2021_detectors-r50.py"
custom_imports = dict(imports=["pipeline.models.mmdet.transformer_assisted"], allow_failed_imports=False)

_efficientnet = dict(
    _delete_=True, type="TimmBackbone", timm="tf_efficientnet_b5", pretrained="timm://tf_efficientnet_b5.ns_jft_in1k"
)
model = dict(
    backbone=dict(output_img=True, **_efficientnet),
    neck=dict(in_channels=[40, 64, 176, 512], rfp_backbone=dict(rfp_inplanes=256, **_efficientnet)),
)
