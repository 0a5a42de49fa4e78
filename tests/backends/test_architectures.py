"""Networks of every kind, slim and with random weights: each builds, learns a step, and predicts valid Detections."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import backends
from pipeline.backends import PredictJob, engine
from pipeline.backends.samples import Samples, bgr_tensor, read_image
from pipeline.experiment import ModelSettings, PredictSettings, TrainSettings
from pipeline.masks import FOREGROUND
from pipeline.records import Dataset, Detections
from tests.backends.test_frameworks import SLIM, needs
from tests.backends.test_samples import drawn

R18 = "backbone=dict(depth=18, base_channels=16, stem_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None)"
NECK = "neck=dict(in_channels=[16, 32, 64, 128], out_channels=32"

MMDET = {
    "solo": f"""
_base_ = "mmdet::solo/solo_r50_fpn_1x_coco.py"
model = dict({R18}, {NECK}), mask_head=dict(
    in_channels=32, feat_channels=32, stacked_convs=1, num_grids=[8, 6, 5, 4, 3],
    scale_ranges=((1, 32), (16, 64), (32, 128), (64, 256), (128, 2048))))
""",
    "solov2": f"""
_base_ = "mmdet::solov2/solov2_r50_fpn_1x_coco.py"
model = dict({R18}, {NECK}), mask_head=dict(
    in_channels=32, feat_channels=32, stacked_convs=1, num_grids=[8, 6, 5, 4, 3],
    scale_ranges=((1, 32), (16, 64), (32, 128), (64, 256), (128, 2048)),
    mask_feature_head=dict(feat_channels=32, out_channels=32)))
""",
    "rtmdet-ins": """
_base_ = "mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py"
model = dict(backbone=dict(widen_factor=0.25, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256], out_channels=32), bbox_head=dict(in_channels=32, feat_channels=32))
""",
    "mask2former": f"""
_base_ = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
_attention = dict(embed_dims=32, num_heads=4)
model = dict({R18}, data_preprocessor=dict(batch_augments=None), panoptic_head=dict(
    in_channels=[16, 32, 64, 128], feat_channels=32, out_channels=32, num_queries=12,
    pixel_decoder=dict(
        encoder=dict(num_layers=1, layer_cfg=dict(
            self_attn_cfg=_attention, ffn_cfg=dict(embed_dims=32, feedforward_channels=64))),
        positional_encoding=dict(num_feats=16)),
    positional_encoding=dict(num_feats=16),
    transformer_decoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=_attention, cross_attn_cfg=_attention,
        ffn_cfg=dict(embed_dims=32, feedforward_channels=64)))),
    train_cfg=dict(num_points=256))
""",
    "point-rend": f"""
_base_ = "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py"
model = dict({R18}, {NECK}), rpn_head=dict(in_channels=32, feat_channels=32), roi_head=dict(
    bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=64),
    mask_roi_extractor=dict(out_channels=32), mask_head=dict(in_channels=32, conv_out_channels=32, fc_out_channels=64),
    point_head=dict(in_channels=32, fc_channels=32)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.01, subdivision_steps=2, subdivision_num_points=784)))
""",
}
"""Each from the config that MMDetection ships, at a width at which a test takes seconds."""


DETECTRON2 = {
    "point-rend": """
MODEL:
  FPN: {OUT_CHANNELS: 16}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 16}
  ROI_BOX_HEAD: {FC_DIM: 32}
  ROI_MASK_HEAD: {NAME: PointRendMaskHead, FC_DIM: 32, NUM_FC: 1, CONV_DIM: 16, POINT_HEAD_ON: true, POOLER_TYPE: ""}
  POINT_HEAD: {FC_DIM: 16, NUM_FC: 1, SUBDIVISION_STEPS: 2, SUBDIVISION_NUM_POINTS: 784}
""",
    "full-frame": "MODEL: {META_ARCHITECTURE: Blobs}",
}
"""On top of the project's slim Mask R-CNN."""

FULL = ("solo", "solov2", "rtmdet-ins", "mask2former")
"""Those whose masks are of the whole input."""


def written(name: str, folder: Path) -> ModelSettings:
    path = folder / f"{name}.py"
    path.write_text(MMDET[name])
    return ModelSettings(framework="mmdet", config=str(path))


