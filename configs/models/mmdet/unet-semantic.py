"""U-Net of 7.8M weights: class maps, and what hangs together in one is an instance. Random weights."""

_base_ = "./seq2seg-semantic.py"

model = dict(network=dict(_delete_=True, type="UNet", num_classes=10, widths=(32, 64, 128, 256, 512), prior=0.01))
