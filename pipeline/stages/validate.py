"""Check a submission: that of an experiment, or any file."""

from __future__ import annotations

import logging
from pathlib import Path

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
    competition = competitions.get(experiment.competition)
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


def to_json(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"severity": p.severity, "kind": p.kind, "place": p.place, "text": p.text} for p in problems]
