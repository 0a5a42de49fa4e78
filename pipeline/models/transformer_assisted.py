"""Convolutional features that look at a vision transformer's tokens, level by level.

Singla et al., "Transformer Assisted Convolutional Neural Network for Cell Instance Segmentation" (SegPC-2021), section 4.3:

    S_i = C_i + softmax_L((C_i Wq)(T_i Wk)^T) T_i

where C_i (HW, E) are the pixels of the i-th convolutional feature map and T_i (L, E) the tokens after a block of the
transformer. What the paper leaves open is as its authors ran it: Wq and Wk are shared by all levels, the tokens pass the
transformer's last normalisation wherever they are tapped, and a level is brought to the width E by a convolution, of 3x3
with stride 2 (`stride=2`; the five levels of an EfficientNet at strides 2 to 32 come out at the pyramid's own 4 to 64) or of
1x1 (`stride=1`). Unlike theirs, the transformer is shown the image normalised as it was trained.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Of RGB pixels in 0..255; what most detectors normalise with."""

TIMM = "timm://"
"""Weights are a file, or begin with this and name a model with a tag as timm lists them."""


class TokenProjection(nn.Module):
    """S = C + softmax_L((C Wq)(T Wk)^T) T, without a scale, as the paper has it.

    (C Wq)(T Wk)^T = C (T Wk Wq^T)^T, so the E x E matrices meet the few tokens and never the many pixels. Pixels stay channel by
    channel as they come and go, so that no map of E channels is copied: with fewer tokens than channels the (L, HW) weights are
    less than such a copy, which a fused attention, that never has the weights, would need for its queries and its result.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(width, width))  # Wq
        self.key = nn.Parameter(torch.empty(width, width))  # Wk
        # there is no 1 / sqrt(E) in the formula: at this spread the logits of unit features have a variance of one, and the
        # softmax does not begin as a hard choice that learns nothing
        for weight in (self.query, self.key):
            nn.init.normal_(weight, std=width**-0.75)

    def forward(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(B, E, H, W) and (B, L, E) → (B, E, H, W)."""
        pixels = features.flatten(2)  # (B, E, HW)
        keys = tokens @ self.key @ self.query.T  # (B, L, E)
        weights = (keys.to(pixels.dtype) @ pixels).softmax(dim=1)  # (B, L, HW)
        return torch.baddbmm(pixels, tokens.transpose(1, 2).to(pixels.dtype), weights).view_as(features)


def equal_depth(strides: Sequence[int]) -> list[int]:
    """The blocks that maps of these strides look at where nothing else is said: 1 at a stride of 2, 5 at one of 32.

    So a map meets tokens of its own depth, as in the paper: the i-th of a network's five stages ends at a stride of 2**i.
    """
    return [stride.bit_length() - 1 for stride in strides]


class Renormalisation(nn.Module):
    """From the pixels that a detector has normalised to those that another network was trained on.

    Args:
        mean, std: what the detector subtracted and divided by, in 0..255 and in its own order of channels.
        bgr: the detector's channels are blue, green, red.
        wanted_mean, wanted_std: of the other network, of RGB in 0..1, as timm states them.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        bgr: bool,
        wanted_mean: Sequence[float],
        wanted_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.bgr = bgr
        order = slice(None, None, -1) if bgr else slice(None)
        from_mean, from_std = torch.tensor(list(mean)[order]), torch.tensor(list(std)[order])
        to_mean, to_std = 255 * torch.tensor(wanted_mean), 255 * torch.tensor(wanted_std)
        # kept with the weights that they belong to
        self.register_buffer("scale", (from_std / to_std).view(3, 1, 1))
        self.register_buffer("shift", ((from_mean - to_mean) / to_std).view(3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) → (B, 3, H, W), RGB."""
        image = image.flip(1) if self.bgr else image
        return image * self.scale + self.shift


