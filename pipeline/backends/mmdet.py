"""MMDetection (the OneDL forks) behind the backend protocol."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BaseInstanceMasks, BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import CheckpointLoader, load_state_dict
from mmengine.structures import InstanceData
from torch import nn

from pipeline.backends import CheckpointError, PredictJob, TrainJob, catalog, engine, inference, not_loadable
from pipeline.backends.checkpoints import without_code
from pipeline.backends.found import Found, Thresholded
from pipeline.backends.instance_crops import InstanceCrops
from pipeline.backends.samples import Sample, bgr_tensor
from pipeline.experiment import ExperimentError, ModelSettings, PredictSettings
from pipeline.records import Detections, Image

log = logging.getLogger("pipeline.mmdet")

STRIDE = 32
"""What sides are padded to a multiple of where a network does not say: the coarsest of its feature maps."""


# ---------------------------------------------------------------- the network -----------------------------------------


def read_config(model: ModelSettings, classes: int) -> Config:
    """The model's config with its options merged, and every head told the number of classes.

    Raises:
        ExperimentError: the file is missing or is not an MMDetection config.
    """
    path = catalog.locate(model.config)
    # it prints and warns of the data sets and metrics that it does without, and none of its own are used
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True):
        register_all_modules(init_default_scope=True)
    try:
        config = Config.fromfile(path)
    except Exception as error:  # noqa: BLE001  a config is Python: anything can go wrong in it
        raise ExperimentError(f"{path} is not an MMDetection config: {type(error).__name__}: {error}") from error
    if "model" not in config:
        raise ExperimentError(f"{path} defines no `model`")
    config.merge_from_dict(model.options)
    _set_classes(config.model, classes)
    return config


def _set_classes(node: Any, classes: int) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("num_classes", "num_things_classes"):
                node[key] = classes
            elif key == "num_stuff_classes":
                node[key] = 0
            elif key == "class_weight" and isinstance(value, (list, tuple)) and value:  # the last is the background's
                node[key] = [value[0]] * classes + [value[-1]]
            elif key != "semantic_head":  # stuff classes are not the competition's
                _set_classes(value, classes)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _set_classes(item, classes)


def _forget_pretrained(node: Any, keep_timm: bool = False) -> None:
    """Random weights: no part of the network fetches a file of its own, but those of timm where `keep_timm` is set."""
    if isinstance(node, dict):
        init = node.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            node["init_cfg"] = None
        if node.get("pretrained") and not (keep_timm and "timm" in node):
            node["pretrained"] = None
        for value in node.values():
            _forget_pretrained(value, keep_timm)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _forget_pretrained(item, keep_timm)


def build(model: ModelSettings, classes: int) -> nn.Module:
    """The network as the config describes it, on the CPU, with its first weights (see `ModelSettings.weights`).

    Raises:
        ExperimentError: the config is none, its network finds boxes only, or its options do not fit it.
    """
    config = read_config(model, classes)
    source = config.get("load_from") if model.weights == "config" else model.weights
    if source or model.weights != "config":  # whole weights make the backbone's own superfluous
        # a config's own weights come from the framework, so they have none for a network of timm in the backbone's place
        _forget_pretrained(config.model, keep_timm=model.weights == "config")
    MMLogger.get_current_instance().setLevel("ERROR")  # it lists every parameter's first value otherwise
    try:
        network: nn.Module = MODELS.build(config.model)
    except (TypeError, KeyError) as error:
        if not model.options:
            raise
        raise ExperimentError(f"{model.config} with the options {model.options} builds no network: {error}") from error
    if not any(hasattr(module, "loss_mask") for module in network.modules()):  # what finds masks has learnt them
        raise ExperimentError(f"{model.config}: {type(network).__name__} finds boxes only, and masks are wanted")
    preprocessor: Any = network.data_preprocessor
    if getattr(preprocessor, "pad_size_divisor", 0) == 1:  # such networks leave it to their own loaders to pad
        preprocessor.pad_size_divisor = STRIDE
    network = revert_sync_batchnorm(network)  # one device has nobody to average with, and a CPU refuses to try
    try:
        with without_code():
            network.init_weights()  # type: ignore[operator]
    except (OSError, pickle.UnpicklingError) as error:
        raise not_loadable(f"of a part of the network, named in {model.config},", error) from error
    if source:
        _load_pretrained(network, catalog.weights_source(str(source)))
    return network


def _load_pretrained(network: nn.Module, source: str) -> None:
    try:
        with without_code():
            content = CheckpointLoader.load_checkpoint(source, map_location="cpu")
    except Exception as error:  # noqa: BLE001  network, disk and format errors alike
        raise not_loadable(source, error) from error
    state = content.get("state_dict", content)
    own = network.state_dict()
    # heads of another number of classes keep their fresh weights
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise CheckpointError(f"no weight of {source} fits this model; it belongs to another one")
    log.info("%s: %d of %d weights taken", source, len(fitting), len(own))
    load_state_dict(network, fitting, strict=False)


# ---------------------------------------------------------------- training --------------------------------------------


class CropMasks(BitmapMasks):  # type: ignore[misc]
    """True masks as MMDetection asks for them, held as crops.

    RoI heads only ever call `crop_and_resize`, which needs no bitmap; the bitmaps appear for networks that want them.
    """

    def __init__(self, crops: InstanceCrops) -> None:
        self.instances = crops
        self.height, self.width = crops.height, crops.width

    @property
    def masks(self) -> np.ndarray:
        return self.instances.bitmaps()

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: Any) -> CropMasks:
        index = index.cpu().numpy() if torch.is_tensor(index) else np.asarray(index)
        return CropMasks(self.instances.take(np.atleast_1d(index)))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    @property
    def areas(self) -> np.ndarray:
        return self.instances.area()

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> CropMasks:
        crops = self.instances
        return CropMasks(InstanceCrops(crops.box, crops.crops, out_shape[0], out_shape[1]))

    def crop_and_resize(
        self,
        bboxes: np.ndarray,
        out_shape: tuple[int, int],
        inds: np.ndarray,
        device: str = "cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> BaseInstanceMasks:
        targets = self.instances.roi_align(bboxes, inds, out_shape[0])
        return BitmapMasks((targets >= 0.5).astype(np.uint8) if binarize else targets, *out_shape)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Samples as MMDetection's batch: images as (3, H, W) uint8 in BGR, its configs' channel order."""
    inputs, data_samples = [], []
    for sample in samples:
        inputs.append(bgr_tensor(sample.image))
        instances = InstanceData(
            bboxes=torch.from_numpy(sample.boxes),
            labels=torch.from_numpy(sample.labels),
            masks=CropMasks(sample.masks),
        )
        data_samples.append(_data_sample(sample.image.shape[:2], instances))
    return {"inputs": inputs, "data_samples": data_samples}


