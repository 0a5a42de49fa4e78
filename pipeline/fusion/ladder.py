"""The ladder of a fusion: each step compared with the one below on the same images, and kept only if it holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.fusion.ruler import Gain, Sheet
from pipeline.fusion.settings import Fusion, with_changes
from pipeline.fusion.study import Study
from pipeline.records import Detections

log = logging.getLogger("pipeline.fusion")

OFTEN = 0.9
"""A change must gain in this fraction of the bootstrapped sets of images. The best of many candidates looks better than it
is: at 0.7, a learned rescorer and a clustering that were chosen on two thirds of 24 images of nuclei lost 0.009 on the rest
against the best single model, at 0.9 they were not taken (RESULTS.md)."""

LEAST = 0.0005
"""A change must gain so much on average: a smaller gain is not worth another setting, however often it occurs."""

TOLERANCE = 0.01
"""The competition's score may fall by so much before it speaks against a change: average precision moves in such steps."""

Confirm = Callable[[Detections, Sequence[int]], dict[str, Any]]
"""The competition's score of fused detections on the images of these ids; has at least the key ``score``."""


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


class Ladder:
    """The search's state: the settings so far, how they do, the rungs, and the settings of the first rung."""

    def __init__(self, study: Study, confirm: Confirm | None, held: Mapping[str, Any] | None = None) -> None:
        self.study = study
        self.confirm = confirm
        self.held = dict(held or {})
        self.rungs: list[Rung] = []
        self.settings: Fusion
        self.first: Fusion
        self.sheet: Sheet
        self.competition: dict[str, Any] = {}

    def _ask(self, settings: Fusion) -> dict[str, Any]:
        if self.confirm is None:
            return {}
        found = Detections.concatenate(self.study.fused(settings))
        return self.confirm(found, [case.image_id for case in self.study.cases])

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
        self.first = self.settings
        self.competition = self._ask(self.settings)
        self.rungs.append(Rung(step, value, None, None, None, True, self.competition, {}))
        log.info("%-16s %.4f", step, value)

    def widen(self, step: str, study: Study) -> None:
        """A rung that changes what is fused, not how: the same settings on cases with more voters. Always taken."""
        sheet = study.sheet(self.settings)
        gain = study.ruler.gain(sheet, self.sheet)
        self.study, self.sheet = study, sheet
        self.competition = self._ask(self.settings)
        value = study.ruler.value(sheet)
        self.rungs.append(Rung(step, value, gain.mean, gain.low, gain.high, True, self.competition, {}))
        log.info("%-16s %.4f  gain %+.4f (%+.4f to %+.4f)", step, value, gain.mean, gain.low, gain.high)

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
    return gain.mean >= LEAST and gain.often >= OFTEN and not gain.worse


def _difference(before: Fusion, after: Fusion) -> dict[str, Any]:
    old, new = before.model_dump(), after.model_dump()
    return {key: new[key] for key in new if new[key] != old[key]}