class Pretrained(nn.Module, ABC):
    """A part of a detector that is a network of timm.

    Args:
        name: of the model in timm.
        weights: a file, ``timm://<model>.<tag>``, or None; taken by `load_pretrained`, not before.
        normalised: mean, std and bgr of `Renormalisation`: how the detector normalises its images.
    """

    network: Any  # timm's models share no type that says what they have

    def __init__(
        self, name: str, weights: str | None, normalised: tuple[Sequence[float], Sequence[float], bool]
    ) -> None:
        super().__init__()
        self.name, self.weights, self.normalised = name, weights, normalised

    @abstractmethod
    def _made(self, name: str, **how: Any) -> nn.Module:
        """The network, by timm's `create_model` and its arguments."""

    def _take(self, network: Any) -> None:
        self.network = network
        known = network.default_cfg
        self.renormalise = Renormalisation(*self.normalised, known["mean"], known["std"])

    def load_pretrained(self) -> None:
        """Take the weights where there are some to take.

        Raises:
            OSError: they cannot be had.
        """
        if not self.weights:
            return
        source = self.weights.removeprefix(TIMM)
        if self.weights.startswith(TIMM) and source.partition(".")[0] != self.name.partition(".")[0]:
            raise OSError(f"{self.weights} are the weights of another network than {self.name}; name both alike")
        try:
            if self.weights.startswith(TIMM):  # another tag may have another normalisation, too
                self._take(self._made(self.weights.removeprefix(TIMM), pretrained=True))
            else:
                self._take(self._made(self.name, pretrained=True, pretrained_cfg_overlay={"file": self.weights}))
        except Exception as error:  # noqa: BLE001  without network, what is raised depends on timm's way of downloading
            raise OSError(
                f"timm cannot load {self.weights} for {self.name}: {type(error).__name__}: {error}. Where there is no "
                f"network, give the path of the downloaded file instead"
            ) from error


