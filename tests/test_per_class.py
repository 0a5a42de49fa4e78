"""Settings that may be a number for each category: what is accepted, by name and id, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import per_class
from pipeline.experiment import ExperimentError, FusionSettings, digest, load
from pipeline.fusion.settings import Fusion, for_categories, for_people, read_settings, write_settings

CATEGORIES = {1: "nucleus", 7: "cytoplasm"}


def test_names_ids_and_the_rest() -> None:
    settings = Fusion.model_validate(
        {"iou": {"nucleus": 0.6, "default": 0.4}, "min_area": {7: 30, "1": 5}, "skip": 0.1}
    )
    known = for_categories(settings, CATEGORIES)
    assert (known.iou, known.min_area, known.skip) == ({"1": 0.6, "default": 0.4}, {"7": 30, "1": 5}, 0.1)
    category = np.array([7, 1, 7])
    assert per_class.by_category(known.iou, category) == {1: 0.6, 7: 0.4}
    assert per_class.of_rows(known.min_area, category).tolist() == [30, 5, 30]
    assert per_class.of_rows(known.iou, category[:0]).shape == (0,) and per_class.of_rows(0.1, category) == 0.1
    assert for_people(known, CATEGORIES) == settings.model_copy(update={"min_area": {"cytoplasm": 30, "nucleus": 5}})


def test_names_that_repeat_stay_ids() -> None:
    assert per_class.by_name({"1": 0.5, "2": 0.6, "3": 0.7}, {1: "a", 2: "a", 3: "b"}) == {"1": 0.5, "2": 0.6, "b": 0.7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nucleas": 0.6, "default": 0.5}, "fusion.iou: there is no category 'nucleas' .did you mean 'nucleus'."),
        ({"3": 0.6, "default": 0.5}, "there is no category '3'"),
        ({"nucleus": 0.6, "1": 0.5, "default": 0.5}, "named twice"),
        ({"nucleus": 0.6}, "no number for cytoplasm; add it, or `default`"),
    ],
)
def test_categories_that_do_not_fit(given: dict[str, float], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        for_categories(Fusion.model_validate({"iou": given}), CATEGORIES)


@pytest.mark.parametrize(
    "given",
    [{"iou": 1.0}, {"iou": 0}, {"iou": {"a": 1.5}}, {"iou": {}}, {"iou": "x"}, {"iou": True}, {"skip": -0.1},
     {"skip": [0.1]}, {"min_area": 2.5}, {"min_area": {"a": -1}}, {"min_area": float("inf")}, {"skip": float("nan")}],
)  # fmt: skip
def test_numbers_that_are_none(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="number|no category"):
        FusionSettings.model_validate(given)


def test_the_file_and_the_hash(tmp_path: Path) -> None:
    settings = Fusion.model_validate({"iou": {"nucleus": 0.6, 7: 0.4}, "min_area": {"nucleus": 9, "default": 0}})
    write_settings(tmp_path / "fusion.yaml", settings, {})
    assert "  iou:\n    nucleus: 0.6\n    '7': 0.4\n" in (tmp_path / "fusion.yaml").read_text()
    assert read_settings(tmp_path / "fusion.yaml") == settings
    assert digest(settings) == digest(
        Fusion.model_validate({"iou": {"7": 0.4, "nucleus": 0.6}, "min_area": settings.min_area})
    )


def test_an_experiment_says_where_the_mistake_is(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("competition: synthetic\nmodels: {m: {framework: mmdet, config: c}}\nfusion: {iou: {nucleus: 2}}\n")
    with pytest.raises(ExperimentError, match=r"fusion\.iou: it is a number between 0 and 1, or one such number"):
        load(str(path))
    path.write_text(path.read_text().replace("nucleus: 2", "nucleus: 0.6, 7: 0.4"))
    experiment = load(str(path))
    assert experiment.fusion.iou == {"nucleus": 0.6, "7": 0.4} and experiment.held() == ["iou"]
