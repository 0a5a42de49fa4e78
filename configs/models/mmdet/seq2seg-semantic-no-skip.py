"""Seq2Seg without the skip: class maps from the last hidden state alone. Random weights."""

_base_ = "./seq2seg-semantic.py"

model = dict(network=dict(skip=False))
