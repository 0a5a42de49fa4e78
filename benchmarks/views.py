"""What views cost: eight turns of an image against one, and batches of them against one by one.

    python -m benchmarks.views

Slim Mask R-CNNs with random weights on 256x256 images, in both frameworks where installed. The image is read once for all its
views, so eight should cost at most eight times one; the target is 8.2. Processor time on one thread; rounds are interleaved
and the fastest counts.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline import backends
from pipeline.backends import PredictJob
from pipeline.experiment import PROJECT, ModelSettings, PredictSettings
from pipeline.records import Dataset, Image
from pipeline.views import TURNS

SIDE, IMAGES, ROUNDS, TARGET = 256, 3, 3, 8.2
CONFIGS = {"mmdet": "mask-rcnn_r18_slim.py", "detectron2": "mask-rcnn_r18_slim.yaml"}


def drawn(folder: Path) -> Dataset:
    rng = np.random.default_rng(0)
    for k in range(IMAGES):
        cv2.imwrite(str(folder / f"{k}.png"), rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    return Dataset([Image(k, f"{k}.png", SIDE, SIDE) for k in range(IMAGES)], {1: "object"}, [], folder)


def seconds(job: PredictJob) -> float:
    """A pass over the images, without building the network: the first image of the iterator pays for that."""
    passes = backends.get(job.model.framework).predict(job)
    next(passes)
    began = time.process_time()
    for _ in passes:
        pass
    return time.process_time() - began


def main() -> None:
    turns = list(TURNS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = drawn(folder)
        for framework, config in CONFIGS.items():
            if not backends.installed(framework):
                print(f"{framework} is not installed")
                continue
            model = ModelSettings(framework=framework, config=str(PROJECT / "configs/models" / framework / config))
            backends.get(framework)
            torch.manual_seed(0)
            network = __import__(f"pipeline.backends.{framework}", fromlist=["build"]).build(model, 1)
            torch.save({"state_dict": network.state_dict()}, folder / "fresh.pth")
            # so high a threshold that the network's work is compared, not how many masks noise gives
            kinds = {"one view": (turns[:1], 1), "eight views": (turns, 1), "eight views, batches of 4": (turns, 4)}
            best = dict.fromkeys(kinds, float("inf"))
            for _ in range(ROUNDS):
                for kind, (views, batch) in kinds.items():
                    settings = PredictSettings(views=views, score_threshold=0.3, max_detections=50, batch=batch)
                    job = PredictJob(model, settings, views, folder / "fresh.pth", data, "m/0")
                    best[kind] = min(best[kind], seconds(job))
            one = best["one view"] / (IMAGES - 1)
            for kind, took in best.items():
                ratio = took / (IMAGES - 1) / one
                verdict = ""
                if kind == "eight views":  # batches are for GPUs
                    verdict = f" (at most {TARGET}: {'holds' if ratio <= TARGET else 'MISSED'})"
                print(f"{framework:10s} {kind:26s} {ratio * one:7.3f} s an image, {ratio:5.2f} x one view{verdict}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
