"""Images that are as good as the same: turned, rescaled, compressed or brightened copies, which must not lie in two folds.

A model that was trained on a copy of an image knows it; validated there, it looks better than it is. Two steps find copies
among all pairs of images, under all eight turns:

1. A perceptual hash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): of the discrete
   cosine transform of an image averaged down to 32x32 grey pixels the 63 lowest frequencies but the constant are each told to
   be above or below their median. A turn only changes signs and exchanges the axes of the transform, so all eight hashes of an
   image come from one. Pairs that differ in at most `MAX_DISTANCE` bits go on.
2. The correlation of the two 32x32 images. At least `MIN_SIMILARITY` is a copy.

Before both the light is taken out, the surface of second degree that fits the image best: two fields of view of one microscope
share its light, and that must not make them copies.

The thresholds, on 336 real images (DSB 2018, VRDL 2021, SegPC 2021, COCO; benchmarks/near_duplicates.py): copies turned, scaled
by 0.4 to 1.5, brightened by a gamma of 0.7 or 1.4 and compressed to JPEG quality 30 to 80 correlate at least 0.947 and differ
in at most 10 bits; all are found. Of the 56,280 pairs of different images one turns out to be a copy (DSB 2018 has a training
image in its test set, twice as bright); the next correlates 0.55 and differs in 16 bits, and the mean is 26. Copies that were
cropped by 2 % of their sides are found half of the time, and not at all by 5 %: overlapping tiles are not what this is for, the
source (patient, slide, well) must keep them together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.competitions import Prepared, Problem
from pipeline.records import Dataset, Image
from pipeline.views import TURNS

SIDE = 32
"""Of the averaged-down image."""

BLOCK = 8
"""Frequencies a side that go into the hash."""

MAX_DISTANCE = 14
"""Bits, of 63."""

MIN_SIMILARITY = 0.85

PLAIN = 0.5
"""An image whose 32x32 pixels vary by less than this (standard deviation, of 255, without the light) has nothing to be known by;
it is never a copy."""


@dataclass(frozen=True)
class Pair:
    """Two images, by index: `turn` (a key of `views.TURNS`) of the first is the second.

    Attributes:
        similarity: correlation, -1..1.
        distance: bits in which the hashes differ, 0..63.
    """

    first: int
    second: int
    turn: str
    similarity: float
    distance: int


# ---------------------------------------------------------------- finding ---------------------------------------------


def thumbnail(path: Path) -> np.ndarray | None:
    """(32, 32) float16, an image averaged down in grey 0..255; None where it cannot be read."""
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None or not image.size:
        return None
    return np.asarray(cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float16)


def thumbnails(paths: Sequence[Path]) -> np.ndarray:
    """(N, 32, 32) float16; an image that cannot be read is plain grey, which is no copy of anything."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(thumbnail, paths))
    plain = np.zeros((SIDE, SIDE), np.float16)
    return np.stack([plain if t is None else t for t in found]) if found else np.zeros((0, SIDE, SIDE), np.float16)


def find_pairs(thumbs: np.ndarray) -> list[Pair]:
    """Every pair of copies among N images, in order.

    Args:
        thumbs: (N, 32, 32), see `thumbnails`.
    """
    hashes = np.zeros((len(thumbs), len(TURNS), BLOCK * BLOCK - 1), np.int8)
    telling = np.zeros(len(thumbs), bool)
    for rows in _chunks(len(thumbs)):
        spectra = _spectra(thumbs[rows])
        hashes[rows] = _hashes(spectra)
        telling[rows] = _normed(spectra)[1] >= PLAIN
    near = _near(hashes, np.flatnonzero(telling))
    best: dict[tuple[int, int], Pair] = {}
    for rows in _chunks(len(near)):
        first, _ = _normed(_spectra(thumbs[near[rows, 0]]))
        second, _ = _normed(_spectra(thumbs[near[rows, 1]]))
        for k, turn in enumerate(TURNS):
            own = np.flatnonzero(near[rows, 2] == k)
            similar = (_turned(first[own], turn) * second[own]).sum(axis=(1, 2))
            for (i, j, _, distance), similarity in zip(near[rows][own].tolist(), similar.tolist(), strict=True):
                known = best.get((i, j))
                if similarity >= MIN_SIMILARITY and (known is None or similarity > known.similarity):
                    best[i, j] = Pair(i, j, turn, round(similarity, 4), distance)
    return [best[key] for key in sorted(best)]


