"""Check a submission: that of an experiment, or any file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import competitions
from pipeline.competitions import Problem
from pipeline.experiment import Experiment, Layout
from pipeline.files import write_json
from pipeline.records import Dataset

log = logging.getLogger("pipeline.validate")


def run(experiment: Experiment, layout: Layout) -> list[Problem]:
    """Check submissions/<run><suffix> against the test images and write validation.json.

    Raises:
        CompetitionError: the submission has errors; all of them are listed.
    """
    competition = competitions.get(experiment.competition, experiment.submission.counted)
    path = layout.submission(competition.suffix)
    problems = competition.validate(path, Dataset.read(layout.test_json))
    for problem in problems:
        log.warning("%s", problem)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        listed = "\n  ".join(map(str, errors))
        raise competitions.CompetitionError(f"{path} would not be accepted:\n  {listed}")
    write_json(layout.artifacts / "validation.json", {"file": path.name, "ok": True, "problems": to_json(problems)})
    log.info("%s is a valid submission of %s", path, competition.name)
    return problems


def validate_files(competition: str, ids_path: str | Path, submission_path: str | Path) -> tuple[list[Problem], bool]:
    """Check any submission against the ids that the competition hands out (or a COCO json of the test images).

    Returns:
        Every problem, and whether the file is acceptable: none of them is an error.

    Raises:
        CompetitionError: there is no such competition; the ids cannot be read. A submission that cannot is a problem.
    """
    chosen = competitions.get(competition)
    problems = chosen.validate(Path(submission_path), chosen.read_ids(Path(ids_path)))
    return problems, not any(problem.severity == "error" for problem in problems)


@dataclass(frozen=True)
class Repair:
    """What became of a submission's repair.

    Attributes:
        target: the repaired copy; None where nothing could be repaired with certainty.
        changes: what was changed, in plain words.
        problems: of the copy.
        reason: why there is no copy.
    """

    target: Path | None
    changes: list[str]
    problems: list[Problem]
    reason: str = ""

    @property
    def valid(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)

    def told(self) -> list[str]:
        """The changes and what is still wrong, line by line."""
        if self.target is None:
            return [f"nothing was changed: {self.reason}"]
        lines = [f"changed: {change}" for change in self.changes]
        left = [f"still {problem}" for problem in self.problems]
        verdict = "it is a valid submission" if self.valid else "it is not a valid submission yet"
        return [*lines, *left, f"written to {self.target}: {verdict}"]

    def to_json(self) -> dict[str, Any]:
        copy = {"fixed_valid": self.valid, "fixed_problems": to_json(self.problems)} if self.target is not None else {}
        return {"fixed": None if self.target is None else str(self.target), "changes": self.changes, **copy}


def fix_files(competition: str, ids_path: str | Path, submission_path: str | Path, target: Path) -> Repair:
    """Write a copy of any submission in which is repaired what is certain, and check it.

    Raises:
        CompetitionError: there is no such competition; the ids cannot be read; the copy would replace the submission.
    """
    chosen = competitions.get(competition)
    ids, path = chosen.read_ids(Path(ids_path)), Path(submission_path)
    if target.resolve() == path.resolve():
        raise competitions.CompetitionError(f"--fix {target} would replace the submission; give the copy another name")
    try:
        changes = chosen.fix(path, ids, target)
    except competitions.CompetitionError as error:
        return Repair(None, [], [], str(error))
    return Repair(target, changes, chosen.validate(target, ids))


def to_json(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"severity": p.severity, "kind": p.kind, "place": p.place, "text": p.text} for p in problems]
