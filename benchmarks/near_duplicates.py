"""How far copies of real images are apart, and how near different ones: what the thresholds of near_duplicates.py rest on.

    python -m benchmarks.near_duplicates [../shared/data]

Every image is turned at random, scaled by 0.4, 0.6 or 1.5, compressed to JPEG quality 30, 50 or 80 and brightened by a gamma of
0.7 or 1.4, step by step; and cropped by 2 and 5 percent of its sides, which is no longer what is promised to be found. Then the
time for many images, found among noise.
"""

import argparse
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pipeline import near_duplicates as near
from pipeline.views import TURNS, View

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

STEPS = ("turned", "scaled", "compressed", "scaled and compressed", "all", "all, cropped by 2 %", "all, cropped by 5 %")


def images(data: Path) -> Iterator[np.ndarray]:
    """(H, W) uint8 of every real image."""
    for name in ("dsb2018/stage1_train.zip", "dsb2018/stage1_test.zip", "vrdl2021/dataset.zip"):
        with zipfile.ZipFile(data / name) as archive:
            for file in sorted(archive.namelist()):
                if file.endswith(".png") and "/masks/" not in file and ".ipynb" not in file:
                    yield cv2.imdecode(np.frombuffer(archive.read(file), np.uint8), cv2.IMREAD_GRAYSCALE)
    for path in sorted([*data.glob("segpc2021/images/*/x/*.bmp"), *data.glob("coco/small/*/*.jpg")]):
        yield cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def small(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels.astype(np.float32), (near.SIDE, near.SIDE), interpolation=cv2.INTER_AREA).astype(
        np.float16
    )


def changed(pixels: np.ndarray, step: str, rng: np.random.Generator) -> np.ndarray:
    everything = step.startswith("all")
    pixels = View(str(rng.choice(list(TURNS)))).apply(pixels)
    if "scaled" in step or everything:
        factor = float(rng.choice([0.4, 0.6, 1.5]))
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    if everything:
        pixels = np.round(255 * (pixels / 255) ** float(rng.choice([0.7, 1.4]))).astype(np.uint8)
    if "compressed" in step or everything:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.choice([30, 50, 80]))]
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_GRAYSCALE)
    share = 0.02 if "2 %" in step else 0.05 if "5 %" in step else 0
    return pixels[int(share * pixels.shape[0]) :, int(share * pixels.shape[1]) :]


def compared(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """Similarity and distance of two thumbnails under the turn that is best for each."""
    spectra = near._spectra(np.stack([first, second]))
    unit, _ = near._normed(spectra)
    similarity = max(float((near._turned(unit[:1], turn)[0] * unit[1]).sum()) for turn in TURNS)
    hashes = near._hashes(spectra)
    return similarity, int((hashes[0] != hashes[1, 0]).sum(axis=1).min())


def main(data: Path) -> None:
    pixels = list(images(data))
    thumbs = np.stack([small(p) for p in pixels])
    print(f"{len(pixels)} images; thresholds: similarity {near.MIN_SIMILARITY}, distance {near.MAX_DISTANCE}")
    rng = np.random.default_rng(0)
    for step in STEPS:
        values = [compared(t, small(changed(p, step, rng))) for t, p in zip(thumbs, pixels, strict=True)]
        similar, distance = (np.array(column) for column in zip(*values, strict=True))
        found = np.mean((similar >= near.MIN_SIMILARITY) & (distance <= near.MAX_DISTANCE))
        print(
            f"  {step:24} similarity least {similar.min():.3f}, 1 % {np.quantile(similar, 0.01):.3f}, "
            f"half {np.median(similar):.3f}; distance most {distance.max()}; found {100 * found:.1f} %"
        )
    others = [compared(thumbs[i], thumbs[j]) for i in range(len(thumbs)) for j in range(i)]
    similar, distance = (np.array(column) for column in zip(*others, strict=True))
    order = np.argsort(-similar)[:3]
    print(
        f"  {len(others):,} pairs of different images: most similar {similar[order].round(3)}, distances {distance[order]}"
    )
    print(f"  distances: least {np.sort(distance)[:3]}, mean {distance.mean():.1f}")
    for count in (1_000, 5_000, 20_000):
        many = np.random.default_rng(1).normal(100, 20, (count, near.SIDE, near.SIDE)).astype(np.float16)
        many[-1] = many[0][::-1]
        began = time.perf_counter()
        found_pairs = near.find_pairs(many)
        print(f"  {count:,} images: {time.perf_counter() - began:.2f} s, {len(found_pairs)} pair")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="?", type=Path, default=DATA, help="the folder of real data (default: %(default)s)"
    )
    main(parser.parse_args().data)
