"""What a soft mask looks like, as numbers: size, certainty and form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from pipeline.fusion.crops import Crops
from pipeline.masks import FOREGROUND


@dataclass(frozen=True)
class Shapes:
    """Of N soft masks, each (N,) float64 and 0 where a mask has no foreground (pixels of probability one half or more).

    Attributes:
        area: pixels of the foreground; `perimeter`: its pixel edges that face the background.
        hull: area of the foreground's convex hull, around whole pixels.
        eccentricity: of the ellipse with the foreground's second moments; 0 is round, 1 a line.
        x, y: the foreground's centre, in pixels of the image.
        inside: mean probability over the foreground.
        unsure: among the pixels of probability 1/4 or more, the fraction below 3/4. A sharp edge has few.
        bounds: (N, 4) int64, the foreground's tight box.
    """

    area: np.ndarray
    perimeter: np.ndarray
    hull: np.ndarray
    eccentricity: np.ndarray
    x: np.ndarray
    y: np.ndarray
    inside: np.ndarray
    unsure: np.ndarray
    bounds: np.ndarray


def shapes(crops: Crops) -> Shapes:
    bounds, _ = crops.foregrounds
    area, perimeter, hull, eccentricity, x, y, inside, unsure = _shapes(
        crops.box, crops.offset, crops.pixels, bounds, FOREGROUND
    ).T
    return Shapes(area, perimeter, hull, eccentricity, x, y, inside, unsure, bounds)


def certainty(crops: Crops) -> tuple[np.ndarray, np.ndarray]:
    """`area` and `inside` of `Shapes` alone, at a fraction of its cost; (N,) int64 and (N,) float64."""
    return _certainty(crops.offset, crops.pixels, FOREGROUND)


@njit(cache=True)
def _certainty(offset, pixels, foreground):  # type: ignore[no-untyped-def]
    area, inside = np.zeros(offset.size - 1, np.int64), np.zeros(offset.size - 1)
    for i in range(area.size):
        count, total = 0, 0
        for p in range(offset[i], offset[i + 1]):
            value = np.int64(pixels[p])
            above = value >= foreground
            count += above
            total += value * above
        area[i] = count
        inside[i] = total / (255 * count) if count else 0.0
    return area, inside


@njit(cache=True)
def _envelope(position, value, count, sign):  # type: ignore[no-untyped-def]
    """The integral of the convex (sign 1) or concave (sign -1) envelope of `count` points with ascending positions."""
    size = 0
    stack = np.empty(count, np.int64)
    for i in range(count):
        while size >= 2:
            a, b = stack[size - 2], stack[size - 1]
            turn = (position[b] - position[a]) * (value[i] - value[a]) - (value[b] - value[a]) * (
                position[i] - position[a]
            )
            if sign * turn > 0:
                break
            size -= 1
        stack[size] = i
        size += 1
    total = 0.0
    for s in range(1, size):
        a, b = stack[s - 1], stack[s]
        total += 0.5 * (value[a] + value[b]) * (position[b] - position[a])
    return total


@njit(cache=True)
def _shapes(box, offset, pixels, bounds, foreground):  # type: ignore[no-untyped-def]
    quarter, three_quarters = foreground // 2, foreground + foreground // 2
    out = np.zeros((box.shape[0], 8))
    for i in range(box.shape[0]):
        width, height = box[i, 2] - box[i, 0], box[i, 3] - box[i, 1]
        rows = bounds[i, 3] - bounds[i, 1]
        if rows == 0:
            continue
        position, left, right = np.empty(rows + 1), np.empty(rows + 1), np.empty(rows + 1)
        lines = 0
        area, edges, certainty, unsure, support = 0, 0, 0, 0, 0
        sx, sy, sxx, syy, sxy = 0.0, 0.0, 0.0, 0.0, 0.0
        above_left, above_right = np.inf, -np.inf  # of the row before, where it has foreground
        for y in range(height + 1):
            row_left, row_right = np.inf, -np.inf
            for x in range(width if y < height else 0):
                p = offset[i] + y * width + x
                value = pixels[p]
                if value >= quarter:
                    support += 1
                    if value < three_quarters:
                        unsure += 1
                if value < foreground:
                    continue
                area += 1
                certainty += value
                sx, sy = sx + x, sy + y
                sxx, syy, sxy = sxx + x * x, syy + y * y, sxy + x * y
                edges += x == 0 or pixels[p - 1] < foreground
                edges += x == width - 1 or pixels[p + 1] < foreground
                edges += y == 0 or pixels[p - width] < foreground
                edges += y == height - 1 or pixels[p + width] < foreground
                row_left, row_right = min(row_left, x), max(row_right, x + 1)
            low, high = min(above_left, row_left), max(above_right, row_right)
            if high > low:  # the line between two rows reaches as far as the wider of them
                position[lines], left[lines], right[lines] = y, low, high
                lines += 1
            above_left, above_right = row_left, row_right
        mx, my = sx / area, sy / area
        vxx, vyy, vxy = sxx / area - mx * mx + 1 / 12, syy / area - my * my + 1 / 12, sxy / area - mx * my
        root = math.sqrt(((vxx - vyy) / 2) ** 2 + vxy * vxy)
        longer, shorter = (vxx + vyy) / 2 + root, max((vxx + vyy) / 2 - root, 0.0)
        out[i, 0], out[i, 1] = area, edges
        out[i, 2] = _envelope(position, right, lines, -1) - _envelope(position, left, lines, 1)
        out[i, 3] = math.sqrt(max(1 - shorter / longer, 0.0))
        out[i, 4], out[i, 5] = box[i, 0] + mx + 0.5, box[i, 1] + my + 0.5
        out[i, 6] = certainty / (255 * area)
        out[i, 7] = unsure / max(support, 1)
    return out
