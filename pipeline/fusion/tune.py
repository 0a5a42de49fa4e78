"""The fusion settings that out-of-fold predictions support.

The search is short and in the order of a ladder, each rung compared with the one below on the same images: the best
single model of one fold; the models of further folds that did not see the image, where the folds are repeated; views;
more models, one by one; the clustering's settings; rescoring; post-processing. A change is taken only when its mean gain
over bootstrapped sets of images is worth a setting, it gains in a clear majority of them, no category loses beyond noise,
and the competition's own score does not fall. The learned rescorer is cross-fitted throughout, so that its gain is
measured on images whose fold it has not seen. The settings themselves are chosen on the same images that they are
measured on: how much that flatters the ladder's last value is estimated beside it (nested.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.fusion.ladder import Confirm, Ladder, Rung
from pipeline.fusion.match import Truth
from pipeline.fusion.nested import Estimate, estimate
from pipeline.fusion.rescore import Table
from pipeline.fusion.ruler import Ruler
from pipeline.fusion.search import search
from pipeline.fusion.settings import Fusion, Voter, voters_of, with_changes
from pipeline.fusion.study import Case, Study
from pipeline.per_class import DEFAULT
from pipeline.records import Detections

CANDIDATES = 6
"""So many models, the best by themselves, are tried as the next one to join."""

MOST_ROUNDS = 12
"""Models join, or get more weight, so many times at most."""


@dataclass(frozen=True)
class Tuned:
    """What tuning came to.

    Attributes:
        table: the learned rescorer's training table under these settings.
        fused: the out-of-fold detections of every case under these settings.
        estimate: what the tuning is worth on other images; None where it was not asked for or there are too few folds.
    """

    settings: Fusion
    ladder: list[Rung]
    table: Table
    fused: list[Detections]
    estimate: Estimate | None = None


def tune(
    cases: Sequence[Case],
    base: Fusion,
    ruler: Ruler,
    confirm: Confirm | None = None,
    held: Iterable[str] = (),
    nested: bool = False,
) -> Tuned:
    """Choose fusion settings on out-of-fold images.

    Args:
        cases: the images; those where nothing was found count too.
        base: where the search starts; its `weights` of 0 stay out.
        ruler: what is measured.
        confirm: the competition's own score, asked once a rung.
        held: names of settings that stay as `base` has them.
        nested: also estimate what the tuning is worth on other images, by tuning without each part of them.

    Raises:
        ValueError: no cases, or nobody votes.
    """
    held = list(held)
    ladder = climb(cases, base, ruler, confirm, held)
    fused, table = ladder.study.fused(ladder.settings), ladder.study.table(ladder.settings)
    settings, rungs = ladder.settings, ladder.rungs
    del ladder  # and with it what its studies keep
    worth = None
    if nested:
        worth = estimate(cases, ruler, lambda some: climb(some, base, ruler, confirm, held), fused)
    return Tuned(settings, rungs, table, fused, worth)


def climb(
    cases: Sequence[Case], base: Fusion, ruler: Ruler, confirm: Confirm | None = None, held: Iterable[str] = ()
) -> Ladder:
    """The ladder from the best single model to the end; see `tune`."""
    study = Study(cases, ruler)
    models = [m for m in study.models() if base.weights.get(m, 1.0) > 0]
    views = [v for v in study.views() if base.views is None or v in base.views]
    if not cases or not models:
        raise ValueError("there are no out-of-fold predictions to tune on")
    repeated = any(len(case.voters) > len(case.at_home().voters) for case in cases)
    home = Study([case.at_home() for case in cases], ruler) if repeated else study
    ladder = Ladder(home, confirm, {name: getattr(base, name) for name in held})

    def only(chosen: Iterable[str], **changes: Any) -> Fusion:
        kept = set(chosen)
        weights = {m: base.weights.get(m, 1.0) if m in kept else 0.0 for m in study.models()}
        return with_changes(base, weights=weights, **changes)

    def first(model: str) -> str:
        mine = [v.view for v in map(Voter.parse, study.sources) if v.model == model and v.view in views]
        return next((v for v in mine if v.startswith("identity")), mine[0])

    raw = {"rescore": "none", "fill_holes": False, "largest_part": False, "min_area": 0, "overlap_removal": "none"}
    alone = {m: with_changes(only([m], views=[first(m)], method="concatenate", **raw), **ladder.held) for m in models}
    ladder.start("best single", alone.values())
    best = next(m for m in models if alone[m] == ladder.settings)

    if repeated:
        ladder.widen("+ folds", study)
    ladder.study = study
    subsets = [None, *_by_scale(views)] if len(views) > 1 else []
    if subsets:
        ways = [
            {"overlap": o, "iou": t, "views": v} for v in subsets for o, t in ((base.overlap, base.iou), ("mask", 0.5))
        ]
        ladder.rung("+ views", lambda: ladder.better(only([best], **raw, **way) for way in ways))
    if len(models) > 1:
        worth = {m: ruler.value(home.sheet(alone[m])) for m in models}
        step = {m: base.weights.get(m, 1.0) for m in models}
        ladder.rung("+ models", lambda: _add_models(ladder, step, worth, first))
    if any(len(voters_of(ladder.settings, case.voters)) > 1 for case in cases):
        ladder.rung("+ clustering", lambda: search(ladder))
    everyone = {m: base.weights.get(m, 1.0) for m in study.models()}
    ladder.rung("+ rescoring", lambda: _rescoring(ladder, everyone))
    ladder.rung("+ post", lambda: _post(ladder, [case.truth for case in study.cases]))
    return ladder


def _by_scale(views: Sequence[str]) -> list[list[str]]:
    """The views of each scale, where there are several scales."""
    groups: dict[str, list[str]] = {}
    for view in views:
        groups.setdefault(view.partition("@")[2] or "1.0", []).append(view)
    return list(groups.values()) if len(groups) > 1 else []


def _add_models(ladder: Ladder, step: dict[str, float], worth: dict[str, float], first: Callable[[str], str]) -> None:
    """Greedy forward selection with replacement (Caruana and others, "Ensemble selection from libraries of models", 2004):
    the model that helps most joins or, being in, gets more weight, until none helps. One that has none of the views that vote
    brings its first."""
    method = "wbf" if ladder.settings.method == "concatenate" else ladder.settings.method
    ranked = sorted(worth, key=lambda m: -worth[m])
    for _ in range(MOST_ROUNDS):
        state = ladder.settings
        inside = [m for m in ranked if state.weights.get(m, 0.0) > 0]
        new = [m for m in ranked if m not in inside][:CANDIDATES]
        again = inside if len(inside) > 1 else []  # a lone model's weight weighs nothing
        options = []
        for m in new + again:
            weights = {**state.weights, m: state.weights.get(m, 0.0) + step[m]}
            joined = with_changes(state, weights=weights, method=method)
            if all(Voter.parse(name).model != m for name in voters_of(joined, ladder.study.sources)):
                joined = with_changes(joined, views=[*(state.views or []), first(m)])
            options.append(joined)
        if not ladder.better(options):
            return


def _rescoring(ladder: Ladder, everyone: dict[str, float]) -> None:
    """Each way, and learned with every model and view, under a few clusterings; then learned with those that stand.

    The learned rescorer weighs models itself, and what averages more carries over better: that it should do with fewer
    voters has to be shown against all of them.
    """
    s = ladder.settings
    whole: list[Fusion] = []
    fewer: list[Fusion] = []
    for overlap, iou in ((s.overlap, s.iou), ("box", 0.5), ("mask", 0.4), ("mask", 0.5)):
        changed = with_changes(s, rescore="learned", method="wbf", overlap=overlap, iou=iou)
        everybody = with_changes(changed, weights=everyone, views=None)
        whole += [everybody] if everybody not in whole else []
        fewer += [changed] if changed not in (*whole, *fewer) else []
    ladder.better([*(with_changes(s, rescore=mode) for mode in ("none", "mask") if mode != s.rescore), *whole])
    ladder.better(fewer)


def _post(ladder: Ladder, truth: Sequence[Truth]) -> None:
    for name, values in (
        ("fill_holes", (True, False)),
        ("largest_part", (True, False)),
        ("duplicates", (None, 0.5, 0.7, 0.85)),
        ("min_area", (0, *(_least_areas(truth, percent) for percent in (0.5, 2, 5)))),
        ("overlap_removal", ("none", "score")),  # by probability a worse-scored mask may change a better one
    ):
        s = ladder.settings
        ladder.better(with_changes(s, **{name: v}) for v in values if v != getattr(s, name))


def _least_areas(truth: Sequence[Truth], percent: float) -> int | dict[str, int]:
    """The area that `percent` of the true instances of a category do not reach, for each category."""
    category = np.concatenate([t.category for t in truth] or [np.zeros(0, np.int64)])
    area = np.concatenate([t.area for t in truth] or [np.zeros(0)])
    kinds = np.unique(category).tolist()
    found = {str(kind): int(np.percentile(area[category == kind], percent)) for kind in kinds}
    return {**found, DEFAULT: 0} if len(found) > 1 else next(iter(found.values()), 0)
