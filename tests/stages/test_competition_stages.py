"""prepare, split, score, encode and validate on a small drawn competition, with predictions made up from its truth."""

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import dependencies
from pipeline.competitions import CompetitionError, synthetic
from pipeline.competitions.synthetic import COMPETITION, TRUTH
from pipeline.experiment import Experiment, ExperimentError, Layout, SubmissionSettings
from pipeline.folds import FoldsError, read_csv, read_folds
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.stages import encode, prepare, score, split, validate
from pipeline.submission import submitted
from tests.competitions.test_vrdl2021 import layout as vrdl2021_layout
from tests.competitions.test_vrdl2021 import pack, png


def an_experiment(**changes: object) -> Experiment:
    values = {
        "name": "tiny",
        "competition": "synthetic",
        "data": {"options": {"images": 9, "test_images": 2, "size": 96, "cells": 7}},
        "folds": {"count": 3},
        "models": {
            "good": {"framework": "mmdet", "config": "none"},
            "bad": {"framework": "mmdet", "config": "none"},
        },
        "predict": {"views": ["identity", "hflip"]},
        "submission": {"max_per_image": 50},
        **changes,
    }
    return Experiment.model_validate(values)


EXPERIMENT = an_experiment()


def test_other_pixels_under_the_same_names_are_another_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout("tiny", tmp_path)
    prepare.run(EXPERIMENT, layout)
    before = layout.train_json.read_text(), layout.test_json.read_text()
    prepare.run(EXPERIMENT, layout)
    assert (layout.train_json.read_text(), layout.test_json.read_text()) == before
    drawn = synthetic.draw

    def darker(*given: Any) -> Any:
        picture, *rest = drawn(*given)
        return (picture // 2, *rest)

    monkeypatch.setattr(synthetic, "draw", darker)
    prepare.run(EXPERIMENT, layout)
    assert layout.train_json.read_text() != before[0] and layout.test_json.read_text() != before[1]
    assert [i.rle for i in Dataset.read(layout.train_json).instances] == [
        a["segmentation"] for a in json.loads(before[0])["annotations"]
    ]


def detections(truth: Dataset, sources: list[str], wrong: float, seed: int = 0) -> Detections:
    """Each true instance once per source, the masks of a share of them moved away; only the first source is of use."""
    rng = np.random.default_rng(seed)
    tables = []
    for k, source in enumerate(sources):
        rows = []
        for instance in truth.instances:
            box, mask = rle_to_crop(instance.rle)
            grid = mask * np.uint8(255)
            if rng.random() < wrong or k > 0:
                grid = np.zeros_like(grid)
                grid[0, 0] = 255
            rows.append((instance.image_id, instance.category_id, float(rng.uniform(0.5, 1)), box, grid))
        columns = list(zip(*rows, strict=True))
        table = Detections.build(columns[0], columns[1], columns[2], columns[3], columns[3], columns[4], source)
        tables.append(table)
    return Detections.concatenate(tables)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A run up to `fuse`, with a good and a bad model and an ensemble in which everything is right."""
    where = Layout("tiny", tmp_path_factory.mktemp("root"))
    prepare.run(EXPERIMENT, where)
    split.run(EXPERIMENT, where)
    truth = Dataset.read(where.train_json)
    fold_of = read_folds(where.folds, truth)
    for model, wrong in (("good", 0.1), ("bad", 0.7)):
        for fold in range(3):
            own = truth.subset(i for i, f in fold_of.items() if fold in f)
            sources = [f"{model}/{fold}/identity", f"{model}/{fold}/hflip"]
            detections(own, sources, wrong, fold).write(where.predictions(model, str(fold), "oof"))
    detections(truth, ["fused"], 0.0).write(where.fused("oof"))
    hidden = Dataset.read(where.train_json.parent / TRUTH)
    detections(hidden, ["fused"], 0.0).write(where.fused("test"))
    return where


# ---------------------------------------------------------------- prepare ---------------------------------------------


def test_prepare_writes_what_it_read(layout: Layout) -> None:
    train, test = Dataset.read(layout.train_json), Dataset.read(layout.test_json)
    assert len(train.images) == 9 and train.instances and len(test.images) == 2 and not test.instances
    assert all(dataset.path(image).exists() for dataset in (train, test) for image in dataset.images)
    report = json.loads(layout.integrity.read_text())
    assert report["problems"] == [] and report["train_images"] == 9
    assert report["provenance"]["competition"] == "synthetic"


def test_copies_of_an_image_stay_in_one_fold(tmp_path: Path) -> None:
    """Two patients' images that are the same picture, once upside down: one group, told of, and never split."""
    files = vrdl2021_layout()
    first, _, third = sorted(name for name in files if "/images/" in name)
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (10, 12, 3), np.uint8), (60, 50), interpolation=cv2.INTER_CUBIC)
    files[first], files[third] = png(picture), png(picture[::-1])
    data = {"path": [str(pack(files, tmp_path / "dataset.zip"))], "options": {"group": "patient"}}
    for seed in range(4):
        experiment = an_experiment(competition="vrdl2021", data=data, folds={"count": 2}, seed=seed)
        where = Layout("tiny", tmp_path / str(seed))
        prepare.run(experiment, where)
        rows = {row.image: row for row in split.run(experiment, where)}
        stored = [f"images/train/{Path(name).name}" for name in (first, third)]
        assert rows[stored[0]].fold == rows[stored[1]].fold
        assert rows[stored[0]].group == rows[stored[1]].group == "TCGA-18-0001+TCGA-B0-0003"
        report = json.loads(where.integrity.read_text())
        assert report["near_duplicates"]["sets"] == [stored]
        assert [problem["kind"] for problem in report["problems"]] == ["near-duplicate images"]


