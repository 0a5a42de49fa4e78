"""The transformer-assisted backbone against the literal formula, and what must hold of it whatever its weights are."""

import pytest
import timm
import torch
from torch import nn

from pipeline.models.transformer_assisted import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConvolutionalFeatures,
    Renormalisation,
    TokenProjection,
    Tokens,
    TransformerAssistance,
)

CNN, VIT, WIDTH = "efficientnet_lite0", "vit_tiny_patch16_224", 192


def literal(projection: TokenProjection, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """S = C + softmax_L((C Wq)(T Wk)^T) T, in the order in which it is written."""
    pixels = features.flatten(2).transpose(1, 2)
    logits = (pixels @ projection.query) @ (tokens @ projection.key).transpose(1, 2)
    merged = pixels + logits.softmax(dim=-1) @ tokens
    return merged.transpose(1, 2).reshape(features.shape)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("height", "width", "length"), [(7, 5, 9), (1, 1, 1), (13, 1, 3)])
@pytest.mark.parametrize("sharp", [1.0, 6.0])
def test_the_projection_is_the_formula(
    dtype: torch.dtype, tolerance: float, height: int, width: int, length: int, sharp: float
) -> None:
    torch.manual_seed(0)
    projection = TokenProjection(48).to(dtype)
    features = torch.randn(2, 48, height, width, dtype=dtype)
    tokens = sharp * torch.randn(2, length, 48, dtype=dtype)
    mine, theirs = projection(features, tokens), literal(projection, features, tokens)
    assert mine.shape == features.shape
    assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert (mine - features).abs().max() > 0.01


def test_its_gradients_are_the_formulas() -> None:
    torch.manual_seed(0)
    projection = TokenProjection(16).double()
    features = torch.randn(2, 16, 5, 4, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 6, 16, dtype=torch.float64, requires_grad=True)
    inputs = [features, tokens, projection.query, projection.key]
    weight = torch.randn_like(features)
    mine = torch.autograd.grad((projection(features, tokens) * weight).sum(), inputs)
    theirs = torch.autograd.grad((literal(projection, features, tokens) * weight).sum(), inputs)
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_a_case_by_hand() -> None:
    """One pixel, two tokens, width two: logits ln 3 and 0, so three quarters of the first token."""
    projection = TokenProjection(2)
    with torch.no_grad():
        projection.query.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        projection.key.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # exchanges the channels
    pixel = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    half = torch.log(torch.tensor(3.0)) / 2  # the pixel's query is (2, 0), the first token's key (ln 3 / 2, 0)
    tokens = torch.tensor([[[0.0, half], [4.0, 0.0]]])
    merged = projection(pixel, tokens).flatten()
    torch.testing.assert_close(merged, torch.tensor([1.0 + 0.25 * 4.0, 0.75 * half]))


def test_the_order_of_tokens_does_not_matter_and_pixels_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    projection = TokenProjection(16).double()
    features, tokens = torch.randn(1, 16, 6, 4).double(), torch.randn(1, 9, 16).double()
    merged = projection(features, tokens)
    torch.testing.assert_close(projection(features, tokens[:, torch.randperm(9)]), merged)
    torch.testing.assert_close(projection(features.roll((2, 1), (2, 3)), tokens), merged.roll((2, 1), (2, 3)))


