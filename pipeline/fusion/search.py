"""A bounded search for the clustering's settings, by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from typing import Any

from pipeline.fusion.ladder import Ladder
from pipeline.fusion.settings import Fusion, with_changes

TRIALS = 30
"""So many settings are looked at: more chase the noise of a few images."""

MOST, LEAST = 200_000, 60
"""The trials look at images that hold so many votes, and at so many images at least; what they lead to is measured on all."""

FINALISTS = 3
"""So many of the trials, the best, are measured on all images."""

CHOICES: dict[str, list[Any]] = {
    "overlap": ["box", "mask"],
    "iou": [0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7],
    "skip": [0.05, 0.1, 0.2, 0.3],
    "confidence": ["avg", "max", "box_and_model_avg", "absent_model_aware_avg"],
    "one_per_source": [False, True],
    "member_weight": ["score", "voter"],
}

FIRST: list[dict[str, Any]] = [
    {"overlap": "mask", "iou": 0.5},
    {"overlap": "box", "iou": 0.55},
    {"overlap": "mask", "iou": 0.4, "one_per_source": True},
    {"member_weight": "voter"},
    {"confidence": "absent_model_aware_avg"},
    {"skip": 0.2},
]
"""Changes of the present settings that are tried before the search chooses for itself."""


def search(ladder: Ladder, trials: int = TRIALS) -> None:
    """Move the ladder to the best clustering found, where that is supported. What is held is not searched.

    The same cases give the same settings: the sampler is seeded with the ruler's seed.
    """
    import optuna

    present = ladder.settings
    choices = {name: values for name, values in CHOICES.items() if name not in ladder.held}
    if not choices:
        return
    now = {name: _nearest(getattr(present, name), values) for name, values in choices.items()}
    some = ladder.study.some(present, MOST, LEAST)
    known: dict[str, float] = {}
    found: dict[str, Fusion] = {}

    def objective(trial: optuna.Trial) -> float:
        settings = with_changes(present, **{name: trial.suggest_categorical(name, v) for name, v in choices.items()})
        key = settings.model_dump_json()
        if key not in known:
            known[key], found[key] = some.ruler.value(some.sheet(settings)), settings
        return known[key]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=ladder.study.ruler.seed, n_startup_trials=2 + len(FIRST))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for change in ({}, *FIRST):
        study.enqueue_trial({**now, **{name: value for name, value in change.items() if name in choices}})
    study.optimize(objective, n_trials=trials)
    finalists = FINALISTS if some is not ladder.study else 1
    ladder.better([found[key] for key in sorted(known, key=lambda key: -known[key])[:finalists]])


def _nearest(value: Any, values: list[Any]) -> Any:
    return min(values, key=lambda v: abs(v - value)) if isinstance(value, float) else value
