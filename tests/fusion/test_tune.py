"""Tuning adopts what helps and leaves what does not; its fusions are those that `fuse` makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.fusion.fuse import fuse_image
from pipeline.fusion.match import truths
from pipeline.fusion.rescore import group_of
from pipeline.fusion.ruler import Ruler
from pipeline.fusion.settings import Fusion, Voter, read_settings, with_changes, write_settings
from pipeline.fusion.study import Case, Study
from pipeline.fusion.tune import Tuned, tune
from pipeline.records import Detections
from tests.fusion.cells import SIZE, sighting, truth

VIEWS = ("identity", "hflip", "identity@2.0")
IMAGES = 8


def cases(noise: dict[str, float], views: tuple[str, ...] = VIEWS, repeats: int = 1) -> list[Case]:
    """Images in two folds of every division, each seen by its own folds' models with a noise of their own."""
    dataset = truth(IMAGES)
    true = truths(dataset, dataset.image)
    out = []
    for image_id in dataset.image:
        folds = [2 * repeat + image_id % 2 for repeat in range(repeats)]
        voters = [f"{model}/{fold}/{view}" for fold in folds for model in noise for view in views]
        found = Detections.concatenate(
            [sighting(image_id, name, k, noise[name.split("/")[0]]) for k, name in enumerate(voters)]
        )
        out.append(Case(image_id, SIZE, found, voters, true[image_id]))
    return out


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
            own = None if rescorer is None else rescorer(group_of(case.home, case.image_id, ["0", "1"]))
            again = fuse_image(case.detections, settings, case.voters, SIZE, own)
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

    def falling(found: Detections, images: Sequence[int]) -> dict[str, Any]:
        calls.append(len(found))
        return {"score": 1.0 - 0.1 * len(calls)}

    refused = tune(cases({"a": 1.2}, VIEWS[:2]), Fusion(), Ruler(12), falling)
    assert not any(rung.adopted for rung in refused.ladder[1:])
    assert refused.settings.method == "concatenate" and len(calls) > 1

    def rising(found: Detections, images: Sequence[int]) -> dict[str, Any]:
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


def test_repeated_folds_are_measured_and_always_taken() -> None:
    given = cases({"a": 1.2}, VIEWS[:1], repeats=3)
    assert given[0].home == Voter.parse(given[0].voters[0]).fold and len(given[0].at_home().voters) == 1
    found = tune(given, Fusion(), Ruler(12))
    single, folds = found.ladder[:2]
    assert (single.step, folds.step) == ("best single", "+ folds")
    assert folds.adopted and folds.gain is not None and folds.gain > 0.1 and folds.score > single.score
    # the same settings, more voters
    study = Study(given, Ruler(12))
    first = Fusion(weights={"a": 1}, views=["identity"], method="concatenate", rescore="none", fill_holes=False)
    assert study.ruler.value(study.sheet(first)) == pytest.approx(folds.score)
    alone = Study([case.at_home() for case in given], Ruler(12))
    assert alone.ruler.value(alone.sheet(first)) == pytest.approx(single.score)


def test_a_rescorer_never_saw_the_image_under_any_fold() -> None:
    given = cases({"a": 1.2}, VIEWS[:1], repeats=2)
    table = Study(given, Ruler(12)).table(Fusion())
    assert set(table.group) == {"0", "1"}  # an image's rows of both divisions are of one group


def test_models_may_be_chosen_more_than_once() -> None:
    found = tune(cases({"good": 0.5, "fair": 1.0}, VIEWS[:1]), Fusion(tune=True), Ruler(12, (0.75,)))
    assert found.settings.weights["good"] > found.settings.weights["fair"] > 0


def test_the_search_is_held_and_repeats_itself() -> None:
    given, wish = cases({"a": 1.2, "b": 1.0}), Fusion(iou=0.45, one_per_source=True)
    found = [tune(given, wish, Ruler(12), held=["iou", "one_per_source"]).settings for _ in range(2)]
    assert found[0] == found[1]
    assert (found[0].iou, found[0].one_per_source) == (0.45, True)


