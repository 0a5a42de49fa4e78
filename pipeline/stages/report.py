"""Write the run's page, report.html: everything it shows is inside the one file."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.experiment import Experiment, Layout
from pipeline.files import writing

log = logging.getLogger("pipeline.report")


def run(experiment: Experiment, layout: Layout) -> Path:
    """Write artifacts/<run>/report.html from whatever the run has left so far, and return its path.

    Raises:
        FileNotFoundError: it has left nothing yet; the message names the command to begin with.
    """
    if not _has_begun(experiment, layout):
        raise FileNotFoundError(
            f"there is nothing to report in {layout.artifacts}; begin with: python -m pipeline prepare {experiment.name}"
            f"\n  or make everything, the report included, with: bash run_all.sh {experiment.name}"
        )
    from pipeline.report.page import build

    page = build(experiment, layout)
    with writing(layout.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    log.info("the report is %s (%.1f MB)", layout.report, len(page) / 1e6)
    return layout.report


def _has_begun(experiment: Experiment, layout: Layout) -> bool:
    """Whether any stage has left something that a page can show. Folds alone may be written by hand, before all else."""
    whole = [
        layout.train_json,
        layout.test_json,
        layout.fusion,
        layout.fused("oof"),
        layout.fused("test"),
        layout.scores,
    ]
    trained = [layout.training(model, fold) for model in experiment.models for fold in experiment.fold_names()]
    logs = [folder / name for folder in trained for name in ("log.jsonl", "provenance.json")]
    return any(path.exists() for path in [*whole, *logs])
