"""Seq2Seg and the U-Nets alone: the paper's sizes and formulas, any image size, and gradients everywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models.padding import padded
from pipeline.models.seq2seg import PatchEncoder, QuerySeq2Seg, Seq2Seg
from pipeline.models.unet import HungarianUNet, UNet

SLIM = {"hidden": 24, "layers": 2, "heads": 3, "feedforward": 48}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "seq2seg": lambda: Seq2Seg(3, grid=(2, 3), **SLIM),
    "no-skip": lambda: Seq2Seg(3, skip=False, grid=(2, 3), **SLIM),
    "queries": lambda: QuerySeq2Seg(3, queries=5, mask_size=(16, 24), grid=(2, 3), **SLIM),
    "unet": lambda: UNet(3, (4, 6, 8)),
    "hungarian": lambda: HungarianUNet(3, 5, (4, 6, 8)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def parts(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_as_many_weights_as_in_the_paper() -> None:
    """Table 1, in millions: 7.8 and 50.8. The second fits a whole BERT, of which this network leaves out what it does not use."""
    with torch.device("meta"):
        unet, seq2seg, bare = UNet(34), Seq2Seg(34), Seq2Seg(34, skip=False)
    assert round(count(unet) / 1e6, 1) == 7.8
    assert count(seq2seg) == count(bare) == 49_902_370
    pooler = 768 * 768 + 768  # of the first token, for sentences
    more_positions = (512 - 128) * 768  # BERT's 512, of which 128x256 pixels take 128
    token_types = 2 * 768  # first and second sentence
    assert round((count(seq2seg) + pooler + more_positions + token_types) / 1e6, 1) == 50.8
    # all of Cityscapes' 34 labels, then: of its 19 evaluated classes the transposed convolution would be smaller by 2.9M
    with torch.device("meta"):
        assert round((count(Seq2Seg(19)) + pooler + more_positions + token_types) / 1e6, 1) == 47.8


def test_queries_in_another_order_are_instances_in_another_order() -> None:
    """Queries carry no position, so that all that tells them apart is their embedding."""
    network = made("queries").eval()
    assert isinstance(network, QuerySeq2Seg) and network.encoder.queries is not None
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        classes, masks = network(images(2, 3, 32, 48))
        network.encoder.queries.copy_(network.encoder.queries[:, order].clone())
        again, moved = network(images(2, 3, 32, 48))
    assert not torch.allclose(classes[:, order], classes)
    torch.testing.assert_close(again, classes[:, order])
    torch.testing.assert_close(moved, masks[:, order])


@pytest.mark.parametrize(
    "make",
    [
        lambda prior: UNet(3, (4, 6, 8), prior=prior),
        lambda prior: Seq2Seg(3, prior=prior, grid=(2, 3), **SLIM),
        lambda prior: Seq2Seg(3, skip=False, prior=prior, grid=(2, 3), **SLIM),
    ],
)
def test_maps_begin_at_their_prior(make: Callable[[float | None], nn.Module]) -> None:
    """A first loss of maps that are a hundredth full: the entropy of one hundredth, and not of one half."""
    truth = torch.zeros(2, 3, 32, 48)
    truth[:, :, 3:7, 5:9] = 1  # 16 of 1,536 pixels
    losses = {}
    for prior in (None, 0.01):
        torch.manual_seed(0)
        logits = make(prior)(images(2, 3, 32, 48).clamp(0, 1))
        losses[prior] = nn.functional.binary_cross_entropy_with_logits(logits, truth).item()
    assert losses[0.01] < 0.12 and losses[None] > 0.5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (16, 16), (5, 70)])
def test_any_size_and_a_batch_is_its_images(name: str, size: tuple[int, int]) -> None:
    network = made(name).eval()
    batch = images(3, 3, *size)
    with torch.no_grad():
        together = parts(network(batch))
        assert together[-1].shape == (3, 5 if len(together) == 2 else 3, *size)
        if len(together) == 2:
            assert together[0].shape == (3, 5, 4)
        for k in range(3):
            for ours, alone in zip(together, parts(network(batch[k : k + 1])), strict=True):
                assert torch.allclose(ours[k], alone[0], atol=1e-5)
        assert not torch.allclose(together[-1][0], together[-1][1], atol=1e-4)  # it does look at the image


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gradient_in_every_weight(name: str) -> None:
    network = made(name).train()
    # other than 2x3 patches, and at the loss of everything that is predicted
    loss = sum(out.square().mean() for out in parts(network(images(2, 3, 40, 64))))
    loss.backward()
    without = {part for part, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    # a bias that shifts all keys alike changes no softmax; torch keeps it in one vector with two that do matter, so none is left
    assert without == set()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


def test_padding_is_below_and_to_the_right() -> None:
    image = images(1, 2, 5, 9)
    wide = padded(image, 4)
    assert wide.shape == (1, 2, 8, 12)
    assert torch.equal(wide[..., :5, :9], image) and not wide[..., 5:, :].any() and not wide[..., 9:].any()
    assert torch.equal(padded(wide, 4), wide)


@pytest.mark.parametrize("skip", [True, False])
def test_class_maps_are_the_formula(skip: bool) -> None:
    """The sum over hidden states (or the last), times a matrix for each pixel of a patch, laid out patch by patch."""
    torch.manual_seed(0)
    network = Seq2Seg(3, skip=skip, grid=(2, 3), **SLIM).eval()
    image = images(1, 3, 32, 48)
    with torch.no_grad():
        maps = network(image)[0]
        states, grid = network.encoder(image)
        assert grid == (2, 3) and len(states) == 3  # its input, two layers
        state = states[0] + states[1] + states[2] if skip else states[2]
        kernel, bias = network.decode.weight, network.decode.bias  # (d, C, 16, 16), (C,)
        for patch in range(6):
            row, column = divmod(patch, 3)
            expected = torch.einsum("d,dcyx->cyx", state[0, patch], kernel) + bias[:, None, None]
            ours = maps[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            assert torch.allclose(ours, expected, atol=1e-5)


def test_the_encoder_is_the_formula() -> None:
    """A layer is post-norm: x = LN(x + attention(x)), then x = LN(x + W2 gelu(W1 x))."""
    torch.manual_seed(0)
    encoder = PatchEncoder(24, 2, 3, 48, patch=4, grid=(2, 2), queries=2).eval()
    image = images(1, 3, 8, 8)
    with torch.no_grad():
        states, _ = encoder(image)
        weight = encoder.project.weight.flatten(1)  # (d, 3 * 16)
        for patch in range(4):
            row, column = divmod(patch, 2)
            pixels = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            vector = weight @ pixels + encoder.project.bias + encoder.positions[0, :, row, column]
            assert torch.allclose(states[0][0, 2 + patch], encoder.norm(vector), atol=1e-5)
        assert torch.allclose(states[0][0, :2], encoder.norm(encoder.queries[0]), atol=1e-6)
        for k, layer in enumerate(encoder.layers):
            x = states[k][0]  # (N, d)
            attention = layer.self_attn
            q, key, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).unflatten(1, (3, 3, 8)).unbind(1)
            mixed = torch.einsum("nhd,mhd->hnm", q, key).div(8**0.5).softmax(dim=2)
            mixed = torch.einsum("hnm,mhd->nhd", mixed, v).flatten(1)
            x = layer.norm1(x + attention.out_proj(mixed))
            x = layer.norm2(x + layer.linear2(nn.functional.gelu(layer.linear1(x))))
            assert torch.allclose(states[k + 1][0], x, atol=1e-5)


def test_patches_without_positions_are_a_set() -> None:
    """Shuffled patches shuffle the class maps alike; it is the position encodings that tell them apart."""
    torch.manual_seed(0)
    network = Seq2Seg(3, grid=(1, 3), **SLIM).eval()
    image = images(1, 3, 16, 48)
    order = [2, 0, 1]
    moved = torch.cat([image[..., 16 * k : 16 * k + 16] for k in order], dim=3)
    with torch.no_grad():
        assert not torch.allclose(network(image)[..., 32:], network(moved)[..., :16], atol=1e-3)
        network.encoder.positions.zero_()
        maps, shuffled = network(image), network(moved)
    expected = torch.cat([maps[..., 16 * k : 16 * k + 16] for k in order], dim=3)
    assert torch.allclose(shuffled, expected, atol=1e-5)


def test_positions_are_interpolated() -> None:
    encoder = PatchEncoder(24, 0, 3, 48, patch=4, grid=(2, 2)).eval()
    with torch.no_grad():
        encoder.project.weight.zero_(), encoder.project.bias.zero_()
        ramp = torch.tensor([0.0, 1.0]).expand(2, 2)
        encoder.positions[0, 0] = ramp
        encoder.positions[0, 1:] = 0
        encoder.norm = nn.Identity()
        ((state,), grid) = encoder(images(1, 3, 8, 16))
    assert grid == (2, 4)
    assert state[0, :4, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_a_query_is_its_own_linear_layer() -> None:
    network = made("queries").eval()
    image = images(2, 3, 16, 24)  # padded to 16x32
    with torch.no_grad():
        classes, masks = network(image)
        states, _ = network.encoder(padded(image, 16))
        outputs = network.output(states[-1][:, :5])
    assert torch.allclose(classes, outputs[..., :4])
    drawn = nn.functional.interpolate(outputs[..., 4:].unflatten(2, (16, 24)), (16, 32), mode="bilinear")
    assert torch.allclose(masks, drawn[..., :24], atol=1e-6)


def test_classes_of_the_hungarian_unet_come_from_the_encoder() -> None:
    network = made("hungarian").eval()
    image = images(1, 3, 16, 16)
    with torch.no_grad():
        classes, masks = network(image)
        deepest = network.unet.encode(image)[-1]
        assert deepest.shape == (1, 8, 4, 4)
        expected = network.classify(deepest.mean(dim=(2, 3))).view(1, 5, 4)
        assert torch.allclose(classes, expected, atol=1e-6)
        nn.init.zeros_(network.unet.output.weight), nn.init.zeros_(network.unet.output.bias)
        again, empty = network(image)
    assert torch.equal(classes, again) and not empty.any() and masks.any()


def test_the_unet_moves_with_its_image() -> None:
    """By whole steps of its coarsest map, away from the border."""
    network = made("unet").eval()
    image = torch.zeros(1, 3, 96, 96)
    image[..., 40:52, 44:50] = images(1, 3, 12, 6)
    with torch.no_grad():
        maps, moved = network(image), network(image.roll((8, -4), (2, 3)))
    inner = (..., slice(32, 64), slice(32, 64))
    assert torch.allclose(moved.roll((-8, 4), (2, 3))[inner], maps[inner], atol=1e-5)
