"""Collecting the faults of a submission, so that one which a thousand rows share is one problem."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal

from pipeline.competitions import Problem

SHOWN = 3
"""Places named of a fault that many share."""

LARGE_BYTES = 100 << 20
"""A submission that holds more is worth a warning: leaderboards have limits, and real ones hold a few MB."""


def too_large(path: Path) -> list[Problem]:
    """The warning that a file's size is worth, if any."""
    size = path.stat().st_size
    if size <= LARGE_BYTES:
        return []
    return [Problem("warning", path.name, f"holds {size:,} bytes; the leaderboard may take fewer", "file size")]


class Faults:
    """Faults by what they are, each with the places that it was found in."""

    def __init__(self) -> None:
        self._places: dict[tuple[Literal["error", "warning"], str, str], list[str]] = defaultdict(list)

    def add(self, severity: Literal["error", "warning"], kind: str, text: str, place: str) -> None:
        self._places[severity, kind, text].append(place)

    def problems(self) -> list[Problem]:
        """One problem for each fault, with its first few places; errors first."""
        found = []
        for (severity, kind, text), places in self._places.items():
            more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
            found.append(Problem(severity, ", ".join(places[:SHOWN]) + more, text, kind))
        return sorted(found, key=lambda problem: problem.severity)
