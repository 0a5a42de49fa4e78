"""Images too large for a network's memory: tiles that overlap, and how what is found in them becomes one list.

An object is represented by the tile that sees it whole. A detection that reaches a border at which another tile goes on may
be a part of something: where another tile sees it from the inside it is left out, and where no tile sees the object whole
its parts, which agree on the strip that two tiles share, are put together as one instance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.masks import FOREGROUND, crop_intersection, tight_box
from pipeline.records import Detections

EDGE = 2
"""A mask that comes within this many pixels of an inner border is held to be cut there: networks shrink from borders."""

SAME = 0.5
"""IoU on the shared strip above which two tiles' masks are of one object."""

PART = 0.8
"""What share of the smaller mask on the shared strip lies in the other, if both are cut: then they are of one object, which
one of the tiles has seen in pieces."""


@dataclass(frozen=True)
class Tile:
    """A window of an image, half open, inside it. `inner` says of its four sides (x0, y0, x1, y1) which are not the image's."""

    x0: int
    y0: int
    x1: int
    y1: int
    inner: tuple[bool, bool, bool, bool]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0


def layout(height: int, width: int, size: int, overlap: int) -> list[Tile]:
    """Tiles that cover an image of (height, width), each `size` a side or the image's own side where that is smaller.

    Neighbours share at least `overlap` pixels; along each axis they are spread evenly, so that all are of one size.

    Raises:
        ValueError: the overlap is not smaller than the size.
    """
    if not 0 < overlap < size:
        raise ValueError(f"tiles of {size} pixels cannot overlap by {overlap}")
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    tiles = []
    for y0 in rows:
        for x0 in columns:
            x1, y1 = min(x0 + size, width), min(y0 + size, height)
            tiles.append(Tile(x0, y0, x1, y1, (x0 > 0, y0 > 0, x1 < width, y1 < height)))
    return tiles


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [k * (length - size) // (count - 1) for k in range(count)]


def join(tiles: list[Tile], tables: list[Detections]) -> Detections:
    """One image's detections out of those of its tiles.

    Args:
        tables: one a tile, all of one image and one source, in the pixels of the tile; one cell per pixel, see
            `Detections.build`. Further columns are not kept.

    Returns:
        Detections in the image. Of an object that several tiles see whole, the one farthest from their inner borders stays;
        parts of a larger one become one instance: its mask goes over from one tile's to the other's on the strip that they
        share, its box spans theirs, and its score is their mean by area.
    """
    parts = [_Part(t, i, tile, table) for t, (tile, table) in enumerate(zip(tiles, tables, strict=True))
             for i in range(len(table))]  # fmt: skip
    groups = _grouped(parts, tiles)
    rows = []
    for group in groups:
        whole = [part for part in group if not part.cut]
        if whole:
            best = max(whole, key=lambda part: (part.clearance, part.score))
            rows.append((best.category, best.score, best.box, best.mask_box, best.grid))
        elif len(group) == 1 and _seen_inside(group[0], tiles):
            continue  # another tile sees the whole place, and found nothing of the kind
        elif len(group) == 1:
            rows.append((group[0].category, group[0].score, group[0].box, group[0].mask_box, group[0].grid))
        else:
            rows.append(_merged([part for part in group if not _seen_inside(part, tiles)] or group))
    source = tables[0].sources[0] if tables else ""
    image_id = next((int(table.image_id[0]) for table in tables if len(table)), 0)
    return Detections.build(
        image_id,
        [row[0] for row in rows],
        [row[1] for row in rows],
        np.array([row[2] for row in rows]).reshape(-1, 4),
        np.array([row[3] for row in rows]).reshape(-1, 4),
        [row[4] for row in rows],
        source,
    )


class _Part:
    """One detection of one tile, in the image's pixels."""

    def __init__(self, index: int, row: int, tile: Tile, table: Detections) -> None:
        shift = np.array([tile.x0, tile.y0, tile.x0, tile.y0])
        self.index, self.tile = index, tile
        self.category, self.score = int(table.category_id[row]), float(table.score[row])
        self.box = table.box[row].astype(np.float64) + shift
        self.mask_box = table.mask_box[row].astype(np.int64) + shift
        self.grid = table.crop(row)
        x0, y0, x1, y1 = tight_box(self.grid >= FOREGROUND)
        corner = self.mask_box[[0, 1, 0, 1]]
        self.tight = corner + (x0, y0, x1, y1)  # of the foreground
        gaps = (self.tight - (tile.x0, tile.y0, tile.x1, tile.y1)) * (1, 1, -1, -1)
        inner = gaps[list(tile.inner)]
        self.clearance = int(inner.min()) if inner.size else 1 << 30
        self.cut = self.clearance < EDGE

    def within(self, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of the mask inside of a pixel box, and that part's own box."""
        low, high = np.maximum(self.mask_box[:2], box[:2]), np.minimum(self.mask_box[2:], box[2:])
        high = np.maximum(low, high)
        x0, y0, x1, y1 = (int(v) for v in np.concatenate([low - self.mask_box[:2], high - self.mask_box[:2]]))
        return np.concatenate([low, high]), self.grid[y0:y1, x0:x1]


def _seen_inside(part: _Part, tiles: list[Tile]) -> bool:
    """Whether the mask is cut in its own tile, and another one holds all of it without its being cut there."""
    if not part.cut:
        return False
    bounds = np.array([(tile.x0, tile.y0, tile.x1, tile.y1) for tile in tiles])
    gaps = (part.tight - bounds) * (1, 1, -1, -1)
    least = np.where([tile.inner for tile in tiles], EDGE, 0)
    holds = (gaps >= least).all(axis=1)
    holds[part.index] = False
    return bool(holds.any())


def _grouped(parts: list[_Part], tiles: list[Tile]) -> list[list[_Part]]:
    """The parts that are of one object, in the order of their first ones."""
    leader = list(range(len(parts)))

    def find(k: int) -> int:
        while leader[k] != k:
            leader[k] = leader[leader[k]]
            k = leader[k]
        return k

    of_tile: dict[int, list[int]] = {}
    for k, part in enumerate(parts):
        of_tile.setdefault(part.index, []).append(k)
    for a, tile in enumerate(tiles):
        for b in range(a + 1, len(tiles)):
            other = tiles[b]
            strip = np.array([max(tile.x0, other.x0), max(tile.y0, other.y0),
                              min(tile.x1, other.x1), min(tile.y1, other.y1)])  # fmt: skip
            if strip[0] < strip[2] and strip[1] < strip[3]:
                for i, j in _matches(parts, of_tile.get(a, []), of_tile.get(b, []), strip):
                    leader[max(find(i), find(j))] = min(find(i), find(j))
    groups: dict[int, list[_Part]] = {}
    for k, part in enumerate(parts):
        groups.setdefault(find(k), []).append(part)
    return list(groups.values())


def _matches(parts: list[_Part], left: list[int], right: list[int], strip: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of two tiles' detections that are of one object, by their masks on the strip that the tiles share.

    One to one, the most alike first; then, of those still alone, parts that the other tile sees as one piece.
    """
    shared: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
    for k in [*left, *right]:
        box, grid = parts[k].within(strip)
        area = int(np.count_nonzero(grid >= FOREGROUND))
        if area:
            shared[k] = (box, grid, area)
    left, right = [k for k in left if k in shared], [k for k in right if k in shared]
    if not left or not right:
        return []
    a, b = (np.stack([shared[k][0] for k in side]) for side in (left, right))  # (L, 4) and (R, 4)
    meet = (np.maximum(a[:, None, :2], b[None, :, :2]) < np.minimum(a[:, None, 2:], b[None, :, 2:])).all(axis=2)
    meet &= np.equal.outer([parts[k].category for k in left], [parts[k].category for k in right])
    scored = []
    for row, column in np.argwhere(meet):
        i, j = left[row], right[column]
        (box_i, grid_i, area_i), (box_j, grid_j, area_j) = shared[i], shared[j]
        common = crop_intersection(grid_i, box_i, grid_j, box_j)
        if common:
            scored.append((common / (area_i + area_j - common), common / min(area_i, area_j), i, j))
    scored.sort(key=lambda row: (-row[0], row[2], row[3]))
    taken: set[int] = set()
    pairs = []
    for iou, _, i, j in scored:
        if iou >= SAME and i not in taken and j not in taken:
            taken |= {i, j}
            pairs.append((i, j))
    for iou, share, i, j in scored:
        alone = (i not in taken) or (j not in taken)
        if iou < SAME and share >= PART and alone and parts[i].cut and parts[j].cut:
            pairs.append((i, j))
    return pairs


def _merged(group: list[_Part]) -> tuple[int, float, np.ndarray, np.ndarray, np.ndarray]:
    """One instance out of the parts that several tiles see of it.

    Where several see a pixel, each counts by its distance from that tile's inner borders, so that no seam shows.
    """
    low = np.min([part.mask_box[:2] for part in group], axis=0)
    high = np.max([part.mask_box[2:] for part in group], axis=0)
    extent = np.concatenate([low, high])
    total = np.zeros((high[1] - low[1], high[0] - low[0]), np.float32)
    weights = np.zeros_like(total)
    tiles = {part.index: part.tile for part in group}
    for index, tile in tiles.items():
        x0, y0 = np.maximum(low, (tile.x0, tile.y0))
        x1, y1 = np.minimum(high, (tile.x1, tile.y1))
        seen = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for part in group:
            if part.index == index:
                px0, py0, px1, py1 = part.mask_box - (x0, y0, x0, y0)
                place = seen[py0:py1, px0:px1]
                np.maximum(place, part.grid, out=place)
        weight = np.minimum(_ramp(y0, y1, tile.y0, tile.y1, tile.inner[1], tile.inner[3])[:, None],
                            _ramp(x0, x1, tile.x0, tile.x1, tile.inner[0], tile.inner[2])[None])  # fmt: skip
        inside = (slice(y0 - low[1], y1 - low[1]), slice(x0 - low[0], x1 - low[0]))
        total[inside] += weight * seen
        weights[inside] += weight
    grid = (total / np.maximum(weights, 1) + np.float32(0.5)).astype(np.uint8)
    areas = np.array([max(int(np.count_nonzero(part.grid >= FOREGROUND)), 1) for part in group])
    score = float((areas * [part.score for part in group]).sum() / areas.sum())
    boxes = np.stack([part.box for part in group])
    box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    return group[0].category, score, box, extent, grid


def _ramp(first: int, end: int, low: int, high: int, inner_low: bool, inner_high: bool) -> np.ndarray:
    """(end - first,) float32: how far each pixel of an axis is from the tile's inner borders, 1 beside one."""
    at = np.arange(first, end, dtype=np.float32)
    distance: np.ndarray = np.full(len(at), 1 << 20, np.float32)
    if inner_low:
        distance = np.minimum(distance, at - low + 1)
    if inner_high:
        distance = np.minimum(distance, high - at)
    return distance
