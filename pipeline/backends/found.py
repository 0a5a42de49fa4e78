"""What a network finds in its input, and how that becomes Detections in the image it was shown.

There are two kinds of networks. Some give RoI masks, M x M probabilities over a box; others give full-frame masks, one for
each instance, as large as their input. Both become soft masks on crops, instance by instance.

How exact the way back from a full-frame mask is, without a change of scale:

* a binary mask up to `GRID_CAP` pixels a side comes back bit for bit;
* a probability within 1/510, the rounding to 255 steps, up to a margin around its foreground (see `frame_to_crop`);
* a mask with a longer side is sampled down to `GRID_CAP` cells by area: its outline moves by less than half a cell.

With a change of scale every mask is resampled once, from the network's own pixels to the cells that are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from pipeline.masks import paste_roi
from pipeline.records import GRID_CAP, Detections
from pipeline.views import View

MARGIN = 2
"""Pixels that are kept around the foreground of a full-frame probability at least; an eighth of its side if that is more."""


@dataclass
class Found:
    """What a network says about one image.

    Attributes:
        boxes: (N, 4) float x0, y0, x1, y1 in the pixels that the network was given; a box without area stands for the
            foreground's own.
        scores: (N,) in 0..1.
        labels: (N,) int64 class index 0..C-1.
        masks: RoI masks, (N, M, M) probabilities over the boxes; or, where `full`, N masks (H, W) of the network's input:
            bool, or float probabilities, on whatever device they are.
        full: whether the masks are of the whole input.
        threshold: of full masks, the probability above which the network itself counts a pixel to the object.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | Sequence[torch.Tensor]
    full: bool = False
    threshold: float = 0.5


def detections(
    view: View,
    image_id: int,
    size: tuple[int, int],
    found: Found,
    category_ids: np.ndarray,
    source: str,
    score_threshold: float = 0.0,
    cap: bool = True,
) -> Detections:
    """Detections in the image of which the network saw a view.

    Of RoI masks the view's scale is undone on the float boxes, and they are pasted at the image's own resolution; full
    masks are cropped and resampled once. The view's turn is undone exactly. Instances scored below `score_threshold` are
    left out, as are those without a pixel: of RoI masks, those that lie outside of the image.

    Args:
        size: (height, width) of the image.
        category_ids: (C,) the competition's id of each class index.
        cap: see `Detections.build`.
    """
    scores = found.scores.float().cpu().numpy()
    rows = np.flatnonzero(scores >= score_threshold)
    boxes = found.boxes.float().cpu().numpy().reshape(-1, 4)[rows]
    if found.full:
        mask_boxes, grids = _full_crops(view, size, found, rows, boxes, cap)
    else:
        assert isinstance(found.masks, torch.Tensor)
        masks = found.masks.float().cpu().numpy()
        boxes = view.unscale_boxes(boxes, *size)
        pasted = [paste_roi(masks[k], box, view.turned_size(*size)) for k, box in zip(rows, boxes, strict=True)]
        mask_boxes, grids = [box for box, _ in pasted], [grid for _, grid in pasted]
    kept = [k for k, grid in enumerate(grids) if grid.size]
    labels = found.labels.cpu().numpy()[rows].astype(np.int64)
    table = Detections.build(
        image_id,
        category_ids[labels[kept]],
        scores[rows][kept],
        boxes[kept],
        [mask_boxes[k] for k in kept],
        [grids[k] for k in kept],
        source,
        cap=cap,
    )
    return view.unturn(table, *size)


