"""SOLO as in solo_r50_cpu, with position attention: trains on CPU in minutes. Random weights.

The ablation with scaled dot products: ``options: {model.mask_head.attention_scale: 0.125}``, 1 / sqrt(64).
"""

_base_ = "./solo_r50_cpu.py"

model = dict(mask_head=dict(attention=True))
