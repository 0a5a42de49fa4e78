"""The SegPC-2021 paper's backbones within both frameworks; that they build, learn and predict is in test_catalog."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backends import CheckpointError
from pipeline.experiment import ModelSettings
from tests.backends.test_frameworks import needs


def settings_of(name: str) -> ModelSettings:
    return ModelSettings(framework=name.split("/")[0], config=name)  # type: ignore[arg-type]


def test_the_second_look_begins_as_the_first_and_then_sees_what_is_fed_back() -> None:
    needs("mmdet")
    from pipeline.models.mmdet.transformer_assisted import TimmBackbone

    for assistant, levels in (
        (None, (1, 2, 3, 4)),
        ({"timm": "test_vit", "stride": 2}, (0, 1, 2)),
    ):
        torch.manual_seed(0)
        backbone = TimmBackbone("efficientnet_lite0", None, levels, assistant, rfp_inplanes=8, output_img=True).eval()
        image = torch.randn(1, 3, 64, 96)
        first = backbone(image)
        assert torch.equal(first[0], image)
        fed = [torch.randn(1, 8, *level.shape[2:]) for level in first[1:]]
        ends = 4 if assistant is None else 2  # nothing is kept behind the last level that comes out
        assert max(backbone.features.wanted) == ends == max(levels)
        for a, b in zip(backbone.rfp_forward(image, fed), first[1:], strict=True):
            torch.testing.assert_close(a, b)
        for convolution in backbone.features.feedback:
            torch.nn.init.normal_(convolution.weight)
        second = backbone.rfp_forward(image, fed)
        assert (second[-1] - first[-1]).abs().max() > 1e-4
        if assistant is None:
            torch.testing.assert_close(second[0], first[1])  # DetectoRS feeds nothing back to the finest stage


def blocks_of(name: str, **options: object) -> tuple[int, ...]:
    """After which blocks of the transformer the states are taken."""
    from importlib import import_module

    settings = settings_of(name).model_copy(update={"options": options})
    network = import_module(f"pipeline.backends.{settings.framework}").build(settings, 1)
    backbone = network.backbone
    while not hasattr(backbone, "assistant"):
        backbone = backbone.bottom_up
    blocks: tuple[int, ...] = backbone.assistant.tokens.blocks
    return blocks


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("detectron2/segpc2021_cascade-effb5-transformer", (1, 2, 3, 4, 5)),  # strides 2 to 32, halved
        ("mmdet/segpc2021_detectors-effb5-transformer", (1, 2, 3, 4)),  # strides 2 to 16, halved
        ("mmdet/segpc2021_detectors-effb5-transformer_cpu", (2, 3, 4, 5)),  # strides 4 to 32
        ("mmdet/segpc2021_detectors-r50-transformer_cpu", (2, 3, 4, 5)),
        ("detectron2/segpc2021_cascade-x152-transformer_cpu", (2, 3, 4, 5)),
    ],
)
def test_maps_look_at_blocks_of_equal_depth(name: str, blocks: tuple[int, ...]) -> None:
    needs(name.split("/")[0])
    assert blocks_of(name) == blocks


def test_blocks_of_equal_depth_go_by_strides() -> None:
    needs("mmdet")
    from pipeline.models.mmdet.transformer_assisted import TimmBackbone

    assistant = {"timm": "test_vit"}
    for name, levels, blocks in (
        ("efficientnet_lite0", (0, 1, 2, 3, 4), (1, 2, 3, 4, 5)),
        ("efficientnet_lite0", (2, 4), (3, 5)),
        ("convnext_atto", (0, 1, 2), (2, 3, 4)),  # its first map has a stride of 4
    ):
        assert TimmBackbone(name, None, levels, assistant).assistant.tokens.blocks == blocks


def test_the_blocks_are_a_setting_of_both_frameworks() -> None:
    for name, key in (
        ("mmdet/segpc2021_detectors-effb5-transformer_cpu", "model.backbone.assistant.blocks"),
        ("detectron2/segpc2021_cascade-effb5-transformer_cpu", "MODEL.ASSISTANT.BLOCKS"),
    ):
        needs(name.split("/")[0])
        chosen = (3, 3, 6, 9) if "mmdet" in name else (3, 3, 6, 9, 12)
        assert blocks_of(name, **{key: list(chosen)}) == chosen


def test_the_transformers_weights_survive_the_start_of_a_detectors_resnet() -> None:
    needs("mmdet")
    from pipeline.models.mmdet.transformer_assisted import TransformerAssistedDetectoRS

    backbone = TransformerAssistedDetectoRS(assistant={"timm": "test_vit"}, depth=50, base_channels=8, stem_channels=8)
    assert [widen.in_channels for widen in backbone.assistant.widen] == [32, 64, 128, 256]
    before = {name: value.clone() for name, value in backbone.assistant.state_dict().items()}
    backbone.init_weights()
    for name, value in backbone.assistant.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("framework", ["mmdet", "detectron2"])
def test_random_weights_fetch_nothing_and_missing_ones_are_explained(framework: str, tmp_path: Path) -> None:
    needs(framework)
    from importlib import import_module

    module = import_module(f"pipeline.backends.{framework}")
    missing = str(tmp_path / "none.safetensors")
    if framework == "mmdet":
        config, options = "mmdet/segpc2021_detectors-effb5_cpu", {"model.backbone.pretrained": missing}
    else:
        config, options = "detectron2/segpc2021_cascade-effb5_cpu", {"MODEL.TIMM.WEIGHTS": missing}
    settings = ModelSettings(framework=framework, config=config, options=options)  # type: ignore[arg-type]
    module.build(settings, 1)
    with pytest.raises(CheckpointError, match="none.safetensors"):
        module.build(settings.model_copy(update={"weights": "config"}), 1)


@pytest.mark.parametrize("assistant", ["", "-transformer"])
def test_a_pyramid_may_stand_on_efficientnet(assistant: str) -> None:
    needs("detectron2")
    from pipeline.backends import detectron2

    settings = settings_of(f"detectron2/segpc2021_cascade-effb5{assistant}_cpu")
    options = {"MODEL.BACKBONE.NAME": "build_timm_fpn_backbone"}
    network = detectron2.build(settings.model_copy(update={"options": options}), 1)
    maps = network.backbone(torch.randn(2, 3, 64, 96))
    assert {name: tuple(level.shape[2:]) for name, level in maps.items()} == {
        "p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2),
    }  # fmt: skip


def test_a_network_of_detectron2_is_shown_the_image_as_it_was_trained() -> None:
    needs("detectron2")
    from pipeline.backends import detectron2

    network = detectron2.build(settings_of("detectron2/segpc2021_cascade-effb5-transformer_cpu"), 1)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))  # BGR
    shown = network.preprocess_image([{"image": pixels}]).tensor
    tokens = network.backbone.assistant.tokens.renormalise(shown)
    torch.testing.assert_close(tokens[0], (pixels.flip(0).float() / 255 - 0.5) / 0.5, atol=1e-4, rtol=1e-4)
