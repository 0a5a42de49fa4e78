"""Write the run's page, report.html: everything it shows is inside the one file."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.experiment import Experiment, Layout
from pipeline.files import writing

log = logging.getLogger("pipeline.report")


def run(experiment: Experiment, layout: Layout) -> Path:
    """Write artifacts/<run>/report.html from whatever the run has left so far, and return its path."""
    from pipeline.report.page import build

    page = build(experiment, layout)
    with writing(layout.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    log.info("the report is %s (%.1f MB)", layout.report, len(page) / 1e6)
    return layout.report
