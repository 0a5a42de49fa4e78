"""Seq2Seg without the skip at 192 of 768 channels: trains on two CPU cores in minutes. Random weights."""

_base_ = "./seq2seg-semantic_cpu.py"

model = dict(network=dict(skip=False))