def _data_sample(size: tuple[int, ...], instances: InstanceData | None = None) -> DetDataSample:
    sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0), "img_id": 0})
    if instances is not None:
        sample.gt_instances = instances
        # MMDetection reads the regions to ignore where it exists; crowds are left out of samples
        sample.ignored_instances = InstanceData(bboxes=torch.zeros((0, 4)), labels=torch.zeros(0, dtype=torch.int64))
    return sample


# ---------------------------------------------------------------- inference -------------------------------------------


def _keep_roi_masks(
    self: Any,
    mask_preds: tuple[torch.Tensor, ...],
    results_list: list[InstanceData],
    batch_img_metas: list[dict[str, Any]],
    rcnn_test_cfg: Any,
    rescale: bool = False,
    activate_map: bool = False,
) -> list[InstanceData]:
    """Stands in for a mask head's `predict_by_feat`: keeps the (N, M, M) probabilities instead of pasting full frames."""
    for predicted, results in zip(mask_preds, results_list, strict=True):
        masks = predicted if activate_map else predicted.sigmoid()
        if not self.class_agnostic and masks.shape[1] > 1:
            masks = masks[torch.arange(len(masks), device=masks.device), results.labels]
        else:
            masks = masks[:, 0]
        results.masks = masks
    return results_list


def _keep_query_masks(self: Any, mask_cls: torch.Tensor, mask_pred: torch.Tensor) -> InstanceData:
    """Stands in for the `instance_postprocess` of MaskFormer's kin: keeps probabilities, one map for each query.

    The same numbers, but the framework copies a query's map for every class among the best; here the copies are views.

    Args:
        mask_cls: (Q, C + 1) class logits. mask_pred: (Q, H, W) mask logits.
    """
    scores = mask_cls.softmax(dim=-1)[:, :-1]
    best, flat = scores.flatten().topk(min(self.test_cfg.max_per_image, scores.numel()))
    queries, labels = flat // scores.shape[1], flat % scores.shape[1]
    probabilities = [logits.sigmoid() for logits in mask_pred]
    certainty = torch.stack([(p * (p > 0.5)).sum() / ((p > 0.5).sum() + 1e-6) for p in probabilities])
    results = InstanceData()
    results.scores = best * certainty[queries]
    results.labels = labels
    results.bboxes = mask_pred.new_zeros(len(best), 4)
    results.masks = [probabilities[query] for query in queries.tolist()]
    return results


