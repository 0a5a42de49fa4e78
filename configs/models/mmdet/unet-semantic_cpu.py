"""U-Net of 0.5M weights for class maps: trains on two CPU cores in minutes. Random weights."""

_base_ = "./unet-semantic.py"

model = dict(network=dict(widths=(16, 32, 64, 128)))