def blob_network() -> None:
    """A Detectron2 architecture of another kind: logits of the whole input, thresholded, without boxes."""
    from detectron2.modeling import META_ARCH_REGISTRY
    from detectron2.structures import Instances

    if "Blobs" in META_ARCH_REGISTRY:
        return

    @META_ARCH_REGISTRY.register()
    class Blobs(torch.nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.mask_head = torch.nn.Conv2d(3, 4, 5, padding=2)

        def forward(self, batch: list[dict]) -> object:
            maps = [self.mask_head(one["image"][None].float() / 255 - 0.5)[0] for one in batch]
            if self.training:
                targets = [one["instances"].gt_masks.tensor.any(dim=0).float() for one in batch]
                pairs = zip(maps, targets, strict=True)
                loss = torch.nn.functional.binary_cross_entropy_with_logits
                return {"loss_mask": sum(loss(m, t.expand_as(m)) for m, t in pairs)}
            answers = []
            for logits in maps:
                result = Instances(tuple(logits.shape[1:]))
                result.pred_masks = logits.sigmoid() > 0.5
                result.scores = torch.full((4,), 0.5)
                result.pred_classes = torch.tensor([0, 1, 0, 1])
                answers.append({"instances": result})
            return answers


def valid(found: Detections, data: Dataset) -> None:
    assert set(found.category_id) <= set(data.categories)
    assert ((found.score >= 0) & (found.score <= 1)).all()
    for i in range(len(found)):
        image = data.image[int(found.image_id[i])]
        x0, y0, x1, y1 = found.mask_box[i]
        assert 0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height
        assert found.crop(i).shape == (y1 - y0, x1 - x0)
    json = found.to_coco({i.id: (i.height, i.width) for i in data.images})
    assert len(json) == len(found)


@pytest.mark.parametrize("name", MMDET)
def test_a_network_of_mmdetection_learns_and_predicts(name: str, tmp_path: Path) -> None:
    needs("mmdet")
    from pipeline.backends import mmdet

    data = drawn(tmp_path, 91, 73)
    settings = written(name, tmp_path)
    torch.manual_seed(0)
    network = mmdet.build(settings, len(data.categories))
    with torch.no_grad():  # SOLO starts from masks that are empty, which would show nothing
        for part, weight in network.named_parameters():
            if "conv_mask_list" in part:
                weight.copy_(torch.randn_like(weight))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "fresh.pth")

    samples = Samples(data, TrainSettings(crop=64), 0, 2)
    network.train()
    batch = network.data_preprocessor(mmdet.collate([samples[0], samples[1]]), training=True)
    losses = network(**batch, mode="loss")
    total, _ = network.parse_losses(losses)
    total.backward()
    assert math.isfinite(total.item()) and total.item() > 0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

    views = ["identity", "rot90@1.3"]
    found = predicted(settings, data, tmp_path / "fresh.pth", views)
    assert found.sources == ["m/0/identity", "m/0/rot90@1.3"] and set(found.source) == {0, 1}
    valid(found, data)
    if name in FULL:
        engine.load_weights(network, tmp_path / "fresh.pth")  # the step has moved the means of its normalisation
        predicting = PredictSettings(score_threshold=0.0, max_detections=20)
        as_the_network_itself(network, predicting, data, found.take(found.source == 0))
    assert np.isin(found.pixels, (0, 255)).mean() < 0.9  # probabilities, and not only yes and no
    if name in ("mask2former", "point-rend"):
        in_one_batch_as_alone(settings, data, tmp_path / "fresh.pth")


def as_the_network_itself(
    network: torch.nn.Module, settings: PredictSettings, data: Dataset, found: Detections
) -> None:
    """The foreground of what was found is, pixel by pixel, the masks that the untouched network hands out."""
    from pipeline.backends import mmdet

    mmdet._set_limits(network, settings)
    network.eval()
    for image in data.images:
        pixels = bgr_tensor(read_image(data.path(image)))
        with torch.inference_mode():
            batch = {"inputs": [pixels], "data_samples": [mmdet._data_sample(pixels.shape[1:])]}
            plain = network.test_step(batch)[0].pred_instances
        theirs = [
            (round(float(score), 5), int(label) + 1, mask.numpy())
            for score, label, mask in zip(plain.scores, plain.labels, plain.masks, strict=True)
            if mask.any()
        ]
        mine = found.take(found.image_id == image.id)
        frames = np.zeros((len(mine), image.height, image.width), bool)
        for i, (x0, y0, x1, y1) in enumerate(mine.mask_box):
            frames[i, y0:y1, x0:x1] = mine.crop(i) >= FOREGROUND
        ours = [(round(float(mine.score[i]), 5), int(mine.category_id[i]), frames[i]) for i in range(len(mine))]
        key = lambda row: (*row[:2], row[2].sum())  # noqa: E731
        assert len(ours) == len(theirs)
        for a, b in zip(sorted(ours, key=key), sorted(theirs, key=key), strict=True):
            assert a[:2] == b[:2]
            assert (a[2] != b[2]).mean() < 1e-3  # a probability of one half to rounding may fall either way


