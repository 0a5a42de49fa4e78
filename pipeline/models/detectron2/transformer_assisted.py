"""Backbones with timm's convolutional networks and a vision transformer at their side, for Detectron2.

* ``build_timm_backbone``: the network's five levels at strides 2 to 32, each halved on its way to a common width, are p2 to p6
  themselves: the detector has no feature pyramid network. This is how the paper's authors ran it.
* ``build_timm_fpn_backbone``: a feature pyramid network on the levels at strides 4 to 32.
* ``build_assisted_resnet_fpn_backbone``: Detectron2's own ResNet, ResNeXt-152 included, transformer-assisted under its FPN.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from pipeline.models.transformer_assisted import ConvolutionalFeatures, TransformerAssistance, equal_depth

PYRAMID = ("p2", "p3", "p4", "p5", "p6")


def add_settings(config: CfgNode) -> None:
    """The keys MODEL.TIMM, the convolutional network, and MODEL.ASSISTANT, the transformer at its side."""
    if "TIMM" in config.MODEL:
        return
    config.MODEL.TIMM = CfgNode({"NAME": "efficientnet_b5", "WEIGHTS": ""})
    # no NAME: no transformer; no BLOCKS: those of `equal_depth`
    config.MODEL.ASSISTANT = CfgNode({"NAME": "", "WEIGHTS": "", "BLOCKS": [], "CLASS_TOKEN": True})


def _normalised(config: CfgNode) -> dict[str, Any]:
    return {
        "mean": config.MODEL.PIXEL_MEAN,
        "std": config.MODEL.PIXEL_STD,
        "bgr": config.INPUT.FORMAT == "BGR",
    }


def _assistant(config: CfgNode, channels: list[int], strides: list[int], step: int) -> TransformerAssistance:
    """For maps of these channels and strides; `step` is `TransformerAssistance`'s stride."""
    settings = config.MODEL.ASSISTANT
    assistant = TransformerAssistance(
        channels,
        settings.BLOCKS or equal_depth(strides),
        settings.NAME,
        settings.WEIGHTS or None,
        settings.CLASS_TOKEN,
        step,
        **_normalised(config),
    )
    assistant.load_pretrained()
    return assistant


class TimmBackbone(Backbone):  # type: ignore[misc]
    """A convolutional network of timm, alone or transformer-assisted.

    Args:
        levels: of the network, by index.
        names: what the levels are called.
        halved: a 3x3 convolution of stride 2 stands between a level and what comes out, `width` channels wide where there is
            no transformer to say how wide.
    """

    def __init__(self, config: CfgNode, levels: list[int], names: list[str], halved: bool, width: int) -> None:
        super().__init__()
        timm = config.MODEL.TIMM
        self.features = ConvolutionalFeatures(timm.NAME, levels, timm.WEIGHTS or None, **_normalised(config))
        self.features.load_pretrained()
        channels, stride = self.features.channels, 2 if halved else 1
        strides = self.features.strides
        self.assistant = _assistant(config, channels, strides, stride) if config.MODEL.ASSISTANT.NAME else None
        self.halve = nn.ModuleList()
        if self.assistant is not None:
            channels = [self.assistant.width] * len(channels)
        elif halved:
            self.halve.extend(nn.Conv2d(c, width, 3, 2, 1) for c in channels)
            channels = [width] * len(channels)
        self._out_features = list(names)
        self._out_feature_channels = dict(zip(names, channels, strict=True))
        self._out_feature_strides = {n: s * stride for n, s in zip(names, self.features.strides, strict=True)}

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) → name → (B, C, H / stride, W / stride)."""
        maps = self.features(image)
        if self.assistant is not None:
            maps = self.assistant(image, maps)
        elif self.halve:
            maps = [halve(level) for halve, level in zip(self.halve, maps, strict=True)]
        return dict(zip(self._out_features, maps, strict=True))

    @property
    def size_divisibility(self) -> int:
        return 64 if self._out_features[-1] == "p6" else 32


class TransformerAssistedResNet(ResNet):  # type: ignore[misc]
    """Detectron2's ResNet whose maps look at a transformer's tokens; its own weights keep their names."""

    def __init__(self, resnet: ResNet, assistant: TransformerAssistance) -> None:
        super().__init__(resnet.stem, resnet.stages, out_features=resnet._out_features)
        self.assistant = assistant

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) → name → (B, E, H / stride, W / stride)."""
        maps = super().forward(image)
        return dict(zip(maps, self.assistant(image, list(maps.values())), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.assistant.width, stride=shape.stride)
            for name, shape in super().output_shape().items()
        }


def _pyramid(config: CfgNode, bottom_up: Backbone, names: list[str]) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=config.MODEL.FPN.OUT_CHANNELS,
        norm=config.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=config.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_timm_backbone(config: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Five maps at strides 4 to 64 without a feature pyramid network."""
    return TimmBackbone(config, [0, 1, 2, 3, 4], list(PYRAMID), True, config.MODEL.FPN.OUT_CHANNELS)


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_timm_fpn_backbone(config: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A feature pyramid network on the four levels at strides 4 to 32."""
    names = ["res2", "res3", "res4", "res5"]  # as the base configs call them
    return _pyramid(config, TimmBackbone(config, [1, 2, 3, 4], names, False, 0), names)


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_assisted_resnet_fpn_backbone(config: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The transformer-assisted ResNet that the config describes, under a feature pyramid network."""
    resnet = build_resnet_backbone(config, input_shape)
    names = list(config.MODEL.FPN.IN_FEATURES)
    shapes = resnet.output_shape()
    maps = resnet._out_features
    assistant = _assistant(config, [shapes[name].channels for name in maps], [shapes[name].stride for name in maps], 1)
    return _pyramid(config, TransformerAssistedResNet(resnet, assistant), names)
