"""The SOLO head with position attention inside MMDetection, and the configs that have it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.backends import catalog
from pipeline.backends.instance_crops import InstanceCrops
from pipeline.backends.samples import Sample
from pipeline.experiment import ModelSettings
from pipeline.models.position_attention import coordinates
from tests.backends.test_architectures import as_the_network_itself, predicted, valid
from tests.backends.test_frameworks import needs
from tests.backends.test_samples import drawn

KINDS = ("solo", "solo-no-coordinates", "solo-attention")


@pytest.fixture(autouse=True)
def _framework() -> None:
    needs("mmdet")


def head(**more: Any) -> Any:
    from pipeline.models.mmdet.solo_position_attention import PositionSOLOHead

    torch.manual_seed(0)
    return shuffled(PositionSOLOHead(**SMALL, **more))


SMALL: dict[str, Any] = dict(  # noqa: C408  as a config has it
    num_classes=3, in_channels=8, feat_channels=8, stacked_convs=2, strides=(8, 8, 16, 32, 32), num_grids=[7, 6, 5, 4, 3],
    scale_ranges=((1, 24), (16, 40), (32, 64), (48, 128), (96, 2048)), norm_cfg={"type": "GN", "num_groups": 2},
)  # fmt: skip


def shuffled(module: torch.nn.Module) -> Any:
    """SOLO starts from masks that are empty, which would show nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    return module


def pyramid(batch: int, height: int = 72, width: int = 104) -> tuple[torch.Tensor, ...]:
    """Features at strides 4, 8, 16, 32 and 64 of an image, rounded up, as an FPN gives them."""
    generator = torch.Generator().manual_seed(2)
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (4, 8, 16, 32, 64)]
    return tuple(torch.randn(batch, 8, *size, generator=generator) for size in sizes)


def same(ours: tuple[list[torch.Tensor], ...], theirs: tuple[list[torch.Tensor], ...], **within: float) -> None:
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, **within)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_without_attention_it_is_mmdetections_head(training: bool) -> None:
    from mmdet.models.dense_heads import SOLOHead

    mine, theirs = head(coordinates="mmdet"), SOLOHead(**SMALL)
    theirs.load_state_dict(mine.state_dict())
    features = pyramid(2)
    same(mine.train(training)(features), theirs.train(training)(features), rtol=0, atol=0)
    cut_later = {"cls_down_index": 1}
    mine, theirs = head(coordinates="mmdet", **cut_later), SOLOHead(**SMALL, **cut_later)
    theirs.load_state_dict(mine.state_dict())
    same(mine.train(training)(features), theirs.train(training)(features), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [None, "paper"])
def test_coordinates_are_what_the_first_convolution_gets(kind: str | None) -> None:
    mine = head(coordinates=kind)
    level = mine.resize_feats(pyramid(1))[2]
    assert mine.mask_convs[0].conv.in_channels == 10
    if kind is None:
        with torch.no_grad():  # whatever the two channels' weights are
            before = mine.mask_logits(level, 2)
            mine.mask_convs[0].conv.weight[:, 8:] = 7.0
            torch.testing.assert_close(mine.mask_logits(level, 2), before)
    given = coordinates(level) if kind else torch.zeros_like(level[:, :2])
    maps = torch.cat([level, given], dim=1)
    for convolution in mine.mask_convs:
        maps = convolution(maps)
    maps = functional.interpolate(maps, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(mine.mask_logits(level, 2), mine.conv_mask_list[2](maps))


def test_without_coordinates_masks_move_with_the_picture() -> None:
    """Far from the border convolutions alone see the same everywhere; with coordinates they do not."""
    features = torch.zeros(1, 8, 32, 32)
    features[:, :, 10:13, 9:12] = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(3))
    moved = features.roll((6, 5), dims=(2, 3))
    for kind, follows in ((None, True), ("paper", False), ("mmdet", False)):
        mine = head(coordinates=kind)
        before, after = mine.mask_logits(features, 0), mine.mask_logits(moved, 0)
        window, shifted = before[..., 8:40, 8:40], after[..., 20:52, 18:50]
        assert torch.allclose(window, shifted, atol=1e-5) is follows


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_attention_is_added_before_the_sigmoid(training: bool, scale: float) -> None:
    """Against equation 3 on the very features that the mask branch gets, level by level, in training and prediction."""
    plain, attentive = head(), head(attention=True, attention_scale=scale)
    attentive.load_state_dict(plain.state_dict())
    features = pyramid(2)
    resized = plain.resize_feats(features)
    logits, classes = plain.train()(features)
    expected = []
    for level, maps in enumerate(logits):
        side = SMALL["num_grids"][level]
        cells = functional.interpolate(resized[level], size=(side, side), mode="bilinear")
        products = torch.einsum("bkij,bkmn->bijmn", cells, cells).reshape(2, side * side, side, side) * scale
        whole = maps + functional.interpolate(products, size=maps.shape[-2:], mode="bilinear")
        if not training:
            whole = functional.interpolate(whole.sigmoid(), size=(18, 26), mode="bilinear")
        expected.append(whole)
    found = attentive.train(training)(features)
    for a, b in zip(found[0], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    if training:
        same((found[1], []), (classes, []))  # classes are none of its business


def test_a_batch_is_its_images() -> None:
    mine = head(attention=True).eval()
    features = pyramid(3, 90, 70)
    together = mine(features)
    for k in range(3):
        alone = mine(tuple(level[k : k + 1] for level in features))
        same(([m[k : k + 1] for m in together[0]], [c[k : k + 1] for c in together[1]]), alone, rtol=1e-4, atol=1e-4)


def test_unknown_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="'polar'"):
        head(coordinates="polar")


