"""SOLO, ResNet-50-FPN, with position attention and coordinates; COCO weights.

The dot products are added as they are, as in the paper. The ablation with those of a transformer, 1 / sqrt(256), is a line
in the experiment: ``options: {model.mask_head.attention_scale: 0.0625}``. The paper adds its attention "directly" to SOLO's
own mask branch, which has coordinates; without them: ``options: {model.mask_head.coordinates: null}``.
"""

_base_ = "./solo_r50.py"

model = dict(mask_head=dict(attention=True))
