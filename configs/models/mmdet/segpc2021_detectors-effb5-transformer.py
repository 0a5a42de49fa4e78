"""DetectoRS on EfficientNet-B5, transformer-assisted by ViT-B/16, from the SegPC-2021 paper: 0.9273 mIoU there.

The levels at strides 4 to 32 look at the blocks 2 to 5. As the authors ran it is one setting away: `out_indices=(0, 1, 2, 3)` and
`assistant=dict(stride=2, blocks=(1, 2, 3, 4))` in both places halve the levels at strides 2 to 16 instead, and leave the last
one unused.
"""

_base_ = "./segpc2021_detectors-effb5.py"

_assisted = dict(
    assistant=dict(timm="vit_base_patch16_224", pretrained="timm://vit_base_patch16_224.augreg2_in21k_ft_in1k"),
)
model = dict(backbone=_assisted, neck=dict(in_channels=[768] * 4, rfp_backbone=_assisted))