# ---------------------------------------------------------------- the configs -----------------------------------------


def config(name: str, **options: Any) -> ModelSettings:
    return ModelSettings(framework="mmdet", config=f"mmdet/{name}", options=options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_configs_are_the_papers(kind: str) -> None:
    from pipeline.backends import mmdet

    settings = mmdet.read_config(config(f"{kind}_r50"), 5)
    mine = settings.model.mask_head
    assert settings.model.backbone.depth == 50 and settings.load_from.endswith(".pth")
    assert list(mine.num_grids) == [40, 36, 24, 16, 12] and mine.stacked_convs == 7
    assert (mine.norm_cfg.type, mine.loss_cls.type, mine.loss_mask.type) == ("GN", "FocalLoss", "DiceLoss")
    assert mine.coordinates == (None if kind == "solo-no-coordinates" else "paper")
    assert mine.attention is (kind == "solo-attention") and mine.get("attention_scale", 1.0) == 1.0
    slim = mmdet.read_config(config(f"{kind}_r50_cpu"), 5)
    assert slim.load_from is None
    listed = {entry.name: entry.weights for entry in catalog.entries()}
    assert listed[f"mmdet/{kind}_r50"] == (settings.load_from,) and listed[f"mmdet/{kind}_r50_cpu"] == ()
    differs = {key for key in mine if mine[key] != slim.model.mask_head[key]}
    assert differs == {"in_channels", "feat_channels", "num_grids", "scale_ranges", "norm_cfg"}


def test_the_three_differ_in_nothing_else() -> None:
    """Same weights from the same seed: what is compared is the difference alone."""
    from pipeline.backends import mmdet

    states = {}
    for kind in KINDS:
        torch.manual_seed(5)
        states[kind] = mmdet.build(config(f"{kind}_r50_cpu"), 4).state_dict()
    plain, bare, attentive = (states[kind] for kind in KINDS)
    assert plain.keys() == bare.keys() == attentive.keys()
    assert all(torch.equal(plain[key], attentive[key]) and torch.equal(plain[key], bare[key]) for key in plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["_r50", "_r50_cpu"])
def test_a_config_builds_and_predicts_on_odd_sizes(kind: str, ending: str, tmp_path: Path) -> None:
    from pipeline.backends import engine, mmdet
    from pipeline.experiment import PredictSettings

    data = drawn(tmp_path, 91, 73)
    settings = config(kind + ending)
    network = mmdet.build(settings, 2)
    torch.manual_seed(6)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "conv_mask_list" in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "fresh.pth")
    found = predicted(settings, data, tmp_path / "fresh.pth", ["identity"])
    valid(found, data)
    assert np.isin(found.pixels, (0, 255)).mean() < 0.9  # probabilities, and not only yes and no
    if ending == "_r50_cpu":
        engine.load_weights(network, tmp_path / "fresh.pth")
        as_the_network_itself(network, PredictSettings(score_threshold=0.0, max_detections=20), data, found)


def scene(side: int = 256) -> Sample:
    """Squares for every level of the slim configs, on a picture that shows them."""
    image = np.random.default_rng(0).integers(0, 60, (side, side, 3)).astype(np.uint8)
    boxes = [(8, 8, 20, 20), (30, 8, 60, 38), (70, 8, 120, 58), (10, 70, 110, 170), (100, 100, 250, 250)]
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1, k % 3] = 200
    crops = [np.ones((y1 - y0, x1 - x0), np.uint8) for x0, y0, x1, y1 in boxes]
    table = np.array(boxes, np.int32)
    return Sample(image, np.arange(5) % 2, table.astype(np.float32), InstanceCrops(table, crops, side, side))


@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in KINDS), ("solo-attention", {"scale": 1e-3})])
def test_a_step_reaches_every_parameter(kind: str, options: dict[str, float]) -> None:
    """Fresh features have dot products of a hundred and more. Unscaled, they put whole maps where the sigmoid is 1 and flat
    to the last bit of a float; the last convolution of a level whose maps all lie there is not reached in this step."""
    from pipeline.backends import mmdet

    torch.manual_seed(7)
    settings = config(
        f"{kind}_r50_cpu", **{f"model.mask_head.attention_{key}": value for key, value in options.items()}
    )
    network = mmdet.build(settings, 2).train()
    with (
        torch.no_grad()
    ):  # residual branches begin at nothing: what is behind their last factor is reached a step later
        for name, weight in network.named_parameters():
            if name.startswith("backbone.layer") and name.endswith("bn2.weight"):
                weight.fill_(0.2)
    batch = network.data_preprocessor(mmdet.collate([scene(), scene()]), training=True)
    head = network.mask_head
    instances = [sample.gt_instances for sample in batch["data_samples"]]
    sizes = [(64, 64), (64, 64), (32, 32), (16, 16), (16, 16)]
    _, _, positive = head._get_targets_single(instances[0], featmap_sizes=sizes)
    assert all(level.any() for level in positive)  # an object on every level
    losses = network(**batch, mode="loss")
    assert losses.keys() == {"loss_mask", "loss_cls"}
    for loss in losses.values():
        assert math.isfinite(loss.item()) and loss.item() > 0
    sum(losses.values()).backward()
    flat = set()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
        if not (weight.grad != 0).any():
            flat.add(name.rsplit(".", 2)[0])
    assert flat <= ({"mask_head.conv_mask_list"} if head.attention and not options else set())
