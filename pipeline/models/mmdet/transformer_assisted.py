"""Backbones with timm's convolutional networks and a vision transformer at their side, for MMDetection.

`TimmBackbone` and `TransformerAssistedDetectoRS` both do what the neck `RFP` asks of a backbone: the image itself as the first
output (`output_img`), and a second look with the pyramid of the first fed back (`rfp_forward`, for which `rfp_inplanes` says
how many channels that pyramid has).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.backbones import DetectoRS_ResNet
from mmdet.registry import MODELS
from mmengine.model import BaseModule

from pipeline.models.transformer_assisted import ConvolutionalFeatures, TransformerAssistance, equal_depth


@MODELS.register_module()
class TimmBackbone(BaseModule):  # type: ignore[misc]
    """A convolutional network of timm, alone or transformer-assisted.

    Args:
        timm: its name there. pretrained: its weights, a file or ``timm://<model>.<tag>``.
        out_indices: the levels that come out, of 0 to 4 at strides 2 to 32.
        assistant: the arguments of `TransformerAssistance` but `channels`, and `blocks` where they shall not be those of
            `equal_depth`; None for the network alone.
        normalised: the arguments mean, std and bgr of `Renormalisation`, where the detector's preprocessor does not give
            RGB normalised as ImageNet's.
    """

    def __init__(
        self,
        timm: str,
        pretrained: str | None = None,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        assistant: dict[str, Any] | None = None,
        rfp_inplanes: int | None = None,
        output_img: bool = False,
        normalised: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.output_img = output_img
        # the finest map is not fed back; where the assistant halves the maps, each belongs to the next, coarser stage, and the
        # coarsest to one that nobody looks at
        further = (assistant or {}).get("stride", 1) - 1
        fed = (
            [level + further for level in out_indices[1:] if level + further <= max(out_indices)]
            if rfp_inplanes
            else []
        )
        normalised = normalised or {}
        self.features = ConvolutionalFeatures(timm, out_indices, pretrained, fed, rfp_inplanes or 0, **normalised)
        self.assistant = None
        if assistant:
            settings = {"blocks": equal_depth(self.features.strides), **assistant, **normalised}
            self.assistant = TransformerAssistance(self.features.channels, **settings)

    def init_weights(self) -> None:
        """timm has drawn the weights already; pretrained ones are loaded here."""
        self.features.load_pretrained()
        if self.assistant is not None:
            self.assistant.load_pretrained()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) → a map for each of `out_indices`, after the image where `output_img` is set."""
        maps = self._look(image, ())
        return (image, *maps) if self.output_img else maps

    def rfp_forward(self, image: torch.Tensor, rfp_feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The second look, with the first one's pyramid fed back."""
        return self._look(image, rfp_feats[1:])

    def _look(self, image: torch.Tensor, feedback: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        maps = self.features(image, feedback)
        return tuple(self.assistant(image, maps) if self.assistant is not None else maps)


@MODELS.register_module()
class TransformerAssistedDetectoRS(DetectoRS_ResNet):  # type: ignore[misc]
    """DetectoRS's ResNet, whose four maps look at a transformer's tokens.

    Args:
        assistant: the arguments of `TransformerAssistance` but `channels`, and `blocks` where they shall not be those of
            `equal_depth`.
    """

    def __init__(self, assistant: dict[str, Any], **resnet: Any) -> None:
        super().__init__(**resnet)
        stages = [getattr(self, self.res_layers[i])[-1] for i in self.out_indices]
        strides = [4 * math.prod(self.strides[: i + 1]) for i in self.out_indices]  # 4: of the stem
        settings = {"blocks": equal_depth(strides), **assistant}
        self.assistant = TransformerAssistance([stage.conv3.out_channels for stage in stages], **settings)

    def init_weights(self) -> None:
        """As DetectoRS has it for the ResNet; the assistant keeps what timm has drawn or loads its own."""
        assistant = self.assistant
        del self.assistant  # it would draw every convolution of the transformer again
        super().init_weights()
        self.assistant = assistant
        assistant.load_pretrained()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) → a map for each of `out_indices`, after the image where `output_img` is set."""
        maps = super().forward(image)
        first = 1 if self.output_img else 0
        return (*maps[:first], *self.assistant(image, maps[first:]))

    def rfp_forward(self, image: torch.Tensor, rfp_feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The second look, with the first one's pyramid fed back."""
        return tuple(self.assistant(image, super().rfp_forward(image, rfp_feats)))
