"""The data and the folds at a glance."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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

    name: str
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


def fold_table(path: Path) -> dict[str, tuple[str, str]]:
    """Fold and group of every image, by file name.

    Raises:
        ValueError: a row without an image or a fold; the message names the file.
    """
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    try:
        return {row["image"]: (row["fold"], row.get("group") or "") for row in rows}
    except KeyError as error:
        raise ValueError(f"{path} has no column {error}; it needs image,fold,stratum,group") from error


def folds(dataset: Dataset, table: dict[str, tuple[str, str]]) -> list[FoldSummary]:
    """One row per fold, in the folds' order. Images that the table does not name are left out."""
    order = {category_id: k for k, category_id in enumerate(dataset.categories)}
    rows = []
    for name in sorted({fold for fold, _ in table.values()}, key=lambda f: (not f.isdigit(), f.zfill(6))):
        images = [i for i in dataset.images if table.get(i.file_name, ("", ""))[0] == name]
        counts = [0] * len(order)
        for image in images:
            for instance in dataset.by_image[image.id]:
                counts[order[instance.category_id]] += 1
        groups = {table[i.file_name][1] or i.file_name for i in images}
        rows.append(FoldSummary(name, len(images), sum(counts), counts, len(groups)))
    return rows


def problems(path: Path, examples: int = 3) -> list[Problems]:
    """The integrity report's problems by kind, errors first, then the commonest."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for problem in json.loads(path.read_text()).get("problems", []):
        places = kinds.setdefault((problem["severity"], problem["kind"]), [])
        places.append(f"{problem['file']}: {problem['text']}")
    rows = [Problems(severity, kind, len(places), places[:examples]) for (severity, kind), places in kinds.items()]
    return sorted(rows, key=lambda row: (row.severity, -row.count, row.kind))
