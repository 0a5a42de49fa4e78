"""Detectron2 behind the backend protocol. Its networks are trained by the same loop as MMDetection's."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from mmengine.model import BaseModel, revert_sync_batchnorm
from torch import nn

from pipeline.backends import PredictJob, TrainJob, catalog, engine, inference, not_loadable
from pipeline.backends.checkpoints import without_code
from pipeline.backends.found import Found, Thresholded
from pipeline.backends.instance_crops import InstanceCrops
from pipeline.backends.samples import Sample, bgr_tensor
from pipeline.experiment import ExperimentError, ModelSettings, PredictSettings, nearest
from pipeline.records import Detections, Image

log = logging.getLogger("pipeline.detectron2")

ZOO = "model_zoo://"
"""A config may begin with ``_BASE_: model_zoo://COCO-InstanceSegmentation/…yaml``: a config of the installed package."""

IMPORTS = "IMPORTS"
"""A config may list modules under this key; importing them registers parts of networks that Detectron2 does not have. A
module's `add_settings(config)` adds the keys that it reads, and leaves them where they are there already."""


# ---------------------------------------------------------------- the network -----------------------------------------


def read_config(model: ModelSettings, classes: int, settings: PredictSettings | None = None) -> CfgNode:
    """The model's config with its options merged, the number of classes set, and prediction limits where given.

    Raises:
        ExperimentError: the file is missing, or holds a key that Detectron2 does not know.
    """
    path = catalog.locate(model.config)
    config = get_cfg()
    _add_project_settings(config)
    try:
        _merge(config, path)
    except (KeyError, ValueError, AssertionError, ImportError, OSError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path} is not a Detectron2 config: {type(error).__name__}: {error}") from error
    for key, value in model.options.items():
        try:
            config.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            hint = nearest(key, list(_keys(config)))
            raise ExperimentError(f"options of {model.config}: {key}: {value!r} does not fit{hint}: {error}") from error
    config.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    config.MODEL.ROI_HEADS.NUM_CLASSES = classes
    if "POINT_HEAD" in config.MODEL:
        config.MODEL.POINT_HEAD.NUM_CLASSES = classes
    if settings is not None:
        config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = settings.score_threshold
        config.TEST.DETECTIONS_PER_IMAGE = settings.max_detections
        rpn = config.MODEL.RPN
        rpn.POST_NMS_TOPK_TEST = max(rpn.POST_NMS_TOPK_TEST, settings.max_detections)
        rpn.PRE_NMS_TOPK_TEST = max(rpn.PRE_NMS_TOPK_TEST, settings.max_detections)
    return config


def _keys(node: CfgNode, above: str = "") -> Iterator[str]:
    """The dotted names of a config's values."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _add_project_settings(config: CfgNode) -> None:
    from detectron2.projects.point_rend import add_pointrend_config

    add_pointrend_config(config)


def _merge(config: CfgNode, path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("the file holds no settings")
    for module in content.pop(IMPORTS, []):
        add_settings = getattr(importlib.import_module(module), "add_settings", None)
        if add_settings is not None:
            add_settings(config)
    base = content.pop("_BASE_", None)
    if base is not None and str(base).startswith(ZOO):
        config.merge_from_file(model_zoo.get_config_file(str(base).removeprefix(ZOO)))
    elif base is not None:
        _merge(config, (path.parent / str(base)).resolve())
    config.merge_from_other_cfg(CfgNode(content))


def _forget_weights(node: CfgNode) -> None:
    """No part of the network fetches a file of its own."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _forget_weights(value)
        elif key == "WEIGHTS":
            node[key] = ""


def build(model: ModelSettings, classes: int, settings: PredictSettings | None = None) -> nn.Module:
    """The network with its first weights (see `ModelSettings.weights`).

    Raises:
        ExperimentError: the config is none, names a part that is not registered, or its network finds boxes only.
    """
    config = read_config(model, classes, settings)
    if model.weights != "config":
        _forget_weights(config)
    try:
        network: nn.Module = build_model(config)
    except OSError as error:
        raise not_loadable(f"of a part of the network, named in {model.config},", error) from error
    except KeyError as error:  # of a registry
        raise ExperimentError(f"{model.config} with the options {model.options} builds no network: {error}") from error
    if not any("mask" in name for name, _ in network.named_modules()):
        raise ExperimentError(f"{model.config}: {type(network).__name__} finds boxes only, and masks are wanted")
    network = revert_sync_batchnorm(network)  # one device has nobody to average with, and a CPU refuses to try
    for part in network.modules():
        if isinstance(part, DeformConv | ModulatedDeformConv):
            part.register_forward_pre_hook(_in_full_precision)
    source = config.MODEL.WEIGHTS if model.weights == "config" else model.weights
    if source:
        try:
            with without_code():
                DetectionCheckpointer(network).load(catalog.weights_source(str(source)))
        except Exception as error:  # noqa: BLE001  network, disk and format errors alike
            raise not_loadable(source, error) from error
    return network


