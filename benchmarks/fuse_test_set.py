"""A whole test set through the fusion, from prediction files to a fused file, and how time and memory grow with images.

    python -m benchmarks.fuse_test_set

Six images of 1000x1000, each with what 28 trainings (7 models of 4 folds) found under 8 views, 1,000 detections a view:
1,344,000 soft masks in 28 Parquet files. The masks are drawn, as many and as large as nuclei. Then a tenfold of images
against a few, with fewer voters. Each run is a process of its own; its time is processor time on one thread, so that a
busy machine does not count, and the time on the wall stands beside it. Memory is the process's peak, imports included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np

from pipeline.fusion.fuse import fuse_to
from pipeline.fusion.settings import Fusion
from pipeline.records import Detections, DetectionsWriter, read_images

SIDE, OBJECTS = 1000, 1000
VIEWS = [f"{turn}@{scale}" for turn in ("identity", "hflip", "vflip", "rot180") for scale in ("1.0", "1.5")]
MODELS, FOLDS, IMAGES = 7, 4, 6
FEW, MANY = 6, 60
SECONDS, GROWTH, MEMORY = 60, 10.5, 1.1
"""The targets: seconds of the whole set, and how many times the time and the memory of ten times the images may be."""


def cells(rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Corners (OBJECTS, 2) and soft ellipses of the objects of an image."""
    grids = []
    for ry, rx in rng.uniform(6, 11, (OBJECTS, 2)):
        y, x = np.mgrid[: int(2 * ry) + 4, : int(2 * rx) + 4]
        distance = np.hypot((y - y.max() / 2) / ry, (x - x.max() / 2) / rx)
        grids.append(np.clip(128 + 255 * (1 - distance) * min(ry, rx) / 3, 0, 255).astype(np.uint8))
    return rng.integers(3, SIDE - 30, (OBJECTS, 2)), grids


def sighting(
    rng: np.random.Generator, image: int, corner: np.ndarray, grids: list[np.ndarray], names: list[str]
) -> Detections:
    """What the views of one training say of an image: the objects displaced, one in twelve anywhere else."""
    sides = np.array([grid.shape for grid in grids], np.int32)
    sizes = sides.prod(axis=1)
    place = corner[None] + rng.integers(-1, 2, (len(names), OBJECTS, 2))
    lost = rng.random((len(names), OBJECTS)) < 1 / 12
    place[lost] = rng.integers(3, SIDE - 30, (int(lost.sum()), 2))
    place = place.reshape(-1, 2).astype(np.int32)
    shape = np.tile(sides, (len(names), 1))
    box = np.concatenate([place[:, ::-1], place[:, ::-1] + shape[:, ::-1]], axis=1)
    count = len(box)
    return Detections(
        np.full(count, image, np.int64), np.ones(count, np.int32), np.where(lost, 0.4, 1).ravel() * rng.uniform(0.3, 1, count),
        (box + rng.normal(0, 0.7, (count, 4))).astype(np.float32), box, shape,
        np.concatenate([[0], np.cumsum(np.tile(sizes, len(names)))]),
        np.tile(np.concatenate([g.ravel() for g in grids]), len(names)),
        np.repeat(np.arange(len(names), dtype=np.int16), OBJECTS), names,
    )  # fmt: skip


def write(folder: Path, images: int, models: int, folds: int, views: list[str]) -> int:
    """A Parquet file for each training; returns the number of detections."""
    drawn = {image: cells(np.random.default_rng(image)) for image in range(images)}
    for model in range(models):
        for fold in range(folds):
            names = [f"m{model}/{fold}/{view}" for view in views]
            with DetectionsWriter(folder / f"m{model}-{fold}.parquet", names) as writer:
                for image, (corner, grids) in drawn.items():
                    rng = np.random.default_rng([model, fold, image])
                    writer.add(sighting(rng, image, corner, grids, names))
    return images * models * folds * len(views) * OBJECTS


def fuse(folder: Path) -> dict[str, float]:
    """Fuse the folder's files; what it took, after one image that imports and compiles."""
    paths = sorted(folder.glob("m*.parquet"))
    images = [int(table.image_id[0]) for table in read_images(paths[0])]
    sizes = dict.fromkeys(images, (SIDE, SIDE))

    def fusing() -> Generator[tuple[int, int], None, None]:
        yield from fuse_to(folder / "fused.parquet", paths, Fusion(), sizes, None, provenance={})

    first = fusing()
    next(first)
    first.close()
    wall, cpu = time.perf_counter(), time.process_time()
    done = list(fusing())
    seconds = time.process_time() - cpu
    # not ru_maxrss: that starts from what the process had that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(row.split()[1]) / 1e3 for row in status if row.startswith("VmHWM"))
    return {"cpu": seconds, "wall": time.perf_counter() - wall, "peak": peak, "masks": sum(count for _, count in done)}


def measured(folder: Path) -> dict[str, float]:
    """`fuse` in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuse_test_set", str(folder)], check=True, capture_output=True, text=True
    )
    return dict(json.loads(run.stdout))


def verdict(holds: bool) -> str:
    return "holds" if holds else "FAILS"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        small, large, whole = (Path(name) / part for part in ("small", "large", "whole"))
        for folder, images, models, folds, views in (
            (small, FEW, 3, 1, VIEWS[:2]), (large, MANY, 3, 1, VIEWS[:2]), (whole, IMAGES, MODELS, FOLDS, VIEWS),
        ):  # fmt: skip
            folder.mkdir()
            count = write(folder, images, models, folds, views)
        measured(small)  # compiles, where nothing has yet
        few, many = ([measured(folder) for _ in range(3)] for folder in (small, large))
        everything = measured(whole)
        few, many = (min(runs, key=lambda run: run["cpu"]) for runs in (few, many))
    print(
        f"{IMAGES} images, {count:,} detections of {MODELS * FOLDS * len(VIEWS)} voters -> {everything['masks']:,} masks"
    )
    print(
        f"  {everything['cpu']:.1f} s of processor time, {everything['wall']:.1f} s on the wall, {everything['peak']:,.0f} MB "
        f"at most; target {SECONDS} s (processor): {verdict(everything['cpu'] < SECONDS)}"
    )
    slower, larger = many["cpu"] / few["cpu"], many["peak"] / few["peak"]
    print(
        f"{FEW} images {few['cpu']:.2f} s, {few['peak']:.0f} MB; {MANY} images {many['cpu']:.2f} s, {many['peak']:.0f} MB"
    )
    print(f"  {slower:.1f} times the time; target {GROWTH}: {verdict(slower <= GROWTH)}")
    print(f"  {larger:.2f} times the memory; target the same, to {MEMORY}: {verdict(larger <= MEMORY)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.part:
        print(json.dumps(fuse(Path(options.part[0]))))
    else:
        main()
