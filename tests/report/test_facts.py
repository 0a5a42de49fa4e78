"""Data, folds, trainings, timings and scores as the page reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.folds import Row, read_csv
from pipeline.metrics import coco_ap
from pipeline.report import data, scores, timings, training

from .conftest import CLASSES, DrawnRun


def test_classes_count_their_instances_and_images(drawn_run: DrawnRun) -> None:
    rows = data.classes(drawn_run.train)
    assert [r.name for r in rows] == list(CLASSES.values())
    assert sum(r.instances for r in rows) == len(drawn_run.train.instances)
    for row, category in zip(rows, CLASSES, strict=True):
        mine = [i for i in drawn_run.train.instances if i.category_id == category]
        assert row.images == len({i.image_id for i in mine})
        assert row.sizes is not None
        assert row.sizes[1] == pytest.approx(np.median(np.sqrt([i.area for i in mine])))


def test_a_class_without_instances_has_no_sizes(drawn_run: DrawnRun) -> None:
    drawn_run.train.categories = {**CLASSES, 9: "absent"}
    absent = data.classes(drawn_run.train)[-1]
    assert (absent.name, absent.instances, absent.images, absent.sizes) == ("absent", 0, 0, None)


def test_folds_hold_every_image_once(drawn_run: DrawnRun) -> None:
    drawn_run.split()
    rows = data.folds(drawn_run.train, read_csv(drawn_run.layout.folds))
    assert [r.fold for r in rows] == [0, 1]
    assert sum(r.images for r in rows) == len(drawn_run.train.images)
    assert sum(r.instances for r in rows) == len(drawn_run.train.instances)
    assert all(sum(r.classes) == r.instances for r in rows)
    assert rows[0].groups == 6


def test_folds_come_in_number_order_and_name_known_images(drawn_run: DrawnRun) -> None:
    names = [image.file_name for image in drawn_run.train.images]
    rows = [Row(name, (10, 2, 1)[k % 3]) for k, name in enumerate(names)] + [Row("unknown.png", 2)]
    summaries = data.folds(drawn_run.train, rows)
    assert [s.fold for s in summaries] == [1, 2, 10]
    assert sum(s.images for s in summaries) == len(names)


def test_problems_are_counted_by_kind_errors_first(drawn_run: DrawnRun) -> None:
    drawn_run.prepare()
    torn, stray = data.problems(drawn_run.layout.integrity)
    assert (torn.severity, torn.kind, torn.count) == ("error", "torn", 1)
    assert (stray.severity, stray.count, len(stray.examples)) == ("warning", 5, 3)
    assert stray.examples[0] == "train/.ipynb_checkpoints: <passed> over"


def test_a_log_that_was_cut_short_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"iteration": i, "loss": float(i)} for i in (20, 40, 60)] + [
        {"iteration": 40, "loss": 4.5, "note": "resumed"}
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n[]\n\n{"iteration": 80, "lo')
    assert [(line["iteration"], line["loss"]) for line in training.read_log(path)] == [(20, 20), (40, 4.5), (60, 60)]


def test_trainings_that_have_begun(drawn_run: DrawnRun) -> None:
    assert training.trainings(drawn_run.experiment, drawn_run.layout) == []
    drawn_run.learn()
    (drawn_run.layout.training("cascade-slim", "1") / "provenance.json").unlink()
    done = training.trainings(drawn_run.experiment, drawn_run.layout)
    assert [t.name for t in done] == [
        "mask-rcnn-slim, fold 0", "mask-rcnn-slim, fold 1", "cascade-slim, fold 0", "cascade-slim, fold 1",
    ]  # fmt: skip
    assert [t.seconds for t in done] == [123.4, 123.4, 123.4, None]
    assert done[0].iteration.tolist() == list(range(20, 420, 20))
    assert list(done[0].parts) == ["loss_rpn_cls", "loss_bbox", "loss_mask"]
    assert done[0].seconds_per_iteration == pytest.approx(123.4 / 400)
    assert done[0].final_loss == pytest.approx(done[0].loss[-2:].mean())


def test_benchmarks(drawn_run: DrawnRun) -> None:
    folder = drawn_run.layout.artifacts / "benchmarks"
    assert timings.read_benchmarks(folder) == []
    drawn_run.benchmark()
    (folder / "torn.tsv").write_text("s\th:m:s\n")
    by_job = {t.job: t for t in timings.read_benchmarks(folder)}
    assert set(by_job) == {"prepare", "split", "train-cascade-slim-0"}
    assert by_job["prepare"].seconds == 3.25
    assert by_job["prepare"].memory == 250.5 * 2**20
    assert (by_job["split"].memory, by_job["split"].cpu_seconds) == (None, None)


def test_scores(tmp_path: Path) -> None:
    value = {
        "competition": "c",
        "metric": "m",
        "ensemble": {
            "score": 0.5,
            "AP75": 0.2,
            "classes": {"1": 0.4, "long": 0.6, "absent": None},
            "folds": {"0": None},
        },
        "models": {"weak": {"score": 0.3}, "none": {}, "strong": {"score": 0.45, "folds": {"0": 0.4}}},
    }
    (tmp_path / "scores.json").write_text(json.dumps(value))
    read = scores.read_scores(tmp_path / "scores.json", {1: "round"})
    assert [s.name for s in read.all] == ["ensemble", "strong", "weak", "none"]
    assert read.ensemble.classes == {"round": 0.4, "long": 0.6}
    assert read.ensemble.metrics == {"AP75": 0.2}
    assert read.columns("folds") == ["0"]
    assert read.gain == pytest.approx(0.05)


def test_precision_and_recall_reach_the_average_precision(drawn_run: DrawnRun) -> None:
    found = drawn_run.detections(drawn_run.train)
    evaluation = coco_ap.evaluate(drawn_run.train, found, [0.5, 0.75], max_detections=10**9)
    for row, iou in enumerate((0.5, 0.75)):
        for category in CLASSES:
            recall, precision = scores.precision_recall(evaluation.rankings[category], row)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            area = float(np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope))
            assert area == pytest.approx(evaluation.ap(iou, category), abs=0.02)


def test_the_ladder(drawn_run: DrawnRun) -> None:
    drawn_run.fuse()
    first, second, third = scores.read_ladder(drawn_run.layout.artifacts / "fusion" / "ladder.json")
    assert (first.name, first.gain, first.competition, first.change) == ("best single", None, 0.78, "")
    assert (second.gain, second.low, second.high, second.competition) == (0.02, 0.01, 0.03, None)
    assert (third.adopted, third.change) == (False, 'largest_part: true, weights: {"a<b": 2}')
