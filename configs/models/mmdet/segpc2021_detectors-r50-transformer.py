"""DetectoRS with its own ResNet-50, transformer-assisted by ViT-B/16: what the SegPC-2021 paper's authors could not afford.

Both looks have a transformer of their own, as they have a ResNet of their own. COCO weights for everything but the laterals of
the pyramid, ImageNet's for the transformer.
"""

_base_ = "./segpc2021_detectors-r50.py"
custom_imports = dict(imports=["pipeline.models.mmdet.transformer_assisted"], allow_failed_imports=False)

_assisted = dict(
    type="TransformerAssistedDetectoRS",
    assistant=dict(timm="vit_base_patch16_224", pretrained="timm://vit_base_patch16_224.augreg2_in21k_ft_in1k"),
)
model = dict(
    backbone=_assisted,
    neck=dict(in_channels=[768] * 4, rfp_backbone=_assisted),
)
