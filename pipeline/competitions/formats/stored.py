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


def store(content: bytes, path: Path) -> None:
    """Write an image file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def store_from(files: _Files, name: str, path: Path) -> None:
    """Store a file as it is. One that lies on the same disk is linked, not copied: COCO's images take 20 GB.

    Raises:
        CompetitionError: the file is damaged.
    """
    source = files.file(name)
    if source is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # another disk, or a system that does not link
            temporary.unlink(missing_ok=True)
            os.link(source.resolve(), temporary)
            os.replace(temporary, path)
            temporary.unlink(missing_ok=True)  # it stays where both were the same file
            return
    store(files.read(name), path)


def remove_others(target: Path, *datasets: Dataset) -> None:
    """Remove images and label maps of an earlier reading that the data no longer have: they would only confuse."""
    kept = {dataset.path(image) for dataset in datasets for image in dataset.images}
    kept |= {dataset.root / image.semantic for dataset in datasets for image in dataset.images if image.semantic}
    for folder in ("images", "semantic"):
        for path in (target / folder).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()
