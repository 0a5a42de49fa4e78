"""Soft masks on crops: to and from COCO run lengths, IoU, and the resampling that frameworks do when they paste.

A soft mask is a uint8 grid of probabilities (0 is 0, 255 is 1) over an integer pixel box ``(x0, y0, x1, y1)``, half open.
A pixel belongs to the object when its probability is at least one half, that is when its value is at least `FOREGROUND`.
Nothing here ever allocates a full frame: the cost follows the object, not the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numba import njit

FOREGROUND = 128
"""Smallest grid value that counts as object: round(255 p) >= 128 exactly when p >= 0.5."""


# ---------------------------------------------------------------- COCO run lengths ------------------------------------
# COCO counts runs of background and object in turn, down the columns, and packs them into text: from the fourth run on
# the difference to the run two before, five bits a character, least significant first, 0x20 marks "more to come".


@njit(cache=True)
def _text_to_runs(text):  # type: ignore[no-untyped-def]
    runs = np.empty(text.size, np.int64)
    count, position = 0, 0
    while position < text.size:
        value, shift, more = np.int64(0), 0, True
        while more:
            if position >= text.size:
                return runs[:0], False
            symbol = np.int64(text[position]) - 48
            if symbol < 0 or symbol > 63 or shift > 60:
                return runs[:0], False
            value |= (symbol & 0x1F) << shift
            more = (symbol & 0x20) != 0
            position += 1
            shift += 5
            if not more and (symbol & 0x10):
                value |= -1 << shift
        if count > 2:
            value += runs[count - 2]
        runs[count] = value
        count += 1
    return runs[:count], True


@njit(cache=True)
def _runs_to_text(runs):  # type: ignore[no-untyped-def]
    text = np.empty(runs.size * 7 + 1, np.uint8)
    length = 0
    for i in range(runs.size):
        value = runs[i]
        if i > 2:
            value -= runs[i - 2]
        more = True
        while more:
            symbol = value & 0x1F
            value >>= 5
            more = value != -1 if (symbol & 0x10) else value != 0
            if more:
                symbol |= 0x20
            text[length] = symbol + 48
            length += 1
    return text[:length]


@njit(cache=True)
def _runs_bounds(runs, height):  # type: ignore[no-untyped-def]
    """Tight half-open box of the object pixels; all zeros when there are none."""
    x0, y0, x1, y1 = np.int64(1 << 40), np.int64(1 << 40), np.int64(0), np.int64(0)
    position = np.int64(0)
    for i in range(runs.size):
        length = runs[i]
        if (i & 1) and length > 0:
            first, last = position, position + length - 1
            column0, column1 = first // height, last // height
            x0, x1 = min(x0, column0), max(x1, column1 + 1)
            if column0 != column1:
                y0, y1 = np.int64(0), np.int64(height)
            else:
                y0, y1 = min(y0, first % height), max(y1, last % height + 1)
        position += length
    if x1 == 0:
        x0, y0 = np.int64(0), np.int64(0)
    return x0, y0, x1, y1


@njit(cache=True)
def _fill_runs(runs, height, x0, y0, grid):  # type: ignore[no-untyped-def]
    position = np.int64(0)
    for i in range(runs.size):
        length = runs[i]
        if i & 1:
            for p in range(position, position + length):
                grid[p % height - y0, p // height - x0] = 1
        position += length


@njit(cache=True)
def _grid_to_runs(grid, x0, y0, height, width, threshold):  # type: ignore[no-untyped-def]
    rows, columns = grid.shape
    runs = np.empty((rows + 1) * columns + 2, np.int64)
    count = 0
    end = np.int64(0)  # where the last object run ended, counting down the columns of the image
    for c in range(columns):
        base = np.int64(x0 + c) * height + y0
        r = 0
        while r < rows:
            if grid[r, c] < threshold:
                r += 1
                continue
            first = r
            while r < rows and grid[r, c] >= threshold:
                r += 1
            if (
                count > 0 and base + first == end
            ):  # a column that reached the image's foot goes on at the next one's head
                runs[count - 1] += r - first
            else:
                runs[count] = base + first - end
                runs[count + 1] = r - first
                count += 2
            end = base + r
    total = np.int64(height) * width
    if end < total or count == 0:
        runs[count] = total - end
        count += 1
    return runs[:count]


def _counts_array(rle: dict[str, Any]) -> np.ndarray:
    """Run lengths of a COCO RLE, compressed (str or bytes) or not (list of int), as int64."""
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii", errors="replace")
    if isinstance(counts, bytes):
        runs, readable = _text_to_runs(np.frombuffer(counts, np.uint8))
        if not readable:
            raise ValueError("the RLE's counts are not COCO's compressed text")
        return runs
    try:
        runs = np.asarray(counts, np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the RLE's counts are no run lengths: {error}") from error
    if runs.ndim != 1:
        raise ValueError("the RLE's counts are not a flat list")
    return runs


def _checked_counts(rle: dict[str, Any]) -> tuple[np.ndarray, int, int]:
    """Run lengths that add up, int64, with the height and width.

    Raises:
        ValueError: the counts are not readable, negative, or do not add up to the image's pixels.
    """
    height, width = (int(v) for v in rle["size"])
    runs = _counts_array(rle)
    if height < 0 or width < 0:
        raise ValueError(f"the RLE's size [{height}, {width}] is negative")
    if runs.size and runs.min() < 0:
        raise ValueError("the RLE holds a negative run")
    if runs.size and int(runs.max()) > height * width:  # before the sum, which such runs could make wrap around
        raise ValueError(
            f"the RLE holds a run of {int(runs.max())} pixels, its size [{height}, {width}] has {height * width}"
        )
    if int(runs.sum()) != height * width:
        raise ValueError(
            f"the RLE's runs cover {int(runs.sum())} pixels, its size [{height}, {width}] has {height * width}"
        )
    return runs, height, width


def rle_to_crop(rle: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a COCO RLE into the object's own crop, without a full frame.

    Args:
        rle: ``{"size": [height, width], "counts": str | bytes | list[int]}``.

    Returns:
        box: (4,) int32, tight half-open pixel box ``x0, y0, x1, y1`` (zeros for an empty mask).
        mask: (y1 - y0, x1 - x0) uint8 of 0 and 1.

    Raises:
        ValueError: the counts are not readable, negative, or do not add up to the image's pixels.
    """
    runs, height, width = _checked_counts(rle)
    x0, y0, x1, y1 = _runs_bounds(runs, max(height, 1))
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    if mask.size:
        _fill_runs(runs, height, x0, y0, mask)
    return np.array([x0, y0, x1, y1], np.int32), mask


