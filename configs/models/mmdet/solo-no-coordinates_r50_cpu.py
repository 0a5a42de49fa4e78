"""SOLO as in solo_r50_cpu, without coordinates: trains on CPU in minutes. Random weights."""

_base_ = "./solo_r50_cpu.py"

model = dict(mask_head=dict(coordinates=None))
