"""The rows of the papers' comparisons, from the artifacts of a run to the table."""

import json
from pathlib import Path

import pytest

from benchmarks import papers
from pipeline.experiment import Experiment, ExperimentError, FusionSettings, Layout, PredictSettings


def run_of(folder: Path, scores: dict[str, float], made: str = "2026-01-01T00:00:00+0000") -> tuple[Experiment, Layout]:
    """A run with these models, as `train` and `score` leave it."""
    models = {name: {"framework": "mmdet", "config": "a.py", "seed": k} for k, name in enumerate(scores)}
    experiment = Experiment.model_validate(
        {
            "name": "try",
            "competition": "synthetic",
            "models": models,
            "seed": 5,
            "folds": {"count": 4, "use": [1]},
            "train": {"iterations": 70},
        }
    )
    layout = Layout("try", folder)
    for name in scores:
        layout.training(name, "1").mkdir(parents=True, exist_ok=True)
        (layout.training(name, "1") / "provenance.json").write_text(
            json.dumps({"images": 30, "seconds": 90.0, "commit": "abc1234"})
        )
    standing = {name: {"score": value, "images": 10, "classes": {"a": value}} for name, value in scores.items()}
    layout.scores.write_text(
        json.dumps(
            {
                "metric": "AP",
                "images": 10,
                "models": standing,
                "ensemble": {"score": 0.9},
                "provenance": {"made": made},
            }
        )
    )
    return experiment, layout


def test_a_row_says_what_was_trained_and_what_came_of_it(tmp_path: Path) -> None:
    rows = papers.rows_of(*run_of(tmp_path, {"plain-0": 0.25, "plain-1": 0.5}), note="here")
    assert [row["model"] for row in rows] == ["plain-0", "plain-1", "ensemble"]
    row = rows[1]
    assert (row["experiment"], row["seed"], row["folds"], row["trained_on"]) == ("try", 6, ["1"], [30])
    assert (row["iterations"], row["seconds"], row["measures"], row["note"]) == (70, [90.0], {"score": 0.5}, "here")
    assert (row["commit"], rows[2]["commit"], rows[2]["seed"]) == ("abc1234", "?", [5, 6])


def test_a_row_is_added_once_and_a_later_run_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = papers.rows_of(*run_of(tmp_path, {"plain": 0.25}))
    assert papers.add(rows, path) == 1
    assert papers.add(rows, path) == 0
    assert papers.add(papers.rows_of(*run_of(tmp_path, {"plain": 0.75}, made="later")), path) == 1
    assert [row["measures"]["score"] for row in papers.read(path)] == [0.25, 0.75]
    assert "| 0.750 |" in papers.table(papers.read(path), "try")  # the later one


def test_seeds_of_one_model_are_one_line(tmp_path: Path) -> None:
    experiment, layout = run_of(tmp_path, {"plain-0": 0.2, "plain-1": 0.3, "other": 0.5})
    rows = papers.rows_of(experiment, layout)
    lines = papers.table(rows, "try").splitlines()
    assert (
        lines[0] == "| model | commit | trainings (of images) | iterations x images | minutes | judged images | score |"
    )
    assert lines[2:] == [
        "| plain | abc1234 | 2 (30) | 70 x 2 | 1.5 | 10 | 0.250 (0.200 to 0.300) |",
        "| other | abc1234 | 1 (30) | 70 x 2 | 1.5 | 10 | 0.500 |",
        "| plain-0 + plain-1 + other, as tuned | ? |  |  |  | 10 | 0.900 |",
    ]


