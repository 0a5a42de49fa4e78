"""A sample's true masks as crops, and the RoI mask targets cut from them without full-frame bitmaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit


@njit(cache=True)
def _roi_align(pixels, offset, instance_box, which, rois, height, width, out):  # type: ignore[no-untyped-def]
    """RoIAlign (aligned, adaptive sampling, average) of binary images that are zero outside their crop."""
    side = out.shape[1]
    for n in range(rois.shape[0]):
        k = which[n]
        cx0, cy0, cx1, cy1 = instance_box[k, 0], instance_box[k, 1], instance_box[k, 2], instance_box[k, 3]
        columns, start = cx1 - cx0, offset[k]
        left, top = rois[n, 0] - 0.5, rois[n, 1] - 0.5
        bin_w, bin_h = (rois[n, 2] - rois[n, 0]) / side, (rois[n, 3] - rois[n, 1]) / side
        steps_x, steps_y = max(int(np.ceil(bin_w)), 1), max(int(np.ceil(bin_h)), 1)
        for r in range(side):
            for c in range(side):
                total = 0.0
                for i in range(steps_y):
                    y = top + r * bin_h + (i + 0.5) * bin_h / steps_y
                    if y < -1.0 or y > height:
                        continue
                    y = min(max(y, 0.0), height - 1.0)
                    y_low = int(y)
                    fy = y - y_low
                    for j in range(steps_x):
                        x = left + c * bin_w + (j + 0.5) * bin_w / steps_x
                        if x < -1.0 or x > width:
                            continue
                        x = min(max(x, 0.0), width - 1.0)
                        x_low = int(x)
                        fx = x - x_low
                        for dy in range(2):
                            yy = y_low + dy
                            if yy < cy0 or yy >= cy1:
                                continue
                            weight_y = fy if dy else 1.0 - fy
                            for dx in range(2):
                                xx = x_low + dx
                                if cx0 <= xx < cx1:
                                    weight = weight_y * (fx if dx else 1.0 - fx)
                                    total += weight * pixels[start + (yy - cy0) * columns + xx - cx0]
                out[n, r, c] = total / (steps_x * steps_y)


class InstanceCrops:
    """N binary masks of one (height, width) frame, each kept as its own crop.

    Attributes:
        box: (N, 4) int32 half-open pixel boxes x0, y0, x1, y1 of the crops, inside the frame.
        crops: N arrays of uint8 0 and 1, each of its box's shape.
    """

    def __init__(self, box: np.ndarray, crops: Sequence[np.ndarray], height: int, width: int) -> None:
        self.box = np.asarray(box, np.int32).reshape(-1, 4)
        self.crops = list(crops)
        self.height = int(height)
        self.width = int(width)
        assert len(self.box) == len(self.crops), (self.box.shape, len(self.crops))

    def __len__(self) -> int:
        return len(self.crops)

    def take(self, rows: np.ndarray) -> InstanceCrops:
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return InstanceCrops(self.box[rows], [self.crops[int(k)] for k in rows], self.height, self.width)

    def area(self) -> np.ndarray:
        """(N,) int64 pixels."""
        return np.array([int(np.count_nonzero(c)) for c in self.crops], np.int64)

    def bitmaps(self) -> np.ndarray:
        """(N, height, width) uint8: what networks without an RoI mask head learn from."""
        frames = np.zeros((len(self), self.height, self.width), np.uint8)
        for frame, (x0, y0, x1, y1), crop in zip(frames, self.box, self.crops, strict=True):
            frame[y0:y1, x0:x1] = crop
        return frames

    def roi_align(self, rois: np.ndarray, which: np.ndarray, side: int) -> np.ndarray:
        """Cut mask targets out of the frames, equal to RoIAlign(aligned=True, sampling_ratio=0) on full bitmaps.

        Args:
            rois: (M, 4) float boxes x0, y0, x1, y1.
            which: (M,) integer, the instance of each RoI.
            side: the target's height and width.

        Returns:
            (M, side, side) float32 in 0..1.
        """
        out = np.zeros((len(rois), side, side), np.float32)
        if len(rois):
            offset = np.concatenate([[0], np.cumsum([c.size for c in self.crops])]).astype(np.int64)
            pixels = np.concatenate([c.ravel() for c in self.crops])
            _roi_align(
                pixels,
                offset,
                self.box,
                np.asarray(which, np.int64),
                np.asarray(rois, np.float64),
                self.height,
                self.width,
                out,
            )
        return out
