"""U-Net, and U-Net with object queries as output channels ("Hungarian U-Net").

Sources: O. Ronneberger et al., U-Net (2015), here with padded convolutions and batch normalisation, at half of its width and
so at the 7.8 million weights of M. Schmidt-Mengin, Image Segmentation with Transformers (2021), table 1; of that paper also
section 4, the queries. What it leaves open: the linear layer that predicts the classes of all queries takes the mean of the
encoder's output over all places, so that it fits images of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.padding import padded
from pipeline.models.prior import start_at

WIDTHS = (32, 64, 128, 256, 512)


def _double(before: int, after: int) -> nn.Sequential:
    steps: list[nn.Module] = []
    for width in (before, after):
        steps += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


class UNet(nn.Module):
    """Semantic segmentation.

    Args:
        num_classes: C, maps to predict.
        widths: channels at each resolution, the finest first; each is half as fine as the one before.
        prior: probability around which the maps begin, see `prior.start_at`; None leaves it to the first weights.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS, prior: float | None = None) -> None:
        super().__init__()
        self.multiple = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, stride=2) for low, high in pairs)
        self.up = nn.ModuleList(_double(2 * high, high) for _, high in pairs)
        self.output = nn.Conv2d(widths[0], num_classes, 1)
        start_at(self.output, prior)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) to a map (B, width, H / 2^k, W / 2^k) of each resolution."""
        maps = [self.down[0](images)]
        for step in self.down[1:]:
            maps.append(step(functional.max_pool2d(maps[-1], 2)))
        return maps

    def decode(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """`encode`'s maps to (B, C, H, W)."""
        state = maps[-1]
        for grow, step, skip in zip(self.grow, self.up, maps[-2::-1], strict=True):
            state = step(torch.cat([skip, grow(state)], dim=1))
        maps_out: torch.Tensor = self.output(state)
        return maps_out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to logits (B, C, H, W), any H and W: the image is padded with zeros, its maps cut."""
        height, width = images.shape[-2:]
        return self.decode(self.encode(padded(images, self.multiple)))[..., :height, :width]


class HungarianUNet(nn.Module):
    """Instances: a U-Net with a channel for each object query, whose classes follow from the encoder's output.

    Args:
        num_classes: C; one more class stands for "no object" and comes last.
        queries: Q, the most instances on an image.
        widths: see `UNet`.
    """

    def __init__(self, num_classes: int, queries: int = 100, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.unet = UNet(queries, widths)
        self.shape = (queries, num_classes + 1)
        self.classify = nn.Linear(widths[-1], queries * (num_classes + 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) to class logits (B, Q, C + 1) and mask logits (B, Q, H, W), any H and W."""
        height, width = images.shape[-2:]
        maps = self.unet.encode(padded(images, self.unet.multiple))
        classes = self.classify(maps[-1].mean(dim=(2, 3))).unflatten(1, self.shape)
        return classes, self.unet.decode(maps)[..., :height, :width]