def _chunks(count: int, size: int = 4096) -> Iterator[slice]:
    for begin in range(0, count, size):
        yield slice(begin, begin + size)


def _spectra(thumbs: np.ndarray) -> np.ndarray:
    """(N, 32, 32) float32, the orthonormal discrete cosine transform (type II) of each, its light taken out."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].reshape(2, -1)
    surfaces, _ = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=1))  # (1024, 6), orthonormal
    pixels = thumbs.reshape(len(thumbs), -1).astype(np.float64)
    pixels -= (pixels @ surfaces) @ surfaces.T
    frequency, place = np.mgrid[:SIDE, :SIDE]
    basis = np.cos(np.pi * (2 * place + 1) * frequency / (2 * SIDE)) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis @ pixels.reshape(-1, SIDE, SIDE) @ basis.T, np.float32)


def _turned(spectra: np.ndarray, turn: str) -> np.ndarray:
    """(N, S, S) spectra of the turned images: a flip changes the sign of the odd frequencies of its axis."""
    transpose, flip_rows, flip_columns = TURNS[turn]
    odd = 1 - 2 * (np.arange(spectra.shape[-1], dtype=np.float32) % 2)
    turned = spectra.swapaxes(1, 2) if transpose else spectra
    turned = turned * odd[:, None] if flip_rows else turned
    return turned * odd if flip_columns else turned


def _hashes(spectra: np.ndarray) -> np.ndarray:
    """(N, 8, 63) int8 of -1 and 1, the hash of each image under each turn."""
    low = spectra[:, :BLOCK, :BLOCK]
    found = np.empty((len(low), len(TURNS), BLOCK * BLOCK - 1), np.int8)
    for k, turn in enumerate(TURNS):
        values = _turned(low, turn).reshape(len(low), -1)[:, 1:]
        found[:, k] = np.where(values > np.median(values, axis=1, keepdims=True), 1, -1)
    return found


def _normed(spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spectra (N, 32, 32) of length one, and the standard deviation (N,) of the pixels that they are of."""
    length = np.sqrt((spectra**2).sum(axis=(1, 2)))
    return spectra / np.maximum(length, 1e-6)[:, None, None], length / SIDE