def test_a_search_on_some_images_is_confirmed_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    given = cases({"a": 1.2, "b": 1.0})
    study = Study(given, Ruler(12))
    everyone, alone = Fusion(), Fusion(weights={"a": 1.0, "b": 0.0})
    whole = sum(len(case.detections) for case in given)
    assert study.some(everyone, whole, 1) is study
    some = study.some(everyone, whole // 2, 1)
    held = sum(len(case.detections) for case in some.cases)
    assert whole // 3 < held <= whole // 2
    assert [case.image_id for case in some.cases] == [
        case.image_id for case in study.some(everyone, whole // 2, 1).cases
    ]
    assert study.some(alone, int(0.6 * whole), 1) is study  # those who do not vote do not count
    part = study.some(everyone, 1, 2)
    assert len(part.cases) == 2 and part.homes == study.homes
    monkeypatch.setattr("pipeline.fusion.search.MOST", whole // 2)
    monkeypatch.setattr("pipeline.fusion.search.LEAST", 1)
    measured: list[int] = []
    sheet = Study.sheet

    def counted(self: Study, settings: Fusion) -> Any:
        measured.append(len(self.cases))
        return sheet(self, settings)

    monkeypatch.setattr(Study, "sheet", counted)
    found = tune(given, Fusion(), Ruler(12))
    assert measured.count(len(some.cases)) > 10  # the trials are on some
    last = [rung for rung in found.ladder if rung.adopted][-1]
    monkeypatch.undo()
    assert study.ruler.value(study.sheet(found.settings)) == pytest.approx(last.score)


@pytest.mark.parametrize("repeats", [1, 2])
def test_what_a_study_keeps_changes_nothing(repeats: int) -> None:
    given = cases({"a": 1.2, "b": 1.0}, ("identity",), repeats)[:4]
    rng = np.random.default_rng(repeats)
    study = Study(given, Ruler(12))
    fixed = Study(given, Ruler(12)).rescorer(Fusion(rescore="learned"))("")
    unseen = Study(given, Ruler(12), lambda settings: fixed)  # as the nested estimate has it

    def any_of(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    for _ in range(16):
        settings = with_changes(
            Fusion(),
            rescore=any_of("none", "mask", "learned"),
            iou=any_of(0.4, 0.55),
            overlap=any_of("box", "mask"),
            weights={"a": 1.0, "b": any_of(0.0, 1.0)},
            min_area=any_of(0, 50),
            fill_holes=any_of(True, False),
            overlap_removal=any_of("none", "score", "probability"),
            duplicates=any_of(None, 0.5),
            min_score=any_of(0.0, 0.1),
        )
        rescorers = Study(given, Ruler(12)).rescorer(settings) if settings.rescore == "learned" else None
        for case, fused, other in zip(given, study.fused(settings), unseen.fused(settings), strict=True):
            own = None if rescorers is None else rescorers(group_of(case.home, case.image_id, study.homes))
            again = fuse_image(case.detections, settings, case.voters, SIZE, own)
            for name in ("score", "box", "mask_box", "offset", "pixels", "category_id"):
                np.testing.assert_array_equal(getattr(fused, name), getattr(again, name))
            expected = fuse_image(case.detections, settings, case.voters, SIZE, None if own is None else fixed)
            np.testing.assert_array_equal(other.score, expected.score)


def test_where_nobody_votes_nothing_is_fused() -> None:
    given = cases({"a": 1.2, "b": 1.0}, ("identity",))
    given[0] = replace(given[0], voters=[name for name in given[0].voters if name.startswith("b/")])
    for mode in ("none", "learned"):
        fused = Study(given, Ruler(12)).fused(Fusion(rescore=mode, weights={"b": 0.0}, overlap_removal="score"))
        assert len(fused[0]) == 0 < len(fused[1])


def test_large_masks_are_not_kept_at_full_size() -> None:
    side = 200
    box = np.array([[0, 0, side, side]], np.int32)
    found = Detections.build(1, [1], [0.9], box, box, [np.full((side, side), 255, np.uint8)], "a/0/identity")
    (small,) = cases({"a": 1.0}, ("identity",))[:1]
    large = replace(small, detections=found)
    assert small.crops is small.crops and small.crops.pixels is small.detections.pixels
    assert large.crops is not large.crops and large.crops.pixels.size == side * side > found.pixels.size


def test_a_model_with_other_views_may_join() -> None:
    """Two models that share no view: the second brings its own."""
    own = {"a": "identity", "b": "identity@2.0"}
    given = [
        replace(case, voters=[name for name in case.voters if own[Voter.parse(name).model] == Voter.parse(name).view])
        for case in cases({"a": 1.2, "b": 1.2}, ("identity", "identity@2.0"))
    ]
    found = tune(given, Fusion(), Ruler(12))
    models = next(rung for rung in found.ladder if rung.step == "+ models")
    assert models.adopted and models.gain is not None and models.gain > 0.05
