from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import graph
from pipeline.backends import catalog
from pipeline.experiment import (
    ALL,
    PROJECT,
    WAYS,
    Experiment,
    ExperimentError,
    Layout,
    TrainSettings,
    digest,
    find,
    load,
)

SMALL: dict[str, Any] = {
    "competition": "synthetic",
    "folds": {"count": 3},
    "models": {
        "a": {"framework": "mmdet", "config": "a.py", "train": {"iterations": 7}, "predict": {"views": ["hflip"]}},
        "b": {"framework": "detectron2", "config": "b.yaml"},
    },
    "fusion": {"weights": {"a": 2.0}},
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(**changes: Any) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **changes}))
        return str(path)

    return written


def message(path: str, **overrides: Any) -> str:
    with pytest.raises(ExperimentError) as caught:
        load(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


# ---------------------------------------------------------------- loading ---------------------------------------------


def test_the_file_names_the_run_and_the_rest_has_defaults(write: Any) -> None:
    experiment = load(write())
    assert experiment.name == "small"
    assert experiment.train.batch == 2 and experiment.submission.max_per_image == 300
    assert load(write(name="other")).name == "other"


EXPERIMENTS = PROJECT / "configs" / "experiments"


@pytest.mark.parametrize(
    "name", sorted(p.relative_to(EXPERIMENTS).with_suffix("").as_posix() for p in EXPERIMENTS.rglob("*.yaml"))
)
def test_every_experiment_of_the_project_loads(name: str) -> None:
    experiment = load(name)
    assert experiment.name == name.rpartition("/")[2]
    for model in experiment.models.values():
        assert catalog.locate(model.config).is_file()


@pytest.mark.parametrize(
    ("changes", "wrong", "near"),
    [
        ({"tran": {}}, "tran", "train"),
        ({"train": {"iteratons": 5}}, "train.iteratons", "iterations"),
        ({"predict": {"vews": ["identity"]}}, "predict.vews", "views"),
        ({"fusion": {"confidense": "max"}}, "fusion.confidense", "confidence"),
        ({"submission": {"max_per_imag": 5}}, "submission.max_per_imag", "max_per_image"),
        ({"data": {"paths": "x"}}, "data.paths", "path"),
        ({"folds": {"counts": 3}}, "folds.counts", "count"),
        ({"models": {"a": {"framework": "mmdet", "confg": "a.py", "config": "a.py"}}}, "models.a.confg", "config"),
        ({"models": {"a": {"framework": "mmdet", "config": "a.py", "train": {"bach": 1}}}},
         "models.a.train.bach", "batch"),
        ({"models": {"a": {"framework": "mmdet", "config": "a.py", "predict": {"score_treshold": 0}}}},
         "models.a.predict.score_treshold", "score_threshold"),
        ({"train": {"augment": [{"nam": "D4"}]}}, "train.augment.0.nam", "name"),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_named_with_the_nearest_known(write: Any, changes: Any, wrong: str, near: str) -> None:
    text = message(write(**changes))
    assert wrong in text and f"did you mean {near!r}?" in text and "small.yaml" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": {}}, ["models"]),
        ({"competition": None}, ["competition"]),
        ({"folds": {"count": 1}}, ["folds.count"]),
        ({"folds": {"count": 3, "use": [3]}}, ["folds.use", "0..2"]),
        ({"train": {"scale": [2.0, 1.0]}}, ["scale", "smallest"]),
        ({"train": {"iterations": "many"}}, ["train.iterations", "many"]),
        ({"models": {"a": {"framework": "yolo", "config": "x"}}}, ["models.a.framework", "mmdet"]),
        ({"fusion": {"weights": {"c": 1.0}}}, ["fusion.weights", "'c'"]),
        ({"predict": {"views": []}}, ["predict.views"]),
    ],
)
def test_a_wrong_value_is_told_with_its_place(write: Any, changes: Any, words: list[str]) -> None:
    text = message(write(**changes))
    assert all(word in text for word in words), text


def test_several_mistakes_are_told_at_once(write: Any) -> None:
    text = message(write(tran={}, folds={"count": 0}))
    assert "tran" in text and "folds.count" in text


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "did you mean 'quickstart'" in message("quickstrat")
    assert "there is no experiment file" in message(str(tmp_path / "none.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    assert "is not YAML" in message(str(bad))
    bad.write_text("")
    assert "holds no settings" in message(str(bad))
    assert find("quickstart") == PROJECT / "configs" / "experiments" / "quickstart.yaml"


# ---------------------------------------------------------------- overrides -------------------------------------------


def test_overrides_reach_into_groups_and_make_them(write: Any) -> None:
    experiment = load(write(), {"train.iterations": 11, "models.b.train.batch": 5, "folds.use": [1], "seed": 3})
    assert experiment.train.iterations == 11 and experiment.seed == 3
    assert experiment.train_settings("a").iterations == 7
    assert experiment.train_settings("b").batch == 5
    assert experiment.validation_folds() == [1]


def test_overrides_are_checked_like_the_file(write: Any) -> None:
    told = message(write(), train__iteratons=1)
    assert "did you mean 'iterations'?" in told and "small.yaml, with train.iteratons from the command line:" in told
    assert "competition is a value" in message(write(), competition__name=1)


# ---------------------------------------------------------------- what a model gets -----------------------------------


def test_models_override_the_experiment(write: Any) -> None:
    experiment = load(write(predict={"views": ["identity", "vflip"], "oof_views": ["identity"]}))
    assert experiment.train_settings("a").iterations == 7
    assert experiment.train_settings("b") == experiment.train
    assert experiment.views("a", "test") == ["hflip"]
    assert experiment.views("a", "oof") == ["identity"]
    assert experiment.views("b", "test") == ["identity", "vflip"]


def test_folds(write: Any) -> None:
    assert load(write()).fold_names() == ["0", "1", "2"]
    experiment = load(write(folds={"count": 3, "use": [2], "final": True}))
    assert experiment.fold_names() == ["2", ALL] and experiment.validation_folds() == [2]


def test_a_run_cut_down(write: Any) -> None:
    experiment = load(write(folds={"count": 3, "final": True}))
    cut = experiment.only(["b"], ["1", ALL])
    assert list(cut.models) == ["b"] and cut.fusion.weights == {} and cut.fold_names() == ["1", ALL]
    assert cut.folds.count == 3
    assert experiment.only(None, None) == experiment
    assert experiment.only(["a"], None).fusion.weights == {"a": 2.0}
    with pytest.raises(ExperimentError, match="no model 'bb'.*did you mean 'b'.*it has a, b"):
        experiment.only(["bb"], None)
    with pytest.raises(ExperimentError, match="no fold '7'; it has 0, 1, 2, all"):
        experiment.only(None, ["7"])


def test_data_are_looked_for_in_turn(write: Any, tmp_path: Path) -> None:
    there = tmp_path / "there.zip"
    there.write_bytes(b"")
    assert load(write(data={"path": [str(tmp_path / "none.zip"), str(there)]})).data_path() == there
    assert load(write()).data_path() is None
    with pytest.raises(ExperimentError, match=r"no data at .*none.zip.*--data PATH"):
        load(write(data={"path": str(tmp_path / "none.zip")})).data_path()


# ---------------------------------------------------------------- hashes and places -----------------------------------


def test_a_digest_is_of_the_values_alone() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"a": 1}, 2)
    assert digest(Experiment.model_validate({"name": "x", **SMALL}).train) == digest(
        Experiment.model_validate({"name": "y", **SMALL}).train
    )


def test_the_artifacts_of_two_runs_models_folds_and_parts_never_meet(tmp_path: Path) -> None:
    places = [
        place
        for run in ("one", "two")
        for layout in (Layout(run, tmp_path),)
        for place in (
            layout.train_json, layout.test_json, layout.integrity, layout.folds, layout.fusion, layout.scores,
            layout.report, layout.submission(".zip"), layout.submission(".csv"),
            layout.fused("oof"), layout.fused("test"),
            *(layout.checkpoint(m, f) for m in ("a", "b") for f in ("0", ALL)),
            *(layout.predictions(m, f, p) for m in ("a", "b") for f in ("0", ALL) for p in ("oof", "test")),
        )
    ]  # fmt: skip
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path) for place in places)
    layout = Layout("one", tmp_path)
    assert layout.folds == tmp_path / "folds" / "one.csv"
    assert layout.submission() == tmp_path / "submissions" / "one.zip"
    assert layout.checkpoint("a", "0").is_relative_to(layout.training("a", "0"))
    assert Layout("one").root == PROJECT