# ---------------------------------------------------------------- split -----------------------------------------------


@pytest.fixture
def divided(layout: Layout, tmp_path: Path) -> Layout:
    """A run of its own up to `split`."""
    where = Layout("tiny", tmp_path)
    where.train_json.parent.mkdir(parents=True)
    where.train_json.write_bytes(layout.train_json.read_bytes())
    split.run(EXPERIMENT, where)
    return where


def test_split_is_the_same_again_and_follows_settings(divided: Layout) -> None:
    first = divided.folds.read_text()
    split.run(EXPERIMENT, divided)
    assert divided.folds.read_text() == first
    split.run(an_experiment(folds={"count": 2}), divided)
    assert {row.fold for row in read_csv(divided.folds)} == {0, 1}
    split.run(EXPERIMENT, divided)
    assert divided.folds.read_text() == first


def test_edited_csv_is_kept_whatever_the_settings(divided: Layout, caplog: pytest.LogCaptureFixture) -> None:
    text = divided.folds.read_text()
    first, second = text.splitlines()[1].split(","), text.splitlines()[4].split(",")
    assert first[1] != second[1]
    edited = text.replace(",".join(first), ",".join([first[0], second[1], *first[2:]]))
    divided.folds.write_text(edited)
    caplog.set_level("INFO", "pipeline.split")
    for _ in range(2):
        rows = split.run(EXPERIMENT, divided)
        assert divided.folds.read_text() == edited
        assert rows[0].fold == int(second[1])
    assert "written by hand" in caplog.text and "splits groups over folds" in caplog.text
    with pytest.raises(FoldsError, match="folds.count is 2"):
        split.run(an_experiment(folds={"count": 2}), divided)
    assert divided.folds.read_text() == edited
    divided.folds.write_text(text)  # undone: ours again
    split.run(EXPERIMENT, divided)
    split.run(an_experiment(folds={"count": 2}), divided)
    assert {row.fold for row in read_csv(divided.folds)} == {0, 1}


