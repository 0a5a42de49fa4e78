"""DetectoRS, slim, with its own ResNet transformer-assisted by ViT-tiny/16: for two CPU cores. Random weights."""

_base_ = "./segpc2021_detectors-r50_cpu.py"
custom_imports = dict(imports=["pipeline.models.mmdet.transformer_assisted"], allow_failed_imports=False)

_assisted = dict(type="TransformerAssistedDetectoRS", assistant=dict(timm="vit_tiny_patch16_224"))
model = dict(backbone=_assisted, neck=dict(in_channels=[192] * 4, rfp_backbone=_assisted))
