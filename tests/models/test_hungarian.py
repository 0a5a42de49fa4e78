"""Hungarian matching and its losses: worked out by hand, and whatever the order of the truth."""

import math

import numpy as np
import pytest
import torch

from pipeline.models.hungarian import HungarianLoss, dice_loss, match, pairwise_dice_loss

FAR = 30.0
"""A logit whose sigmoid is 0 or 1 to rounding."""


def logits(masks: torch.Tensor) -> torch.Tensor:
    return (masks.float() * 2 - 1) * FAR


def problem(seed: int = 0, queries: int = 6, counts: tuple[int, ...] = (3, 0, 5)) -> tuple:
    rng = torch.Generator().manual_seed(seed)
    classes = torch.randn(len(counts), queries, 4, generator=rng)
    masks = torch.randn(len(counts), queries, 12, 10, generator=rng)
    labels = [torch.randint(0, 3, (n,), generator=rng) for n in counts]
    truths = [(torch.rand(n, 12, 10, generator=rng) > 0.6).to(torch.uint8) for n in counts]
    return classes, masks, labels, truths


def test_dice_by_hand() -> None:
    predicted = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]])
    truth = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    # 2 (0.5 + 1) / ((0.25 + 1 + 0.25) + 2)
    assert dice_loss(predicted, truth).item() == pytest.approx(1 - 3 / 3.5, abs=1e-6)
    assert dice_loss(truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(1 - truth, truth).item() == pytest.approx(1, abs=1e-6)
    assert dice_loss(truth * 0, truth * 0).item() == pytest.approx(0)


def test_every_pair_at_once_is_one_by_one() -> None:
    rng = torch.Generator().manual_seed(1)
    predicted, truth = torch.rand(2, 5, 7, 6, generator=rng), torch.rand(2, 3, 7, 6, generator=rng)
    table = pairwise_dice_loss(predicted, truth)
    assert table.shape == (2, 5, 3)
    for b, q, t in np.ndindex(2, 5, 3):
        assert table[b, q, t].item() == pytest.approx(dice_loss(predicted[b, q], truth[b, t]).item(), abs=1e-5)


def test_matching_is_the_cheapest_of_all_not_the_greedy_one() -> None:
    costs = torch.tensor([[[1.0, 2.0], [1.1, 9.0], [8.0, 8.0]]])  # greedy: 1 + 8; best: 2 + 1.1
    ((query, target),) = match(costs, [2])
    assert dict(zip(target.tolist(), query.tolist(), strict=True)) == {0: 1, 1: 0}


def test_padding_is_never_matched() -> None:
    costs = torch.tensor([[[5.0, 0.0], [6.0, 0.0]]])
    ((query, target),) = match(costs, [1])
    assert (query.tolist(), target.tolist()) == ([0], [0])
    assert [len(pair[0]) for pair in match(costs.expand(2, -1, -1), [0, 2])] == [0, 2]


def test_the_loss_by_hand() -> None:
    left, right = torch.zeros(2, 4, 4)
    left[:, :2], right[:, 2:] = 1, 1
    classes = torch.zeros(1, 3, 3)  # every class equally likely: cross-entropy log 3 each, two classes and none
    masks = logits(torch.stack([right, left, left * 0]))[None]
    loss = HungarianLoss(2)
    losses = loss(classes, masks, [torch.tensor([0, 1])], [torch.stack([left, right])])
    assert losses["loss_mask"].item() == pytest.approx(0, abs=1e-5)  # crossed over, each has its partner
    assert losses["loss_class"].item() == pytest.approx(0.1 * math.log(3))

    # now the classes are known: query 0, on the right, says class 1 (true), query 1 class 1 (false), query 2 nothing (true)
    classes = torch.log(torch.tensor([[[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]]]))
    losses = loss(classes, masks, [torch.tensor([0, 1])], [torch.stack([left, right])])
    entropy = -(math.log(0.8) + math.log(0.2) + 0.5 * math.log(0.6)) / (1 + 1 + 0.5)
    assert losses["loss_class"].item() == pytest.approx(0.1 * entropy, abs=1e-6)


def test_the_cost_weighs_masks_ten_times_as_much_as_classes() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    half = mask.clone()
    half[..., :1] = 0  # dice loss of half the mask: 1 - 2 * 4 / (4 + 8) = 1/3
    classes = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]))
    loss = HungarianLoss(1)
    costs = loss.costs(classes, torch.cat([mask, half], dim=1), torch.tensor([[0]]), mask)
    expected = [-0.1 * math.log(0.5), 1 / 3 - 0.1 * math.log(0.9)]
    assert costs[0, :, 0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("counts", [(3, 0, 5), (6, 6, 6), (9, 1, 2)])
@pytest.mark.parametrize("cost_size", [None, (3, 5)])
def test_the_order_of_the_truth_changes_nothing(counts: tuple[int, ...], cost_size: tuple[int, int] | None) -> None:
    classes, masks, labels, truths = problem(2, counts=counts)
    loss = HungarianLoss(3, cost_size=cost_size)
    first = loss(classes, masks, labels, truths)
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in counts]
    shuffled = loss(
        classes,
        masks,
        [own[order] for own, order in zip(labels, orders, strict=True)],
        [own[order] for own, order in zip(truths, orders, strict=True)],
    )
    for name, value in first.items():
        assert shuffled[name].item() == pytest.approx(value.item(), abs=1e-6)
    # and so does the order of the queries
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for name, value in loss(classes[:, order], masks[:, order], labels, truths).items():
        assert value.item() == pytest.approx(first[name].item(), abs=1e-6)


