"""Hungarian U-Net: 100 object queries as output channels of a U-Net, instances without boxes. Random weights."""

_base_ = "./seq2seg-instances.py"

model = dict(
    network=dict(_delete_=True, type="HungarianUNet", num_classes=10, queries=100, widths=(32, 64, 128, 256, 512)),
    loss=dict(cost_size=(32, 64)),
)
