"""Every model config that the project ships: it builds, finds something valid, and what is small enough learns a step.

The table is the catalog itself: a config that is added is tested, and what it cannot do is listed below with the reason.
"""

from __future__ import annotations

import fnmatch
import gc
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backends import catalog, parameters
from pipeline.backends.catalog import Entry
from pipeline.backends.instance_crops import InstanceCrops
from pipeline.backends.samples import Sample
from pipeline.experiment import ModelSettings
from tests.backends.test_architectures import predicted, valid
from tests.backends.test_frameworks import needs
from tests.backends.test_samples import COLOURS, drawn

CLASSES = 2
ENTRIES = catalog.entries()
SIDES = (20, 44, 90, 170, 300, 460)
"""Objects of these sides in 512 pixels meet every level of the pyramids: RoI heads change level at 112, 224 and 448, SOLO at
about 64, 137, 272 and 543, and anchors are of 16 to 512 pixels."""

SILENT = {
    "mmdet/solo-attention_*": {
        "mask_head.conv_mask_list.*": "unscaled dot products of untrained features, which are added to what these give, are so "
        "large that the sigmoid behind them is flat to the last bit",
    },
}
"""Models, by a pattern of their names → parameters, by a pattern of theirs → why no loss reaches them in a step."""

UNSETTLED = {
    "mmdet/segpc2021_detectors-r50*": "its convolutions standardise their weights, whatever their number: with statistics of "
    "batch normalisation that were never measured, activations grow by an order of magnitude a layer until they overflow",
}
"""Models, by a pattern of their names → why they predict nothing before they have seen an image."""


def small(entry: Entry) -> bool:
    """Whether it is one of those that train on two CPU cores."""
    return entry.name.endswith("_cpu") or "_slim" in entry.name


def built(entry: Entry, options: dict[str, Any] | None = None) -> tuple[Any, nn.Module]:
    """The framework's module and the network with random weights."""
    needs(entry.framework)
    module = importlib.import_module(f"pipeline.backends.{entry.framework}")
    torch.manual_seed(0)
    network: nn.Module = module.build(
        ModelSettings(framework=entry.framework, config=entry.name, options=options or {}), CLASSES
    )
    with torch.no_grad():  # SOLO and maps of classes start from masks that are empty, which would show nothing
        for name, weight in network.named_parameters():
            if "conv_mask_list" in name:
                weight.copy_(torch.randn_like(weight))
            elif name in ("network.decode.bias", "network.output.bias"):
                weight.zero_()
    return module, network


def settle(network: Any) -> None:
    """Measure the statistics of batch normalisation on noise."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train()
            part.momentum = 1.0
    with torch.no_grad():
        network.extract_feat(torch.randn(2, 3, 128, 128))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_model_builds_and_finds_valid_detections(entry: Entry, tmp_path: Path) -> None:
    _, network = built(entry)
    # RPN heads tell objects from background and have a class of their own, backbones could classify and do not, and what
    # has a map for every class has one for the background
    told = {getattr(part, "num_classes", None) for part in network.modules() if "RPN" not in type(part).__name__}
    assert told <= {None, 0, CLASSES, CLASSES + 1}
    if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in UNSETTLED):
        settle(network)
    checkpoint = tmp_path / "fresh.pth"
    torch.save({"state_dict": network.state_dict()}, checkpoint)
    del network
    gc.collect()  # two of the largest networks at once are 2 GB

    data = drawn(tmp_path, 97, 75).subset([5])
    views = ["identity", "rot90@1.3"] if small(entry) else ["identity"]
    found = predicted(ModelSettings(framework=entry.framework, config=entry.name), data, checkpoint, views)
    checkpoint.unlink()
    assert set(found.source) == set(range(len(views))) and len(found) <= 20 * len(views)
    valid(found, data)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_parameters_that_are_listed_are_those_of_the_network(entry: Entry) -> None:
    needs(entry.framework)
    assert parameters.kept(entry) == parameters.count(entry), f"python -m pipeline models {entry.name} --parameters"


def on_every_level() -> list[Sample]:
    """Two samples, the second one mirrored: filled squares of all sizes and both classes, the smaller ones on top."""
    side = 512
    image = np.random.default_rng(0).integers(0, 60, (side, side, 3)).astype(np.uint8)
    corners = {460: (26, 26), 300: (40, 150), 170: (320, 40), 90: (60, 40), 44: (180, 60), 20: (250, 80)}
    boxes, labels = [], []
    for k, size in enumerate(sorted(SIDES, reverse=True)):
        x, y = corners[size]
        image[y : y + size, x : x + size] = COLOURS[1 + k % CLASSES]
        boxes.append((x, y, x + size, y + size))
        labels.append(k % CLASSES)
    box = np.array(boxes, np.int32)
    mirrored = box[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1]) + np.array([side, 0, side, 0])
    return [
        Sample(
            np.ascontiguousarray(pixels),
            np.array(labels, np.int64),
            where.astype(np.float32),
            InstanceCrops(where, [np.ones((b[3] - b[1], b[2] - b[0]), np.uint8) for b in where], side, side),
        )
        for pixels, where in ((image, box), (image[:, ::-1], mirrored))
    ]


def silent(entry: Entry) -> dict[str, str]:
    patterns: dict[str, str] = {}
    for model, parts in SILENT.items():
        if fnmatch.fnmatchcase(entry.name, model):
            patterns |= parts
    return patterns


HALVED = {"out_indices": [0, 1, 2, 3], "assistant.stride": 2}
OTHERWISE = {
    "mmdet/segpc2021_detectors-effb5-transformer_cpu": {
        f"model.{part}.{key}": value for part in ("backbone", "neck.rfp_backbone") for key, value in HALVED.items()
    },
}
"""Small models with the options by which their full ones differ in what is connected to what."""


@pytest.mark.parametrize(
    ("entry", "options"),
    [pytest.param(e, {}, id=e.name) for e in ENTRIES if small(e)]
    + [pytest.param(e, OTHERWISE[e.name], id=f"{e.name}-otherwise") for e in ENTRIES if e.name in OTHERWISE],
)
def test_a_step_reaches_every_weight(entry: Entry, options: dict[str, Any]) -> None:
    module, network = built(entry, options)
    network.train()
    with torch.no_grad():  # branches that start at nothing hide in the first step what is inside them
        for name, weight in network.named_parameters():
            if not name.endswith("bias") and not weight.any():
                weight.fill_(1) if weight.ndim == 1 else weight.normal_(std=0.01)
    batch = module.collate(on_every_level())
    if entry.framework == "mmdet":
        batch = network.data_preprocessor(batch, training=True)  # type: ignore[operator]
        total, _ = network.parse_losses(network(**batch, mode="loss"))  # type: ignore[operator]
    else:
        total = sum(module.Trained(network)(**batch).values())
    total.backward()
    assert math.isfinite(total.item()) and total.item() > 0

    excused = silent(entry)
    names = [name for name, _ in network.named_parameters()]
    for pattern in excused:
        assert fnmatch.filter(names, pattern), f"{entry.name} has no {pattern} any more"
    unreached = []
    for name, weight in network.named_parameters():
        if weight.grad is not None:
            assert weight.grad.isfinite().all(), name
        if weight.grad is None or not weight.grad.any():
            unreached.append(name)
    assert [name for name in unreached if not any(fnmatch.fnmatchcase(name, pattern) for pattern in excused)] == []
