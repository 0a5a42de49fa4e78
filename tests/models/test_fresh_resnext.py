"""ResNeXt from random weights: its blocks begin as the identity, as ResNet's do."""

import pytest
import torch

from pipeline.experiment import ModelSettings
from tests.backends.test_frameworks import needs


@pytest.mark.parametrize(
    "name", ["mask-rcnn_x101_cpu", "cascade-mask-rcnn_x101_cpu", "ms-rcnn_x101_cpu", "mask-rcnn_r101_cpu"]
)
def test_blocks_begin_as_the_identity(name: str) -> None:
    needs("mmdet")
    from mmdet.models.backbones.resnet import Bottleneck

    from pipeline.backends import mmdet

    torch.manual_seed(0)
    backbone = mmdet.build(ModelSettings(framework="mmdet", config=f"mmdet/{name}"), 1).backbone
    backbone.train()
    blocks = [block for stage in backbone.res_layers for block in getattr(backbone, stage)]
    assert len(blocks) == 33 and all(isinstance(block, Bottleneck) for block in blocks)
    state = torch.rand(2, blocks[1].conv1.in_channels, 8, 8)
    assert torch.equal(blocks[1](state), state)
    # so that the deepest features are as large as the first, and not a sum of 33 noises
    deep = [float(maps.std()) for maps in backbone(torch.randn(2, 3, 128, 128))]
    assert max(deep) < 1.0


def test_what_it_is_for() -> None:
    """Once MMDetection's own begins so, ours can go."""
    needs("mmdet")
    from mmdet.models.backbones import ResNeXt

    torch.manual_seed(0)
    backbone = ResNeXt(depth=50, groups=8, base_width=4, base_channels=16, stem_channels=32)
    backbone.init_weights()
    assert backbone.layer1[1].norm3.weight.any()