def _in_full_precision(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Detectron2's deformable kernels want one type, know nothing of autocast, and their weights are float32."""
    return tuple(value.float() if torch.is_tensor(value) else value for value in inputs)


class Trained(BaseModel):  # type: ignore[misc]
    """A Detectron2 network as MMEngine's training loop wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def init_weights(self) -> None:
        """Detectron2 has drawn or loaded the weights already."""

    def forward(self, batched_inputs: list[dict[str, Any]], mode: str = "loss") -> dict[str, torch.Tensor]:
        with EventStorage():
            losses: dict[str, torch.Tensor] = self.network(batched_inputs)
        return losses


# ---------------------------------------------------------------- training --------------------------------------------


class CropMasks(BitMasks):
    """True masks as Detectron2 asks for them, held as crops; bitmaps appear only for networks that sample points."""

    def __init__(self, crops: InstanceCrops, which: np.ndarray | None = None, device: Any = "cpu") -> None:
        self.instances = crops
        self.which = np.arange(len(crops)) if which is None else which
        self.bitmaps_on = torch.device(device)
        self.image_size = (crops.height, crops.width)

    @property
    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.instances.take(self.which).bitmaps()).bool().to(self.bitmaps_on)

    @property
    def device(self) -> torch.device:
        return self.bitmaps_on

    def to(self, *args: Any, **kwargs: Any) -> CropMasks:
        device = kwargs.get("device", args[0] if args else self.bitmaps_on)
        return CropMasks(self.instances, self.which, device)

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, item: Any) -> CropMasks:
        item = item.cpu().numpy() if torch.is_tensor(item) else item
        return CropMasks(self.instances, np.atleast_1d(self.which[item]), self.bitmaps_on)

    def nonempty(self) -> torch.Tensor:
        return torch.from_numpy(self.instances.area()[self.which] > 0)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        targets = self.instances.roi_align(boxes.detach().cpu().numpy(), self.which, mask_size)
        return torch.from_numpy(targets >= 0.5).to(boxes.device)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Samples as Detectron2's batch: images as (3, H, W) uint8 in BGR, its configs' channel order."""
    batch = []
    for sample in samples:
        instances = Instances(sample.image.shape[:2])
        instances.gt_boxes = Boxes(torch.from_numpy(sample.boxes))
        instances.gt_classes = torch.from_numpy(sample.labels)
        instances.gt_masks = CropMasks(sample.masks)
        batch.append({"image": bgr_tensor(sample.image), "instances": instances})
    return {"batched_inputs": batch}


def _full(result: Instances, thresholded: Thresholded) -> Found:
    """What a network with masks of its whole input gives; boxes are optional there."""
    masks, threshold = thresholded.behind(result.pred_masks)
    boxes = result.pred_boxes.tensor if result.has("pred_boxes") else torch.zeros(len(result), 4)
    return Found(boxes, result.scores, result.pred_classes, masks, True, threshold)


class Detectron2:
    """See `pipeline.backends.Backend`."""

    def train(self, job: TrainJob) -> dict[str, Any]:
        torch.manual_seed(job.seed)
        network = build(job.model, len(job.images.categories))
        deformable = any(isinstance(part, DeformConv | ModulatedDeformConv) for part in network.modules())
        if deformable and not torch.cuda.is_available():
            raise ExperimentError(
                f"{job.model.config} has deformable convolutions, which Detectron2 trains on a GPU only; here its variant whose "
                "name ends in _cpu does, or options: {MODEL.RESNETS.DEFORM_ON_PER_STAGE: [false, false, false, false]}"
            )
        state = engine.run(Trained(network), collate, job)
        return {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}

    def predict(self, job: PredictJob) -> Iterator[tuple[Image, Detections]]:
        model = job.model.model_copy(update={"weights": None})
        network = build(model, len(job.images.categories), job.settings)
        engine.load_weights(network, job.checkpoint)
        network.eval()

        def look(images: list[torch.Tensor]) -> list[Found]:
            batch = [{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images]
            if isinstance(network, GeneralizedRCNN):
                results = network.inference(batch, do_postprocess=False)
                return [Found(r.pred_boxes.tensor, r.scores, r.pred_classes, r.pred_masks[:, 0]) for r in results]
            with Thresholded() as thresholded:
                results = [answer["instances"] for answer in network(batch)]
            return [_full(result, thresholded) for result in results]

        yield from inference.predict(job, look)


BACKEND = Detectron2()
