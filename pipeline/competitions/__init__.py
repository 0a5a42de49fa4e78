"""Competitions: one module each. It reads a layout, knows the exact metric, writes and checks a submission.

A new competition is one new module here, holding a `COMPETITION` that keeps to the protocol `Competition`, and one
experiment file. What several competitions share is in formats/.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from pydantic import ConfigDict, ValidationError

from pipeline.experiment import Settings, explain
from pipeline.records import Dataset, Detections, Image


class CompetitionError(ValueError):
    """Data, a submission or a name that a competition cannot use. The message names the file and the way out."""


@dataclass(frozen=True)
class Problem:
    """One fault of the data or of a submission, in plain words.

    Attributes:
        severity: an ``error`` spoils the file or costs score; a ``warning`` is legal but looks unintended.
        place: the file, image or records it was found in.
        text: what is wrong and, where it helps, what to do.
        kind: a few words for faults of this sort, to count them by.
    """

    severity: Literal["error", "warning"]
    place: str
    text: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.place}: {self.text}"


@dataclass
class Integrity:
    """What reading the data found: every survivable problem, and a few counts."""

    problems: list[Problem] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, severity: Literal["error", "warning"], place: str, text: str, kind: str) -> None:
        self.problems.append(Problem(severity, place, text, kind))

    def to_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "problems": [
                {"severity": p.severity, "kind": p.kind, "file": p.place, "text": p.text} for p in self.problems
            ],
        }


@dataclass
class Prepared:
    """A competition's data as the pipeline speaks it: images below the datasets' root, instances as compressed RLE."""

    train: Dataset
    test: Dataset
    integrity: Integrity


class Options(Settings):
    """What an experiment may set below ``data.options``; a competition that has options has its own class of them."""

    model_config = ConfigDict(strict=True)


class Competition(Protocol):
    """What the stages ask of a competition.

    Attributes:
        name: the module's name.
        metric: the metric in words, as it stands in results.
        suffix: of a submission file, e.g. ``.zip``.
        download: where to get the data, with the commands; a few lines.
        max_detections: how many of an image's best-ranked detections (per class) the metric looks at; None for all.
        ranked: whether the metric ranks masks by their scores. Where it does not, every false mask costs, however low its
            score, and `tune` chooses the score below which masks are left out.
        options: the class of its settings.
        ious: the overlaps with a truth at which the metric asks whether a mask is right; what tuning measures at.
    """

    @property
    def name(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def download(self) -> str: ...
    @property
    def options(self) -> type[Options]: ...
    @property
    def max_detections(self) -> int | None: ...
    @property
    def ranked(self) -> bool: ...
    @property
    def ious(self) -> Sequence[float]: ...

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the files as handed out, unpacking the images below `target`.

        Raises:
            CompetitionError: what cannot be survived: no archive, no images, unknown options.
        """
        ...

    def missing(self, names: Sequence[str]) -> list[str]:
        """What of the competition's layout is not among these file names: empty when all of it is there.

        Args:
            names: of an archive's members or a folder's files, with forward slashes, in any outer folder.
        """
        ...

    def stratum(self, image: Image) -> str:
        """What the folds should balance beyond classes and counts, e.g. the organ; empty where nothing is known."""
        ...

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The metric, exactly as the leaderboard computes it.

        Args:
            truth: images with their instances.
            records: COCO results.

        Returns:
            ``{"competition", "metric", "score", "classes": {name: score or None}, …}``, plain JSON values.
        """
        ...

    def records(self, detections: Detections, images: Dataset) -> list[dict[str, Any]]:
        """The COCO results records that a submission of these detections would hold, so that they can be scored as such.

        What a record holds does not depend on worse-scored detections of its image.
        """
        ...

    def write(self, detections: Detections, test: Dataset, path: Path) -> None:
        """Write a submission under its final name, whole or not at all; the same rows give the same bytes."""
        ...

    def read_submission(self, path: Path, images: Dataset | None = None) -> Sequence[dict[str, Any]]:
        """The COCO results records of a submission.

        Args:
            images: the images' sizes, for formats that do not hold them themselves.

        Raises:
            CompetitionError: the file cannot be read.
        """
        ...

    def read_truth(self, path: Path) -> Dataset:
        """Images and true instances from the organisers' own file of the truth, or from a COCO json.

        Raises:
            CompetitionError: the file cannot be read.
        """
        ...

    def read_ids(self, path: Path) -> Dataset:
        """The test images (no instances) from the file that the competition hands out, or from a COCO json."""
        ...

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        """Every problem of a submission for these test images; it is acceptable when none is an error."""
        ...

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        """Write a repaired copy of a submission where the repair is certain, and say what was changed.

        Raises:
            CompetitionError: nothing can be repaired with certainty; no file is written.
        """
        ...


def names() -> list[str]:
    """The known competitions, in alphabetical order; nothing is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def get(name: str, counted: int | None = None) -> Competition:
    """The competition of this name.

    Args:
        counted: how many detections of an image and class its metric shall count, where that is not known; None for the
            competition's default. Such a competition has a method ``counting(max_detections)``, which gives its like.

    Raises:
        CompetitionError: there is none, and the message names the nearest; what it counts is known.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise CompetitionError(f"there is no competition {name!r}{hint}; known: {', '.join(known)}")
    competition = cast(Competition, importlib.import_module(f"{__name__}.{name}").COMPETITION)
    if counted is None:
        return competition
    if not hasattr(competition, "counting"):
        fixed = "all" if competition.max_detections is None else str(competition.max_detections)
        raise CompetitionError(f"submission.counted is {counted}, but what {name} counts is known: {fixed} detections")
    return cast(Competition, competition.counting(counted))


Chosen = TypeVar("Chosen", bound=Options)


def chosen_options(known: type[Chosen], options: Mapping[str, Any]) -> Chosen:
    """A competition's options as an experiment chooses them (its ``data.options``), the rest as they are by default.

    Raises:
        CompetitionError: an option that the competition does not have, and the nearest; a value that one cannot have.
    """
    try:
        return known.model_validate(dict(options))
    except ValidationError as error:
        raise CompetitionError("\n  ".join(explain(error, known, ("data", "options")))) from error
