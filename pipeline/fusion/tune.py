"""The fusion settings that out-of-fold predictions support.

The search is short and in the order of a ladder, each rung compared with the one below on the same images: the best
single model; its views; more models, one by one; the clustering's settings; rescoring; post-processing. A change is
taken only when its mean gain over bootstrapped sets of images is positive, in a clear majority of them, no category
loses beyond noise, and the competition's own score does not fall. The learned rescorer is cross-fitted throughout, so
that its gain is measured on folds it has not seen. The settings themselves are chosen on the same images that they are
measured on: the ladder's last value is a little optimistic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.fusion.fuse import Ballot, combine, finish, rescored, vote
from pipeline.fusion.match import Overlaps, Truth
from pipeline.fusion.rescore import Features, Rescorer, Table, cross_fit, group_of
from pipeline.fusion.ruler import Gain, Ruler, Sheet
from pipeline.fusion.settings import Fusion, Voter, voters_of
from pipeline.records import Detections

log = logging.getLogger("pipeline.fusion")

OFTEN = 0.7
"""A change must gain in this fraction of the bootstrapped sets of images."""

TOLERANCE = 0.01
"""The competition's score may fall by so much before it speaks against a change: average precision moves in such steps."""

CANDIDATES = 6
"""So many models, the best by themselves, are tried as the next one to join."""

Confirm = Callable[[Detections], dict[str, Any]]
"""The competition's score of fused detections; has at least the key ``score``."""


@dataclass(frozen=True)
class Case:
    """One out-of-fold image: what its voters found, who they are, and what is true."""

    image_id: int
    size: tuple[int, int]
    detections: Detections
    voters: list[str]
    truth: Truth


@dataclass(frozen=True)
class Rung:
    """One step of the ladder. `score`, `gain`, `low` and `high` are the ruler's (see ruler.py).

    Attributes:
        competition: the competition's own score and its further keys, where it was asked.
        settings: what was tried, as differences to the rung below.
    """

    step: str
    score: float
    gain: float | None
    low: float | None
    high: float | None
    adopted: bool
    competition: dict[str, Any]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Tuned:
    """What tuning came to.

    Attributes:
        table: the learned rescorer's training table under these settings.
        fused: the out-of-fold detections of every case under these settings.
    """

    settings: Fusion
    ladder: list[Rung]
    table: Table
    fused: list[Detections]


class Study:
    """Fusions of the same images under many settings; what settings share is computed once."""

    def __init__(self, cases: Sequence[Case], ruler: Ruler) -> None:
        self.cases = list(cases)
        self.ruler = ruler
        self.sources = list(dict.fromkeys(name for case in self.cases for name in case.voters))
        self.folds = list(dict.fromkeys(Voter.parse(name).fold for name in self.sources))
        self._ballots: dict[str, list[dict[str, Ballot]]] = {}
        self._described: dict[str, bool] = {}
        self._tables: dict[str, tuple[Table, Callable[[str], Rescorer]]] = {}

    def models(self) -> list[str]:
        return list(dict.fromkeys(Voter.parse(name).model for name in self.sources))

    def views(self) -> list[str]:
        return list(dict.fromkeys(Voter.parse(name).view for name in self.sources))

    def fused(self, settings: Fusion) -> list[Detections]:
        """The fused detections of every case, exactly as `fuse_image` makes them."""
        ballots = self.ballots(settings)
        rescorer = self.rescorer(settings) if settings.rescore == "learned" else None
        out = []
        for case, folds in zip(self.cases, ballots, strict=True):
            lists = []
            for fold, ballot in folds.items():
                chosen = rescorer(group_of(fold, case.image_id, self.folds)) if rescorer else None
                lists.append(rescored(ballot, settings.rescore, chosen))
            if not lists:
                out.append(Detections.empty())
                continue
            out.append(finish(combine(lists, settings) if len(lists) > 1 else lists[0], settings))
        return out

    def sheet(self, settings: Fusion) -> Sheet:
        return self.ruler.sheet(self.fused(settings), [case.truth for case in self.cases])

    def ballots(self, settings: Fusion) -> list[dict[str, Ballot]]:
        """Every case's ballots by fold; kept for the settings asked for last."""
        key = _vote_key(settings)
        described = settings.rescore == "learned"
        if key in self._ballots and described and not self._described[key]:
            del self._ballots[key]
        if key not in self._ballots:
            while len(self._ballots) >= 3:
                oldest = next(iter(self._ballots))
                del self._ballots[oldest]
                self._tables.pop(oldest, None)
            self._ballots[key] = [self._vote(case, settings, described) for case in self.cases]
            self._described[key] = described
        self._ballots[key] = self._ballots.pop(key)
        return self._ballots[key]

    @staticmethod
    def _vote(case: Case, settings: Fusion, describe: bool) -> dict[str, Ballot]:
        folds: dict[str, list[str]] = {}
        for name in voters_of(settings, case.voters):
            folds.setdefault(Voter.parse(name).fold, []).append(name)
        return {fold: vote(case.detections, settings, names, case.size, describe) for fold, names in folds.items()}

    def table(self, settings: Fusion) -> Table:
        """The learned rescorer's training table under these settings, whichever way they rescore."""
        return self._learned(with_changes(settings, rescore="learned"))[0]

    def rescorer(self, settings: Fusion) -> Callable[[str], Rescorer]:
        return self._learned(settings)[1]

    def _learned(self, settings: Fusion) -> tuple[Table, Callable[[str], Rescorer]]:
        key = _vote_key(settings)
        ballots = self.ballots(settings)
        if key not in self._tables:
            described, true, iou, group = [], [], [], []
            for case, folds in zip(self.cases, ballots, strict=True):
                for fold, ballot in folds.items():
                    assert ballot.described is not None
                    found = rescored(ballot, "mask", None)
                    pairs = Overlaps.of(found, case.truth)
                    right, ignored = pairs.matched(found.score, self.ruler.iou)
                    rows = np.flatnonzero(~ignored)
                    described.append(ballot.described.take(rows))
                    true.append(right[rows])
                    iou.append(pairs.best[rows])
                    group += [group_of(fold, case.image_id, self.folds)] * len(rows)
            table = Table(
                Features.concatenate(described),
                np.concatenate(true) if true else np.zeros(0, bool),
                np.concatenate(iou).astype(np.float32) if iou else np.zeros(0, np.float32),
                np.array(group, object),
            )
            self._tables[key] = table, cross_fit(table)
        return self._tables[key]


