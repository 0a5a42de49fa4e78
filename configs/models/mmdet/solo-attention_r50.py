"""SOLO, ResNet-50-FPN, with position attention and coordinates; COCO weights.

The dot products are added as they are, as in the paper. The ablation with those of a transformer is a line in the
experiment: ``options: {model.mask_head.attention_scale: 0.0625}``, 1 / sqrt(256). The paper does not say whether its
attention has the coordinates beside it ("directly added to the original SOLO algorithm mask generation branch", which has
them); without: ``options: {model.mask_head.coordinates: null}``.
"""

_base_ = "./solo_r50.py"

model = dict(mask_head=dict(attention=True))
