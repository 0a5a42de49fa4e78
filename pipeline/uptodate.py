"""Whether there is anything to do at all, known without starting Snakemake, which takes its time.

After a whole run that succeeded a note is kept: a hash of all that the run was made from, and of every file as it was.
While both are the same nothing has to be asked; in all other cases Snakemake decides.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import dependencies
from pipeline.experiment import Experiment, Layout, digest
from pipeline.files import writing
from pipeline.stages import STAGES


def wanted(experiment: Experiment, frozen: str, snakefile: Path) -> str:
    """A hash of the settings (`frozen`: all of them as text), models, data, code and graph, as they are now."""
    data = dependencies.settings("prepare", experiment) if dependencies.data_at_hand(experiment) else None
    division = dependencies.settings("split", experiment)
    networks = [dependencies.settings("train", experiment, model) for model in experiment.models]
    code = [
        dependencies.code(stage, experiment, model)
        for stage in STAGES
        for model in (experiment.models if stage in ("train", "predict") else [""])
    ]
    return digest(frozen, data, division, networks, code, snakefile.read_text())


def note(layout: Layout, made_from: str) -> None:
    """Remember that the files as they are now were made from what `wanted` said before the run."""
    with writing(_path(layout)) as temporary:
        temporary.write_text(digest(made_from, _files(layout)))


def is_whole(layout: Layout, made_from: str) -> bool:
    """Whether nothing has changed since the last note."""
    return _path(layout).exists() and _path(layout).read_text() == digest(made_from, _files(layout))


def _path(layout: Layout) -> Path:
    return layout.artifacts / ".up-to-date"


def _files(layout: Layout) -> list[tuple[str, int, int]]:
    """Every file of the run with its time and size, but what is hidden, logs, and the trainings' working folders."""
    found = [layout.folds, *layout.submission("").parent.glob(f"{layout.run}.*")]
    for place, folders, names in os.walk(layout.artifacts):
        aside = "logs" if Path(place) == layout.artifacts else "work" if Path(place).name.startswith("fold-") else ""
        folders[:] = [name for name in folders if name != aside and not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in found if path.exists())