def _full_crops(
    view: View, size: tuple[int, int], found: Found, rows: np.ndarray, boxes: np.ndarray, cap: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Crops of full masks in the turned frame; `boxes` (N, 4), in the view's pixels, are brought there in place."""
    factors = view.factors(*size)
    mask_boxes, grids = [], []
    for k, row in enumerate(rows):
        tight, box, grid = frame_to_crop(found.masks[int(row)], found.threshold, GRID_CAP * min(factors))
        if boxes[k, 2] <= boxes[k, 0] or boxes[k, 3] <= boxes[k, 1]:
            boxes[k] = tight
        box, grid = view.unscale_crop(box, grid, *size, cap=GRID_CAP if cap else None)
        mask_boxes.append(box)
        grids.append(grid)
    boxes[:] = view.unscale_boxes(boxes, *size)
    return mask_boxes, grids


def frame_to_crop(
    mask: torch.Tensor, threshold: float = 0.5, whole: float = GRID_CAP
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The object's own crop of a full-frame mask.

    A probability has no end: a network gives every pixel of the frame a little. What is kept of it is the box of the pixels
    above the threshold with a margin, `MARGIN` pixels or an eighth of its side, but none that would make a side longer
    than `whole` for which the foreground alone is not.

    Args:
        mask: (H, W) bool, or any number type that holds probabilities in 0..1.
        threshold: the probability at which the object begins; it becomes one half, and what lies below and above is
            stretched linearly. A pixel at the threshold itself may be counted either way.
        whole: up to which side, in pixels, no cell of a crop is given up for the margin.

    Returns:
        tight: (4,) int32 half-open box of the pixels above the threshold; zeros when there are none.
        box: (4,) int32 half-open box of the crop.
        grid: its soft mask, uint8; of shape (0, 0) when no pixel is above the threshold.
    """
    height, width = mask.shape
    inside = mask if mask.dtype == torch.bool else mask > threshold
    rows, columns = (torch.nonzero(inside.any(dim=k))[:, 0].cpu().numpy() for k in (1, 0))
    if not rows.size:
        return np.zeros(4, np.int32), np.zeros(4, np.int32), np.zeros((0, 0), np.uint8)
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    tight = np.array([x0, y0, x1, y1], np.int32)
    if mask.dtype == torch.bool:
        return tight, tight, inside[y0:y1, x0:x1].cpu().numpy().view(np.uint8) * np.uint8(255)
    reach_x, reach_y = _reach(x1 - x0, whole), _reach(y1 - y0, whole)
    x0, x1 = max(x0 - reach_x, 0), min(x1 + reach_x, width)
    y0, y1 = max(y0 - reach_y, 0), min(y1 + reach_y, height)
    crop = mask[y0:y1, x0:x1].float().cpu().numpy()
    if threshold != 0.5:
        above = 0.5 + (crop - threshold) * (0.5 / (1 - threshold))
        crop = np.where(crop > threshold, above, crop * (0.5 / threshold))
    grid = (np.clip(crop, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    # what the margin holds besides nothing
    rows, columns = np.flatnonzero(grid.any(axis=1)), np.flatnonzero(grid.any(axis=0))
    grid = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], np.int32)
    return tight, box, np.ascontiguousarray(grid)


def _reach(side: int, whole: float) -> int:
    reach = max(MARGIN, side // 8)
    return min(reach, int(whole - side) // 2) if side <= whole else reach


class Thresholded(TorchFunctionMode):
    """Remembers, while it is entered, what full-frame masks were made of.

    The frameworks' networks compare their probabilities with a threshold as the last thing they do, and hand out bools.
    This mode sees every comparison of a stack of maps with a number, and so gives the probabilities back without knowing
    any of these networks. Masks that came about in another way stay what they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor, float]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("gt", "ge") and len(args) == 2:
            maps, threshold = args
            if (
                isinstance(maps, torch.Tensor)
                and maps.ndim == 3
                and maps.is_floating_point()
                and isinstance(threshold, float)
                and 0 < threshold < 1
            ):
                self.seen[id(result)] = (result, maps, threshold)  # with the result kept its id is taken by no other
        return result

    def behind(self, masks: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Probabilities (N, H, W) and the threshold that made these masks of them; the masks themselves if unknown."""
        result, maps, threshold = self.seen.get(id(masks), (None, masks, 0.5))
        return (maps, threshold) if result is masks else (masks, 0.5)
