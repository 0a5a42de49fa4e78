"""Seq2Seg and the U-Nets as MMDetection's detectors, through the pipeline: configs, a step of training, predictions."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.backends import catalog, engine
from pipeline.backends.samples import Samples, bgr_tensor, read_image
from pipeline.experiment import PROJECT, ModelSettings, PredictSettings, TrainSettings
from pipeline.masks import FOREGROUND
from pipeline.records import Dataset, Detections
from tests.backends.test_architectures import in_one_batch_as_alone, predicted, valid
from tests.backends.test_samples import drawn

pytest.importorskip("mmdet")

from pipeline.backends import mmdet  # noqa: E402
from pipeline.models.mmdet.seq2seg import truth  # noqa: E402

FULL = ("seq2seg-instances", "seq2seg-semantic", "seq2seg-semantic-no-skip", "unet-semantic", "unet-hungarian")
CPU = tuple(f"{name}_cpu" for name in FULL)


def settings_of(name: str, **options: object) -> ModelSettings:
    return ModelSettings(framework="mmdet", config=str(PROJECT / f"configs/models/mmdet/{name}.py"), options=options)


def batch_of(data: Dataset, count: int = 2, crop: int = 64) -> dict:
    samples = Samples(data, TrainSettings(crop=crop), 0, count)
    return mmdet.collate([samples[k] for k in range(count)])


def test_they_are_in_the_catalogue() -> None:
    names = {entry.name for entry in catalog.entries()}
    assert {f"mmdet/{name}" for name in (*FULL, *CPU)} <= names


@pytest.mark.parametrize("name", FULL)
def test_the_paper_s_settings(name: str) -> None:
    with torch.device("meta"):
        config = mmdet.read_config(settings_of(name), 34)
        network = mmdet.MODELS.build(config.model).network
    millions = round(sum(p.numel() for p in network.parameters()) / 1e6, 1)
    # 12.6M of them the four layers, 2.1M the masks; 49.9M, see test_seq2seg; 100 queries' classes are 1.8M of the last
    assert millions == {"seq2seg-instances": 15.1, "unet-semantic": 7.8, "unet-hungarian": 9.6}.get(name, 49.9)
    if "instances" in name or "hungarian" in name:
        loss = config.model.loss
        assert (loss.mask_weight, loss.class_weight, loss.no_object_weight) == (1.0, 0.1, 0.5)
        assert network.encoder.queries.shape == (1, 6, 512) if "instances" in name else network.shape == (100, 35)
        assert loss.get("cost_size") == ((32, 64) if "hungarian" in name else None)


@pytest.mark.parametrize("name", CPU)
def test_a_step_and_predictions_in_original_pixels(name: str, tmp_path: Path) -> None:
    data = drawn(tmp_path, 91, 73)
    settings = settings_of(name)
    torch.manual_seed(0)
    network = mmdet.build(settings, len(data.categories))
    with torch.no_grad():  # maps around one half, so that untrained ones show something
        for part, weight in network.named_parameters():
            if part == "network.output.weight" and weight.ndim == 4:
                weight.mul_(20)
            elif part in ("network.decode.bias", "network.output.bias"):
                assert "semantic" not in name or torch.allclose(weight.sigmoid(), torch.tensor(0.01))
                weight.zero_()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "fresh.pth")

    network.train()
    batch = network.data_preprocessor(batch_of(data), training=True)
    total, _ = network.parse_losses(network(**batch, mode="loss"))
    total.backward()
    assert math.isfinite(total.item()) and total.item() > 0
    unreached = [part for part, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    # the masks of queries that are matched with nothing learn nothing, and so each query's share of a layer may be without
    assert unreached == []
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())

    views = ["identity", "rot90@1.3"]
    found = predicted(settings, data, tmp_path / "fresh.pth", views)
    assert found.sources == ["m/0/identity", "m/0/rot90@1.3"] and set(found.source) == {0, 1}
    valid(found, data)
    in_one_batch_as_alone(settings, data, tmp_path / "fresh.pth")


@pytest.mark.parametrize("name", ["seq2seg-instances_cpu", "unet-semantic_cpu"])
def test_a_step_of_the_optimizer_makes_the_loss_smaller(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = mmdet.build(settings_of(name), 2).train()
    batch = network.data_preprocessor(batch_of(drawn(tmp_path)), training=True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        total, _ = network.parse_losses(network(**batch, mode="loss"))
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]


def test_an_image_without_objects(tmp_path: Path) -> None:
    data = drawn(tmp_path)
    bare = Dataset(data.images, data.categories, [], tmp_path)
    for name in ("seq2seg-instances_cpu", "unet-hungarian_cpu", "unet-semantic_cpu"):
        network = mmdet.build(settings_of(name), 2).train()
        batch = network.data_preprocessor(batch_of(bare), training=True)
        losses = network(**batch, mode="loss")
        assert all(torch.isfinite(value) for value in losses.values())
        assert ("loss_class" not in losses) or (losses["loss_mask"] == 0 and losses["loss_class"] > 0)


class Told(torch.nn.Module):
    """A network that answers what it is told."""

    def __init__(self, *answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> object:
        answer = tuple(part.expand(len(images), *part.shape) for part in self.answer)
        return answer if len(answer) > 1 else answer[0]


def shown(name: str, network: Told, size: tuple[int, int], **limits: float) -> SimpleNamespace:
    """What the detector makes of an answer for one image of a size, padded to 32x32."""
    detector = mmdet.build(settings_of(name), 2).eval()
    detector.network = network
    chosen = PredictSettings(**{"score_threshold": 0.0, **limits})  # type: ignore[arg-type]
    mmdet._set_limits(detector, chosen)
    with torch.no_grad():
        (sample,) = detector.predict(torch.zeros(1, 3, 32, 32), [mmdet._data_sample(size)])
    return sample.pred_instances


def test_queries_become_instances() -> None:
    classes = torch.log(torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4], [0.04, 0.05, 0.91]]))
    masks = torch.randn(3, 32, 32)
    found = shown("seq2seg-instances_cpu", Told(classes, masks), (30, 20))
    assert found.scores.tolist() == pytest.approx([0.7, 0.5, 0.05]) and found.labels.tolist() == [1, 0, 1]
    assert torch.equal(found.masks, masks.sigmoid()[:, :30, :20])  # not what lies in the padding
    few = shown("seq2seg-instances_cpu", Told(classes, masks), (30, 20), max_detections=1)
    assert few.labels.tolist() == [1] and few.masks.shape == (1, 30, 20)
    sure = shown("seq2seg-instances_cpu", Told(classes, masks), (30, 20), score_threshold=0.3)
    assert sure.labels.tolist() == [1, 0]
    none = shown("seq2seg-instances_cpu", Told(classes, masks), (30, 20), score_threshold=0.9)
    assert none.masks.shape == (0, 30, 20) and none.bboxes.shape == (0, 4)


def test_class_maps_become_instances() -> None:
    maps = torch.full((2, 32, 32), -4.0)
    maps[0, 2:10, 2:10], maps[0, 2:10, 14:18] = 2, 1
    maps[1, 20:32, 12:32] = 3
    found = shown("unet-semantic_cpu", Told(maps), (30, 20))
    assert found.labels.tolist() == [1, 0, 0]  # the most certain first
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 2.0, 1.0]).sigmoid().tolist())
    assert found.masks.shape == (3, 30, 20) and found.masks.sum(dim=(1, 2)).tolist() == [10 * 8, 64, 32]
    assert len(shown("unet-semantic_cpu", Told(maps), (30, 20), max_detections=2).scores) == 2


def test_class_maps_are_learnt_class_by_class(tmp_path: Path) -> None:
    """Binary cross-entropy with, for each class, the union of its instances."""
    data = drawn(tmp_path)
    detector = mmdet.build(settings_of("unet-semantic_cpu"), 2).train()
    batch = detector.data_preprocessor(batch_of(data), training=True)
    logits = torch.randn(2, 64, 64)
    detector.network = Told(logits)
    loss = detector(**batch, mode="loss")["loss_mask"]
    expected = 0.0
    for sample in batch["data_samples"]:
        truth = np.zeros((2, 64, 64), np.float32)
        for label, mask in zip(sample.gt_instances.labels.tolist(), sample.gt_instances.masks.masks, strict=True):
            truth[label] = np.maximum(truth[label], mask)
        assert truth.any()
        p = logits.sigmoid().numpy()
        expected -= (truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean() / 2
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)


def test_the_truth_of_smaller_images_is_padded(tmp_path: Path) -> None:
    """Images of two sizes in one batch, each with its objects where they were."""
    data = drawn(tmp_path)
    small, large = (Samples(data, TrainSettings(crop=crop), 0, 1)[0] for crop in (48, 64))
    detector = mmdet.build(settings_of("seq2seg-instances_cpu"), 2).train()
    batch = detector.data_preprocessor(mmdet.collate([small, large]), training=True)
    assert batch["inputs"].shape == (2, 3, 64, 64)
    labels, masks = truth(batch["data_samples"][0], torch.Size([64, 64]), torch.device("cpu"))
    assert masks.shape == (len(labels), 64, 64)
    assert np.array_equal(masks[:, :48, :48].numpy(), small.masks.bitmaps())
    assert not masks[:, 48:].any() and not masks[:, :, 48:].any()
    assert torch.isfinite(sum(detector(**batch, mode="loss").values()))


def test_a_probability_arrives_in_the_detections(tmp_path: Path) -> None:
    """The foreground of what was found is the network's own at one half."""
    data = drawn(tmp_path, 91, 73)
    settings = settings_of("seq2seg-instances_cpu")
    torch.manual_seed(0)
    network = mmdet.build(settings, 2)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "fresh.pth")
    found: Detections = predicted(settings, data, tmp_path / "fresh.pth", ["identity"])
    engine.load_weights(network, tmp_path / "fresh.pth")
    mmdet._set_limits(network, PredictSettings(score_threshold=0.0, max_detections=20))
    image = data.images[0]
    pixels = bgr_tensor(read_image(data.path(image)))
    with torch.no_grad():
        batch = {"inputs": [pixels], "data_samples": [mmdet._data_sample(pixels.shape[1:])]}
        plain = network.eval().test_step(batch)[0].pred_instances
    own = found.take(found.image_id == image.id)
    assert len(own) == len(plain.scores) == 6
    for i, mask in zip(np.argsort(-own.score, kind="stable"), plain.masks, strict=True):
        frame = np.zeros((image.height, image.width), bool)
        x0, y0, x1, y1 = own.mask_box[i]
        frame[y0:y1, x0:x1] = own.crop(i) >= FOREGROUND
        assert (frame != (mask > 0.5).numpy()).mean() < 1e-3
