"""What a run says on the terminal about its stages: Snakemake's events, reduced to a line each.

Snakemake calls this a logger plug-in. The stages' own lines reach the terminal by themselves.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

_REASONS = (
    ("Forced execution", "forced"),
    ("Missing output files", "not made yet"),
    ("Incomplete output files", "was interrupted"),
    ("Updated input files", "its input changed"),
    ("Input files updated by another job", "its input is made again"),
    ("Set of input files has changed", "its inputs are others now"),
    ("Params have changed", "its settings or code changed"),
)
"""How Snakemake's reasons begin → how they read here."""

_GATHERING = ("everything", "data")
"""Rules that make nothing themselves."""

_NOISE = ("At least one job did not complete", "Exiting because a job execution failed")


def label(rule: str, wildcards: dict[str, str]) -> str:
    """A stage's title: ``train mask-rcnn-slim fold 0``."""
    words = [
        rule,
        wildcards.get("model", ""),
        f"fold {wildcards['fold']}" if "fold" in wildcards else "",
        wildcards.get("part", ""),
    ]
    return " ".join(word for word in words if word)


def reason(text: str) -> str:
    """Snakemake's reason for a job in a few words; of changed parameters it says whether settings or code differ."""
    for beginning, words in _REASONS:
        if text.startswith(beginning):
            if beginning.startswith("Params"):
                changed = [kind for kind in ("settings", "code") if f"{kind} " in text]
                return f"its {' and '.join(changed)} changed" if changed else words
            return words
    return text.splitlines()[0][:100] if text else ""


@dataclass
class Tally:
    """What happened in this process so far: the stages that started (or would), and a line for each that failed."""

    started: int = 0
    failed: list[str] = field(default_factory=list)


TALLY = Tally()


class LogHandler(LogHandlerBase):  # type: ignore[misc]
    """Prints when a stage starts (and why), ends (after how long, how many are done) or fails (and where its log
    is)."""

    def __post_init__(self) -> None:
        self.titles: dict[int, str] = {}
        self.began: dict[int, float] = {}
        self.done = 0
        self.total = 0

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__
        event = fields.get("event")
        if event == LogEvent.JOB_INFO:
            self._start(fields)
        elif event == LogEvent.RUN_INFO:
            self.total = sum(n for rule, n in fields.get("stats", {}).items() if rule not in (*_GATHERING, "total"))
        elif event == LogEvent.JOB_FINISHED:
            self._finish(int(fields["job_id"]))
        elif event == LogEvent.JOB_ERROR:
            self._fail(fields)
        elif event == LogEvent.ERROR or (event is None and record.levelno >= logging.WARNING):
            self._complain(fields, record.getMessage())

    def _start(self, fields: dict[str, Any]) -> None:
        number, rule = int(fields["jobid"]), fields["rule_name"]
        if rule in _GATHERING:
            return
        self.titles[number] = label(rule, fields["wildcards"])
        self.began[number] = time.monotonic()
        TALLY.started += 1
        verb = "would run" if self.common_settings.dryrun else "starts"
        _say(f"{self.titles[number]}: {verb} ({reason(fields['reason'])})")

    def _finish(self, number: int) -> None:
        if number in self.titles:
            self.done += 1
            seconds = time.monotonic() - self.began[number]
            _say(f"{self.titles[number]}: done in {seconds:.0f} s  [{self.done} of {self.total}]")

    def _fail(self, fields: dict[str, Any]) -> None:
        title = self.titles.get(int(fields["jobid"]), fields["rule_name"])
        TALLY.failed.append(f"{title} failed, see {', '.join(fields['log'])}")
        _say(TALLY.failed[-1])

    def _complain(self, fields: dict[str, Any], message: str) -> None:
        # a failed command is told once, by the event above
        if "CalledProcessError" not in message and not any(noise in message for noise in _NOISE):
            _say(message)

    @property
    def writes_to_stream(self) -> bool:
        return True

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False


def _say(text: str) -> None:
    print(f"[run] {text}", file=sys.stderr, flush=True)