@pytest.mark.parametrize("bgr", [False, True])
def test_renormalisation_undoes_one_and_does_the_other(bgr: bool) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5)).float()  # RGB
    seen = pixels.flip(1) if bgr else pixels
    mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
    detector = (seen - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    wanted = (pixels / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1)
    found = Renormalisation(mean, std, bgr, (0.5, 0.4, 0.3), (0.2, 0.3, 0.5))(detector)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_network_trained_as_detectors_normalise_sees_the_image_as_it_is() -> None:
    image = torch.randn(1, 3, 4, 4)
    features = ConvolutionalFeatures("resnet18")
    torch.testing.assert_close(features.renormalise(image), image, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- parts of timm ---------------------------------------


def test_tokens_are_the_states_after_the_blocks() -> None:
    torch.manual_seed(0)
    tokens = Tokens(VIT, (1, 3)).eval()
    whole = timm.create_model(VIT, num_classes=0).eval()
    whole.load_state_dict({**whole.state_dict(), **tokens.network.state_dict()})
    image = torch.randn(1, 3, 224, 224)
    caught = {}
    for k in (1, 3):
        whole.blocks[k - 1].register_forward_hook(lambda _, __, out, k=k: caught.update({k: whole.norm(out)}))
    with torch.no_grad():
        whole(tokens.renormalise(image))
        states = tokens(image)
    assert [tuple(s.shape) for s in states] == [(1, 197, WIDTH)] * 2
    torch.testing.assert_close(states[0], caught[1])
    torch.testing.assert_close(states[1], caught[3])
    tokens.class_token = False
    with torch.no_grad():
        torch.testing.assert_close(tokens(image)[1], states[1][:, 1:])
    assert len(tokens.network.blocks) == 3  # the others would never be used


def test_a_transformer_without_a_class_token_gives_each_image_its_own_tokens() -> None:
    torch.manual_seed(0)
    tokens = Tokens("vit_medium_patch16_gap_240", [1, 2]).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both, alone = tokens(images), tokens(images[1:])
    assert [state.shape for state in both] == [(2, 225, 512)] * 2
    for state, own in zip(both, alone, strict=True):
        torch.testing.assert_close(state[1:], own, atol=1e-4, rtol=1e-4)


def test_a_transformer_without_prefix_tokens_serves_and_others_are_refused() -> None:
    tokens = Tokens("vit_relpos_small_patch16_224", [1, 2])
    with torch.no_grad():
        assert [state.shape for state in tokens(torch.randn(1, 3, 50, 70))] == [(1, 196, 384)] * 2
    for name in ("cait_xxs24_224", "resnet18"):
        with pytest.raises(ValueError, match=f"{name} is none of timm's vision transformers"):
            Tokens(name, [1])


def test_weights_of_another_network_are_refused() -> None:
    tokens = Tokens(VIT, [1], weights="timm://vit_base_patch16_224.augreg2_in21k_ft_in1k")
    with pytest.raises(OSError, match=rf"another network than {VIT}"):
        tokens.load_pretrained()


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks 1 to 12"):
        Tokens(VIT, (0, 1))
    with pytest.raises(ValueError, match="as many blocks"):
        TransformerAssistance([8, 8], (1, 2, 3), VIT)


@pytest.mark.parametrize("name", [CNN, "resnet18", "convnext_atto", "ghostnet_100"])
def test_any_convolutional_network_gives_levels_with_feedback(name: str) -> None:
    torch.manual_seed(0)
    features = ConvolutionalFeatures(name, (1, 2, 3), feedback_levels=(2, 3), feedback_channels=6).eval()
    image = torch.randn(1, 3, 64, 96)
    first = features(image)
    assert [m.shape[1] for m in first] == features.channels
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in first] == [(s, s) for s in features.strides]
    fed = [torch.randn(1, 6, *m.shape[2:]) for m in first[1:]]
    for a, b in zip(features(image, fed), first, strict=True):
        torch.testing.assert_close(a, b)  # it begins at zero
    nn.init.normal_(features.feedback[0].weight)
    second = features(image, fed)
    torch.testing.assert_close(second[0], first[0])  # before what was fed
    assert (second[1] - first[1]).abs().max() > 1e-3 and (second[2] - first[2]).abs().max() > 1e-4
    for a, b in zip(features(image), first, strict=True):
        torch.testing.assert_close(a, b)  # nothing of it stays


@pytest.mark.parametrize("stride", [1, 2])
def test_assisted_features_of_an_odd_image(stride: int) -> None:
    torch.manual_seed(0)
    features = ConvolutionalFeatures(CNN).eval()
    assistance = TransformerAssistance(features.channels, (1, 2, 3, 4, 5), VIT, stride=stride).eval()
    image = torch.randn(2, 3, 75, 101)
    with torch.no_grad():
        maps = features(image)
        merged = assistance(image, maps)
        alone = assistance(image[1:], features(image[1:]))
    for level, plain, one in zip(merged, maps, alone, strict=True):
        assert level.shape[1] == WIDTH
        assert level.shape[2:] == tuple(-(-side // stride) for side in plain.shape[2:])
        torch.testing.assert_close(level[1:], one, atol=1e-4, rtol=1e-4)  # batch equals single


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    features = ConvolutionalFeatures(CNN, (1, 2, 3, 4))
    assistance = TransformerAssistance(features.channels, (2, 3, 4, 5), VIT)
    image = torch.randn(2, 3, 64, 64)
    merged = assistance(image, features(image))
    sum((level * torch.randn_like(level)).sum() for level in merged).backward()
    for name, parameter in [*features.named_parameters(), *assistance.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_weights_from_a_file_and_none_out_of_reach(tmp_path) -> None:  # noqa: ANN001
    whole = timm.create_model(VIT)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    assistance = TransformerAssistance([8], (2,), VIT, pretrained=str(tmp_path / "vit.pth"))
    before = assistance.tokens.network.pos_embed.clone()
    assistance.load_pretrained()
    torch.testing.assert_close(assistance.tokens.network.blocks[1].mlp.fc1.weight, whole.blocks[1].mlp.fc1.weight)
    assert not torch.equal(before, assistance.tokens.network.pos_embed)

    network = timm.create_model(CNN)
    torch.save(network.state_dict(), tmp_path / "cnn.pth")
    features = ConvolutionalFeatures(CNN, (0, 1), weights=str(tmp_path / "cnn.pth"))
    features.load_pretrained()
    torch.testing.assert_close(features.network.conv_stem.weight, network.conv_stem.weight)

    missing = ConvolutionalFeatures(CNN, (0, 1), weights=str(tmp_path / "nothing.pth"))
    with pytest.raises(OSError, match="path of the downloaded file"):
        missing.load_pretrained()


def test_the_detectors_own_normalisation_is_what_most_use() -> None:
    """The defaults are ImageNet's in 0..255."""
    for ours, theirs in ((IMAGENET_MEAN, (0.485, 0.456, 0.406)), (IMAGENET_STD, (0.229, 0.224, 0.225))):
        assert ours == pytest.approx([255 * v for v in theirs])
