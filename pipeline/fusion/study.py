"""Fusions of the same out-of-fold images under many settings; what settings share is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.fusion.crops import Crops
from pipeline.fusion.fuse import Ballot, combine, finish, rescored, vote
from pipeline.fusion.match import Overlaps, Truth
from pipeline.fusion.rescore import Features, Rescorer, Table, cross_fit, group_of
from pipeline.fusion.ruler import Ruler, Sheet
from pipeline.fusion.settings import Fusion, Voter, voters_of, with_changes
from pipeline.records import Detections

POST = {"fill_holes", "largest_part", "min_area", "overlap_removal", "duplicates", "min_score", "tune", "nested"}
"""Settings that change nothing before masks are fused and scored."""

LATER = {"rescore", *POST}
"""Settings that change nothing before the ballots are made."""

KEPT = 3
"""The ballots, and the lists, of so many settings are kept: a search looks at its best so far again."""


@dataclass(frozen=True)
class Case:
    """One out-of-fold image: what its voters found, who they are (those of its first division's fold first), and what is
    true."""

    image_id: int
    size: tuple[int, int]
    detections: Detections
    voters: list[str]
    truth: Truth

    @property
    def crops(self) -> Crops:
        """The detections' masks. Every setting looks at them again, so they are kept, but where that would mean a copy at
        a pixel per cell of masks that are stored smaller."""
        kept = self._shared
        return Crops.of(self.detections) if kept is None else kept

    @cached_property
    def _shared(self) -> Crops | None:
        found = Crops.of(self.detections)
        return found if found.pixels is self.detections.pixels else None

    @property
    def home(self) -> str:
        """The image's fold in the first division."""
        return Voter.parse(self.voters[0]).fold if self.voters else ""

    def at_home(self) -> Case:
        """The case with the voters of one fold only."""
        return replace(self, voters=[name for name in self.voters if Voter.parse(name).fold == self.home])


class Study:
    """The cases, the ruler, and the fusions asked for so far.

    Args:
        rescorers: the rescorer of each image under some settings, in place of one that is cross-fitted on these cases.
    """

    def __init__(
        self, cases: Sequence[Case], ruler: Ruler, rescorers: Callable[[Fusion], Rescorer] | None = None
    ) -> None:
        self.cases = list(cases)
        self.ruler = ruler
        self.sources = list(dict.fromkeys(name for case in self.cases for name in case.voters))
        self.homes = {case.home for case in self.cases}
        self._rescorers = rescorers
        self._ballots: dict[str, list[dict[str, Ballot]]] = {}
        self._described: dict[str, bool] = {}
        self._lists: dict[str, list[Detections]] = {}
        self._tables: dict[str, tuple[Table, Callable[[str], Rescorer]]] = {}

    def some(self, settings: Fusion, most: int, least: int) -> Study:
        """A study of cases, drawn by the ruler's seed, whose voters under `settings` have `most` detections together, but of
        at least `least` cases; itself where all fit."""
        sizes = np.array([_votes(case, settings) for case in self.cases])
        if sizes.sum() <= most or len(sizes) <= least:
            return self
        order = np.random.default_rng(self.ruler.seed).permutation(len(sizes))
        enough = max(int(np.searchsorted(np.cumsum(sizes[order]), most)), least)
        part = Study([self.cases[i] for i in np.sort(order[:enough])], self.ruler, self._rescorers)
        part.homes = self.homes  # groups are what they are among all cases
        return part

    def models(self) -> list[str]:
        return list(dict.fromkeys(Voter.parse(name).model for name in self.sources))

    def views(self) -> list[str]:
        return list(dict.fromkeys(Voter.parse(name).view for name in self.sources))

    def fused(self, settings: Fusion) -> list[Detections]:
        """The fused detections of every case, exactly as `fuse_image` makes them; none where nobody votes."""
        return [finish(found, settings) for found in self._combined(settings)]

    def _combined(self, settings: Fusion) -> list[Detections]:
        """Every case's masks before post-processing; kept for the settings asked for last."""
        key = _key(settings, POST)
        if key not in self._lists:
            while len(self._lists) >= KEPT:
                del self._lists[next(iter(self._lists))]
            ballots = self.ballots(settings)
            learned = self._learned_scores(settings) if settings.rescore == "learned" else None
            out = []
            for i, folds in enumerate(ballots):
                lists = [
                    rescored(ballot, settings.rescore, None)
                    if learned is None
                    else replace(ballot.detections, score=learned[i][fold])
                    for fold, ballot in folds.items()
                ]
                out.append(combine(lists, settings) if len(lists) > 1 else lists[0] if lists else Detections.empty())
            self._lists[key] = out
        self._lists[key] = self._lists.pop(key)
        votes = _key(settings, LATER)
        if votes in self._ballots:  # what is in use is not the oldest
            self._ballots[votes] = self._ballots.pop(votes)
        return self._lists[key]

    def _learned_scores(self, settings: Fusion) -> list[dict[str, np.ndarray]]:
        """The learned probabilities of every case's ballots, by fold: each rescorer is asked once for all that it may see,
        since a call for one image's masks is mostly overhead."""
        ballots = self.ballots(settings)
        groups: dict[str, list[int]] = {}
        for i, case in enumerate(self.cases):
            name = "" if self._rescorers is not None else group_of(case.home, case.image_id, self.homes)
            groups.setdefault(name, []).append(i)
        out: list[dict[str, np.ndarray]] = [{} for _ in self.cases]
        for name, members in groups.items():
            rescorer = self.rescorer(settings)(name) if self._rescorers is None else self._rescorers(settings)
            own, tables = [], []
            for i in members:
                for fold, ballot in ballots[i].items():
                    assert ballot.described is not None
                    own.append((i, fold))
                    tables.append(ballot.described)
            if not own:
                continue
            scores = rescorer(Features.concatenate(tables))
            ends = np.cumsum([len(table.values) for table in tables])[:-1]
            for (i, fold), part in zip(own, np.split(scores, ends), strict=True):
                out[i][fold] = part
        return out

    def sheet(self, settings: Fusion) -> Sheet:
        return self.ruler.sheet(self.fused(settings), [case.truth for case in self.cases])

    def ballots(self, settings: Fusion) -> list[dict[str, Ballot]]:
        """Every case's ballots by fold; kept for the settings asked for last."""
        key = _key(settings, LATER)
        described = settings.rescore == "learned"
        if key in self._ballots and described and not self._described[key]:
            del self._ballots[key]
            self._lists.clear()  # some are views of them
        if key not in self._ballots:
            while len(self._ballots) >= KEPT:
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
        return {
            fold: vote(case.detections, settings, names, case.size, describe, crops=case.crops)
            for fold, names in folds.items()
        }

    def table(self, settings: Fusion) -> Table:
        """The learned rescorer's training table under these settings, whichever way they rescore."""
        return self._learned(with_changes(settings, rescore="learned"))[0]

    def rescorer(self, settings: Fusion) -> Callable[[str], Rescorer]:
        """By group (see `group_of`) the rescorer that saw none of its rows; for any other name the one that saw all."""
        return self._learned(settings)[1]

    def _learned(self, settings: Fusion) -> tuple[Table, Callable[[str], Rescorer]]:
        key = _key(settings, LATER)
        ballots = self.ballots(settings)
        if key not in self._tables:
            described, true, iou, group = [], [], [], []
            for case, folds in zip(self.cases, ballots, strict=True):
                for ballot in folds.values():
                    assert ballot.described is not None
                    found = rescored(ballot, "mask", None)
                    pairs = Overlaps.of(found, case.truth)
                    right, ignored = pairs.matched(found.score, min(self.ruler.ious))
                    rows = np.flatnonzero(~ignored)
                    described.append(ballot.described.take(rows))
                    true.append(right[rows])
                    iou.append(pairs.best[rows])
                    group += [group_of(case.home, case.image_id, self.homes)] * len(rows)
            table = Table(
                Features.concatenate(described),
                np.concatenate(true) if true else np.zeros(0, bool),
                np.concatenate(iou).astype(np.float32) if iou else np.zeros(0, np.float32),
                np.array(group, object),
            )
            self._tables[key] = table, cross_fit(table)
        return self._tables[key]


def _votes(case: Case, settings: Fusion) -> int:
    """How many of a case's detections are of those who vote."""
    names = set(voters_of(settings, case.voters))
    found = case.detections
    return int(np.isin(found.source, [i for i, name in enumerate(found.sources) if name in names]).sum())


def _key(settings: Fusion, without: set[str]) -> str:
    return settings.model_dump_json(exclude=without)
