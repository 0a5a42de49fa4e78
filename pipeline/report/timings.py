"""How long each job took, from Snakemake's benchmark files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """One job: wall-clock seconds, peak resident memory in bytes, and the CPU seconds it used, where known."""

    job: str
    seconds: float
    memory: float | None
    cpu_seconds: float | None


def read_benchmarks(folder: Path) -> list[Timing]:
    """Every ``*.tsv`` below a folder, in the order in which the jobs ended. Unreadable files are passed over."""
    timings = []
    for path in sorted(folder.rglob("*.tsv"), key=lambda p: (p.stat().st_mtime_ns, str(p))):
        with path.open(newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
        seconds = [v for v in (_number(row.get("s")) for row in rows) if v is not None]
        if not seconds:
            continue
        memory = [v for v in (_number(row.get("max_rss")) for row in rows) if v is not None]
        cpu = [v for v in (_number(row.get("cpu_time")) for row in rows) if v is not None]
        timings.append(
            Timing(
                str(path.relative_to(folder).with_suffix("")),
                sum(seconds),
                max(memory) * 2**20 if memory else None,  # Snakemake counts in MiB
                sum(cpu) if cpu else None,
            )
        )
    return timings


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