def crop_to_rle(
    grid: np.ndarray, box: Sequence[int] | np.ndarray, size: Sequence[int], threshold: int = FOREGROUND
) -> dict[str, Any]:
    """Encode the pixels of a crop that reach `threshold` as a compressed COCO RLE of the whole image.

    Args:
        grid: (y1 - y0, x1 - x0) uint8 (or bool with ``threshold=1``).
        box: half-open pixel box ``x0, y0, x1, y1``, inside the image.
        size: ``(height, width)`` of the image.

    Raises:
        ValueError: the box leaves the image or does not have the grid's shape.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    height, width = (int(v) for v in size)
    if grid.shape != (y1 - y0, x1 - x0):
        raise ValueError(f"a crop of shape {grid.shape} does not fit the box {(x0, y0, x1, y1)}")
    if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
        raise ValueError(f"the box {(x0, y0, x1, y1)} leaves the image of height {height} and width {width}")
    runs = _grid_to_runs(np.ascontiguousarray(grid).view(np.uint8), x0, y0, height, width, threshold)
    return {"size": [height, width], "counts": _runs_to_text(runs).tobytes().decode("ascii")}


def rle_to_spans(rle: dict[str, Any]) -> np.ndarray:
    """The object pixels of a COCO RLE as half-open spans of positions, counted down the columns from 0.

    Returns:
        (S, 2) int64 first and end of each span, ascending; neighbouring spans do not touch.

    Raises:
        ValueError: as for `rle_to_crop`.
    """
    return _runs_to_spans(_checked_counts(rle)[0])


def spans_to_rle(spans: np.ndarray, size: Sequence[int]) -> dict[str, Any]:
    """The inverse of `rle_to_spans`; spans may touch.

    Args:
        spans: (S, 2) integers.
        size: ``(height, width)`` of the image.

    Raises:
        ValueError: the spans are empty, not ascending, overlap, or leave the image.
    """
    height, width = (int(v) for v in size)
    flat = np.asarray(spans, np.int64).reshape(-1, 2)
    if flat.size:
        if (flat[:, 1] <= flat[:, 0]).any() or (flat[1:, 0] < flat[:-1, 1]).any():
            raise ValueError("the spans are empty, out of order, or overlap")
        if flat[0, 0] < 0 or flat[-1, 1] > height * width:
            raise ValueError(f"the spans leave the image of height {height} and width {width}")
    runs = _spans_to_runs(flat, height * width)
    return {"size": [height, width], "counts": _runs_to_text(runs).tobytes().decode("ascii")}


@njit(cache=True)
def _runs_to_spans(runs):  # type: ignore[no-untyped-def]
    spans = np.empty((runs.size // 2, 2), np.int64)
    count, position = 0, np.int64(0)
    for i in range(runs.size):
        if (i & 1) and runs[i] > 0:
            if count > 0 and spans[count - 1, 1] == position:  # a background run of length 0 lies between
                spans[count - 1, 1] = position + runs[i]
            else:
                spans[count, 0], spans[count, 1] = position, position + runs[i]
                count += 1
        position += runs[i]
    return spans[:count]


@njit(cache=True)
def _spans_to_runs(spans, total):  # type: ignore[no-untyped-def]
    runs = np.empty(2 * spans.shape[0] + 1, np.int64)
    count, end = 0, np.int64(0)
    for i in range(spans.shape[0]):
        length = spans[i, 1] - spans[i, 0]
        if count > 0 and spans[i, 0] == end:
            runs[count - 1] += length
        else:
            runs[count], runs[count + 1] = spans[i, 0] - end, length
            count += 2
        end = spans[i, 1]
    if end < total or count == 0:
        runs[count] = total - end
        count += 1
    return runs[:count]


def transposed(rle: dict[str, Any]) -> dict[str, Any]:
    """The COCO RLE of the transposed mask: a run down its columns is a run along the rows of the mask."""
    box, mask = rle_to_crop(rle)
    height, width = (int(v) for v in rle["size"])
    return crop_to_rle(mask.T, box[[1, 0, 3, 2]], (width, height), threshold=1)


# ---------------------------------------------------------------- pasting RoI masks -----------------------------------


@njit(cache=True)
def _paste_roi(probabilities, left, top, right, bottom, x0, y0, grid):  # type: ignore[no-untyped-def]
    side_y, side_x = probabilities.shape
    scale_x, scale_y = side_x / (right - left), side_y / (bottom - top)
    rows, columns = grid.shape
    for r in range(rows):
        v = (y0 + r + 0.5 - top) * scale_y - 0.5
        v0 = int(np.floor(v))
        fv = v - v0
        for c in range(columns):
            u = (x0 + c + 0.5 - left) * scale_x - 0.5
            u0 = int(np.floor(u))
            fu = u - u0
            total = 0.0
            if 0 <= v0 < side_y:
                if 0 <= u0 < side_x:
                    total += (1 - fv) * (1 - fu) * probabilities[v0, u0]
                if 0 <= u0 + 1 < side_x:
                    total += (1 - fv) * fu * probabilities[v0, u0 + 1]
            if 0 <= v0 + 1 < side_y:
                if 0 <= u0 < side_x:
                    total += fv * (1 - fu) * probabilities[v0 + 1, u0]
                if 0 <= u0 + 1 < side_x:
                    total += fv * fu * probabilities[v0 + 1, u0 + 1]
            grid[r, c] = np.uint8(min(max(total, 0.0), 1.0) * 255.0 + 0.5)


def paste_roi(probabilities: np.ndarray, box: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Resample an RoI mask onto the pixels it covers, bilinearly, as Mask R-CNN implementations paste.

    The rule is torch's ``grid_sample(align_corners=False, padding_mode="zeros")``, which mmdet and detectron2 both use, so
    the mask reaches up to half an RoI cell beyond the regressed box.

    Args:
        probabilities: (M, M) float32 in 0..1.
        box: (4,) float, the regressed box in pixels.
        size: ``(height, width)`` of the image.

    Returns:
        pixel_box: (4,) int32 half-open box inside the image; zeros when nothing of the mask is inside.
        grid: uint8 probabilities over that box.
    """
    height, width = int(size[0]), int(size[1])
    left, top, right, bottom = (float(v) for v in box)
    if not (right > left and bottom > top):
        return np.zeros(4, np.int32), np.zeros((0, 0), np.uint8)
    reach_x = 0.5 * (right - left) / probabilities.shape[1]
    reach_y = 0.5 * (bottom - top) / probabilities.shape[0]
    x0, x1 = max(int(np.floor(left - reach_x)), 0), min(int(np.ceil(right + reach_x)), width)
    y0, y1 = max(int(np.floor(top - reach_y)), 0), min(int(np.ceil(bottom + reach_y)), height)
    if x0 >= x1 or y0 >= y1:
        return np.zeros(4, np.int32), np.zeros((0, 0), np.uint8)
    grid = np.empty((y1 - y0, x1 - x0), np.uint8)
    _paste_roi(np.ascontiguousarray(probabilities, np.float32), left, top, right, bottom, x0, y0, grid)
    return np.array([x0, y0, x1, y1], np.int32), grid


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Half-open box ``x0, y0, x1, y1`` of the non-zero cells of a 2-D array; zeros when there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# ---------------------------------------------------------------- overlap ---------------------------------------------