def _vote_key(settings: Fusion) -> str:
    """What decides the ballots: settings that differ only in rescoring and post-processing share them."""
    later = {"rescore", "fill_holes", "largest_part", "min_area", "overlap_removal", "duplicates", "min_score", "tune"}
    return settings.model_dump_json(exclude=later)


class Ladder:
    """The search's state: the settings so far, how they do, and the rungs."""

    def __init__(self, study: Study, confirm: Confirm | None, held: Mapping[str, Any] | None = None) -> None:
        self.study = study
        self.confirm = confirm
        self.held = dict(held or {})
        self.rungs: list[Rung] = []
        self.settings: Fusion
        self.sheet: Sheet
        self.competition: dict[str, Any] = {}

    def _ask(self, settings: Fusion) -> dict[str, Any]:
        if self.confirm is None:
            return {}
        return self.confirm(Detections.concatenate(self.study.fused(settings)))

    def start(self, step: str, candidates: Iterable[Fusion]) -> None:
        """The first rung: the best of the candidates."""
        best = max(
            (
                (self.study.ruler.value(sheet), -i, settings, sheet)
                for i, (settings, sheet) in enumerate(self._tried(candidates))
            ),
            key=lambda row: row[:2],
        )
        value, _, self.settings, self.sheet = best
        self.competition = self._ask(self.settings)
        self.rungs.append(Rung(step, value, None, None, None, True, self.competition, {}))
        log.info("%-16s %.4f", step, value)

    def _tried(self, candidates: Iterable[Fusion]) -> Iterable[tuple[Fusion, Sheet]]:
        for candidate in candidates:
            settings = with_changes(candidate, **self.held)
            yield settings, self.study.sheet(settings)

    def better(self, candidates: Iterable[Fusion]) -> bool:
        """Move to the best of the candidates where the ruler supports it; says whether it moved. Makes no rung."""
        best: tuple[float, Fusion, Sheet] | None = None
        for settings, sheet in self._tried(candidates):
            value = self.study.ruler.value(sheet)
            if best is None or value > best[0]:
                best = value, settings, sheet
        if best is None:
            return False
        gain = self.study.ruler.gain(best[2], self.sheet)
        if not _supported(gain):
            return False
        self.settings, self.sheet = best[1], best[2]
        return True

    def rung(self, step: str, search: Callable[[], object]) -> None:
        """Let `search` move the state, then keep where it got to only if the rung as a whole holds."""
        began = time.perf_counter()
        settings, sheet, competition = self.settings, self.sheet, self.competition
        search()
        gain = self.study.ruler.gain(self.sheet, sheet)
        value = self.study.ruler.value(self.sheet)
        moved = self.settings != settings
        asked = self._ask(self.settings) if moved else competition
        fell = "score" in asked and "score" in competition and asked["score"] < competition["score"] - TOLERANCE
        adopted = moved and _supported(gain) and not fell
        tried = _difference(settings, self.settings)
        self.rungs.append(Rung(step, value, gain.mean, gain.low, gain.high, adopted, asked, tried))
        if adopted:
            self.competition = asked
        else:
            self.settings, self.sheet = settings, sheet
        log.info(
            "%-16s %.4f  gain %+.4f (%+.4f to %+.4f)  %s  %s  %.0f s",
            step, value, gain.mean, gain.low, gain.high, "adopted" if adopted else "not adopted", tried or "",
            time.perf_counter() - began,
        )  # fmt: skip


