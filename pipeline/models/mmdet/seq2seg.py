"""Seq2Seg and U-Net as MMDetection's detectors: by object queries, and by maps of classes."""

from __future__ import annotations

from typing import Any, get_args

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from pipeline.models.class_maps import Split, instances
from pipeline.models.hungarian import HungarianLoss
from pipeline.models.seq2seg import QuerySeq2Seg, Seq2Seg
from pipeline.models.unet import HungarianUNet, UNet

for network in (Seq2Seg, QuerySeq2Seg, UNet, HungarianUNet):
    MODELS.register_module(module=network)


class Segmentor(BaseDetector):  # type: ignore[misc]
    """A plain network from pixels to pixels.

    Args:
        network: config of the network.
        test_cfg: what is kept of a prediction: ``score_thr``, ``max_per_img``.
    """

    def __init__(
        self,
        network: dict[str, Any],
        test_cfg: dict[str, Any],
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.network: nn.Module = MODELS.build(network)
        self.test_cfg = test_cfg

    def extract_feat(self, batch_inputs: torch.Tensor) -> Any:
        return self.network(batch_inputs)

    def _forward(self, batch_inputs: torch.Tensor, batch_data_samples: Any = None) -> Any:
        return self.network(batch_inputs)

    def results(
        self,
        masks: torch.Tensor,
        scores: torch.Tensor,
        labels: torch.Tensor,
        sample: DetDataSample,
        threshold: float | None = None,
    ) -> DetDataSample:
        """The sample with its best detections; `masks` (N, H, W), probabilities, may reach into the batch's padding.
        With a threshold they are handed out as yes and no, and the pipeline finds the probabilities behind."""
        # a score at the threshold passes, as the pipeline counts it
        kept = torch.argsort(scores, descending=True, stable=True)[: self.test_cfg["max_per_img"]]
        kept = kept[scores[kept] >= self.test_cfg["score_thr"]]
        height, width = sample.img_shape[:2]
        masks = masks[kept][:, :height, :width]
        sample.pred_instances = InstanceData(
            bboxes=scores.new_zeros((len(kept), 4)),  # the mask's own
            scores=scores[kept],
            labels=labels[kept],
            masks=masks if threshold is None else masks > threshold,
        )
        return sample


def truth(sample: DetDataSample, size: torch.Size, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (T,) and masks (T, H, W) uint8 of an image, padded to the batch's size."""
    masks = sample.gt_instances.masks.pad(tuple(size)).masks
    return sample.gt_instances.labels.to(device), torch.from_numpy(masks).to(device)


@MODELS.register_module()
class QuerySegmentor(Segmentor):
    """Instances by object queries: a network that gives class logits (B, Q, C + 1) and mask logits (B, Q, H, W).

    Args:
        loss: arguments of `HungarianLoss`.
    """

    def __init__(self, loss: dict[str, Any], **more: Any) -> None:
        super().__init__(**more)
        self.loss_mask = HungarianLoss(**loss)

    def loss(self, batch_inputs: torch.Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, torch.Tensor]:
        class_logits, mask_logits = self.network(batch_inputs)
        truths = [truth(sample, mask_logits.shape[-2:], mask_logits.device) for sample in batch_data_samples]
        losses: dict[str, torch.Tensor] = self.loss_mask(
            class_logits, mask_logits, [labels for labels, _ in truths], [masks for _, masks in truths]
        )
        return losses

    def predict(self, batch_inputs: torch.Tensor, batch_data_samples: list[DetDataSample]) -> list[DetDataSample]:
        """A query's class is its most probable but "no object", whose probability is its score; masks are probabilities."""
        class_logits, mask_logits = self.network(batch_inputs)
        scores, labels = class_logits.softmax(dim=2)[..., :-1].max(dim=2)
        masks = mask_logits.sigmoid()
        return [self.results(*found) for found in zip(masks, scores, labels, batch_data_samples, strict=True)]


@MODELS.register_module()
class SemanticSegmentor(Segmentor):
    """Instances out of maps of classes: a network that gives logits (B, C, H, W), trained class by class.

    Args:
        test_cfg: also ``split``, ``threshold`` and ``least``, see `class_maps.instances`.

    Raises:
        ValueError: ``split`` is none that there is.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        if self.test_cfg["split"] not in get_args(Split):
            raise ValueError(
                f"test_cfg.split is {self.test_cfg['split']!r}; it must be one of {', '.join(get_args(Split))}"
            )
        self.loss_mask = nn.BCEWithLogitsLoss()

    def loss(self, batch_inputs: torch.Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, torch.Tensor]:
        logits = self.network(batch_inputs)
        maps = torch.zeros_like(logits)
        for own, sample in zip(maps, batch_data_samples, strict=True):
            labels, masks = truth(sample, logits.shape[-2:], logits.device)
            for label, mask in zip(labels.tolist(), masks, strict=True):
                own[label][mask > 0] = 1
        return {"loss_mask": self.loss_mask(logits, maps)}

    def predict(self, batch_inputs: torch.Tensor, batch_data_samples: list[DetDataSample]) -> list[DetDataSample]:
        settings = {key: self.test_cfg[key] for key in ("split", "threshold", "least")}
        results = []
        for maps, sample in zip(self.network(batch_inputs).sigmoid(), batch_data_samples, strict=True):
            height, width = sample.img_shape[:2]
            probabilities = maps[:, :height, :width].float().cpu().numpy()
            found = instances(probabilities, **settings, most=self.test_cfg["max_per_img"])
            masks, scores, labels = (torch.from_numpy(part).to(maps.device) for part in found)
            results.append(self.results(masks, scores, labels, sample, settings["threshold"]))
        return results