@njit(cache=True)
def _intersection(a, box_a, b, box_b, threshold):  # type: ignore[no-untyped-def]
    x0, x1 = max(box_a[0], box_b[0]), min(box_a[2], box_b[2])
    y0, y1 = max(box_a[1], box_b[1]), min(box_a[3], box_b[3])
    total = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            if a[y - box_a[1], x - box_a[0]] >= threshold and b[y - box_b[1], x - box_b[0]] >= threshold:
                total += 1
    return total


def crop_intersection(
    a: np.ndarray, box_a: np.ndarray, b: np.ndarray, box_b: np.ndarray, threshold: int = FOREGROUND
) -> int:
    """Pixels in which two crops both reach `threshold`. Boxes are (4,) integer, grids have their boxes' shapes."""
    return int(_intersection(a, np.asarray(box_a, np.int64), b, np.asarray(box_b, np.int64), threshold))


def crop_iou(a: np.ndarray, box_a: np.ndarray, b: np.ndarray, box_b: np.ndarray, threshold: int = FOREGROUND) -> float:
    """Intersection over union of two crops' foregrounds; 0 when both are empty."""
    common = crop_intersection(a, box_a, b, box_b, threshold)
    union = int((a >= threshold).sum()) + int((b >= threshold).sum()) - common
    return common / union if union else 0.0


_FARTHEST = 1e6
"""Largest coordinate of a polygon in pixels: pycocotools walks along its edges step by step."""


def polygons_to_rle(polygons: Iterable[Sequence[float]], size: Sequence[int]) -> dict[str, Any]:
    """Rasterise COCO polygons (each x, y, x, y, …) exactly as pycocotools does; the parts of one object are joined.

    Raises:
        ValueError: there is none; one has fewer than two points, or coordinates that are no numbers or absurdly far off;
            no image has such a size.
    """
    from pycocotools import mask as coco_mask

    height, width = int(size[0]), int(size[1])
    if not (height > 0 and width > 0 and height * width < 1 << 32):
        raise ValueError(f"no mask has height {height} and width {width}")
    parts = [[float(v) for v in p] for p in polygons]
    if not parts:
        raise ValueError("the segmentation has no polygon")
    for part in parts:
        if len(part) < 4:
            raise ValueError(f"a polygon has {len(part)} coordinates")
        if not all(abs(v) <= _FARTHEST for v in part):
            raise ValueError("a polygon's coordinates are not finite, or far outside of any image")
    rle = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
