"""One training sample of a dense image: crops against full-frame bitmaps, side by side.

    python -m benchmarks.samples

An image of 1000x1000 with 1,862 objects (the densest of VRDL 2021), samples of 512x512. The plain way decodes every object to
a full frame with pycocotools and cuts the window out, as the frameworks' own loaders do with RLE annotations.
"""

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from pipeline.backends.samples import Samples
from pipeline.experiment import TrainSettings
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Image, Instance

SIDE, OBJECTS, CROP, RUNS = 1000, 1862, 512, 5


def dense(folder: Path) -> Dataset:
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "dense.png"), rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    disc = cv2.circle(np.zeros((15, 15), np.uint8), (7, 7), 7, 1, -1)
    instances = []
    for k in range(OBJECTS):
        x0, y0 = (int(v) for v in rng.integers(0, SIDE - 15, 2))
        rle = crop_to_rle(disc, (x0, y0, x0 + 15, y0 + 15), (SIDE, SIDE), 1)
        instances.append(Instance(k + 1, 1, 1, rle, (x0, y0, 15, 15), float(disc.sum())))
    return Dataset([Image(1, "dense.png", SIDE, SIDE)], {1: "object"}, instances, folder)


def plain(data: Dataset, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(CROP, CROP, 3) window and (N, CROP, CROP) bitmaps of the objects in it, by way of full frames."""
    image = cv2.imread(str(data.path(data.images[0])))
    frames = np.stack([coco_mask.decode({**i.rle, "counts": i.rle["counts"].encode()}) for i in data.instances])
    x0, y0 = (int(v) for v in rng.integers(0, SIDE - CROP, 2))
    window = frames[:, y0 : y0 + CROP, x0 : x0 + CROP]
    return image[y0 : y0 + CROP, x0 : x0 + CROP], window[window.any(axis=(1, 2))]


def measured(call: object, runs: int) -> tuple[float, float]:
    """Seconds a call (the median) and the peak of numpy's memory in MB."""
    times = []
    for k in range(runs):
        began = time.perf_counter()
        call(k)  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    tracemalloc.start()
    call(runs)  # type: ignore[operator]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(np.median(times)), peak / 1e6


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = dense(Path(folder))
        samples = Samples(data, TrainSettings(crop=CROP), 0, 1000)
        began = time.perf_counter()
        samples[0]
        first = time.perf_counter() - began
        ours, our_memory = measured(lambda k: samples[k + 1], 40)
        rng = np.random.default_rng(0)
        theirs, their_memory = measured(lambda k: plain(data, rng), RUNS)
    print(
        f"crops        {1e3 * ours:8.1f} ms a sample, {our_memory:7.0f} MB at most (the first one {1e3 * first:.0f} ms)"
    )
    print(f"full frames  {1e3 * theirs:8.1f} ms a sample, {their_memory:7.0f} MB at most")
    print(f"ratio        {theirs / ours:8.0f} x faster, {their_memory / our_memory:.0f} x less memory")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