def test_csv_by_hand_before_the_first_run(divided: Layout) -> None:
    divided.folds_record.unlink()
    names = [row.image for row in read_csv(divided.folds)]
    text = "image,fold\n" + "".join(f"{name},{k % 3}\n" for k, name in enumerate(names))
    divided.folds.write_text(text)
    split.run(EXPERIMENT, divided)
    assert divided.folds.read_text() == text
    divided.folds.write_text(text.replace(names[0], "other.png"))
    with pytest.raises(FoldsError, match="(?s)not in the data: other.png.*misses.*train-001.png"):
        split.run(EXPERIMENT, divided)
    divided.folds.unlink()
    split.run(EXPERIMENT, divided)
    assert len(read_csv(divided.folds)) == 9


def test_a_division_may_be_named_in_the_experiment(divided: Layout, tmp_path: Path) -> None:
    names = [row.image for row in read_csv(divided.folds)]
    given = tmp_path / "paper.csv"
    given.write_text("image,fold\n" + "".join(f"{name},{int(k > 1)}\n" for k, name in enumerate(names)))
    experiment = an_experiment(folds={"count": 2, "file": str(given)})
    rows = split.run(experiment, divided)
    assert [row.fold for row in rows] == [0, 0, *[1] * (len(names) - 2)]
    assert rows == read_csv(divided.folds)  # with strata, groups and instances, as our own divisions have them
    assert all(row.stratum for row in rows) and any(row.group for row in rows) and any(row.instances for row in rows)
    before = dependencies.settings("split", experiment)
    given.write_text(given.read_text().replace(f"{names[-1]},1", f"{names[-1]},0"))
    assert dependencies.settings("split", experiment) != before
    assert (
        split.run(experiment, divided)[-1].fold == 0
    )  # what was written from it before is not taken for a hand's work
    with pytest.raises(FoldsError, match=r"(?s)paper.csv.*folds.count is 3.*leave folds.file out"):
        split.run(an_experiment(folds={"count": 3, "file": str(given)}), divided)
    with pytest.raises(ExperimentError, match="folds.file: there is no file .*none.csv"):
        split.run(an_experiment(folds={"count": 2, "file": "none.csv"}), divided)


