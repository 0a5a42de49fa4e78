"""The scores of the models and their ensemble, the steps of the fusion, and precision against recall."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.metrics.coco_ap import Ranking


@dataclass(frozen=True)
class Standing:
    """One line of the score table: a model, or the ensemble. Scores by fold name and by class name.

    `curves` holds recall and precision, each (101,) float64, by class name.
    """

    name: str
    score: float | None
    folds: dict[str, float] = field(default_factory=dict)
    classes: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Out-of-fold scores; `models` has the best first."""

    competition: str
    metric: str
    ensemble: Standing
    models: list[Standing]

    @property
    def all(self) -> list[Standing]:
        return [self.ensemble, *self.models]

    @property
    def best(self) -> Standing | None:
        return self.models[0] if self.models else None

    @property
    def gain(self) -> float | None:
        """What the ensemble adds to the best single model."""
        if self.best is None or self.best.score is None or self.ensemble.score is None:
            return None
        return self.ensemble.score - self.best.score

    def columns(self, of: str) -> list[str]:
        """The names that any standing has under `folds`, `classes`, `metrics` or `curves`, in order of appearance."""
        return list(dict.fromkeys(name for standing in self.all for name in getattr(standing, of)))


@dataclass(frozen=True)
class Step:
    """One step of the fusion ladder.

    Attributes:
        change: the settings that it changes.
        score: what tuning measures, see fusion/ruler.py; `gain` is over the step below, `low` to `high` its interval.
        competition: the competition's own score, where it was asked for.
    """

    name: str
    change: str
    score: float
    gain: float | None
    low: float | None
    high: float | None
    competition: float | None
    adopted: bool


def read_scores(path: Path, categories: Mapping[int, str]) -> Scores:
    """Read scores.json. Classes given by id are renamed by `categories`."""
    raw = json.loads(path.read_text())
    names = {str(k): v for k, v in categories.items()}
    models = [_standing(name, value, names) for name, value in raw.get("models", {}).items()]
    ensemble = _standing("ensemble", raw.get("ensemble", {}), names)
    ranked = sorted(models, key=lambda m: -(m.score if m.score is not None else -1.0))
    return Scores(str(raw.get("competition", "")), str(raw.get("metric", "score")), ensemble, ranked)


def _standing(name: str, raw: Mapping[str, Any], names: Mapping[str, str]) -> Standing:
    def numbers(value: Any) -> dict[str, float]:
        items = value.items() if isinstance(value, Mapping) else ()
        return {str(k): float(v) for k, v in items if isinstance(v, (int, float)) and not isinstance(v, bool)}

    metrics = numbers(raw)
    score = metrics.pop("score", None)
    classes = {names.get(k, k): v for k, v in numbers(raw.get("classes")).items()}
    curves = {
        names.get(k, k): (np.asarray(v["recall"], np.float64), np.asarray(v["precision"], np.float64))
        for k, v in raw.get("curves", {}).items()
    }
    return Standing(name, score, numbers(raw.get("folds")), classes, metrics, curves)


def read_ladder(path: Path) -> list[Step]:
    def number(value: Any) -> float | None:
        return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None

    return [
        Step(
            str(row["step"]),
            ", ".join(f"{k}: {json.dumps(v)}" for k, v in (row.get("settings") or {}).items()),
            float(row["score"]),
            number(row.get("gain")),
            number(row.get("low")),
            number(row.get("high")),
            number((row.get("competition") or {}).get("score")),
            bool(row.get("adopted", True)),
        )
        for row in json.loads(path.read_text())
    ]


def precision_recall(ranking: Ranking, row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision, each (N,) float64, as the score threshold falls.

    Args:
        ranking: one class over all images.
        row: which of the evaluated IoU thresholds.
    """
    counted = ~ranking.ignored[row]
    hits = np.cumsum(ranking.hit[row][counted])
    return hits / max(sum(ranking.truths.values()), 1), hits / np.arange(1, len(hits) + 1)