def test_an_ensemble_is_of_the_models_and_the_fusion_that_made_it(tmp_path: Path) -> None:
    experiment, layout = run_of(tmp_path, {"plain": 0.2, "other": 0.3})
    fixed = experiment.model_copy(update={"fusion": FusionSettings(tune=False, method="soft-nms-linear")})
    rows = [*papers.rows_of(experiment, layout), *papers.rows_of(fixed, layout)]
    lines = papers.table(rows, "try").splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| plain",
        "| other",
        "| plain + other, as tuned",
        "| plain + other, soft-nms-linear",
    ]
    alone, layout = run_of(tmp_path / "alone", {"plain": 0.2})
    assert len(papers.rows_of(alone, layout)) == 1
    views = alone.model_copy(update={"predict": PredictSettings(views=["identity", "hflip"])})
    assert [row["model"] for row in papers.rows_of(views, layout)] == ["plain", "ensemble"]


def test_other_budgets_and_options_are_lines_of_their_own(tmp_path: Path) -> None:
    rows = papers.rows_of(*run_of(tmp_path, {"plain-0": 0.2, "plain-1": 0.3}))[:2]
    again = {**rows[0], "seed": 77, "measures": {"score": 0.4}}  # a third seed of the same model, in another run
    assert "| 3 (30) | 70 x 2 | 1.5 | 10 | 0.300 (0.200 to 0.400) |" in papers.table([*rows, again], "try")
    elsewhere = {**again, "commit": "abc1234, def5678"}
    assert "| plain | abc1234, def5678 | 3 (30) |" in papers.table([*rows, elsewhere], "try")
    longer = {**rows[0], "iterations": 140, "measures": {"score": 0.4}}
    scaled = {**rows[1], "options": {"model.scale": 0.5}, "measures": {"score": 0.6}}
    slower = {**rows[1], "train": {"learning_rate": 0.1}, "measures": {"score": 0.9}}
    assert papers.table([*rows, slower], "try").splitlines()[3].endswith("| 0.900 |")
    folds = {**rows[1], "folds": ["2"], "measures": {"score": 0.7}}
    fewer = {**rows[1], "trained_on": [12], "measures": {"score": 0.8}}
    lines = [line.split(" | ") for line in papers.table([*rows, longer, scaled, folds, fewer], "try").splitlines()[2:]]
    assert lines.pop()[2] == "1 (12)"
    assert [(line[0], line[3], line[-1]) for line in lines] == [
        ("| plain", "70 x 2", "0.250 (0.200 to 0.300) |"),
        ("| plain", "140 x 2", "0.400 |"),
        ("| plain, model.scale: 0.5", "70 x 2", "0.600 |"),
        ("| plain", "70 x 2", "0.700 |"),
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    experiment, layout = run_of(tmp_path, {"plain": 0.2})
    layout.scores.unlink()
    with pytest.raises(ExperimentError, match=f"bash run_all.sh papers/try --root {tmp_path}"):
        papers.rows_of(experiment, layout, called="papers/try")
    with pytest.raises(ExperimentError, match="no row of 'other' .* rows of: none"):
        papers.table([], "other")
    rows = papers.rows_of(*run_of(tmp_path, {"plain": 0.2}))
    with pytest.raises(ExperimentError, match="no row of 'other' .* rows of: try"):
        papers.table(rows, "other")
    with pytest.raises(ExperimentError, match="no row has APx; there are score"):
        papers.table(rows, "try", ["score", "APx"])


def test_the_table_of_a_run_is_shown_and_kept_nowhere_or_where_one_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, layout = run_of(tmp_path, {"plain": 0.25})
    layout.artifacts.mkdir(parents=True, exist_ok=True)
    (layout.artifacts / "experiment.yaml").write_text(experiment.model_dump_json())
    before, own = papers.DATA.read_bytes(), tmp_path / "own.jsonl"

    def call(action: str, *words: str) -> str:
        monkeypatch.setattr("sys.argv", ["papers", action, "papers/try", "--root", str(tmp_path), *words])
        papers.main()
        return capsys.readouterr().out

    line = "| plain | abc1234 | 1 (30) | 70 x 2 | 1.5 | 10 | 0.250 |"
    assert line in call("show")
    assert "1 rows added" in call("add", "--file", str(own))
    assert line in call("table", "--file", str(own))
    assert papers.DATA.read_bytes() == before
