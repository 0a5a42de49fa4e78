"""What the trainings left behind: their logs and their provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.experiment import Experiment, Layout

# Keys of a log line that are not parts of the loss.
_NOT_PARTS = {"loss", "iteration", "learning_rate", "seconds_per_iteration", "time", "epoch", "memory", "grad_norm"}


@dataclass(frozen=True)
class Training:
    """One model on one fold.

    Attributes:
        iteration: (T,) int64, the logged iterations, ascending.
        loss: (T,) float64, the total loss there.
        parts: the same for every named part of the loss; NaN where a line does not have it.
        seconds: how long the training took, if it is over.
        provenance: what the checkpoint says of its making.
    """

    model: str
    fold: str
    iteration: np.ndarray
    loss: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}, fold {self.fold}"

    @property
    def final_loss(self) -> float | None:
        """Mean loss over the last tenth of the logged iterations."""
        tail = self.loss[-max(len(self.loss) // 10, 1) :]
        return float(tail.mean()) if tail.size else None

    @property
    def seconds_per_iteration(self) -> float | None:
        return self.seconds / int(self.iteration[-1]) if self.seconds and self.iteration.size else None


def read_log(path: Path) -> list[dict[str, float]]:
    """The log's lines by iteration. A resumed training repeats iterations: the last line about one holds.

    A line that is not whole (the training was killed while writing it) is passed over.
    """
    lines: dict[int, dict[str, float]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
            iteration = int(line["iteration"])
        except (KeyError, TypeError, ValueError):
            continue
        lines[iteration] = {k: float(v) for k, v in line.items() if isinstance(v, (int, float))}
    return [lines[k] for k in sorted(lines)]


def trainings(experiment: Experiment, layout: Layout) -> list[Training]:
    """Every training of the experiment that has left a log or a provenance, models in the experiment's order."""
    found = []
    for model in experiment.models:
        for fold in experiment.fold_names():
            folder = layout.training(model, fold)
            log, made = folder / "log.jsonl", folder / "provenance.json"
            if not log.exists() and not made.exists():
                continue
            lines = [line for line in (read_log(log) if log.exists() else []) if "loss" in line]
            provenance = json.loads(made.read_text()) if made.exists() else {}
            names = list(dict.fromkeys(k for line in lines for k in line if k not in _NOT_PARTS and "loss" in k))
            seconds = provenance.get("seconds")
            found.append(
                Training(
                    model,
                    fold,
                    np.array([line["iteration"] for line in lines], np.int64),
                    np.array([line["loss"] for line in lines], np.float64),
                    {k: np.array([line.get(k, np.nan) for line in lines]) for k in names},
                    float(seconds) if seconds is not None else None,
                    provenance,
                )
            )
    return found