def test_a_misspelt_view_is_told_on_load(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="predict.views: there is no view 'sideflip'; did you mean 'vflip'"):
        load("quickstart", {"predict.views": ["sideflip"]})


def test_a_model_config_may_be_named_as_it_is_listed() -> None:
    listed = catalog.locate("mmdet/mask-rcnn_r18_slim")
    assert listed == PROJECT / "configs" / "models" / "mmdet" / "mask-rcnn_r18_slim.py"
    with pytest.raises(ExperimentError, match=r"did you mean configs/models/mmdet/mask-rcnn_r18_slim\.py"):
        catalog.locate("configs/models/mmdet/mask-rcnn_r18_slm.py")


@pytest.mark.parametrize("decay", [0, 1, 2.5, "half", True, [0.5, 3]])
def test_a_factor_that_is_none_is_told_in_one_line(write: Any, decay: Any) -> None:
    told = message(write(train={"schedule": "multistep", "milestones": [5, 6], "decay": decay}))
    assert [line for line in told.splitlines() if "decay" in line] == [
        f"  train.decay: a number above 0 and below 1, or a list of such (it is {decay!r})"
    ]


def test_every_milestone_has_a_factor(write: Any) -> None:
    assert "decay has 1 numbers for 2 milestones" in message(
        write(train={"schedule": "multistep", "milestones": [5, 6], "decay": [0.5]})
    )