def test_without_an_object_only_its_absence_is_learnt() -> None:
    classes, masks, labels, truths = problem(counts=(0, 0))
    classes.requires_grad_(), masks.requires_grad_()
    losses = HungarianLoss(3)(classes, masks, labels, truths)
    nothing = torch.nn.functional.cross_entropy(classes.flatten(0, 1), torch.full((12,), 3))
    assert losses["loss_mask"].item() == 0
    assert losses["loss_class"].item() == pytest.approx(0.1 * nothing.item())
    sum(losses.values()).backward()
    assert masks.grad is not None and not masks.grad.any() and classes.grad.abs().sum() > 0


def test_more_objects_than_queries() -> None:
    classes, masks, labels, truths = problem(3, queries=2, counts=(5,))
    masks[0] = logits(truths[0][[4, 1]])
    classes[:] = 0
    losses = HungarianLoss(3)(classes, masks, labels, truths)
    assert losses["loss_mask"].item() == pytest.approx(0, abs=1e-5)  # the two that are found, and no others
    assert losses["loss_class"].item() == pytest.approx(0.1 * math.log(4))  # and no query is left for "no object"


def test_masks_are_compared_small_but_learnt_whole() -> None:
    _, masks, labels, truths = problem(4, counts=(3,))
    classes = torch.zeros(1, 6, 4)
    masks = masks[:1].requires_grad_()
    loss = HungarianLoss(3, cost_size=(4, 5))
    costs = loss.costs(classes, masks.sigmoid(), labels[0][None], truths[0][None].float())
    small = [torch.nn.functional.adaptive_avg_pool2d(m, (4, 5)) for m in (masks.sigmoid(), truths[0][None].float())]
    assert torch.allclose(costs, pairwise_dice_loss(*small) + 0.1 * math.log(4))
    ((query, target),) = match(costs, [3])
    losses = loss(classes, masks, labels, truths)
    whole = dice_loss(masks[0].sigmoid()[query], truths[0].float()[target]).mean()
    assert losses["loss_mask"].item() == pytest.approx(whole.item(), abs=1e-6)
    losses["loss_mask"].backward()
    learns = masks.grad.abs().sum(dim=(2, 3))[0] > 0
    assert set(torch.nonzero(learns)[:, 0].tolist()) == set(query.tolist())  # masks without a partner learn nothing


def test_what_is_not_a_number_reaches_the_loss() -> None:
    classes, masks, labels, truths = problem()
    assert not torch.isfinite(sum(HungarianLoss(3)(classes, masks * math.nan, labels, truths).values()))
