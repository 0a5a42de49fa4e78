"""tune and fuse on a drawn run of two models, two folds and a final training; and submissions fused without a run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import competitions
from pipeline.competitions import CompetitionError
from pipeline.experiment import Experiment, ExperimentError, Layout
from pipeline.folds import Row, write_csv
from pipeline.fusion.settings import Fusion, read_settings, write_settings
from pipeline.records import Dataset, Detections, Image
from pipeline.stages import fuse, tune
from tests.fusion.cells import SIZE, scene, sighting, truth

IMAGES = 8
SUBMISSIONS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "vrdl2021" / "submissions"


def an_experiment(**fusion: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "drawn",
            "competition": "vrdl2021",
            "folds": {"count": 2, "final": True},
            "models": {m: {"framework": "mmdet", "config": "none"} for m in ("a", "b")},
            "predict": {"views": ["identity", "hflip"]},
            "fusion": fusion,
            "submission": {"max_per_image": 30},
        }
    )


def predictions(layout: Layout, experiment: Experiment) -> None:
    """What `predict` would leave: out of fold the odd or the even images, and three test images."""
    views = experiment.views("a", "oof")
    for m, model in enumerate(experiment.models):
        for fold in ("0", "1", "all"):
            sources = [f"{model}/{fold}/{view}" for view in views]
            for part in ("oof", "test"):
                images = (
                    [i for i in range(1, IMAGES + 1) if i % 2 == int(fold)] if part == "oof" and fold != "all" else []
                )
                images = [101, 102, 103] if part == "test" else images
                if not images:
                    continue
                tables = [sighting(i, s, 10 * m + k + 100 * len(fold)) for i in images for k, s in enumerate(sources)]
                Detections.concatenate(tables).write(layout.predictions(model, fold, part))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, Layout]]:
    layout, experiment = Layout("drawn", tmp_path_factory.mktemp("run")), an_experiment()
    dataset = truth(IMAGES)
    dataset.write(layout.train_json)
    Dataset([Image(i, f"{i}.png", *SIZE) for i in (101, 102, 103)], {1: "cell"}).write(layout.test_json)
    write_csv([Row(i.file_name, i.id % 2, "", "") for i in dataset.images], layout.folds)
    predictions(layout, experiment)
    tune.run(experiment, layout)
    yield experiment, layout


def test_tune_leaves_its_settings_its_table_and_its_ladder(run: tuple[Experiment, Layout]) -> None:
    _, layout = run
    settings = read_settings(layout.fusion)
    assert settings.weights.keys() == {"a", "b"}
    ladder = json.loads(tune.ladder(layout).read_text())
    assert tune.ladder(layout) == layout.artifacts / "fusion" / "ladder.json"
    assert ladder[0]["step"] == "best single" and ladder[-1]["step"] == "+ post"
    assert {"step", "score", "gain", "low", "high", "adopted"} <= ladder[0].keys()
    assert 0 < ladder[0]["competition"]["score"] < 1  # the competition itself was asked
    assert tune.training_table(layout).exists()


@pytest.mark.parametrize("mode", ["mask", "learned"])
def test_fuse_writes_both_parts(run: tuple[Experiment, Layout], mode: str) -> None:
    experiment, layout = run
    settings = read_settings(layout.fusion).model_dump()
    write_settings(layout.fusion, Fusion(**{**settings, "rescore": mode, "weights": {}}), {})
    for part, images in (("oof", range(1, IMAGES + 1)), ("test", (101, 102, 103))):
        fuse.run(experiment, layout, part)
        fused = Detections.read(layout.fused(part))
        assert sorted(set(fused.image_id.tolist())) == list(images)
        assert fused.score.min() >= 0 and fused.score.max() <= 1
        assert fused.extra["agreement"].max() <= 1
        for _, mine in fused.images():
            assert (np.diff(mine.score) <= 0).all()
        best = fused.top(1)
        for i in range(len(best)):  # the surest of every image is a true cell
            y, x = (best.box[i, 1] + best.box[i, 3]) / 2, (best.box[i, 0] + best.box[i, 2]) / 2
            cells = scene(int(best.image_id[i]))
            assert np.hypot(cells[:, 0] - y, cells[:, 1] - x).min() < 4
    before = Detections.read(layout.fused("oof"))
    fuse.run(experiment, layout, "oof")
    np.testing.assert_array_equal(Detections.read(layout.fused("oof")).score, before.score)


def test_what_is_missing_is_named_with_the_command_that_makes_it(
    run: tuple[Experiment, Layout], tmp_path: Path
) -> None:
    experiment, layout = run
    bare = Layout("drawn", tmp_path)
    with pytest.raises(ExperimentError, match="run the stage `tune` first"):
        fuse.run(experiment, bare, "test")
    path = layout.predictions("b", "1", "oof")
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(ExperimentError, match="predict drawn --model b --fold 1 --part oof"):
            tune.run(experiment, layout)
    finally:
        path.with_suffix(".away").rename(path)


def test_without_tuning_the_settings_are_the_experiments_own(run: tuple[Experiment, Layout], tmp_path: Path) -> None:
    _, layout = run
    experiment = an_experiment(tune=False, iou=0.65, rescore="learned", weights={"b": 0.5})
    other = Layout("drawn", tmp_path)
    for path in (layout.train_json, layout.test_json, layout.folds):
        target = tmp_path / path.relative_to(layout.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    predictions(other, experiment)
    tune.run(experiment, other)
    settings = read_settings(other.fusion)
    assert (settings.iou, settings.rescore, settings.weights) == (0.65, "learned", {"b": 0.5})
    assert json.loads(tune.ladder(other).read_text()) == []
    fuse.run(experiment, other, "test")
    assert len(Detections.read(other.fused("test"))) > 0
    # by category: named in the file as people name them, and known by id to the fusion
    tune.run(an_experiment(tune=False, iou={1: 0.65}, min_area={"cell": 100}), other)
    settings = read_settings(other.fusion)
    assert (settings.iou, settings.min_area) == ({"cell": 0.65}, {"cell": 100})
    fuse.run(experiment, other, "test")
    assert Detections.read(other.fused("test")).area().min() >= 100
    with pytest.raises(ExperimentError, match="fusion.min_area: there is no category 'cel' .did you mean 'cell'"):
        tune.run(an_experiment(tune=False, min_area={"cel": 100}), other)


# ---------------------------------------------------------------- files alone -----------------------------------------


def submission(path: Path, seed: int) -> Path:
    """A vrdl2021 submission of two images, the best ten masks of each."""
    found = Detections.concatenate([sighting(i, "x", seed) for i in (1, 2)]).top(10)
    found.pixels[:] = np.where(found.pixels >= 128, 255, 0)
    images = Dataset([Image(i, str(i), *SIZE) for i in (1, 2)], {1: "nucleus"})
    competitions.get("vrdl2021").write(found, images, path)
    return path


def test_files_of_every_kind_are_fused(tmp_path: Path) -> None:
    zips = [submission(tmp_path / f"{k}.zip", k) for k in range(3)]
    bare = tmp_path / "bare.json"
    with zipfile.ZipFile(submission(tmp_path / "3.zip", 3)) as archive:
        bare.write_bytes(archive.read("answer.json"))
    table = tmp_path / "run.parquet"
    Detections.concatenate([sighting(i, f"m/0/{v}", k) for i in (1, 2) for k, v in enumerate("xy")]).write(table)
    result = fuse.fuse_files("vrdl2021", [*zips, bare, table], tmp_path / "out.zip")
    assert result["files"] == 5 and result["images"] == 2 and result["problems"] == []
    records = competitions.get("vrdl2021").read_submission(tmp_path / "out.zip")
    assert len(records) == result["detections"] and {r["image_id"] for r in records} == {1, 2}
    json.dumps(result)


def test_one_file_comes_out_as_it_went_in(tmp_path: Path) -> None:
    path = submission(tmp_path / "a.zip", 0)
    fuse.fuse_files("vrdl2021", [str(path)], str(tmp_path / "out.zip"))
    host = competitions.get("vrdl2021")
    before = {json.dumps(r["segmentation"]): r["score"] for r in host.read_submission(path)}
    after = {json.dumps(r["segmentation"]): r["score"] for r in host.read_submission(tmp_path / "out.zip")}
    assert after.items() <= before.items() and len(after) >= len(before) - 4  # a few lay under better ones


def test_files_that_cannot_be_fused(tmp_path: Path) -> None:
    good = submission(tmp_path / "a.zip", 0)
    table = tmp_path / "run.parquet"
    sighting(1, "m/0/x", 0).write(table)
    broken = tmp_path / "broken.json"
    broken.write_text('[{"image_id": 1}]')
    with pytest.raises(FileNotFoundError, match="missing.zip"):
        fuse.fuse_files("vrdl2021", [good, tmp_path / "missing.zip"], tmp_path / "out.zip")
    with pytest.raises(CompetitionError, match=r"broken\.json"):
        fuse.fuse_files("vrdl2021", [good, broken], tmp_path / "out.zip")
    with pytest.raises(ValueError, match="how large are the images"):
        fuse.fuse_files("vrdl2021", [table], tmp_path / "out.zip")
    with pytest.raises(ValueError, match="nothing to fuse"):
        fuse.fuse_files("vrdl2021", [], tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([{"file_name": "1.png", "id": 1, "height": SIZE[0], "width": SIZE[1]}]))
    assert fuse.fuse_files("vrdl2021", [table], tmp_path / "out.zip", ids)["images"] == 1


@pytest.mark.skipif(not SUBMISSIONS.exists(), reason=f"looked for real submissions in {SUBMISSIONS}")
def test_ten_real_submissions(tmp_path: Path) -> None:
    paths = sorted(SUBMISSIONS.glob("*.zip"))
    result = fuse.fuse_files("vrdl2021", paths, tmp_path / "fused.zip")
    assert result["files"] == len(paths) and result["detections"] == 600 and result["problems"] == []
    host = competitions.get("vrdl2021")
    images = Dataset([Image(i, str(i), 1000, 1000) for i in range(1, 7)], {1: "nucleus"})
    assert host.validate(tmp_path / "fused.zip", images) == []
    counts = np.unique([r["image_id"] for r in host.read_submission(tmp_path / "fused.zip")], return_counts=True)
    assert counts[0].tolist() == [1, 2, 3, 4, 5, 6] and (counts[1] == 100).all()
