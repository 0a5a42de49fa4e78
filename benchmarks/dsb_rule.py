"""The DSB rule from run lengths against the plain way over dense matrices, side by side.

    python -m benchmarks.dsb_rule

As many images as stage 1 has to test on, 65, with the 4,152 masks that are in them: taken from the competition's training
images where they are at hand (../shared/data/dsb2018 or data/dsb2018), else drawn. The predictions are the truths moved
by up to two pixels, less a tenth. Each side starts from COCO run lengths and ends in the score. The plain way
decodes every mask to a full frame with pycocotools, paints label maps, counts the overlap of every pair of labels in a
2-D histogram, and compares the full matrix with each threshold, as public kernels for this competition do.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.metrics import dsb
from pipeline.records import Dataset, Image, Instance

IMAGES, MASKS, RUNS = 65, 4152, 5
PROJECT = Path(__file__).resolve().parents[1]
PLACES = (PROJECT / "data" / "dsb2018", PROJECT.parent / "shared" / "data" / "dsb2018")


def instance(number: int, image: Image, mask: np.ndarray, x0: int, y0: int) -> Instance:
    box = (x0, y0, x0 + mask.shape[1], y0 + mask.shape[0])
    rle = crop_to_rle(mask, box, (image.height, image.width), threshold=1)
    return Instance(number, image.id, 1, rle, (x0, y0, mask.shape[1], mask.shape[0]), float(mask.sum()))


def real() -> Dataset | None:
    """Images with as many masks in all as the test set: some are drawn, and changed for others until the number fits."""
    from pipeline.competitions.dsb2018 import COMPETITION

    place = next((p for p in PLACES if p.exists()), None)
    if place is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        train = COMPETITION.read(place, {}, 0, Path(folder)).train
    rng = np.random.default_rng(0)
    ids = rng.permutation([image.id for image in train.images])
    counts = np.array([len(train.by_image[i]) for i in ids.tolist()])
    for _ in range(20_000):
        j, k = int(rng.integers(IMAGES)), int(rng.integers(IMAGES, len(ids)))
        total = int(counts[:IMAGES].sum())
        if abs(total - counts[j] + counts[k] - MASKS) < abs(total - MASKS):
            ids[[j, k]], counts[[j, k]] = ids[[k, j]], counts[[k, j]]
    return train.subset(ids[:IMAGES].tolist())


def drawn() -> Dataset:
    rng = np.random.default_rng(0)
    images = [Image(k, f"{k}.png", *((256, 256), (520, 696))[k % 2]) for k in range(1, IMAGES + 1)]
    instances: list[Instance] = []
    places = {i.id: [(y, x) for y in range(0, i.height - 16, 16) for x in range(0, i.width - 16, 16)] for i in images}
    y, x = np.mgrid[:15, :15] - 7
    for number in range(1, MASKS + 1):
        image = images[int(rng.integers(IMAGES))]
        cells = places[image.id]
        if not cells:
            continue
        top, left = cells.pop(int(rng.integers(len(cells))))
        disc = (x**2 + y**2 <= rng.uniform(9, 49)).astype(np.uint8)
        instances.append(instance(number, image, disc, left, top))
    return Dataset(images, {1: "nucleus"}, instances)


def predictions(truth: Dataset) -> list[dict]:
    """Every image's masks moved alike, so that they share no pixels; what leaves the image is cut off."""
    rng = np.random.default_rng(1)
    records = []
    for image in truth.images:
        dx, dy = (int(v) for v in rng.integers(0, 3, 2))
        for a in truth.by_image[image.id]:
            (x0, y0, x1, y1), mask = rle_to_crop(a.rle)
            mask = mask[: image.height - y0 - dy, : image.width - x0 - dx]
            if rng.random() < 0.1 or not mask.any():
                continue
            moved = instance(0, image, mask, int(x0) + dx, int(y0) + dy)
            records.append({"image_id": image.id, "category_id": 1, "score": 1.0, "segmentation": moved.rle})
    return records


def labels(rles: list[dict], size: tuple[int, int]) -> np.ndarray:
    """(H, W) int32 label map; of masks that share pixels the last has them."""
    frame = np.zeros(size, np.int32)
    for number, rle in enumerate(rles, start=1):
        frame[coco_mask.decode({**rle, "counts": rle["counts"].encode()}) > 0] = number
    return frame


def plain(truth: Dataset, records: list[dict]) -> float:
    values = []
    for image in truth.images:
        size = (image.height, image.width)
        true = labels([a.rle for a in truth.by_image[image.id]], size)
        found = labels([r["segmentation"] for r in records if r["image_id"] == image.id], size)
        n, m = int(true.max()) + 1, int(found.max()) + 1
        shared = np.histogram2d(true.ravel(), found.ravel(), bins=(np.arange(n + 1), np.arange(m + 1)))[0]
        union = shared.sum(axis=1)[:, None] + shared.sum(axis=0)[None, :] - shared
        iou = (shared / np.maximum(union, 1))[1:, 1:]
        each = []
        for t in np.arange(0.5, 1.0, 0.05):
            hits = iou > t + 1e-12
            tp, fp, fn = hits.any(axis=1).sum(), (~hits.any(axis=0)).sum(), (~hits.any(axis=1)).sum()
            each.append(tp / (tp + fp + fn) if tp + fp + fn else 1.0)
        values.append(np.mean(each))
    return float(np.mean(values))


def timed(call, runs: int) -> tuple[float, float]:
    """The result and the median of the seconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return result, float(np.median(times))


def main() -> None:
    data = real()
    truth, what = (data, "real images") if data is not None else (drawn(), "drawn images")
    records = predictions(truth)
    began = time.perf_counter()
    ours = dsb.summary(truth, records)["score"]
    first = time.perf_counter() - began
    ours, our_time = timed(lambda: dsb.summary(truth, records)["score"], RUNS)
    theirs, their_time = timed(lambda: plain(truth, records), 3)
    print(f"{len(truth.images)} {what}, {len(truth.instances):,} true masks, {len(records):,} predicted")
    print(f"run lengths    {our_time:8.3f} s (the first time {first:.2f} s)   score {ours:.6f}")
    print(f"dense matrix   {their_time:8.3f} s                          score {theirs:.6f}")
    print(f"ratio          {their_time / our_time:8.1f} x faster")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
