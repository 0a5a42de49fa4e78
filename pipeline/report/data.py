"""The data and the folds at a glance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.folds import Row
from pipeline.records import Dataset


@dataclass(frozen=True)
class ClassSummary:
    """One category's instances. Sizes are square roots of areas, in pixels: 5th percentile, median, 95th percentile."""

    name: str
    instances: int
    images: int
    sizes: tuple[float, float, float] | None


@dataclass(frozen=True)
class FoldSummary:
    """One fold: its images, instances, instances per class (in the dataset's class order) and distinct groups."""

    fold: int
    images: int
    instances: int
    classes: list[int]
    groups: int


@dataclass(frozen=True)
class Problems:
    """Integrity problems of one kind; `severity` is error or warning."""

    severity: str
    kind: str
    count: int
    examples: list[str]


def object_sizes(dataset: Dataset, category_id: int | None = None) -> np.ndarray:
    """(N,) float64, square roots of the areas in pixels of one category's instances, or of all."""
    areas = [i.area for i in dataset.instances if category_id is None or i.category_id == category_id]
    return np.sqrt(np.asarray(areas, np.float64))


def classes(dataset: Dataset) -> list[ClassSummary]:
    rows = []
    for category_id, name in dataset.categories.items():
        sizes = object_sizes(dataset, category_id)
        images = len({i.image_id for i in dataset.instances if i.category_id == category_id})
        low, middle, high = np.percentile(sizes, (5, 50, 95)) if sizes.size else (0.0, 0.0, 0.0)
        rows.append(ClassSummary(name, int(sizes.size), images, (low, middle, high) if sizes.size else None))
    return rows


def image_sizes(dataset: Dataset) -> list[tuple[str, int]]:
    """Image sizes as "width x height" with how many images have them, the commonest first."""
    return Counter(f"{image.width} × {image.height}" for image in dataset.images).most_common()


def folds(dataset: Dataset, rows: Sequence[Row]) -> list[FoldSummary]:
    """One summary per fold, in the folds' order. Images that the rows do not name are left out."""
    order = {category_id: k for k, category_id in enumerate(dataset.categories)}
    by_name = {image.file_name: image for image in dataset.images}
    summaries = []
    for fold in sorted({fold for row in rows for fold in row.folds}):
        own = [row for row in rows if fold in row.folds and row.image in by_name]
        counts = [0] * len(order)
        for row in own:
            for instance in dataset.by_image[by_name[row.image].id]:
                counts[order[instance.category_id]] += 1
        groups = {row.group or row.image for row in own}
        summaries.append(FoldSummary(fold, len(own), sum(counts), counts, len(groups)))
    return summaries


def problems(path: Path, examples: int = 3) -> list[Problems]:
    """The integrity report's problems by kind, errors first, then the commonest."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for problem in json.loads(path.read_text()).get("problems", []):
        places = kinds.setdefault((problem["severity"], problem["kind"]), [])
        places.append(f"{problem['file']}: {problem['text']}")
    rows = [Problems(severity, kind, len(places), places[:examples]) for (severity, kind), places in kinds.items()]
    return sorted(rows, key=lambda row: (row.severity, -row.count, row.kind))