class ConvolutionalFeatures(Pretrained):
    """Any convolutional network of timm as a pyramid of feature maps.

    `feedback_channels` adds what DetectoRS (Qiao et al., section 3) feeds back from a first look: the map of a level passes a
    1x1 convolution and is added behind the first block of that level's stage. The convolutions begin at zero, so that the
    second look begins as the first.

    Args:
        levels: which of its levels come out, by index; level i has a stride of `strides[i]`.
        feedback_levels: those that take feedback.
        mean, std, bgr: of `Renormalisation`.
    """

    def __init__(
        self,
        name: str,
        levels: Sequence[int] = (0, 1, 2, 3, 4),
        weights: str | None = None,
        feedback_levels: Sequence[int] = (),
        feedback_channels: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        bgr: bool = False,
    ) -> None:
        super().__init__(name, weights, (mean, std, bgr))
        self.wanted = tuple(range(max([*levels, *feedback_levels]) + 1))
        self._take(self._made(name, pretrained=False))
        self.levels = tuple(levels)
        self.all_channels: list[int] = self.network.feature_info.channels()
        self.channels = [self.all_channels[i] for i in levels]
        strides = self.network.feature_info.reduction()
        self.strides = [strides[i] for i in levels]
        self.feedback_levels = tuple(feedback_levels)
        self.feedback = nn.ModuleList(
            nn.Conv2d(feedback_channels, self.all_channels[i], 1) for i in self.feedback_levels
        )
        for convolution in self.feedback:
            nn.init.zeros_(convolution.weight)  # type: ignore[arg-type]
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def _made(self, name: str, **how: Any) -> nn.Module:
        network: Any = timm.create_model(name, features_only=True, out_indices=self.wanted, **how)
        last = network.feature_info.module_name()[-1]
        # timm keeps, and runs, the blocks of an EfficientNet behind the last map
        if last.startswith("blocks.") and hasattr(network, "blocks"):
            network.blocks = network.blocks[: int(last.split(".")[1]) + 1]
        made: nn.Module = network
        return made

    def _block(self, level: int) -> nn.Module:
        """Behind which a level's feedback is added."""
        name = self.network.feature_info.module_name()[level]
        modules = dict(self.network.named_modules())
        stage = modules.get(name) or modules[name.replace(".", "_")]  # timm flattens some networks
        return stage[0] if isinstance(stage, nn.Sequential) else stage

    def forward(self, image: torch.Tensor, feedback: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """(B, 3, H, W), and the maps fed back, one for each of `feedback_levels` → a map (B, C_i, H_i, W_i) for each level."""
        hooks = []
        for level, convolution, fed in zip(self.feedback_levels, self.feedback, feedback, strict=False):
            added = convolution(fed)
            hooks.append(self._block(level).register_forward_hook(lambda _, __, out, added=added: out + added))
        try:
            maps = self.network(self.renormalise(image))
        finally:
            for hook in hooks:
                hook.remove()
        return [maps[i] for i in self.levels]


class Tokens(Pretrained):
    """The hidden states of any vision transformer of timm after some of its blocks; later blocks are not kept.

    Args:
        blocks: after which blocks, counted from 1, the states are taken.
        class_token: keep the class token (and registers) among the tokens.
        mean, std, bgr: of `Renormalisation`.
    """

    def __init__(
        self,
        name: str,
        blocks: Sequence[int],
        class_token: bool = True,
        weights: str | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        bgr: bool = False,
    ) -> None:
        super().__init__(name, weights, (mean, std, bgr))
        self.blocks, self.class_token = tuple(blocks), class_token
        self._take(self._made(name, pretrained=False))
        self.width = int(self.network.embed_dim)
        self.size: tuple[int, int] = tuple(self.network.default_cfg["input_size"][-2:])

    def _made(self, name: str, **how: Any) -> nn.Module:
        network: Any = timm.create_model(name, num_classes=0, **how)
        taps = getattr(network, "forward_intermediates", None)
        if taps is None or "return_prefix_tokens" not in inspect.signature(taps).parameters:
            raise ValueError(
                f"{name} is none of timm's vision transformers whose blocks can be tapped, as vit_, deit_, beit_"
            )
        depth = len(network.blocks)
        if not all(1 <= block <= depth for block in self.blocks):
            raise ValueError(f"{name} has blocks 1 to {depth}, not all of {list(self.blocks)}")
        network.blocks = network.blocks[: max(self.blocks)]
        return network

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) → for each of `blocks` its states (B, L, E)."""
        image = functional.interpolate(image, self.size, mode="bilinear", align_corners=False, antialias=True)
        states = self.network.forward_intermediates(
            self.renormalise(image),
            indices=[block - 1 for block in sorted(set(self.blocks))],
            return_prefix_tokens=self.network.num_prefix_tokens > 0,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        after = dict(zip(sorted(set(self.blocks)), states, strict=True))
        found = []
        for block in self.blocks:
            state = after[block]  # with the class token and registers apart, where there are any
            patches, prefix = state if isinstance(state, tuple | list) else (state, state[:, :0])
            found.append(torch.cat([prefix, patches], dim=1) if self.class_token else patches)
        return found


class TransformerAssistance(nn.Module):
    """What turns the feature maps of any convolutional network into transformer-assisted ones.

    Args:
        channels: of the maps.
        blocks: the blocks whose states the maps look at, one for each map; see `equal_depth`.
        timm: the transformer, any ViT of timm. pretrained: its weights, see `Tokens`.
        stride: 2 halves the maps on the way by a 3x3 convolution, 1 keeps their size with a 1x1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        timm: str = "vit_base_patch16_224",
        pretrained: str | None = None,
        class_token: bool = True,
        stride: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(f"{len(channels)} feature maps need as many blocks of {timm}, not {list(blocks)}")
        self.tokens = Tokens(timm, blocks, class_token, pretrained, mean, std, bgr)
        self.width = self.tokens.width
        kernel = 3 if stride > 1 else 1
        self.widen = nn.ModuleList(nn.Conv2d(c, self.width, kernel, stride, kernel // 2) for c in channels)
        self.projection = TokenProjection(self.width)

    def load_pretrained(self) -> None:
        """See `Pretrained.load_pretrained`."""
        self.tokens.load_pretrained()

    def forward(self, image: torch.Tensor, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(B, 3, H, W) and maps (B, C_i, H_i, W_i) → maps (B, E, H_i / stride, W_i / stride)."""
        return [
            self.projection(widen(level), tokens)
            for widen, level, tokens in zip(self.widen, features, self.tokens(image), strict=True)
        ]
