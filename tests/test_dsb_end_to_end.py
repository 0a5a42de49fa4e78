"""From a few real images of the Data Science Bowl 2018, in zips as handed out, through a tiny training to a valid CSV."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline import competitions
from pipeline.experiment import PROJECT, Layout
from pipeline.fusion.settings import read_settings
from pipeline.records import Dataset, Detections

REAL = PROJECT.parent / "shared" / "data" / "dsb2018"
TRAIN, TEST = 8, 3

EXPERIMENT = {
    "competition": "dsb2018",
    "seed": 1,
    "folds": {"count": 2},
    "models": {"mask-rcnn": {"framework": "mmdet", "config": "configs/models/mmdet/mask-rcnn_r18w32_slim.py"}},
    "train": {
        "iterations": 40, "crop": 128, "learning_rate": 0.002, "warmup": 5, "ema": 0.1,
        "augment": [{"name": "D4", "p": 1.0}], "log_every": 10, "checkpoint_every": 20,
    },
    "predict": {"views": ["identity"], "max_detections": 100, "score_threshold": 0.01},
    "fusion": {"skip": 0.01},
}  # fmt: skip


def some(source: Path, target: Path, count: int) -> list[str]:
    """Copy the files of the first few images of 256x256 into a zip of the same layout; return the images' ids."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as out:
        chosen: list[str] = []
        for name in sorted(archive.namelist()):
            if "/images/" in name and len(chosen) < count:
                head = archive.read(name)[16:24]
                if (int.from_bytes(head[:4]), int.from_bytes(head[4:])) == (256, 256):
                    chosen.append(name.split("/")[0])
        for name in archive.namelist():
            if name.split("/")[0] in chosen:
                out.writestr(name, archive.read(name))
    return chosen


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    if not (REAL / "stage1_train.zip").exists():
        pytest.skip(f"needs the competition's files at {REAL}")
    root = tmp_path_factory.mktemp("run")
    data = root / "handed-out"
    data.mkdir()
    some(REAL / "stage1_train.zip", data / "stage1_train.zip", TRAIN)
    ids = some(REAL / "stage1_test.zip", data / "stage1_test.zip", TEST)
    rows = "".join(f"{name},1 1\n" for name in ids)
    (data / "stage1_sample_submission.csv").write_text("ImageId,EncodedPixels\n" + rows)
    file = root / "tiny-dsb.yaml"
    file.write_text(yaml.safe_dump({**EXPERIMENT, "data": {"path": str(data)}}))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(file), "--root", str(root)],
        cwd=PROJECT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return Layout("tiny-dsb", root)


def test_the_submission_is_valid(finished: Layout) -> None:
    competition = competitions.get("dsb2018")
    path = finished.submission(".csv")
    sample = finished.root / "handed-out" / "stage1_sample_submission.csv"
    for ids in (Dataset.read(finished.test_json), competition.read_ids(sample)):
        assert [p for p in competition.validate(path, ids) if p.severity == "error"] == []
    names = {line.split(",")[0] for line in path.read_text().splitlines()[1:]}
    assert names == {line.split(",")[0] for line in sample.read_text().splitlines()[1:]}
    assert path.name in finished.report.read_text()


def test_the_threshold_and_the_score_are_out_of_fold(finished: Layout) -> None:
    settings, scores = read_settings(finished.fusion), json.loads(finished.scores.read_text())
    ladder = json.loads((finished.artifacts / "fusion" / "ladder.json").read_text())
    assert ladder[-1]["step"] == "+ threshold" and ladder[-1]["settings"] == {"min_score": settings.min_score}
    truth, fused = Dataset.read(finished.train_json), Detections.read(finished.fused("oof"))
    competition = competitions.get("dsb2018")
    result = competition.score(truth, competition.records(fused, truth))
    assert scores["ensemble"]["score"] == pytest.approx(result["score"], abs=1e-12)
    assert scores["images"] == TRAIN and 0 <= result["score"] <= 1
