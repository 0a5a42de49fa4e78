"""The settings of a fusion as `tune` leaves them in fusion.yaml, and who its voters are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline import per_class
from pipeline.experiment import ExperimentError, FusionSettings
from pipeline.files import writing


class Fusion(FusionSettings):
    """The experiment's fusion settings and, beside them, what only out-of-fold data can choose."""

    min_score: per_class.Score = 0.0
    """Fused masks scored below this are left out, see fusion/threshold.py. One number, or one for each category."""


def as_fusion(settings: FusionSettings) -> Fusion:
    """The experiment's settings before anything was chosen."""
    return Fusion.model_validate(settings.model_dump())


PER_CLASS = ("iou", "skip", "min_area", "min_score")
"""Settings that may be one number for each category."""


def for_categories(settings: Fusion, categories: Mapping[int, str]) -> Fusion:
    """The settings with the categories that they name by name named by id, which is what fusion knows.

    Raises:
        ExperimentError: a category that there is none of; the message names the nearest.
    """
    changes = {}
    for name in PER_CLASS:
        try:
            changes[name] = per_class.by_id(getattr(settings, name), categories)
        except ValueError as error:
            raise ExperimentError(f"fusion.{name}: {error}") from None
    return settings.model_copy(update=changes)


def for_people(settings: Fusion, categories: Mapping[int, str]) -> Fusion:
    """The inverse of `for_categories`, for the file that people read."""
    return settings.model_copy(
        update={name: per_class.by_name(getattr(settings, name), categories) for name in PER_CLASS}
    )


@dataclass(frozen=True)
class Voter:
    """One who says what is in an image: a model of a fold under a view; a file alone is a model by itself."""

    model: str
    fold: str = ""
    view: str = ""

    @staticmethod
    def parse(source: str) -> Voter:
        """The voter named ``<model>/<fold>/<view>``; any other name is a model's."""
        parts = source.rsplit("/", 2)
        return Voter(*parts) if len(parts) == 3 else Voter(source)


def voters_of(settings: Fusion, sources: Iterable[str]) -> list[str]:
    """The sources that may vote under the settings: their model's weight is above 0 and their view is among the chosen."""
    chosen = []
    for source in dict.fromkeys(sources):
        voter = Voter.parse(source)
        seen = settings.views is None or not voter.view or voter.view in settings.views
        if seen and settings.weights.get(voter.model, 1.0) > 0:
            chosen.append(source)
    return chosen


def with_changes(settings: Fusion, **changes: Any) -> Fusion:
    """The settings with some replaced, checked like any."""
    return Fusion.model_validate({**settings.model_dump(), **changes})


def write_settings(
    path: Path, settings: Fusion, provenance: dict[str, Any], estimate: dict[str, Any] | None = None
) -> None:
    """Write fusion.yaml; `estimate` is what the settings are worth on images that they were not chosen on."""
    with writing(path) as temporary:
        document: dict[str, Any] = {"settings": settings.model_dump(), "provenance": provenance}
        if estimate is not None:
            document["estimate"] = estimate
        temporary.write_text(
            "# How this run's detections are fused: chosen on out-of-fold predictions by `tune`, read by `fuse`.\n"
            + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        )


def read_settings(path: Path) -> Fusion:
    """Read fusion.yaml.

    Raises:
        ExperimentError: it is missing or not what `tune` writes.
    """
    try:
        return Fusion.model_validate(yaml.safe_load(path.read_text())["settings"])
    except FileNotFoundError:
        raise ExperimentError(f"there is no {path}; run the stage `tune` first") from None
    except (yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        raise ExperimentError(
            f"{path} does not hold fusion settings ({error}); delete it and run `tune` again"
        ) from error
