"""tune, fuse, score and encode for a metric without confidences: the least score is chosen out of fold, and kept to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipeline import competitions
from pipeline.experiment import Experiment, Layout
from pipeline.folds import Row, read_folds, write_csv
from pipeline.fusion.settings import Fusion, read_settings, write_settings
from pipeline.metrics.best_iou import best_iou
from pipeline.records import Dataset, Detections, Image
from pipeline.stages import encode, fuse, score, tune, validate
from pipeline.submission import judged
from tests.fusion.cells import SIZE, truth
from tests.stages.test_fusion_stages import IMAGES, an_experiment, predictions

DSB = competitions.get("dsb2018")


def an_unranked_experiment(submission: dict[str, Any] | None = None, **fusion: Any) -> Experiment:
    given = an_experiment(**fusion).model_dump()
    return Experiment.model_validate({**given, "competition": "dsb2018", "submission": submission or {}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Layout]:
    layout, experiment = Layout("drawn", tmp_path_factory.mktemp("run")), an_unranked_experiment()
    dataset = truth(IMAGES)
    dataset.write(layout.train_json)
    Dataset([Image(i, f"{i}.png", *SIZE) for i in (101, 102, 103)], {1: "cell"}).write(layout.test_json)
    write_csv([Row(i.file_name, i.id % 2, "", "") for i in dataset.images], layout.folds)
    predictions(layout, experiment)
    tune.run(experiment, layout)
    for part in ("oof", "test"):
        fuse.run(experiment, layout, part)
    return experiment, layout


def test_the_last_rung_is_the_threshold(run: tuple[Experiment, Layout]) -> None:
    _, layout = run
    settings = read_settings(layout.fusion)
    ladder = json.loads(tune.ladder(layout).read_text())
    last = ladder[-1]
    assert last["step"] == "+ threshold" and last["adopted"] and last["gain"] is None
    assert last["settings"] == {"min_score": settings.min_score} and settings.min_score > 0
    assert all("score" in rung["competition"] for rung in ladder)
    for part in ("oof", "test"):
        assert Detections.read(layout.fused(part)).score.min() >= settings.min_score


def test_the_threshold_is_the_best_out_of_fold(run: tuple[Experiment, Layout]) -> None:
    """Against every threshold there is, and against none."""
    experiment, layout = run
    settings = read_settings(layout.fusion)
    dataset = Dataset.read(layout.train_json)
    write_settings(layout.fusion, Fusion(**{**settings.model_dump(), "min_score": 0.0}), {})
    fuse.run(experiment, layout, "oof")
    whole = Detections.read(layout.fused("oof"))
    write_settings(layout.fusion, settings, {})
    fuse.run(experiment, layout, "oof")
    kept = Detections.read(layout.fused("oof"))

    def at(level: float) -> float:
        return float(DSB.score(dataset, DSB.records(whole.take(whole.score >= level), dataset))["score"])

    chosen = DSB.score(dataset, DSB.records(kept, dataset))["score"]
    assert chosen == at(settings.min_score) > at(0.0)
    assert chosen >= max(at(level) for level in np.unique(whole.score)) - 0.01  # it looks at quantiles of the scores
    ladder = json.loads(tune.ladder(layout).read_text())
    assert ladder[-1]["competition"]["score"] == pytest.approx(chosen, abs=1e-12)


def test_scores_are_of_what_would_be_submitted(run: tuple[Experiment, Layout]) -> None:
    experiment, layout = run
    scores = score.run(experiment, layout)
    ladder = json.loads(tune.ladder(layout).read_text())
    assert scores["ensemble"]["score"] == pytest.approx(ladder[-1]["competition"]["score"], abs=1e-12)
    assert "min_score" not in scores["ensemble"]  # it has the one that tune chose
    for model in scores["models"].values():
        assert 0 < model["min_score"] < 1 and 0.05 < model["score"] <= scores["ensemble"]["score"] + 0.05
    dataset = Dataset.read(layout.train_json)
    for name, model in scores["models"].items():
        fold_of = {image_id: folds[0] for image_id, folds in read_folds(layout.folds, dataset).items()}
        alone = score._alone(experiment, layout, name, fold_of)
        kept = alone.take(alone.score >= model["min_score"])
        assert len(kept) < len(alone) and model["best_iou"] == pytest.approx(best_iou(dataset, kept))
    assert set(scores["ensemble"]["folds"]) == {"0", "1"} and scores["ensemble"]["classes"].keys() == {"cell"}


def test_the_submission_is_valid_and_shares_no_pixel(run: tuple[Experiment, Layout]) -> None:
    experiment, layout = run
    path = encode.run(experiment, layout)
    assert path.suffix == ".csv"
    assert [p for p in validate.run(experiment, layout) if p.severity == "error"] == []
    test = Dataset.read(layout.test_json)
    records = DSB.read_submission(path, test)
    assert {r["image_id"] for r in records} == {101, 102, 103}
    first = path.read_bytes()
    assert encode.run(experiment, layout).read_bytes() == first


def test_a_least_score_by_hand_is_respected(run: tuple[Experiment, Layout]) -> None:
    _, layout = run
    by_hand = an_unranked_experiment({"min_score": 0.3}, tune=False)
    before = layout.fusion.read_text()
    try:
        tune.run(by_hand, layout)
        assert read_settings(layout.fusion).min_score == 0.0
        assert json.loads(tune.ladder(layout).read_text()) == []
        tune.run(an_unranked_experiment(tune=False), layout)
        assert read_settings(layout.fusion).min_score > 0
        assert [rung["step"] for rung in json.loads(tune.ladder(layout).read_text())] == ["+ threshold"]
    finally:
        layout.fusion.write_text(before)


def test_a_ranking_metric_chooses_none() -> None:
    settings = an_experiment().submission
    assert settings.min_score is None
    dataset = truth(2)
    records = [
        {"image_id": a.image_id, "category_id": 1, "score": 0.1, "segmentation": a.rle} for a in dataset.instances
    ]
    found = Detections.from_coco(records)
    outcome = judged(competitions.get("vrdl2021"), dataset, found, settings)
    assert outcome.min_score is None and len(outcome.records) == len(records)
    assert judged(DSB, dataset, found, settings, choose=False).min_score is None
    assert judged(DSB, dataset, Detections.empty(), settings).result["score"] == 0.0
