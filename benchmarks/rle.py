"""A thousand soft masks of a large image as COCO run lengths: from the crops, against pasting into full frames.

    python -m benchmarks.rle

1,000 objects on 2000x2500 pixels, as a Mask R-CNN gives them: 28x28 probabilities and a box. The plain way is MMDetection's
own `_do_paste_mask` into a frame the size of the image, one half as the threshold, and pycocotools' encoder; Detectron2's
`paste_masks_in_image` does the same. Ours starts from the detections, or, in the second row, from the same 28x28 too.
Both are compared pixel by pixel; a mask of at most 128 pixels a side is kept bit for bit, a larger one is sampled down to
that. Times are processor time on one thread. Memory is measured in a process of its own: by how much its resident memory
rises from 28x28 to the run lengths, the detections between included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pipeline.masks import paste_roi
from pipeline.records import Detections

HEIGHT, WIDTH, OBJECTS, ROI = 2000, 2500, 1000, 28
FASTER, AGREEMENT, MEMORY = 20, 0.9999, 100
"""The targets: times faster, the share of all pixels that are equal, and megabytes."""


def network_output() -> tuple[np.ndarray, np.ndarray]:
    """Boxes (OBJECTS, 4) float32 and probabilities (OBJECTS, ROI, ROI) float32: blobs of 15 to 250 pixels."""
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(15), np.log(250), (OBJECTS, 1))) * rng.uniform(0.7, 1.3, (OBJECTS, 2))
    corner = rng.random((OBJECTS, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    y, x = (np.mgrid[:ROI, :ROI] + 0.5) / ROI * 2 - 1
    angle = np.arctan2(y, x)
    probabilities = []
    for _ in range(OBJECTS):
        outline = 0.85 + 0.1 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6))
        probabilities.append(1 / (1 + np.exp(-12 * (outline - np.hypot(y, x)))))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32), np.array(probabilities, np.float32)


def detections(boxes: np.ndarray, probabilities: np.ndarray) -> Detections:
    pasted = [paste_roi(p, box, (HEIGHT, WIDTH)) for p, box in zip(probabilities, boxes, strict=True)]
    return Detections.build(1, 1, np.ones(len(boxes)), boxes, [b for b, _ in pasted], [g for _, g in pasted])


def encoded(found: Detections) -> list[dict]:
    return [record["segmentation"] for record in found.to_coco({1: (HEIGHT, WIDTH)})]


def full_frames(boxes: np.ndarray, probabilities: np.ndarray) -> list[dict]:
    import torch
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
    from pycocotools import mask as coco_mask

    out = []
    for box, p in zip(torch.from_numpy(boxes), torch.from_numpy(probabilities), strict=True):
        frame = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        soft, place = _do_paste_mask(p[None, None], box[None], HEIGHT, WIDTH, skip_empty=True)
        frame[place] = soft[0] >= 0.5
        out.append(coco_mask.encode(np.asfortranarray(frame.numpy().view(np.uint8))))
    return out


def memory() -> float:
    """Megabytes by which the peak of this process's resident memory rises, kernels compiled."""
    boxes, probabilities = network_output()
    encoded(detections(boxes[:1], probabilities[:1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten, or it would hide a rise below it
    before = _resident("VmHWM")
    encoded(detections(boxes, probabilities))
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) / 1e3


def main() -> None:
    import torch
    from pycocotools import mask as coco_mask

    torch.set_num_threads(1)
    boxes, probabilities = network_output()
    full_frames(boxes[:2], probabilities[:2])
    found = detections(boxes, probabilities)
    encoded(found)

    def least(call, runs: int) -> tuple[list[dict], float]:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(runs):
            began = time.process_time()
            result = call()
            times.append(time.process_time() - began)
        return result, min(times)

    theirs, slow = least(lambda: full_frames(boxes, probabilities), 1)
    mine, fast = least(lambda: encoded(found), 5)
    _, whole = least(lambda: encoded(detections(boxes, probabilities)), 5)
    ours = [{**rle, "counts": rle["counts"].encode()} for rle in mine]
    equal = np.array([a["counts"] == b["counts"] for a, b in zip(ours, theirs, strict=True)])
    whole_grid = (found.shape == found.mask_box[:, [3, 2]] - found.mask_box[:, [1, 0]]).all(axis=1)
    union = np.array([coco_mask.area(coco_mask.merge([a, b])) for a, b in zip(ours, theirs, strict=True)], float)
    common = np.array([coco_mask.area(coco_mask.merge([a, b], True)) for a, b in zip(ours, theirs, strict=True)], float)
    differing = float((union - common).sum())
    run = subprocess.run([sys.executable, "-m", "benchmarks.rle", "memory"], check=True, capture_output=True, text=True)
    rise, peak = json.loads(run.stdout)

    def verdict(holds: bool) -> str:
        return "holds" if holds else "FAILS"

    print(f"{OBJECTS:,} objects on {HEIGHT}x{WIDTH}")
    print(f"detections to run lengths           {1e3 * fast:9.1f} ms")
    print(f"28x28 to detections to run lengths  {1e3 * whole:9.1f} ms")
    print(f"28x28 to full frames to run lengths {1e3 * slow:9.1f} ms")
    print(
        f"ratio {slow / fast:.0f} x and {slow / whole:.0f} x faster; target {FASTER} x: {verdict(slow / whole >= FASTER)}"
    )
    print(
        f"{equal.sum()} of {OBJECTS} masks are equal, of those of at most 128 pixels a side {equal[whole_grid].sum()} of "
        f"{whole_grid.sum()}; {1 - differing / (OBJECTS * HEIGHT * WIDTH):.7%} of all pixels, "
        f"{1 - differing / union.sum():.4%} of those within a mask; target {AGREEMENT:.2%}: "
        f"{verdict(1 - differing / (OBJECTS * HEIGHT * WIDTH) >= AGREEMENT)}"
    )
    print(f"memory rises by {rise:.1f} MB (process {peak:.0f} MB, imports included); "
          f"target {MEMORY} MB: {verdict(rise < MEMORY)}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.part:
        print(json.dumps([memory(), _resident("VmHWM")]))
    else:
        main()
