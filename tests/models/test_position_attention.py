"""Position attention: the matrix product against equation 3 taken word for word, and equation 1 by hand."""

import pytest
import torch

from pipeline.models.position_attention import attention_logits, coordinates, position_attention


def by_equation_3(cells: torch.Tensor) -> torch.Tensor:
    """F(c, i, j) = V_c . V_(i S + j), a map at a time, a cell at a time, a channel at a time."""
    batch, channels, side, _ = cells.shape
    maps = torch.zeros(batch, side * side, side, side, dtype=cells.dtype)
    for b in range(batch):
        for c in range(side * side):
            for i in range(side):
                for j in range(side):
                    for k in range(channels):
                        maps[b, c, i, j] += cells[b, k, c // side, c % side] * cells[b, k, i, j]
    return maps


@pytest.mark.parametrize(("batch", "channels", "side"), [(2, 3, 4), (1, 5, 3), (1, 2, 1)])
def test_the_product_is_equation_3(batch: int, channels: int, side: int) -> None:
    cells = torch.randn(batch, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = position_attention(cells)
    assert maps.shape == (batch, side * side, side, side)
    torch.testing.assert_close(maps, by_equation_3(cells), rtol=0, atol=1e-12)
    torch.testing.assert_close(position_attention(cells, 0.25), by_equation_3(cells) / 4, rtol=0, atol=1e-12)


def test_two_by_two_by_hand() -> None:
    cells = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.0, 1.0], [3.0, 1.0]]]])  # vectors (1 0) (2 1) (0 3) (-1 1)
    expected = [[[1, 2], [0, -1]], [[2, 5], [3, -1]], [[0, 3], [9, 3]], [[-1, -1], [3, 2]]]
    assert position_attention(cells)[0].tolist() == expected


def test_a_cell_sees_another_as_it_is_seen() -> None:
    side = 5
    cells = torch.randn(2, 7, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pairs = position_attention(cells).reshape(2, side * side, side * side)
    torch.testing.assert_close(pairs, pairs.transpose(1, 2), rtol=0, atol=1e-12)
    lengths = cells.flatten(2).square().sum(dim=1)
    torch.testing.assert_close(pairs.diagonal(dim1=1, dim2=2), lengths, rtol=0, atol=1e-12)


def test_it_follows_a_permutation_of_the_cells() -> None:
    side = 4
    generator = torch.Generator().manual_seed(2)
    cells = torch.randn(1, 3, side, side, dtype=torch.float64, generator=generator)
    order = torch.randperm(side * side, generator=generator)
    moved = cells.flatten(2)[:, :, order].reshape(cells.shape)
    pairs = position_attention(cells).reshape(side * side, side * side)
    expected = pairs[order][:, order].reshape(1, side * side, side, side)
    torch.testing.assert_close(position_attention(moved), expected, rtol=0, atol=1e-12)


def test_it_is_no_position_coding() -> None:
    """Two places with the same feature get the same map: what tells them apart must be in the features already."""
    cells = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    cells[:, :, 3, 2] = cells[:, :, 0, 1]
    maps = position_attention(cells)
    assert torch.equal(maps[:, 3 * 4 + 2], maps[:, 0 * 4 + 1])


def test_a_grid_is_square() -> None:
    with pytest.raises(AssertionError, match="3, 4"):
        position_attention(torch.zeros(1, 2, 3, 4))


def test_coordinates_by_hand() -> None:
    found = coordinates(torch.zeros(2, 7, 2, 5, dtype=torch.float64))
    assert found.shape == (2, 2, 2, 5) and found.dtype == torch.float64
    x, y = found[1]
    torch.testing.assert_close(x, torch.tensor([[-1, -0.6, -0.2, 0.2, 0.6]] * 2, dtype=torch.float64))
    torch.testing.assert_close(y, torch.tensor([[-1.0] * 5, [0.0] * 5], dtype=torch.float64))


def test_the_branch_on_odd_sizes_in_batches_and_backwards() -> None:
    features = torch.randn(3, 6, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    features.requires_grad_()
    maps = attention_logits(features, 4, (14, 22))
    assert maps.shape == (3, 16, 14, 22)
    for k in range(3):
        torch.testing.assert_close(attention_logits(features[k : k + 1], 4, (14, 22))[0], maps[k])
    assert torch.autograd.gradcheck(lambda f: attention_logits(f, 2, (3, 5)), features[:1, :2, :3, :4])
    maps.square().sum().backward()
    assert features.grad is not None and torch.isfinite(features.grad).all() and (features.grad != 0).any()


def test_maps_are_resized_bilinearly() -> None:
    """Where every resizing is the identity the branch is equation 3; at twice the size the corners stay."""
    features = torch.randn(1, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    plain = by_equation_3(features)
    torch.testing.assert_close(attention_logits(features, 5, (5, 5)), plain, rtol=0, atol=1e-12)
    double = attention_logits(features, 5, (10, 10))
    torch.testing.assert_close(double[..., 0, 0], plain[..., 0, 0])
    between = 0.75 * plain[..., 0, 0] + 0.25 * plain[..., 0, 1]  # cell centres are 2 apart, the pixel half of one away
    torch.testing.assert_close(double[..., 0, 1], between)
