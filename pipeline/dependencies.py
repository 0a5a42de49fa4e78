"""What each stage depends on besides its input files: the settings it reads and the code it uses.

Both go into the stage graph as short hashes: when one changes, the stage and what hangs on it are made again, and
nothing else is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline import codeversion, competitions
from pipeline.backends import catalog
from pipeline.experiment import NOT_IN_THE_RESULT, Experiment, ExperimentError, digest, place

COMPETITION_METHODS = (
    "fix", "missing", "read", "read_ids", "read_submission", "read_truth", "records", "score", "stratum", "validate",
    "write",
)  # fmt: skip

_USES = {
    "prepare": ("read",),
    "split": ("stratum",),
    "tune": ("records", "score"),
    "fuse": (),
    "score": ("records", "score"),
    "encode": ("records", "write", "validate"),
    "validate": ("validate",),
    "report": ("read_submission", "records"),
}
"""The methods of its competition that a stage calls; stages that are not here know no competition."""


def settings(stage: str, experiment: Experiment, model: str = "", fold: str = "", part: str = "") -> str:
    """The hash of exactly those settings that a stage (of a model, a fold, a part) depends on."""
    return digest(stage, _slice(stage, experiment, model, fold, part))


def _slice(stage: str, experiment: Experiment, model: str, fold: str, part: str) -> Any:
    if stage == "prepare":
        options = competitions.chosen_options(competitions.get(experiment.competition).options, experiment.data.options)
        return experiment.competition, options.model_dump(), experiment.seed, _signature(experiment.data_path())
    if stage == "split":
        given = experiment.folds_file()
        how = experiment.competition, experiment.folds.count, experiment.folds.repeats, experiment.seed
        return (*how, given.read_text()) if given else how
    if stage == "train":
        chosen = experiment.models[model]
        training = experiment.train_settings(model).model_dump(exclude=set(NOT_IN_THE_RESULT))
        network = chosen.model_dump(exclude={"train", "predict"})
        if chosen.weights and place(chosen.weights).is_file():
            network["weights"] = _signature(place(chosen.weights))
        return network, catalog.fingerprint(chosen.config), training, experiment.seed, fold
    if stage == "predict":
        predicting = experiment.predict_settings(model).model_dump(exclude={"views", "oof_views", "batch"})
        return predicting, experiment.views(model, part)
    if stage == "tune":
        return (
            experiment.competition,
            experiment.fusion,
            experiment.held(),
            experiment.submission,
            list(experiment.models),
            experiment.validation_folds(),
            experiment.seed,
        )
    if stage == "fuse":
        return list(experiment.models), experiment.fold_names()  # the settings themselves are in fusion.yaml
    if stage == "score":
        first_views = {name: experiment.views(name, "oof")[0] for name in experiment.models}
        return experiment.competition, experiment.submission, first_views, experiment.validation_folds()
    if stage == "encode":
        return experiment.competition, experiment.submission
    if stage == "validate":
        return experiment.competition, experiment.submission.counted
    return experiment.model_dump(exclude={"data": {"path"}})  # the report shows every setting


def code(stage: str, experiment: Experiment, model: str = "") -> str:
    """The version of the code that a stage depends on, see `codeversion`."""
    roots, unused = roots_of(stage, experiment, model)
    return codeversion.version(roots, unused)


def roots_of(stage: str, experiment: Experiment, model: str = "") -> tuple[list[str], dict[str, list[str]]]:
    """Where the stage's code begins, with the modules that it picks by name, and which of their methods it leaves
    alone."""
    roots = [f"pipeline.stages.{stage}:run"]
    if stage in ("train", "predict"):
        chosen = experiment.models[model]
        roots += [f"pipeline.backends.{chosen.framework}:BACKEND", *catalog.own_modules(chosen.config)]
        return roots, {"pipeline.backends": ["predict" if stage == "train" else "train"]}
    used = _USES[stage]
    if used:
        roots.append(f"pipeline.competitions.{experiment.competition}:COMPETITION")
    return roots, {"pipeline.competitions": [name for name in COMPETITION_METHODS if name not in used]}


# ---------------------------------------------------------------- the competition's files -----------------------------


def _signature(path: Path | None) -> Any:
    """What the data are, wherever they lie: moved or touched files are the same data, changed ones are not.

    A file is its size and its two ends (a zip's directory is at its end), a folder the names and sizes of its files.
    """
    if path is None:
        return None
    if path.is_file():
        return path.stat().st_size, hashlib.sha256(b"".join(_ends(path))).hexdigest()
    files = (
        p
        for p in path.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
    )
    listing = "\n".join(sorted(f"{p.relative_to(path).as_posix()} {p.stat().st_size}" for p in files))
    return hashlib.sha256(listing.encode()).hexdigest()


def _ends(path: Path, length: int = 1 << 16) -> list[bytes]:
    with path.open("rb") as handle:
        head = handle.read(length)
        handle.seek(max(path.stat().st_size - length, 0))
        return [head, handle.read(length)]


def data_at_hand(experiment: Experiment) -> bool:
    """Whether the competition's files are there: once they are unpacked, the later stages do not need them."""
    try:
        experiment.data_path()
    except ExperimentError:
        return False
    return True