@pytest.mark.parametrize(
    ("own", "experiment"),
    [
        ({"scale": [1, 2]}, {"scales": [0.5, 1.0]}),
        ({"scale": [1, 2]}, {"shortest_edge": [400], "longest_edge": 600}),
        ({"scales": [2.0]}, {"shortest_edge": [400], "longest_edge": 600}),
        ({"shortest_edge": [400]}, {"scales": [0.5, 1.0]}),
        ({"shortest_edge": [500]}, {"shortest_edge": [400], "longest_edge": 600}),
        ({"shortest_edge": [400, 500], "longest_edge": 550}, {"shortest_edge": [400], "longest_edge": 600}),
    ],
)
def test_a_model_s_own_way_of_sizing_stands_alone(write: Any, own: dict, experiment: dict) -> None:
    models = {
        "a": {"framework": "mmdet", "config": "a.py", "train": own},
        "b": {"framework": "mmdet", "config": "a.py", "train": {"batch": 1}},
    }
    loaded = load(write(models=models, fusion={}, train=experiment))
    if "shortest_edge" in own and "longest_edge" in experiment:
        own = {"longest_edge": experiment["longest_edge"], **own}  # the cap goes with a length
    for name, sizes in (("a", own), ("b", experiment)):
        got, plain = loaded.train_settings(name), TrainSettings.model_validate(sizes)
        keys = (*WAYS, "longest_edge")
        assert [getattr(got, key) for key in keys] == [getattr(plain, key) for key in keys]
    for crop in (64, 1.0, [0.9, 1.0]):
        loaded = load(write(models=models, fusion={}, train={**experiment, "crop": crop}))
        path = Path(write()).with_name("frozen.yaml")
        path.write_text(graph._frozen(loaded))  # with every setting filled in, as a run's stages read it
        for name in models:
            assert load(str(path)).train_settings(name) == loaded.train_settings(name)


