"""DetectoRS, slim, on EfficientNet-Lite0 in place of B5: trains on two CPU cores in minutes. Random weights."""

_base_ = "./segpc2021_detectors-r50_cpu.py"
custom_imports = dict(imports=["pipeline.models.mmdet.transformer_assisted"], allow_failed_imports=False)

_efficientnet = dict(_delete_=True, type="TimmBackbone", timm="efficientnet_lite0")
model = dict(
    backbone=dict(output_img=True, **_efficientnet),
    neck=dict(in_channels=[24, 40, 112, 320], rfp_backbone=dict(rfp_inplanes=64, **_efficientnet)),
)
