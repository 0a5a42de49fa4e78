"""Fusions of the same out-of-fold images under many settings; what settings share is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.fusion.fuse import Ballot, combine, finish, rescored, vote
from pipeline.fusion.match import Overlaps, Truth
from pipeline.fusion.rescore import Features, Rescorer, Table, cross_fit, group_of
from pipeline.fusion.ruler import Ruler, Sheet
from pipeline.fusion.settings import Fusion, Voter, voters_of, with_changes
from pipeline.records import Detections


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
        self._tables: dict[str, tuple[Table, Callable[[str], Rescorer]]] = {}

    def models(self) -> list[str]:
        return list(dict.fromkeys(Voter.parse(name).model for name in self.sources))

    def views(self) -> list[str]:
        return list(dict.fromkeys(Voter.parse(name).view for name in self.sources))

    def fused(self, settings: Fusion) -> list[Detections]:
        """The fused detections of every case, exactly as `fuse_image` makes them."""
        ballots = self.ballots(settings)
        learned = settings.rescore == "learned"
        out = []
        for case, folds in zip(self.cases, ballots, strict=True):
            rescorer = self._rescorer(settings, case) if learned else None
            lists = [rescored(ballot, settings.rescore, rescorer) for ballot in folds.values()]
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
        """By group (see `group_of`) the rescorer that saw none of its rows; for any other name the one that saw all."""
        return self._learned(settings)[1]

    def _rescorer(self, settings: Fusion, case: Case) -> Rescorer:
        if self._rescorers is not None:
            return self._rescorers(settings)
        return self.rescorer(settings)(group_of(case.home, case.image_id, self.homes))

    def _learned(self, settings: Fusion) -> tuple[Table, Callable[[str], Rescorer]]:
        key = _vote_key(settings)
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


def _vote_key(settings: Fusion) -> str:
    """What decides the ballots: settings that differ only in rescoring and post-processing share them."""
    later = {
        "rescore",
        "fill_holes",
        "largest_part",
        "min_area",
        "overlap_removal",
        "duplicates",
        "min_score",
        "tune",
        "nested",
    }
    return settings.model_dump_json(exclude=later)
