"""The images that reading a competition leaves below the data's folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import writing
from pipeline.records import Dataset


def store(content: bytes, path: Path) -> None:
    """Write an image file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def remove_others(target: Path, *datasets: Dataset) -> None:
    """Remove images of an earlier reading that the data no longer have: they would only confuse."""
    kept = {dataset.path(image) for dataset in datasets for image in dataset.images}
    for path in (target / "images").rglob("*.png"):
        if path not in kept:
            path.unlink()