def test_what_a_network_thinks_of_its_masks_changes_their_scores(tmp_path: Path) -> None:
    """Mask Scoring R-CNN: a detection's score is its class score times the overlap that its mask is believed to have."""
    needs("mmdet")
    from pipeline.backends import mmdet

    data = drawn(tmp_path, 97, 75).subset([5])
    settings = ModelSettings(framework="mmdet", config="mmdet/ms-rcnn_x101_cpu")
    torch.manual_seed(0)
    network = mmdet.build(settings, len(data.categories))
    believed = network.roi_head.mask_iou_head.fc_mask_iou

    def scored(red: float, green: float) -> Detections:
        with torch.no_grad():
            believed.weight.zero_()
            believed.bias.copy_(torch.tensor([red, green]))
        torch.save({"state_dict": network.state_dict()}, tmp_path / "fresh.pth")
        return predicted(settings, data, tmp_path / "fresh.pth", ["identity"])

    plain = scored(1.0, 1.0)
    assert len(plain) and plain.score.min() > 0
    for red, green in ((0.5, 0.25), (7.0, -3.0), (-3.0, 7.0)):
        found = scored(red, green)
        factors = np.clip([red, green], 0, 1)  # an overlap is a fraction, whatever a regression says
        np.testing.assert_array_equal(found.box, plain.box)
        np.testing.assert_allclose(found.score, plain.score * factors[plain.category_id - 1], rtol=1e-6)


@pytest.mark.parametrize("name", DETECTRON2)
def test_a_network_of_detectron2_learns_and_predicts(name: str, tmp_path: Path) -> None:
    needs("detectron2")
    from pipeline.backends import detectron2

    blob_network()
    data = drawn(tmp_path, 91, 73)
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"_BASE_: {SLIM['detectron2']}\n{DETECTRON2[name]}")
    settings = ModelSettings(framework="detectron2", config=str(path))
    torch.manual_seed(0)
    network = detectron2.build(settings, len(data.categories))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "fresh.pth")

    samples = Samples(data, TrainSettings(crop=64), 0, 2)
    losses = detectron2.Trained(network.train())(**detectron2.collate([samples[0], samples[1]]))
    total = sum(losses.values())
    total.backward()
    assert math.isfinite(total.item()) and total.item() > 0

    views = ["identity", "rot90@1.3"]
    found = predicted(settings, data, tmp_path / "fresh.pth", views)
    assert set(found.source) == {0, 1} and np.isin(found.pixels, (0, 255)).mean() < 0.9
    valid(found, data)
    in_one_batch_as_alone(settings, data, tmp_path / "fresh.pth")


def predicted(settings: ModelSettings, data: Dataset, checkpoint: Path, views: list[str], batch: int = 1) -> Detections:
    predicting = PredictSettings(views=views, score_threshold=0.0, max_detections=20, batch=batch)
    job = PredictJob(settings, predicting, views, checkpoint, data, "m/0")
    return Detections.concatenate([table for _, table in backends.get(settings.framework).predict(job)])


def in_one_batch_as_alone(settings: ModelSettings, data: Dataset, checkpoint: Path) -> None:
    """Views of one size, together and one by one: the same detections, up to the rounding of floats."""
    views = ["identity", "hflip", "vflip"]
    alone, together = (predicted(settings, data, checkpoint, views, batch) for batch in (1, 3))
    assert len(alone) == len(together) > 0
    np.testing.assert_array_equal(alone.source, together.source)
    np.testing.assert_allclose(alone.score, together.score, atol=1e-4)
    np.testing.assert_allclose(alone.box, together.box, atol=0.1)
    sizes = {image.id: (image.height, image.width) for image in data.images}
    # The values and not the outlines, which untrained are one half to rounding in places. For the same reason PointRend
    # refines every point here: which it holds for the most uncertain would hang on the last bit of their values.
    for i in range(len(alone)):
        frames = [np.zeros(sizes[int(alone.image_id[i])]) for _ in range(2)]
        for frame, table in zip(frames, (alone, together), strict=True):
            x0, y0, x1, y1 = table.mask_box[i]
            frame[y0:y1, x0:x1] = table.crop(i)
        assert np.abs(frames[0] - frames[1]).mean() < 0.05
