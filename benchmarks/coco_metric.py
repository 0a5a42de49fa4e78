"""COCO's summary of dense images: maskfold, pycocotools and, where it is installed, faster-coco-eval, side by side.

    python -m benchmarks.coco_metric                    20 images, a few seconds
    python -m benchmarks.coco_metric --images 500       the size of the goal, some five minutes, nearly all of them pycocotools'
    python -m benchmarks.coco_metric --limit 1000       look at 1,000 detections of an image (pycocotools: a minute an image)

Images of 1000x1000 with 400 drawn nuclei and 1,000 detections each, one class, as annotation and results files. Each
implementation reads both files and computes the twelve numbers in a process of its own; seconds are its processor time, memory
is its peak, Python and its libraries included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIDE, TRUTHS, DETECTIONS = 1000, 400, 1000


def draw(folder: Path, images: int) -> None:
    """Write truth.json and results.json: 800 detections an image near a nucleus, the others anywhere."""
    import cv2
    import numpy as np

    from pipeline.masks import crop_to_rle, tight_box

    rng = np.random.default_rng(0)

    def nucleus(
        x: float, y: float, long: float, short: float, turn: float
    ) -> tuple[dict[str, Any], list[float], float]:
        mask = np.zeros((64, 64), np.uint8)
        cv2.ellipse(mask, (32, 32), (int(long), int(short)), turn, 0, 360, 1, -1)
        x0, y0, x1, y1 = tight_box(mask)
        crop = mask[y0:y1, x0:x1]
        height, width = crop.shape
        left, top = min(max(int(x) - width // 2, 0), SIDE - width), min(max(int(y) - height // 2, 0), SIDE - height)
        rle = crop_to_rle(crop, (left, top, left + width, top + height), (SIDE, SIDE), 1)
        return rle, [float(left), float(top), float(width), float(height)], float(crop.sum())

    listed, annotations, results = [], [], []
    for image_id in range(1, images + 1):
        listed.append({"id": image_id, "file_name": f"{image_id}.png", "height": SIDE, "width": SIDE})
        places = np.column_stack(
            [rng.uniform(0, SIDE, (TRUTHS, 2)), rng.uniform(6, 14, (TRUTHS, 2)), rng.uniform(0, 180, TRUTHS)]
        )
        for place in places:
            rle, box, area = nucleus(*place)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "segmentation": rle, "bbox": box,
                 "area": area, "iscrowd": 0}
            )  # fmt: skip
        for k in range(DETECTIONS):
            place = places[k % TRUTHS] + rng.normal(0, 1, 5) * [2, 2, 1, 1, 20]
            if k >= 2 * TRUTHS:
                place[:2] = rng.uniform(0, SIDE, 2)
            place[2:4] = place[2:4].clip(3, 20)
            rle, box, _ = nucleus(*place)
            record = {"image_id": image_id, "bbox": box, "score": float(rng.random()), "category_id": 1}
            results.append({**record, "segmentation": rle})
    truth = {"images": listed, "categories": [{"id": 1, "name": "nucleus"}], "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))


def ours(folder: Path, limit: int) -> list[float]:
    from pipeline.competitions.formats.coco_stream import read_results
    from pipeline.metrics.coco_summary import summarize
    from pipeline.records import Dataset

    truth = Dataset.read(folder / "truth.json")
    return list(summarize(truth, read_results(folder / "results.json", "", truth), (1, 10, limit)).numbers().values())


def pycocotools(folder: Path, limit: int) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _by(COCO, COCOeval, folder, limit)


def faster_coco_eval(folder: Path, limit: int) -> list[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    return _by(COCO, COCOeval_faster, folder, limit)


def _by(coco: Any, evaluator: Any, folder: Path, limit: int) -> list[float]:
    truth = coco(str(folder / "truth.json"))
    evaluation = evaluator(truth, truth.loadRes(str(folder / "results.json")), "segm")
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(v) for v in evaluation.stats[:12]]


CANDIDATES = {"maskfold": ours, "pycocotools": pycocotools, "faster-coco-eval": faster_coco_eval}


def _called(name: str, folder: Path, number: int) -> str:
    """The last line that a process of its own prints. This one stays small: a child's peak begins at its parent's size."""
    command = [sys.executable, __file__, "--only", name, str(folder), str(number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return done.stdout.splitlines()[-1] if done.stdout else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--limit", type=int, default=100, help="detections of an image that are looked at")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        _child(options.only[0], Path(options.only[1]), int(options.only[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _called("draw", folder, options.images)
        _called("maskfold", folder, options.limit)  # the first call on a machine compiles
        there = [name for name in CANDIDATES if name == "maskfold" or find_spec(name.replace("-", "_"))]
        found = {candidate: json.loads(_called(candidate, folder, options.limit)) for candidate in there}
    print(
        f"{options.images} images, {TRUTHS} truths and {DETECTIONS} detections each, the best {options.limit} counted"
    )
    for candidate, row in found.items():
        off = max(abs(a - b) for a, b in zip(row["numbers"][1:], found["pycocotools"]["numbers"][1:], strict=True))
        print(
            f"{candidate:17} {row['seconds']:8.1f} s {row['megabytes']:7.0f} MB   off pycocotools by at most {off:.0e}"
        )
    own = found["maskfold"]
    for candidate in list(found)[1:]:
        row = found[candidate]
        faster, smaller = row["seconds"] / own["seconds"], row["megabytes"] / own["megabytes"]
        print(f"ratio to {candidate:17} {faster:6.1f} x faster, {smaller:.2f} x less memory")


def _child(name: str, folder: Path, number: int) -> None:
    import resource
    import time

    if name == "draw":
        draw(folder, number)
        return
    numbers = CANDIDATES[name](folder, number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.process_time(), "megabytes": peak, "numbers": numbers}))


if __name__ == "__main__":
    main()
