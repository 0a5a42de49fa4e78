"""The images that reading a competition leaves below the data's folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from pipeline.files import writing
from pipeline.records import Dataset


class _Files(Protocol):
    """An `Archive` or a `Bundle`."""

    def read(self, name: str) -> bytes: ...
    def file(self, name: str) -> Path | None: ...


def fetch(files: _Files, name: str) -> bytes | Path:
    """Where a file lies on this machine; the content of a zip's member.

    Raises:
        CompetitionError: the member is damaged.
    """
    return files.file(name) or files.read(name)


def store(source: bytes | Path, path: Path) -> None:
    """Write an image file, whole or not at all. A file is linked where it can be, not copied: COCO's images take 20 GB."""
    if isinstance(source, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # another disk, or a system that does not link
            temporary.unlink(missing_ok=True)
            os.link(source.resolve(), temporary)
            os.replace(temporary, path)
            temporary.unlink(missing_ok=True)  # it stays where both were the same file
            return
        source = source.read_bytes()
    with writing(path) as temporary:
        temporary.write_bytes(source)


def remove_others(target: Path, *datasets: Dataset) -> None:
    """Remove images and label maps of an earlier reading that the data no longer have: they would only confuse."""
    kept = {dataset.path(image) for dataset in datasets for image in dataset.images}
    kept |= {dataset.root / image.semantic for dataset in datasets for image in dataset.images if image.semantic}
    for folder in ("images", "semantic"):
        for path in (target / folder).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()