def test_two_ways_of_sizing_are_told(write: Any) -> None:
    told = message(write(train={"shortest_edge": [400]}), **{"train__scale": [0.5, 1.0]})
    assert "train: scale and shortest_edge both say how large" in told
    models = {"a": {"framework": "mmdet", "config": "a.py", "train": {"scale": [0.5, 0.5], "shortest_edge": [120]}}}
    assert "models.a.train: scale and shortest_edge both" in message(write(models=models, fusion={}))
    models["a"]["train"] = {"shortest_edge": [700]}
    capped = write(models=models, fusion={}, train={"shortest_edge": [400], "longest_edge": 600})
    assert "models.a.train: longest_edge, 600, is below a shortest_edge" in message(capped)
    models["a"]["train"] = {"shortest_edge": []}  # none for this one
    assert (
        load(write(models=models, fusion={}, train={"shortest_edge": [400], "longest_edge": 600}))
        .train_settings("a")
        .longest_edge
        is None
    )
    models["a"]["train"] = {"longest_edge": 500}
    loaded = load(write(models=models, fusion={}, train={"shortest_edge": [400], "longest_edge": 600}))
    assert (loaded.train_settings("a").shortest_edge, loaded.train_settings("a").longest_edge) == ([400], 500)


def test_views_that_vote_are_among_those_predicted(write: Any) -> None:
    predict = {"views": ["identity", "hflip@160px"]}
    told = message(write(predict=predict, fusion={"views": ["vflip"]}))
    assert (
        "fusion.views: no model predicts 'vflip'" in told
        and "predicted are ['hflip', 'identity', 'hflip@160px']" in told
    )
    assert load(write(predict=predict, fusion={"views": ["hflip@160px"]})).fusion.views == ["hflip@160px"]
    assert "identity is there more than once" in message(write(predict={"views": ["identity", "identity"]}))
    assert "hflip@2.0 is there more than once" in message(write(predict={"views": ["hflip@2", "hflip@2.0"]}))
    models = {
        "a": {"framework": "mmdet", "config": "a.py", "predict": {"views": ["identity"]}},
        "b": {"framework": "mmdet", "config": "a.py", "predict": {"views": ["identity", "hflip@2"]}},
    }
    both = load(write(models=models, fusion={"views": ["identity", "hflip@2.0"]}))
    assert (
        both.only(["a"], None).fusion.views == ["identity"] and both.only(["b"], None).fusion.views == both.fusion.views
    )
    alone = load(write(models=models, fusion={"views": ["hflip@2.0"]}))
    with pytest.raises(ExperimentError, match="a predict none of fusion.views, hflip@2.0"):
        alone.only(["a"], None)


def test_tiles_have_no_length_of_an_image_s_side(write: Any) -> None:
    views = {"views": ["hflip@1.5", "hflip@800px"], "tile": {"size": 512}}
    assert "the view hflip@800px says how long a side of the image is" in message(write(predict=views))
    assert load(write(predict={"views": ["hflip@800px"]})).predict.views == ["hflip@800px"]


def test_a_model_may_be_called_as_a_group_is(write: Any) -> None:
    models = {"fusion": {"framework": "mmdet", "config": "a.py", "sede": 1}}
    assert "models.fusion.sede (did you mean 'seed'?)" in message(write(models=models, fusion={}))


@pytest.mark.parametrize("name", ["vrdl2021-full", "vrdl2025-document", "digits-full", "cityscapes-seq2seg"])
def test_rates_fall_within_the_training(name: str) -> None:
    experiment = load(f"papers/{name}")
    for model in experiment.models:
        train = experiment.train_settings(model)
        assert train.milestones == sorted(train.milestones) and train.milestones[-1] <= train.iterations, model