def _near(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(M, 4) int64 of first, second, turn, distance: a turn of the first is within `MAX_DISTANCE` bits of the second.

    Products of matrices, because nothing compares faster: bits of -1 and 1 that differ in d of 63 places multiply to 63 - 2d.
    """
    bits = hashes.shape[2]
    plain = hashes[rows, 0].T.astype(np.float32)  # (63, N)
    found: list[np.ndarray] = [np.zeros((0, 4), np.int64)]
    for part in _chunks(len(rows), 256):
        for turn in range(hashes.shape[1]):
            product = hashes[rows[part], turn].astype(np.float32) @ plain[:, part.start :]
            first, second = np.nonzero(product >= bits - 2 * MAX_DISTANCE)
            distance = (bits - product[first, second].astype(np.int64)) // 2
            columns = [rows[part.start + first], rows[part.start + second], np.full(len(first), turn), distance]
            found.append(np.stack(columns, axis=1)[second > first])
    return np.concatenate(found)


# ---------------------------------------------------------------- groups ----------------------------------------------


def clusters(count: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The sets of at least two of `count` things that hang together by links, each ascending, by their first."""
    head = list(range(count))

    def find(i: int) -> int:
        while head[i] != i:
            head[i] = head[head[i]]
            i = head[i]
        return i

    for one, other in links:
        a, b = sorted((find(one), find(other)))
        head[b] = a
    together: dict[int, list[int]] = {}
    for i in range(count):
        together.setdefault(find(i), []).append(i)
    return [members for members in together.values() if len(members) > 1]


def join_groups(images: Sequence[Image], together: Sequence[Sequence[int]]) -> list[Image]:
    """The images with groups that hold the copies together as well: groups that share copies become one.

    Args:
        together: sets of images, by index; see `clusters`.
    """
    groups = [image.group or f"\0{k}" for k, image in enumerate(images)]  # no group: alone
    names = sorted(set(groups))
    index = {name: k for k, name in enumerate(names)}
    links = [(index[groups[members[0]]], index[groups[other]]) for members in together for other in members[1:]]
    joined: dict[str, str] = {}
    for merged in clusters(len(names), links):
        parts = [names[k] for k in merged]
        shown = sorted(part for part in parts if not part.startswith("\0"))
        if not shown:  # named by the first image
            shown = [min(PurePosixPath(images[int(part[1:])].file_name).stem for part in parts)]
        joined |= dict.fromkeys(parts, "+".join(shown[:3]) + (f"+{len(shown) - 3} more" if len(shown) > 3 else ""))
    return [
        replace(image, group=joined[group]) if group in joined else image
        for image, group in zip(images, groups, strict=True)
    ]


# ---------------------------------------------------------------- a competition's data --------------------------------


@dataclass(frozen=True)
class Copies:
    """The copies among a competition's images.

    Attributes:
        pairs: images by index, those of training first, those of the test after them.
        names: file names, by index.
        train: how many are of training.
    """

    pairs: list[Pair]
    names: list[str]
    train: int

    @property
    def together(self) -> list[list[int]]:
        """Sets of training images that are copies of each other, by index."""
        links = [(pair.first, pair.second) for pair in self.pairs]
        sets = [[k for k in members if k < self.train] for members in clusters(len(self.names), links)]
        return [members for members in sets if len(members) > 1]

    def to_json(self) -> dict[str, Any]:
        return {
            "sets": [[self.names[k] for k in members] for members in self.together],
            "pairs": [
                {
                    "first": self.names[p.first],
                    "second": self.names[p.second],
                    "turn": p.turn,
                    "similarity": p.similarity,
                    "distance": p.distance,
                }
                for p in self.pairs
            ],
        }

    def problems(self) -> list[Problem]:
        """A warning for each training image with copies, and for each test image that training has."""
        found = []
        for members in self.together:
            rest = ", ".join(self.names[k] for k in members[1:6]) + (" …" if len(members) > 6 else "")
            text = f"is as good as the same as {rest}; they are kept in one fold"
            found.append(Problem("warning", self.names[members[0]], text, "near-duplicate images"))
        for pair in self.pairs:
            if pair.first < self.train <= pair.second:
                text = (
                    f"is as good as the same as the training image {self.names[pair.first]}; a score on it means little"
                )
                found.append(Problem("warning", self.names[pair.second], text, "test image in training"))
        return found


def find(train: Dataset, test: Dataset) -> Copies:
    """The copies among the images of a competition."""
    images = [(dataset, image) for dataset in (train, test) for image in dataset.images]
    pairs = find_pairs(thumbnails([dataset.path(image) for dataset, image in images]))
    return Copies(pairs, [image.file_name for _, image in images], len(train.images))


def keep_together(prepared: Prepared) -> tuple[Prepared, Copies]:
    """The data with training images that are copies of each other in one group, and the copies, which are problems too."""
    copies = find(prepared.train, prepared.test)
    integrity = replace(prepared.integrity, problems=[*prepared.integrity.problems, *copies.problems()])
    train = replace(prepared.train, images=join_groups(prepared.train.images, copies.together))
    return replace(prepared, train=train, integrity=integrity), copies
