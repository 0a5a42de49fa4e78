"""Seq2Seg with six object queries at 192 of 512 channels: trains on two CPU cores in minutes. Random weights."""

_base_ = "./seq2seg-instances.py"

model = dict(network=dict(hidden=192, heads=6, feedforward=768))
