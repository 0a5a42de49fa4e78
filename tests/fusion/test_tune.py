"""Tuning adopts what helps and leaves what does not; its fusions are those that `fuse` makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from pipeline.fusion.fuse import fuse_image
from pipeline.fusion.match import truths
from pipeline.fusion.rescore import Rescorer, group_of
from pipeline.fusion.ruler import Ruler
from pipeline.fusion.settings import Fusion, read_settings, write_settings
from pipeline.fusion.tune import Case, Study, Tuned, tune, with_changes
from pipeline.records import Detections
from tests.fusion.cells import SIZE, sighting, truth

VIEWS = ("identity", "hflip", "identity@2.0")
IMAGES = 8


def cases(noise: dict[str, float], views: tuple[str, ...] = VIEWS) -> list[Case]:
    """Images in two folds, each seen by its own fold's models with a noise of their own."""
    dataset = truth(IMAGES)
    true = truths(dataset, dataset.image)
    out = []
    for image_id in dataset.image:
        voters = [f"{model}/{image_id % 2}/{view}" for model in noise for view in views]
        found = Detections.concatenate(
            [sighting(image_id, name, k, noise[name.split("/")[0]]) for k, name in enumerate(voters)]
        )
        out.append(Case(image_id, SIZE, found, voters, true[image_id]))
    return out


def chosen(rescorer: Callable[[str], Rescorer], image_id: int, fold: str) -> Rescorer:
    return rescorer(group_of(fold, image_id, ["0", "1"]))


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    return tune(cases({"a": 1.2, "b": 1.0}), Fusion(), Ruler(12))


def test_the_ladder_climbs(tuned: Tuned) -> None:
    rungs = tuned.ladder
    assert [r.step for r in rungs] == [
        "best single", "+ views", "+ models", "+ clustering", "+ rescoring", "+ post",
    ]  # fmt: skip
    height = rungs[0].score
    for rung in rungs[1:]:
        assert rung.gain is not None and rung.low is not None and rung.high is not None
        assert rung.low <= rung.gain <= rung.high
        if rung.adopted:
            assert rung.gain > 0 and rung.score > height and rung.settings
            height = rung.score
    assert rungs[1].adopted and height > rungs[0].score + 0.2  # voices that differ help, on drawn cells very much
    json.dumps([rung.to_json() for rung in rungs])


def test_the_result_is_what_fuse_makes_of_the_settings(tuned: Tuned) -> None:
    given = cases({"a": 1.2, "b": 1.0})
    study = Study(given, Ruler(12))
    for mode in ("mask", "learned"):
        settings = with_changes(tuned.settings, rescore=mode)
        rescorer = study.rescorer(settings) if mode == "learned" else None
        for case, fused in zip(given, study.fused(settings), strict=True):
            by_fold = None if rescorer is None else partial(chosen, rescorer, case.image_id)
            again = fuse_image(case.detections, settings, case.voters, SIZE, by_fold)
            np.testing.assert_array_equal(again.score, fused.score)
            np.testing.assert_array_equal(again.pixels, fused.pixels)
    last = [rung for rung in tuned.ladder if rung.adopted][-1]
    assert study.ruler.value(study.sheet(tuned.settings)) == pytest.approx(last.score)


def test_it_is_deterministic(tuned: Tuned) -> None:
    again = tune(cases({"a": 1.2, "b": 1.0}), Fusion(), Ruler(12))
    assert again.settings == tuned.settings and again.ladder == tuned.ladder
    np.testing.assert_array_equal(again.table.features.values, tuned.table.features.values)


def test_a_model_that_only_errs_is_left_out() -> None:
    found = tune(cases({"good": 0.8, "bad": 9.0}, views=("identity",)), Fusion(), Ruler(12))
    assert found.ladder[0].step == "best single"
    if found.settings.rescore != "learned":  # the learned rescorer may use it: it weighs models itself
        assert found.settings.weights["bad"] == 0
    models = next(rung for rung in found.ladder if rung.step == "+ models")
    assert not models.adopted


def test_the_competitions_score_can_speak_against_a_step() -> None:
    calls: list[int] = []

    def falling(found: Detections) -> dict[str, Any]:
        calls.append(len(found))
        return {"score": 1.0 - 0.1 * len(calls)}

    refused = tune(cases({"a": 1.2}, VIEWS[:2]), Fusion(), Ruler(12), falling)
    assert not any(rung.adopted for rung in refused.ladder[1:])
    assert refused.settings.method == "concatenate" and len(calls) > 1

    def rising(found: Detections) -> dict[str, Any]:
        return {"score": 0.5, "further": 1.0}

    assert tune(cases({"a": 1.2}, VIEWS[:2]), Fusion(), Ruler(12), rising).ladder[1].competition == {
        "score": 0.5,
        "further": 1.0,
    }


def test_one_voter_and_images_without_anything() -> None:
    given = cases({"a": 1.0}, views=("identity",))
    empty = given[0]
    given[0] = Case(empty.image_id, SIZE, Detections.empty(empty.voters), empty.voters, empty.truth)
    found = tune(given, Fusion(), Ruler(12))
    assert [r.step for r in found.ladder] == ["best single", "+ rescoring", "+ post"]
    nothing = [Case(c.image_id, SIZE, Detections.empty(c.voters), c.voters, c.truth) for c in given]
    assert not any(rung.adopted for rung in tune(nothing, Fusion(), Ruler(12)).ladder[1:])
    with pytest.raises(ValueError, match="no out-of-fold predictions"):
        tune([], Fusion(), Ruler(12))


@pytest.mark.parametrize(
    "wish",
    [
        {"overlap_removal": "score", "min_area": 30},
        {"rescore": "learned"},
        {"rescore": "mask", "method": "nms", "iou": 0.4},
    ],
)
def test_what_the_experiment_names_is_held(wish: dict[str, Any]) -> None:
    found = tune(cases({"a": 1.2, "b": 1.0}, VIEWS[:2]), Fusion.model_validate(wish), Ruler(12), held=list(wish))
    assert {name: getattr(found.settings, name) for name in wish} == wish


def test_settings_on_disk(tmp_path: Any) -> None:
    settings = Fusion(weights={"a": 0.5}, views=["hflip"], duplicates=0.7, confidence="absent_model_aware_avg")
    write_settings(tmp_path / "f.yaml", settings, {"seed": 3})
    assert read_settings(tmp_path / "f.yaml") == settings
    with pytest.raises(ValueError, match="stage `tune` first"):
        read_settings(tmp_path / "missing.yaml")
    for text in ("", "settings: {unknown: 1}", "[", "settings: 3"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match="delete it and run `tune` again"):
            read_settings(tmp_path / "bad.yaml")
