"""SOLO, ResNet-50-FPN, without coordinates; COCO weights."""

_base_ = "./solo_r50.py"

model = dict(mask_head=dict(coordinates=None))
