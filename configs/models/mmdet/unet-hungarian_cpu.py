"""Hungarian U-Net of 0.5M weights with 16 queries: trains on two CPU cores in minutes. Random weights."""

_base_ = "./unet-hungarian.py"

model = dict(network=dict(queries=16, widths=(16, 32, 64, 128)), loss=dict(cost_size=(32, 32)))