def _supported(gain: Gain) -> bool:
    return gain.mean > 0 and gain.often >= OFTEN and not gain.worse


def _difference(before: Fusion, after: Fusion) -> dict[str, Any]:
    old, new = before.model_dump(), after.model_dump()
    return {key: new[key] for key in new if new[key] != old[key]}


def with_changes(settings: Fusion, **changes: Any) -> Fusion:
    """The settings with some replaced, checked like any."""
    return Fusion.model_validate({**settings.model_dump(), **changes})


def tune(
    cases: Sequence[Case], base: Fusion, ruler: Ruler, confirm: Confirm | None = None, held: Iterable[str] = ()
) -> Tuned:
    """Choose fusion settings on out-of-fold images.

    Args:
        cases: the images; those where nothing was found count too.
        base: where the search starts; its `weights` of 0 stay out.
        ruler: what is measured.
        confirm: the competition's own score, asked once a rung.
        held: names of settings that stay as `base` has them.

    Raises:
        ValueError: no cases, or nobody votes.
    """
    study = Study(cases, ruler)
    models = [m for m in study.models() if base.weights.get(m, 1.0) > 0]
    views = [v for v in study.views() if base.views is None or v in base.views]
    if not cases or not models:
        raise ValueError("there are no out-of-fold predictions to tune on")
    ladder = Ladder(study, confirm, {name: getattr(base, name) for name in held})

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

    subsets = [None, *_by_scale(views)] if len(views) > 1 else []
    if subsets:
        ways = [
            {"overlap": o, "iou": t, "views": v} for v in subsets for o, t in ((base.overlap, base.iou), ("mask", 0.5))
        ]
        ladder.rung("+ views", lambda: ladder.better(only([best], **raw, **way) for way in ways))
    if len(models) > 1:
        worth = {m: ruler.value(study.sheet(alone[m])) for m in models}
        ladder.rung("+ models", lambda: _add_models(ladder, best, worth))
    if any(len(voters_of(ladder.settings, case.voters)) > 1 for case in cases):
        ladder.rung("+ clustering", lambda: _clustering(ladder))
    everyone = {m: base.weights.get(m, 1.0) for m in study.models()}
    ladder.rung("+ rescoring", lambda: _rescoring(ladder, everyone))
    ladder.rung("+ post", lambda: _post(ladder, [case.truth for case in study.cases]))
    return Tuned(ladder.settings, ladder.rungs, study.table(ladder.settings), study.fused(ladder.settings))


def _by_scale(views: Sequence[str]) -> list[list[str]]:
    """The views of each scale, where there are several scales."""
    groups: dict[str, list[str]] = {}
    for view in views:
        groups.setdefault(view.partition("@")[2] or "1.0", []).append(view)
    return list(groups.values()) if len(groups) > 1 else []


def _add_models(ladder: Ladder, best: str, worth: dict[str, float]) -> None:
    """Greedy: the model that helps most joins, until none helps."""
    method = "wbf" if ladder.settings.method == "concatenate" else ladder.settings.method
    left = sorted((m for m in worth if m != best), key=lambda m: -worth[m])
    while left:
        state = ladder.settings
        options = {m: with_changes(state, weights={**state.weights, m: 1.0}, method=method) for m in left[:CANDIDATES]}
        if not ladder.better(options.values()):
            return
        left = [m for m in left if ladder.settings.weights.get(m, 0.0) == 0]


def _clustering(ladder: Ladder) -> None:
    """One setting after the other; a second look at the threshold where another setting has moved."""

    def thresholds() -> bool:
        s = ladder.settings
        options = [("box", t) for t in (0.4, 0.5, 0.6, 0.7)] + [("mask", t) for t in (0.3, 0.4, 0.5, 0.6)]
        return ladder.better(with_changes(s, overlap=o, iou=t) for o, t in options if (o, t) != (s.overlap, s.iou))

    def others() -> bool:
        moved = False
        for name, values in (
            ("skip", (0.05, 0.1, 0.2)),
            ("confidence", ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")),
            ("one_per_source", (False, True)),
            ("member_weight", ("score", "voter")),
        ):
            s = ladder.settings
            moved |= ladder.better(with_changes(s, **{name: v}) for v in values if v != getattr(s, name))
        return moved

    thresholds()
    if others():
        thresholds()


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
    areas = np.concatenate([t.area for t in truth]) if truth else np.zeros(0)
    smallest = sorted({int(a) for a in np.percentile(areas, [0.5, 2, 5])}) if areas.size else []
    for name, values in (
        ("fill_holes", (True, False)),
        ("largest_part", (True, False)),
        ("duplicates", (None, 0.5, 0.7, 0.85)),
        ("min_area", (0, *smallest)),
        ("overlap_removal", ("none", "score", "probability")),
    ):
        s = ladder.settings
        ladder.better(with_changes(s, **{name: v}) for v in values if v != getattr(s, name))
