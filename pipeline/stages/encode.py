"""Turn the fused test detections into the file that is uploaded."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from pipeline import competitions
from pipeline.experiment import Experiment, Layout
from pipeline.files import writing
from pipeline.records import Dataset, Detections
from pipeline.submission import submitted

log = logging.getLogger("pipeline.encode")


def run(experiment: Experiment, layout: Layout) -> Path:
    """Write submissions/<run><suffix>, checked before it gets that name; the same detections give the same bytes.

    Raises:
        CompetitionError: the submission has errors; all of them are listed.
    """
    competition = competitions.get(experiment.competition, experiment.submission.counted)
    test = Dataset.read(layout.test_json)
    detections = submitted(_read(layout.fused("test")), experiment.submission)
    target = layout.submission(competition.suffix)
    with writing(target) as unchecked:
        competition.write(detections, test, unchecked)
        problems = competition.validate(unchecked, test)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            listed = "\n  ".join(str(problem) for problem in errors)
            raise competitions.CompetitionError(f"{target} would not be accepted, so it was not written:\n  {listed}")
        content = unchecked.read_bytes()
    log.info(
        "%s: %d detections on %d images, %d bytes, sha256 %s",
        target, len(detections), len(test.images), len(content), hashlib.sha256(content).hexdigest()[:16],
    )  # fmt: skip
    return target


def _read(path: Path) -> Detections:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; make it with: python -m pipeline fuse")
    return Detections.read(path)
