"""Seq2Seg for class maps at 192 of 768 channels: trains on two CPU cores in minutes. Random weights."""

_base_ = "./seq2seg-semantic.py"

model = dict(network=dict(hidden=192, heads=6, feedforward=768, grid=(4, 4)))