def test_a_hand_s_csv_stands_before_a_named_one_and_says_so(
    divided: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [row.image for row in read_csv(divided.folds)]
    given = tmp_path / "paper.csv"
    given.write_text("image,fold\n" + "".join(f"{name},{int(k > 1)}\n" for k, name in enumerate(names)))
    divided.folds_record.unlink()
    divided.folds.write_text("image,fold\n" + "".join(f"{name},{k % 2}\n" for k, name in enumerate(names)))
    assert [row.fold for row in split.run(an_experiment(folds={"count": 2, "file": str(given)}), divided)][:3] == [
        0,
        1,
        0,
    ]
    assert f"so folds.file, {given}, is not used" in caplog.text


def test_our_own_csv_is_known_without_its_record(divided: Layout) -> None:
    divided.folds_record.unlink()
    split.run(EXPERIMENT, divided)
    split.run(an_experiment(folds={"count": 2}), divided)
    assert {row.fold for row in read_csv(divided.folds)} == {0, 1}


# ---------------------------------------------------------------- score -----------------------------------------------


def test_scores_of_models_folds_and_classes(layout: Layout) -> None:
    scores = score.run(EXPERIMENT, layout)
    assert json.loads(layout.scores.read_text()) == scores
    assert scores["competition"] == "synthetic" and scores["metric"] == COMPETITION.metric
    good, bad, ensemble = scores["models"]["good"], scores["models"]["bad"], scores["ensemble"]
    assert ensemble["score"] == pytest.approx(1, abs=1e-9)
    assert 1 > good["score"] > 0.6 > bad["score"] > 0
    assert set(good["folds"]) == {"0", "1", "2"} and ensemble["folds"]["1"] == pytest.approx(1, abs=1e-9)
    assert min(good["folds"].values()) <= good["score"] + 0.15
    assert set(good["classes"]) == {"round", "spindle", "spiky", "ring"}
    assert good["score"] == pytest.approx(np.mean([v for v in good["classes"].values() if v is not None]), abs=1e-9)
    curve = good["curves"]["round"]
    assert len(curve["recall"]) == len(curve["precision"]) == 101 and curve["recall"][-1] == 1.0
    assert np.mean(curve["precision"]) == pytest.approx(good["classes"]["round"], abs=1e-4)
    truths = len(Dataset.read(layout.train_json).instances)
    assert good["detections"] == truths  # one per truth: the second view is left out
    assert ensemble["true_positives_in_first_100"] == truths


def test_every_model_has_its_score_by_size_of_objects(layout: Layout) -> None:
    scores = score.run(EXPERIMENT, layout)
    for standing in (scores["ensemble"], *scores["models"].values()):
        assert standing["APs"] == standing["AP"] and standing["APm"] is standing["APl"] is None  # all are below 32 x 32
    good = scores["models"]["good"]
    assert 0 < good["AP"] < 1 and good["AP"] == pytest.approx(good["AP50"]) == pytest.approx(good["score"])


def test_score_by_size_looks_at_each_size_alone() -> None:
    """Of squares of 10, 50 and 120 pixels a side the small ones are all found, one of two medium ones, no large one."""
    sides = (10, 10, 50, 50, 120)
    boxes = [(200 * k, 5, 200 * k + side, 5 + side) for k, side in enumerate(sides)]
    instances = [
        Instance(
            k + 1, 1, 1, crop_to_rle(np.ones((s, s), np.uint8), box, (200, 1000), 1), (box[0], 5, s, s), float(s * s)
        )
        for k, (s, box) in enumerate(zip(sides, boxes, strict=True))
    ]
    truth = Dataset([Image(1, "1.png", 200, 1000)], {1: "square"}, instances)
    table = np.array(boxes[:3], np.int32)
    grids = [np.full((s, s), 255, np.uint8) for s in sides[:3]]
    found = Detections.build(1, np.ones(3, np.int64), np.array([0.9, 0.8, 0.7]), table, table, grids, "m")
    by_size = score._by_size(truth, found.to_coco({1: (200, 1000)}), 100)
    assert by_size.keys() == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert by_size["APs"] == pytest.approx(1) and by_size["APl"] == 0
    assert by_size["APm"] == pytest.approx(51 / 101)  # precision 1 up to a recall of one half
    assert by_size["AP"] == pytest.approx(61 / 101)


def test_cocos_numbers_are_of_what_coco_results_would_hold() -> None:
    """A detection whose mask is empty stands in no submission, so it is no false one either."""
    box = (20, 20, 40, 40)
    square = np.ones((20, 20), np.uint8)
    rle = crop_to_rle(square, box, (100, 100), 1)
    truth = Dataset(
        [Image(1, "1.png", 100, 100)], dict(COMPETITION.categories), [Instance(1, 1, 1, rle, (20, 20, 20, 20), 400.0)]
    )
    boxes = np.array([box, box], np.int32)
    grids = [np.zeros((20, 20), np.uint8), square * 255]
    found = Detections.build(1, np.ones(2, np.int64), np.array([0.9, 0.8]), boxes, boxes, grids, "m/0/identity")
    standing = score._standing(COMPETITION, truth, found, SubmissionSettings(), {1: 0}, choose=True)
    assert [standing[name] for name in ("score", "AP50", "APs")] == pytest.approx([1, 1, 1])
    assert standing["curves"]["round"]["precision"][0] == 1


def test_only_the_folds_that_were_trained_are_scored(layout: Layout) -> None:
    some = an_experiment(folds={"count": 3, "use": [0, 2]})
    truth = Dataset.read(layout.train_json)
    fold_of = read_folds(layout.folds, truth)
    kept = [i for i, folds in fold_of.items() if 1 not in folds]
    fused, whole = layout.fused("oof"), layout.fused("oof").read_bytes()
    try:
        detections(truth.subset(kept), ["fused"], 0.0).write(fused)
        scores = score.run(some, layout)
    finally:
        fused.write_bytes(whole)
    assert scores["images"] == len(kept) and set(scores["ensemble"]["folds"]) == {"0", "2"}
    assert scores["ensemble"]["score"] == pytest.approx(1, abs=1e-9)


def test_score_names_the_stage_that_is_missing(layout: Layout, tmp_path: Path) -> None:
    path = layout.predictions("good", "1", "oof")
    moved = path.rename(tmp_path / "moved.parquet")
    try:
        with pytest.raises(FileNotFoundError, match="fold-1-oof.parquet.*pipeline predict --model good --fold 1"):
            score.run(EXPERIMENT, layout)
    finally:
        moved.rename(path)


# ---------------------------------------------------------------- encode and validate ---------------------------------


def test_submission_is_whole_valid_and_the_same_again(layout: Layout) -> None:
    path = encode.run(EXPERIMENT, layout)
    assert path == layout.submission(".zip")
    first = path.read_bytes()
    assert encode.run(EXPERIMENT, layout).read_bytes() == first
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["results.json"]
    assert validate.run(EXPERIMENT, layout) == []
    assert json.loads((layout.artifacts / "validation.json").read_text()) == {
        "file": "tiny.zip", "ok": True, "problems": [],
    }  # fmt: skip
    assert validate.validate_files("synthetic", layout.test_json, path) == ([], True)
    hidden = layout.train_json.parent / TRUTH
    assert score.score_files("synthetic", hidden, path)["score"] == pytest.approx(1, abs=1e-9)
    assert [p.name for p in path.parent.iterdir()] == ["tiny.zip"]


def test_submission_keeps_the_best_of_each_image(layout: Layout) -> None:
    fused = Detections.read(layout.fused("test"))
    settings = an_experiment(submission={"max_per_image": 2, "min_score": 0.6}).submission
    kept = submitted(fused, settings)
    for image_id in np.unique(fused.image_id):
        scores = np.sort(fused.score[(fused.image_id == image_id) & (fused.score >= 0.6)])[::-1][:2]
        np.testing.assert_array_equal(kept.score[kept.image_id == image_id], scores)


def test_bad_submission_never_gets_its_name(layout: Layout, tmp_path: Path) -> None:
    where = Layout("tiny", tmp_path)
    where.test_json.parent.mkdir(parents=True)
    where.test_json.write_bytes(layout.test_json.read_bytes())
    fused = Detections.read(layout.fused("test"))
    fused.category_id[:] = 9
    fused.write(where.fused("test"))
    with pytest.raises(
        CompetitionError, match="(?s)tiny.zip would not be accepted.*category_id is not one of 1, 2, 3, 4"
    ):
        encode.run(EXPERIMENT, where)
    assert list((tmp_path / "submissions").iterdir()) == []
    where.fused("test").unlink()
    with pytest.raises(FileNotFoundError, match="python -m pipeline fuse"):
        encode.run(EXPERIMENT, where)


def test_validation_of_a_spoilt_file_fails(layout: Layout, tmp_path: Path) -> None:
    encode.run(EXPERIMENT, layout)
    path = layout.submission()
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:100])
        with pytest.raises(CompetitionError, match="tiny.zip would not be accepted"):
            validate.run(EXPERIMENT, layout)
        problems, acceptable = validate.validate_files("synthetic", layout.test_json, path)
        assert not acceptable and "not a whole zip archive" in problems[0].text
    finally:
        path.write_bytes(whole)
    with pytest.raises(CompetitionError, match="no file .*none.json"):
        validate.validate_files("synthetic", tmp_path / "none.json", path)
