"""Learning instances without an order: predictions are matched with the truth, then compared with their partners.

Source: M. Schmidt-Mengin, Image Segmentation with Transformers (2021), sections 3.2 to 4, after DETR (N. Carion et al., 2020);
Dice as in V-Net (F. Milletari et al., 2016), the paper's reference for it, whose denominator has squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

EPSILON = 1e-6
"""Of two empty masks Dice would be 0 / 0."""


def dice_loss(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus Dice, 2 sum(p g) / (sum(p^2) + sum(g^2)), of masks (..., H, W) with masks of the same shape: (...)."""
    shared = (probabilities * targets).sum(dim=(-2, -1))
    both = probabilities.square().sum(dim=(-2, -1)) + targets.square().sum(dim=(-2, -1))
    return 1 - (2 * shared + EPSILON) / (both + EPSILON)


def pairwise_dice_loss(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`dice_loss` of every mask of (B, Q, H, W) with every one of (B, T, H, W): (B, Q, T)."""
    one, other = probabilities.flatten(2), targets.flatten(2)
    shared = one @ other.transpose(1, 2)
    both = one.square().sum(dim=2)[:, :, None] + other.square().sum(dim=2)[:, None]
    return 1 - (2 * shared + EPSILON) / (both + EPSILON)


def match(costs: torch.Tensor, counts: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The cheapest assignment of each image, min(Q, T) pairs of query and target.

    Args:
        costs: (B, Q, T).
        counts: how many of an image's T columns are targets; the rest is padding.
    """
    # a network that has diverged is told so by its loss, which is not a number
    table = np.nan_to_num(costs.cpu().numpy())
    return [linear_sum_assignment(table[k, :, :count]) for k, count in enumerate(counts)]


class HungarianLoss(nn.Module):
    """Dice of the matched masks, and cross-entropy of all classes, where an unmatched query's is "no object".

    Dice is averaged over the pairs of the batch, cross-entropy over its queries by the weights of their classes. The cost of a
    pair is the loss that it would have.

    Args:
        num_classes: C; the class "no object" has the index C.
        mask_weight, class_weight: of the two losses.
        no_object_weight: of the class "no object" within the cross-entropy; a true class weighs 1.
        cost_size: rows and columns to which masks are averaged down before pairs are compared; None compares them whole.
    """

    weights: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        mask_weight: float = 1.0,
        class_weight: float = 0.1,
        no_object_weight: float = 0.5,
        cost_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.mask_weight, self.class_weight = num_classes, mask_weight, class_weight
        self.cost_size = cost_size
        weights = torch.tensor([1.0] * num_classes + [no_object_weight])
        self.register_buffer("weights", weights, persistent=False)

    @torch.no_grad()
    def costs(
        self, class_logits: torch.Tensor, probabilities: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
    ) -> torch.Tensor:
        """(B, Q, C + 1) and (B, Q, H, W) against (B, T) and (B, T, H, W): (B, Q, T)."""
        if self.cost_size is not None:
            probabilities, masks = (functional.adaptive_avg_pool2d(m, self.cost_size) for m in (probabilities, masks))
        surprise = -class_logits.log_softmax(dim=2)
        index = labels[:, None].expand(-1, class_logits.shape[1], -1)
        return self.mask_weight * pairwise_dice_loss(probabilities, masks) + self.class_weight * surprise.gather(
            2, index
        )

    def forward(
        self,
        class_logits: torch.Tensor,
        mask_logits: torch.Tensor,
        labels: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            class_logits: (B, Q, C + 1).
            mask_logits: (B, Q, H, W).
            labels: for each image (T,) int64.
            masks: for each image (T, H, W), 0 or 1.

        Returns:
            ``loss_mask`` and ``loss_class``, weighted.
        """
        assert all(m.shape[-2:] == mask_logits.shape[-2:] for m in masks), [tuple(m.shape) for m in masks]
        # sums over all pixels are more than half precision can hold
        with torch.autocast(class_logits.device.type, enabled=False):
            return self._losses(class_logits.float(), mask_logits.float().sigmoid(), labels, masks)

    def _losses(
        self,
        class_logits: torch.Tensor,
        probabilities: torch.Tensor,
        labels: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        wanted = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)  # (B, Q)
        loss_mask = probabilities.sum() * 0  # no object, nothing to learn of masks
        if any(len(own) for own in labels):
            all_labels = pad_sequence(list(labels), batch_first=True)  # (B, T)
            all_masks = pad_sequence([m.to(probabilities) for m in masks], batch_first=True)  # (B, T, H, W)
            costs = self.costs(class_logits, probabilities, all_labels, all_masks)
            pairs = match(costs, [len(own) for own in labels])
            image = torch.from_numpy(np.repeat(np.arange(len(pairs)), [len(query) for query, _ in pairs]))
            query, target = (torch.from_numpy(np.concatenate([pair[k] for pair in pairs])) for k in (0, 1))
            wanted[image, query] = all_labels[image, target]
            loss_mask = dice_loss(probabilities[image, query], all_masks[image, target]).mean()
        loss_class = functional.cross_entropy(class_logits.flatten(0, 1), wanted.flatten(), self.weights)
        return {"loss_mask": self.mask_weight * loss_mask, "loss_class": self.class_weight * loss_class}