def _prepare_for_inference(network: nn.Module, settings: PredictSettings) -> None:
    """Apply the prediction limits, which frameworks set to 100 detections, and ask for probabilities instead of frames."""
    _set_limits(network, settings)
    roi_head = getattr(network, "roi_head", None)
    heads = getattr(roi_head, "mask_head", None)
    for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
        if head is not None:
            head.predict_by_feat = types.MethodType(_keep_roi_masks, head)
    scoring = getattr(roi_head, "mask_iou_head", None)
    if scoring is not None:
        plain = scoring.predict_by_feat
        # a regression has no bounds: untrained it multiplies scores by less than nothing, trained by more than one
        scoring.predict_by_feat = lambda mask_iou_preds, results_list: plain(
            mask_iou_preds=[iou.clamp(0, 1) for iou in mask_iou_preds], results_list=results_list
        )
    fusion = getattr(network, "panoptic_fusion_head", None)
    if fusion is not None:
        fusion.instance_postprocess = types.MethodType(_keep_query_masks, fusion)


def _set_limits(network: nn.Module, settings: PredictSettings) -> None:
    # networks with a fixed number of queries must hand out as many candidates as they have, and the best are taken later
    queries = [getattr(module, "num_proposals", 0) for module in network.modules()]
    seen: set[int] = set()
    for module in network.modules():
        for name in ("test_cfg", "proposal_cfg"):
            config = getattr(module, name, None)
            if isinstance(config, dict) and id(config) not in seen:
                seen.add(id(config))
                _limit(config, settings, max(queries))


def _limit(config: Any, settings: PredictSettings, queries: int) -> None:
    proposals = "score_thr" not in config and not queries
    for key, value in config.items():
        if isinstance(value, dict):
            _limit(value, settings, queries)
        elif key in ("score_thr", "filter_thr"):  # the second is SOLO's, of the scores after its suppression
            config[key] = settings.score_threshold
        elif key == "max_per_image":
            config[key] = settings.max_detections
        elif key == "max_per_img" and queries:
            config[key] = queries
        elif key == "max_per_img":
            config[key] = max(value, settings.max_detections) if proposals else settings.max_detections
        elif key == "nms_pre":
            config[key] = max(value, settings.max_detections)
    if "instance_on" in config:
        config.update(instance_on=True, panoptic_on=False, semantic_on=False)


def _best(result: InstanceData, most: int) -> InstanceData:
    """At most so many; a network's own limit does not hold where it has a fixed number of queries."""
    return result if len(result) <= most else result[result.scores.topk(most).indices]


def _found(result: InstanceData, thresholded: Thresholded, full: bool) -> Found:
    masks, threshold = thresholded.behind(result.masks)
    return Found(result.bboxes, result.scores, result.labels.long(), masks, full, threshold)


class MMDetection:
    """See `pipeline.backends.Backend`."""

    def train(self, job: TrainJob) -> dict[str, Any]:
        torch.manual_seed(job.seed)
        network = build(job.model, len(job.images.categories))
        # the runner would draw the weights again, over the pretrained ones
        network.init_weights = lambda: None  # type: ignore[assignment,method-assign]
        return engine.run(network, collate, job, scope="mmdet")

    def predict(self, job: PredictJob) -> Iterator[tuple[Image, Detections]]:
        model = job.model.model_copy(update={"weights": None})
        network = build(model, len(job.images.categories))
        engine.load_weights(network, job.checkpoint)
        _prepare_for_inference(network, job.settings)
        network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

        def look(images: list[torch.Tensor]) -> list[Found]:
            batch = {"inputs": images, "data_samples": [_data_sample(image.shape[1:]) for image in images]}
            with Thresholded() as thresholded:
                answers = network.test_step(batch)  # type: ignore[operator]
            results = [_best(sample.pred_instances, job.settings.max_detections) for sample in answers]
            return [_found(result, thresholded, full) for result in results]

        full = not hasattr(network, "roi_head")
        yield from inference.predict(job, look)


BACKEND = MMDetection()
