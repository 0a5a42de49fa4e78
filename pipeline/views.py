"""Views of an image for test-time augmentation: the eight turns of the dihedral group at any scale, and their inverses.

A view first turns the image, then resizes it. Undoing a turn is exact: grids and boxes are turned back, nothing is
resampled. Undoing a scale is exact on boxes; of a mask it resamples one small grid. A network that gives RoI masks
needs neither loss: undo the scale on its boxes (`View.unscale_boxes`), paste the RoI masks in the turned frame at
original resolution, and undo the turn (`View.unturn`). A network that gives full masks resamples each of its crops once
(`View.unscale_crop`).
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.records import GRID_CAP, Detections

TURNS: dict[str, tuple[bool, bool, bool]] = {
    "identity": (False, False, False),
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot180": (False, True, True),
    "transpose": (True, False, False),
    "rot90": (True, True, False),
    "rot270": (True, False, True),
    "antitranspose": (True, True, True),
}
"""Each turn as three steps in this order: transpose, flip the rows, flip the columns. rot90 is ``numpy.rot90(image, 1)``."""


@dataclass(frozen=True)
class View:
    """One way to look at an image: a turn (a key of `TURNS`), then a resize.

    Either by `scale`, or, where `shortest` is given, such that the shorter side comes out that long, and the longer one no longer
    than `longest`.

    The frames: *original* (height, width); *turned* (`turned_size`), the original's pixels in another order; *view*
    (`size`), the turned frame resized, which is what a network sees.
    """

    turn: str = "identity"
    scale: float = 1.0
    shortest: int | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.turn not in TURNS:
            near = difflib.get_close_matches(self.turn, TURNS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"there is no view {self.turn!r}; {hint}known: {', '.join(TURNS)}, each with @SCALE or @PIXELSpx if wanted"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"the scale of a view is a number above 0, not {self.scale}")
        if self.shortest is None and self.longest is not None or self.shortest is not None and self.scale != 1:
            raise ValueError("a view has a scale, or a length of the shorter side with or without one of the longer")
        most = self.shortest if self.longest is None else self.longest
        if self.shortest is not None and most is not None and not 8 <= self.shortest <= most:
            raise ValueError(f"a view's shorter side is 8 pixels or more and at most the longer one: {self}")

    def __str__(self) -> str:
        if self.shortest is not None:
            return (
                f"{self.turn}@{self.shortest}px"
                if self.longest is None
                else f"{self.turn}@{self.shortest}-{self.longest}px"
            )
        return self.turn if self.scale == 1 else f"{self.turn}@{self.scale}"

    # ------------------------------------------------ frames ----------------------------------------------------------

    def turned_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the turned frame of an original of this size."""
        return (width, height) if TURNS[self.turn][0] else (height, width)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the view of an original of this size: each side rounded, at least one pixel."""
        rows, columns = self.turned_size(height, width)
        scale = self.scale_of(height, width)
        return max(round(rows * scale), 1), max(round(columns * scale), 1)

    def scale_of(self, height: int, width: int) -> float:
        """By what the turned frame of an original of this size is resized."""
        return self.scale if self.shortest is None else edge_scale(height, width, self.shortest, self.longest)

    def factors(self, height: int, width: int) -> tuple[float, float]:
        """The true resize factors (vertical, horizontal) of the turned frame; `scale_of` up to the rounding of the sides."""
        turned, seen = self.turned_size(height, width), self.size(height, width)
        return seen[0] / turned[0], seen[1] / turned[1]

    # ------------------------------------------------ there -----------------------------------------------------------

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The view of an image, (H, W) or (H, W, C), as a new contiguous array of the same dtype."""
        transpose, flip_rows, flip_columns = TURNS[self.turn]
        height, width = image.shape[:2]
        turned = image.swapaxes(0, 1) if transpose else image
        turned = np.ascontiguousarray(turned[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
        rows, columns = self.size(height, width)
        if turned.shape[:2] == (rows, columns):
            return turned.copy() if np.shares_memory(turned, image) else turned
        import cv2

        method = cv2.INTER_AREA if self.scale_of(height, width) < 1 else cv2.INTER_LINEAR
        resized = np.asarray(cv2.resize(turned, (columns, rows), interpolation=method))
        return resized.reshape(rows, columns, *image.shape[2:])  # cv2 drops a channel axis of length one

    # ------------------------------------------------ and back --------------------------------------------------------

    def unscale_boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes (N, 4) of the view frame in the turned frame, float64; `height` and `width` are the original's."""
        vertical, horizontal = self.factors(height, width)
        return np.asarray(boxes, np.float64).reshape(-1, 4) / (horizontal, vertical, horizontal, vertical)

    def unturn_boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes (N, 4) of the turned frame in the original frame; the dtype stays."""
        transpose, flip_rows, flip_columns = TURNS[self.turn]
        rows, columns = self.turned_size(height, width)
        x0, y0, x1, y1 = np.asarray(boxes).reshape(-1, 4).T
        if flip_columns:
            x0, x1 = columns - x1, columns - x0
        if flip_rows:
            y0, y1 = rows - y1, rows - y0
        if transpose:
            x0, y0, x1, y1 = y0, x0, y1, x1
        return np.stack([x0, y0, x1, y1], axis=1)

    def boxes_to_original(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes (N, 4) of the view frame in the original frame, float64."""
        return self.unturn_boxes(self.unscale_boxes(boxes, height, width), height, width)

    def unturn(self, detections: Detections, height: int, width: int) -> Detections:
        """Detections of the turned frame in the original frame.

        Grids and mask boxes come back exactly; regressed boxes within the rounding of float32.
        """
        transpose, flip_rows, flip_columns = TURNS[self.turn]
        return Detections(
            detections.image_id,
            detections.category_id,
            detections.score,
            self.unturn_boxes(detections.box.astype(np.float64), height, width).astype(np.float32),
            self.unturn_boxes(detections.mask_box, height, width).astype(np.int32),
            detections.shape[:, ::-1].copy() if transpose else detections.shape,
            detections.offset,
            _unturn_grids(detections.pixels, detections.offset, detections.shape, transpose, flip_rows, flip_columns),
            detections.source,
            list(detections.sources),
            dict(detections.extra),
        )

    def unscale(self, detections: Detections, height: int, width: int) -> Detections:
        """Detections of the view frame in the turned frame: boxes divided, every grid resampled once.

        Where a target cell is at least as large as a stored one it takes the average over the area it covers; where it
        is smaller, the value is interpolated between the centres of the stored cells, with nothing beyond the grid
        except at the image's own border, where the last cell goes on.
        """
        if self.size(height, width) == self.turned_size(height, width):
            return detections
        grids, boxes = [], np.zeros((len(detections), 4), np.int32)
        for i in range(len(detections)):
            boxes[i], grid = self.unscale_crop(detections.mask_box[i], detections.grid(i), height, width)
            grids.append(grid)
        resampled = Detections.build(
            detections.image_id,
            detections.category_id,
            detections.score,
            self.unscale_boxes(detections.box, height, width),
            boxes,
            grids,
            extra=detections.extra,
        )
        resampled.source, resampled.sources = detections.source, list(detections.sources)
        return resampled

    def unscale_crop(
        self, box: np.ndarray, grid: np.ndarray, height: int, width: int, cap: int | None = GRID_CAP
    ) -> tuple[np.ndarray, np.ndarray]:
        """One soft mask of the view frame in the turned frame, resampled once, straight to the cells that are kept.

        Args:
            box: (4,) half-open pixel box of the view frame.
            grid: uint8 of any shape, evenly spread over the box.
            height, width: the original's.
            cap: largest side of the result; None for one cell per pixel.

        Returns:
            The half-open pixel box (4,) int32 of the turned frame, and its grid, uint8; where the view has the original's
            scale, what was given.
        """
        if grid.size == 0:
            return np.zeros(4, np.int32), np.zeros((0, 0), np.uint8)
        if self.size(height, width) == self.turned_size(height, width):
            return np.asarray(box, np.int32), grid
        rows, columns = self.turned_size(height, width)
        vertical, horizontal = self.factors(height, width)
        x0, y0, x1, y1 = (int(v) for v in box)
        left, right, index_x, weight_x = _axis(x0, x1, grid.shape[1], horizontal, columns, cap)
        top, bottom, index_y, weight_y = _axis(y0, y1, grid.shape[0], vertical, rows, cap)
        return np.array([left, top, right, bottom], np.int32), _resample(grid, index_y, weight_y, index_x, weight_x)

    def invert(self, detections: Detections, height: int, width: int) -> Detections:
        """Detections of the view frame in the original frame of size (`height`, `width`)."""
        return self.unturn(self.unscale(detections, height, width), height, width)


def edge_scale(height: int, width: int, shortest: int, longest: int | None = None) -> float:
    """By what an image is resized so that its shorter side is `shortest` pixels, and its longer one `longest` at most."""
    scale = shortest / min(height, width)
    return scale if longest is None else min(scale, longest / max(height, width))


def parse(text: str) -> View:
    """A view from its name: ``hflip``, ``rot90@1.5``, ``hflip@800px`` (the shorter side) or ``hflip@800-1333px`` (the longer
    one at most 1,333).

    Raises:
        ValueError: no such turn (the nearest is named), or a size that is none.
    """
    turn, at, size = text.strip().partition("@")
    if not at:
        return View(turn)
    lengths = re.fullmatch(r"(\d+)(?:-(\d+))?px", size)
    if lengths:
        return View(turn, shortest=int(lengths[1]), longest=int(lengths[2]) if lengths[2] else None)
    try:
        factor = float(size)
    except ValueError:
        example = turn or "hflip"
        raise ValueError(
            f"the view {text!r} needs a size behind its @, e.g. {example}@2.0, {example}@800px or {example}@800-1333px"
        ) from None
    return View(turn, factor)


# ---------------------------------------------------------------- kernels ---------------------------------------------


@njit(cache=True)
def _unturn_grids(pixels, offset, shape, transpose, flip_rows, flip_columns):  # type: ignore[no-untyped-def]
    out = np.empty_like(pixels)
    for i in range(shape.shape[0]):
        rows, columns, base = shape[i, 0], shape[i, 1], offset[i]
        for r in range(rows):
            y = rows - 1 - r if flip_rows else r
            for c in range(columns):
                x = columns - 1 - c if flip_columns else c
                target = x * rows + y if transpose else y * columns + x
                out[base + target] = pixels[base + r * columns + c]
    return out


def _axis(
    low: int, high: int, cells: int, factor: float, length: int, cap: int | None
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """How one axis of a grid is resampled: the target's pixel range, and the taps of each of its cells.

    Args:
        low, high: the grid's extent in view pixels; `cells`: how many stored cells cover it.
        factor: view pixels per target pixel; `length`: the target frame's side, in pixels; `cap`: on its cells.

    Returns:
        first and end pixel of the target, indices (n, T) of stored cells and their weights (n, T) float32.
    """
    cell = (high - low) / cells
    reach = 0.5 * cell if factor < cell else 0.0
    first = min(max(math.floor((low - reach) / factor + 1e-9), 0), length - 1)
    end = max(min(math.ceil((high + reach) / factor - 1e-9), length), first + 1)
    count = end - first if cap is None else min(end - first, cap)
    edges = (first + (end - first) * np.arange(count + 1) / count) * factor  # of the target cells, in view pixels
    edges = (edges - low) / cell  # in stored cells
    if edges[1] - edges[0] >= 1 - 1e-9:
        taps = math.ceil(edges[1] - edges[0]) + 1
        index = np.floor(edges[:-1] + 1e-9).astype(np.int64)[:, None] + np.arange(taps)
        covered = np.minimum(index + 1, edges[1:, None]) - np.maximum(index, edges[:-1, None])
        weight = np.maximum(covered, 0) / (edges[1:] - edges[:-1])[:, None]
    else:
        centre = (edges[:-1] + edges[1:]) / 2 - 0.5
        if low == 0:
            centre = np.maximum(centre, 0)
        if high >= round(length * factor):
            centre = np.minimum(centre, cells - 1)
        index = np.floor(centre).astype(np.int64)[:, None] + np.arange(2)
        weight = 1 - np.abs(centre[:, None] - index)
    weight = np.where((index >= 0) & (index < cells), weight, 0)
    return first, end, np.clip(index, 0, cells - 1), weight.astype(np.float32)


@njit(cache=True)
def _resample(grid, index_y, weight_y, index_x, weight_x):  # type: ignore[no-untyped-def]
    out = np.empty((index_y.shape[0], index_x.shape[0]), np.uint8)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            total = np.float32(0)
            for j in range(index_y.shape[1]):
                if weight_y[r, j] > 0:
                    for i in range(index_x.shape[1]):
                        total += weight_y[r, j] * weight_x[c, i] * grid[index_y[r, j], index_x[c, i]]
            out[r, c] = np.uint8(min(total + np.float32(0.5), np.float32(255)))
    return out
