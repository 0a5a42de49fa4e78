"""The nested estimate: what is measured on a part was chosen without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.fusion.ladder import Ladder
from pipeline.fusion.nested import estimate
from pipeline.fusion.ruler import Ruler
from pipeline.fusion.settings import Fusion
from pipeline.fusion.study import Case, Study
from pipeline.fusion.tune import climb, tune
from pipeline.records import Detections
from tests.fusion.test_tune import cases

RULER = Ruler(12)


def test_each_part_is_tuned_without_its_images() -> None:
    given = cases({"a": 1.2, "b": 1.0}, ("identity",))
    asked: list[set[int]] = []

    def spied(some: Sequence[Case]) -> Ladder:
        asked.append({case.image_id for case in some})
        return climb(some, Fusion(), RULER)

    fused = Study(given, RULER).fused(Fusion())
    found = estimate(given, RULER, spied, fused)
    assert found is not None and found.parts == 2
    assert asked == [{c.image_id for c in given if c.home != home} for home in ("0", "1")]
    assert found.gain == pytest.approx(found.honest - found.single)
    assert found.low <= found.gain <= found.high


def test_settings_that_are_given_are_not_optimistic() -> None:
    """Nothing chosen, nothing flattered: with a tuning that always says the same, both values are one."""
    given = cases({"a": 1.2}, ("identity", "hflip"))
    settings = Fusion(iou=0.4)

    def fixed(some: Sequence[Case]) -> Ladder:
        ladder = Ladder(Study(some, RULER), None)
        ladder.start("fixed", [settings])
        return ladder

    found = estimate(given, RULER, fixed, Study(given, RULER).fused(settings))
    assert found is not None
    assert found.honest == pytest.approx(found.optimistic)
    parts = [[case for case in given if case.home == home] for home in ("0", "1")]
    values = [RULER.value(Study(part, RULER).sheet(settings)) for part in parts]
    assert found.honest == pytest.approx(np.average(values, weights=[len(part) for part in parts]))


def test_one_fold_is_five_parts_of_images_and_one_image_is_none() -> None:
    given = [case for case in cases({"a": 1.0}, ("identity",)) if case.home == "0"]
    found = tune(given, Fusion(), RULER, nested=True).estimate
    assert found is not None and found.parts == 3
    assert tune(given[:1], Fusion(), RULER, nested=True).estimate is None


def test_what_the_competition_speaks_against_is_refused_in_every_part() -> None:
    asked: list[set[int]] = []

    def falling(found: Detections, images: Sequence[int]) -> dict[str, float]:
        asked.append(set(images))
        return {"score": 1.0 - 0.1 * len(asked)}

    given = cases({"a": 1.2}, ("identity", "hflip"))
    tuned = tune(given, Fusion(), RULER, falling, nested=True)
    assert tuned.estimate is not None
    assert tuned.estimate.honest == tuned.estimate.optimistic == tuned.estimate.single
    assert {frozenset(images) for images in asked} == {
        frozenset(c.image_id for c in given if c.home in homes) for homes in ("01", "0", "1")
    }
