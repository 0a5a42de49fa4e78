"""Seq2Seg: an encoder of BERT's kind on the patches of an image, for semantic segmentation and for instances.

Source: M. Schmidt-Mengin, Image Segmentation with Transformers (2021), sections 2 and 3.2. What the paper leaves open:

* The encoder's input is normalised and dropped out as BERT's embeddings are, and "hidden states from all layers" are what
  BERT's common implementation calls so: the encoder's input among them.
* Position encodings are learnt for one `grid` of patches. An image of another size gets them interpolated, and one whose sides
  are no multiples of the patch is padded with zeros; what is predicted for the padding is cut off.
* Object queries are learnt whole, so they get no position encoding on top.
* A query's mask is one linear map of its state to `mask_size` numbers, spread over the padded image.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.padding import padded
from pipeline.models.prior import start_at


class PatchEncoder(nn.Module):
    """A transformer encoder (post-norm, GELU) on a sequence of object queries and image patches.

    Args:
        hidden: d, size of a state.
        layers: L.
        heads: of self-attention.
        feedforward: size between the two linear maps of a layer.
        patch: s, side of a patch in pixels.
        grid: rows and columns of patches for which position encodings are learnt.
        queries: Q, learnt vectors before the patches.
        dropout: BERT's, of attention too.
    """

    def __init__(
        self,
        hidden: int,
        layers: int,
        heads: int,
        feedforward: int,
        patch: int = 16,
        grid: tuple[int, int] = (8, 16),
        queries: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(3, hidden, patch, stride=patch)  # a linear map of each flattened patch
        self.positions = nn.Parameter(torch.empty(1, hidden, *grid))
        self.queries = nn.Parameter(torch.empty(1, queries, hidden)) if queries else None
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(hidden, heads, feedforward, dropout, activation="gelu", batch_first=True)
            for _ in range(layers)
        )
        self._reset()

    def _reset(self) -> None:
        """BERT's first weights; the framework's own are larger, and with the norm behind the sum they learn badly."""
        for name, parameter in self.layers.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif "norm" not in name:
                nn.init.zeros_(parameter)
        nn.init.normal_(self.positions, std=0.02)
        if self.queries is not None:
            nn.init.normal_(self.queries, std=0.02)

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
        """
        Args:
            images: (B, 3, H, W), H and W multiples of the patch.

        Returns:
            states: L + 1 tensors (B, Q + N, d): the encoder's input and every layer's output.
            grid: rows and columns of the N patches, which follow row by row.
        """
        patches = self.project(images)  # (B, d, h, w)
        height, width = patches.shape[-2:]
        positions: torch.Tensor = self.positions
        if positions.shape[-2:] != (height, width):
            positions = functional.interpolate(positions, (height, width), mode="bilinear", align_corners=False)
        sequence = (patches + positions).flatten(2).transpose(1, 2)  # (B, N, d)
        if self.queries is not None:
            sequence = torch.cat([self.queries.expand(len(images), -1, -1), sequence], dim=1)
        states = [self.dropout(self.norm(sequence))]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states, (height, width)


class Seq2Seg(nn.Module):
    """Semantic segmentation: the sum of all hidden states, and one transposed convolution back to pixels.

    Args:
        num_classes: C, maps to predict.
        skip: sum the states of all layers; else the last state alone is decoded ("no skip").
        hidden, layers, heads, feedforward, patch, grid, dropout: see `PatchEncoder`.
        prior: probability around which the maps begin, see `prior.start_at`; None leaves it to the first weights.
    """

    def __init__(
        self,
        num_classes: int,
        skip: bool = True,
        hidden: int = 768,
        layers: int = 6,
        heads: int = 12,
        feedforward: int = 3072,
        patch: int = 16,
        grid: tuple[int, int] = (8, 16),
        dropout: float = 0.1,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.encoder = PatchEncoder(hidden, layers, heads, feedforward, patch, grid, dropout=dropout)
        self.decode = nn.ConvTranspose2d(hidden, num_classes, patch, stride=patch)
        start_at(self.decode, prior)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to logits (B, C, H, W), any H and W."""
        height, width = images.shape[-2:]
        states, grid = self.encoder(padded(images, self.encoder.patch))
        state = torch.stack(states).sum(dim=0) if self.skip else states[-1]  # (B, N, d)
        maps: torch.Tensor = self.decode(state.transpose(1, 2).unflatten(2, grid))  # (B, C, H', W')
        return maps[..., :height, :width]


class QuerySeq2Seg(nn.Module):
    """Instances: each object query's last hidden state gives a class and a mask through a linear layer.

    Args:
        num_classes: C; one more class stands for "no object" and comes last.
        queries: Q, the most instances on an image.
        mask_size: rows and columns of a mask, which covers the whole image.
        hidden, layers, heads, feedforward, patch, grid, dropout: see `PatchEncoder`.
    """

    def __init__(
        self,
        num_classes: int,
        queries: int = 6,
        mask_size: tuple[int, int] = (64, 64),
        hidden: int = 512,
        layers: int = 4,
        heads: int = 8,
        feedforward: int = 2048,
        patch: int = 16,
        grid: tuple[int, int] = (4, 4),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.queries, self.num_classes, self.mask_size = queries, num_classes, tuple(mask_size)
        self.encoder = PatchEncoder(hidden, layers, heads, feedforward, patch, grid, queries, dropout)
        self.output = nn.Linear(hidden, num_classes + 1 + mask_size[0] * mask_size[1])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) to class logits (B, Q, C + 1) and mask logits (B, Q, H, W), any H and W."""
        height, width = images.shape[-2:]
        images = padded(images, self.encoder.patch)
        states, _ = self.encoder(images)
        outputs = self.output(states[-1][:, : self.queries])  # (B, Q, C + 1 + h w)
        classes, masks = outputs[..., : self.num_classes + 1], outputs[..., self.num_classes + 1 :]
        masks = masks.unflatten(2, self.mask_size)
        if masks.shape[-2:] != images.shape[-2:]:
            masks = functional.interpolate(masks, images.shape[-2:], mode="bilinear", align_corners=False)
        return classes, masks[..., :height, :width]
