from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import settings
from pipeline.backends import catalog
from pipeline.experiment import PROJECT, Experiment, ExperimentError, load


def written(text: str) -> dict[str, str]:
    """Setting and default of every row of the reference."""
    return dict(re.findall(r"^\| `(\S+)` \|.*? \| (?:`(.*?)`|\*\*.*?) \| ", text, re.M))


def test_the_written_reference_is_that_of_these_settings() -> None:
    assert (PROJECT / "docs" / "settings.md").read_text() == settings.reference()


def test_every_setting_has_a_meaning() -> None:
    missing = [s.name for group in settings.groups() for s in group.settings if not s.about]
    assert not missing
    assert [group.name for group in settings.groups() if not group.about] == []


def test_its_defaults_are_what_an_experiment_has_that_names_none() -> None:
    least = {"name": "x", "competition": "synthetic", "models": {"a": {"framework": "mmdet", "config": "a.py"}}}
    tile = {"size": 256}
    made = Experiment.model_validate({**least, "predict": {"tile": tile}, "train": {"augment": [{"name": "D4"}]}})
    rows = {s.name: s.default for group in settings.groups() for s in group.settings}
    assert len(rows) > 60 and rows == {
        name: default or None for name, default in written(settings.reference()).items() if name in rows
    }
    for name, default in rows.items():
        value: Any = made.model_dump()
        for key in name.replace("models.NAME", "models.a").replace("augment[]", "augment.0").split("."):
            value = value[int(key) if isinstance(value, list) else key]
        if default and name not in ("predict.tile", "train.augment"):
            plain = list(value) if isinstance(value, tuple) else value
            assert yaml.safe_load(default) == plain and type(yaml.safe_load(default)) is type(plain), name


def test_a_competition_without_options_says_so() -> None:
    assert settings.reference("vrdl2025") == "## data.options of vrdl2025\n\nIt has none.\n"


def test_a_part_is_a_group_or_the_settings_of_that_name() -> None:
    group = written(settings.reference("predict.tile"))
    assert list(group) == ["predict.tile.size", "predict.tile.overlap"]
    assert list(written(settings.reference("learning"))) == ["train.learning_rate"]
    assert written(settings.reference("vrdl2021")) == {"data.options.group": "site"}
    assert {"predict.views", "fusion.views"} <= set(written(settings.reference("views")))


def test_an_unknown_one_names_the_nearest() -> None:
    with pytest.raises(ExperimentError, match="did you mean 'fusion'"):
        settings.reference("fusin")
    with pytest.raises(ExperimentError, match="did you mean 'digits'"):
        settings.reference("digit5")
    with pytest.raises(ExperimentError, match="did you mean 'learning_rate'"):
        settings.reference("lerning_rate")


def test_the_least_experiment_it_shows_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", settings.reference(), re.S)
    path = tmp_path / "least.yaml"
    path.write_text(shown)
    experiment = load(str(path))
    catalog.check(experiment)
    assert experiment.name == "least" and experiment.fold_names() == ["0", "1", "2", "3", "4"]
