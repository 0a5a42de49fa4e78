"""How many numbers each model learns: counted by building it, and kept beside the configs, so that a list builds nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.backends import installed
from pipeline.backends.catalog import CONFIGS, Entry, fingerprint
from pipeline.experiment import ModelSettings
from pipeline.files import write_json

KEPT = CONFIGS / "parameters.json"
"""``{model: {"parameters": int, "config": its fingerprint when they were counted}}``"""

CLASSES = 80
"""For how many classes parameters are counted: COCO's, as in the tables that frameworks publish."""


def count(entry: Entry) -> int | None:
    """How many numbers the model learns, by building it, which takes seconds; None where its framework is absent."""
    if not installed(entry.framework):
        return None
    backend = importlib.import_module(f"pipeline.backends.{entry.framework}")
    network = backend.build(ModelSettings(framework=entry.framework, config=str(entry.path)), CLASSES)
    return sum(weight.numel() for weight in network.parameters())


def kept(entry: Entry, path: Path = KEPT) -> int | None:
    """The count that was kept of the model's config as it is now; None where there is none."""
    known = _read(path).get(entry.name)
    return int(known["parameters"]) if known and known["config"] == fingerprint(str(entry.path)) else None


def keep(counts: Mapping[Entry, int], path: Path = KEPT) -> None:
    """Keep the counts of these models beside those of others."""
    new = {
        entry.name: {"parameters": number, "config": fingerprint(str(entry.path))} for entry, number in counts.items()
    }
    write_json(path, dict(sorted((_read(path) | new).items())))


def _read(path: Path) -> dict[str, dict[str, int | str]]:
    return json.loads(path.read_text()) if path.exists() else {}
