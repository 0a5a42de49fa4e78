"""A whole run of the real thing: drawn images, every installed framework, two folds, a zip that its own validator accepts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.backends import installed
from pipeline.experiment import PROJECT, Layout
from pipeline.records import Dataset, Detections, provenance

EXPERIMENT = {
    "competition": "synthetic",
    "seed": 3,
    "data": {"options": {"images": 8, "test_images": 2, "size": 128, "cells": 6}},
    "folds": {"count": 2, "final": True},
    "models": {
        "mask-rcnn": {"framework": "mmdet", "config": "configs/models/mmdet/mask-rcnn_r18w32_slim.py"},
        "detectron2": {"framework": "detectron2", "config": "configs/models/detectron2/mask-rcnn_r18_slim_small.yaml"},
    },
    "train": {
        "iterations": 30, "crop": 128, "learning_rate": 0.002, "warmup": 5, "ema": 0.1,
        "augment": [{"name": "D4", "p": 1.0}], "log_every": 10, "checkpoint_every": 10,
    },
    "predict": {"views": ["identity", "hflip@1.2"], "max_detections": 60},
}  # fmt: skip


def run(file: Path, root: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(file), "--root", str(root), *options],
        cwd=PROJECT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout, str]:
    root = tmp_path_factory.mktemp("run")
    file = root / "tiny.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT))
    said = run(file, root)
    return file, Layout("tiny", root), said


def test_every_artifact_is_there_and_the_submission_is_accepted(finished: tuple[Path, Layout, str]) -> None:
    _, layout, said = finished
    models = ["mask-rcnn"] + (["detectron2"] if installed("detectron2") else [])
    assert ("requirements-detectron2.txt" in said) == (not installed("detectron2"))
    test = Dataset.read(layout.test_json)
    for model in models:
        for fold in ("0", "1", "all"):
            assert layout.checkpoint(model, fold).stat().st_size > 1_000_000
            found = Detections.read(layout.predictions(model, fold, "test"))
            assert set(found.image_id) <= {image.id for image in test.images}
            assert found.sources == [f"{model}/{fold}/identity", f"{model}/{fold}/hflip@1.2"]
            assert provenance(layout.predictions(model, fold, "test"))["fold"] == fold
    checked = subprocess.run(
        [sys.executable, "-m", "pipeline", "validate", "--competition", "synthetic", "--ids", str(layout.test_json)]
        + [str(layout.submission())],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    page = layout.report.read_text()
    assert (
        "tiny" in page and all(model in page for model in models) and "http://" not in page.replace("http://www.w3", "")
    )


def test_the_score_is_pycocotools_own_on_what_was_fused(finished: tuple[Path, Layout, str], tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    _, layout, _ = finished
    truth = Dataset.read(layout.train_json)
    sizes = {image.id: (image.height, image.width) for image in truth.images}
    fused = Detections.read(layout.fused("oof"))
    coco = COCO()
    coco.dataset = truth.to_coco()
    coco.createIndex()
    judge = COCOeval(coco, coco.loadRes(fused.to_coco(sizes)), "segm")
    judge.params.maxDets = [1, 10, 100]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    said = json.loads(layout.scores.read_text())["ensemble"]["score"]
    assert said == pytest.approx(judge.stats[1], abs=1e-9)
    assert said > 0.05  # thirty iterations learn something


def test_no_out_of_fold_image_was_trained_on(finished: tuple[Path, Layout, str]) -> None:
    _, layout, _ = finished
    seen: dict[str, set[int]] = {
        fold: set(Detections.read(layout.predictions("mask-rcnn", fold, "oof")).image_id) for fold in ("0", "1")
    }
    assert seen["0"] and seen["1"] and not seen["0"] & seen["1"]
    for fold in ("0", "1"):
        trained = json.loads((layout.training("mask-rcnn", fold) / "provenance.json").read_text())["images"]
        assert trained + len(seen[fold]) <= 8 and trained >= 3


def test_a_second_run_does_nothing_and_a_deleted_prediction_is_made_again(finished: tuple[Path, Layout, str]) -> None:
    file, layout, _ = finished
    checkpoint = layout.checkpoint("mask-rcnn", "0")
    before = checkpoint.stat().st_mtime_ns
    assert "nothing to do" in run(file, layout.root).lower()
    gone = layout.predictions("mask-rcnn", "1", "oof")
    gone.unlink()
    said = run(file, layout.root)
    assert gone.exists() and "train" not in "".join(line for line in said.splitlines() if "starts" in line)
    assert checkpoint.stat().st_mtime_ns == before
