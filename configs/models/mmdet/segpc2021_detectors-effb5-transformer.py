"""DetectoRS on EfficientNet-B5, transformer-assisted by ViT-B/16, from the SegPC-2021 paper: 0.9273 mIoU there.

As the authors ran it: the levels at strides 2 to 16 look at the blocks 1 to 4, halved on their way to the pyramid's strides, and the
last level is not used. `out_indices=(1, 2, 3, 4)` and `assistant=dict(stride=1)` in both places have those at strides 4 to 32 look
at the blocks 2 to 5, as it is without the transformer.
"""

_base_ = "./segpc2021_detectors-effb5.py"

_assisted = dict(
    out_indices=(0, 1, 2, 3),
    assistant=dict(
        timm="vit_base_patch16_224", pretrained="timm://vit_base_patch16_224.augreg2_in21k_ft_in1k", stride=2
    ),
)
model = dict(backbone=_assisted, neck=dict(in_channels=[768] * 4, rfp_backbone=_assisted))
