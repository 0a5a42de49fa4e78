"""How alike folds are: our dealing of groups against scikit-learn's StratifiedGroupKFold, on real competitions.

    python -m benchmarks.folds [../shared/data]

A quantity (images; each stratum; each class's instances, and images that hold it) is even where every fold has its share of
it. The unevenness of a quantity is the largest deviation of any fold from that share, in percent of the share; the table gives
its mean and largest value over the quantities of a data set, over ten seeds. scikit-learn stratifies by one label an image, so it
is tried with three: the stratum; stratum and classes; stratum, classes, and which third of all images it is in by instances.
"""

import argparse
import gzip
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline import competitions
from pipeline.folds import Row, divide
from pipeline.records import Dataset, Image, Instance

FOLDS, SEEDS = 5, 10
DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
RLE = {"size": [1, 1], "counts": "01"}  # only counts matter here

Stratum = Callable[[Image], str]


def quantities(dataset: Dataset, stratum: Stratum) -> dict[str, np.ndarray]:
    """What should be even, (images,) each; a stratum or class on fewer images than folds cannot be, and is left out."""
    held = [Counter(a.category_id for a in dataset.by_image[image.id]) for image in dataset.images]
    strata = [stratum(image) for image in dataset.images]
    found = {"images": np.ones(len(held))}
    found |= {f"stratum {s}": np.array([t == s for t in strata], float) for s in sorted(set(strata))}
    for category_id, name in dataset.categories.items():
        count = np.array([h[category_id] for h in held], float)
        found |= {f"instances {name}": count, f"images with {name}": (count > 0).astype(float)}
    return {name: values for name, values in found.items() if (values > 0).sum() >= FOLDS}


def unevenness(folds: Sequence[int] | np.ndarray, values: np.ndarray, count: int = FOLDS) -> float:
    """The largest deviation of a fold's share from an equal one, in percent of it."""
    shares = np.bincount(np.asarray(folds), values, minlength=count) / values.sum() * count
    return 100 * float(np.abs(shares - 1).max())


def labels(dataset: Dataset, stratum: Stratum, kind: int) -> list[str]:
    """One label an image for scikit-learn; see above."""
    found = [stratum(image) for image in dataset.images]
    counts = np.array([len(dataset.by_image[image.id]) for image in dataset.images])
    thirds = np.searchsorted(np.quantile(counts, [1 / 3, 2 / 3]), counts)
    if kind >= 1:
        content = ["+".join(map(str, sorted({a.category_id for a in dataset.by_image[i.id]}))) for i in dataset.images]
        found = [f"{a} {b}" for a, b in zip(found, content, strict=True)]
    if kind >= 2:
        found = [f"{a} {b}" for a, b in zip(found, thirds, strict=True)]
    return found


def by_sklearn(dataset: Dataset, stratum: Stratum, seed: int, kind: int, count: int = FOLDS) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [image.group or image.file_name for image in dataset.images]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = np.full(len(groups), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strata smaller than the number of folds
        for k, (_, own) in enumerate(splitter.split(groups, labels(dataset, stratum, kind), groups)):
            folds[own] = k
    return folds


def by_us(dataset: Dataset, stratum: Stratum, seed: int, count: int = FOLDS) -> np.ndarray:
    rows: dict[str, Row] = {row.image: row for row in divide(dataset, count, seed, stratum)}
    return np.array([rows[image.file_name].fold for image in dataset.images])


# ---------------------------------------------------------------- real data -------------------------------------------


def counted(rows: Sequence[tuple[str, str, dict[int, int]]], categories: dict[int, str]) -> Dataset:
    """A dataset of (name, group, instances by class) without pixels."""
    images = [Image(k + 1, name, 1, 1, group) for k, (name, group, _) in enumerate(rows)]
    instances = []
    for image, (_, _, held) in zip(images, rows, strict=True):
        for category_id, count in held.items():
            instances += [Instance(0, image.id, category_id, RLE, (0, 0, 1, 1), 1.0)] * count
    return Dataset(images, categories, instances)


def no_stratum(_: Image) -> str:
    return ""


def of_competition(name: str, path: Path, options: dict[str, str]) -> tuple[Dataset, Stratum]:
    competition = competitions.get(name)
    with tempfile.TemporaryDirectory() as folder:
        return competition.read(path, options, 0, Path(folder)).train, competition.stratum


def of_json(path: Path) -> tuple[Dataset, Stratum]:
    raw = json.loads(gzip.decompress(path.read_bytes()))
    held: dict[int, Counter[int]] = {i["id"]: Counter() for i in raw["images"]}
    for annotation in raw["annotations"]:
        held[annotation["image_id"]][annotation["category_id"]] += 1
    rows = [(str(i["file_name"]), "", dict(held[i["id"]])) for i in raw["images"]]
    return counted(rows, {c["id"]: c["name"] for c in raw["categories"]}), no_stratum


def real(data: Path) -> Iterator[tuple[str, Dataset, Stratum]]:
    """Name, data and stratum of every real set that is there."""
    vrdl2021, dsb2018 = data / "vrdl2021" / "dataset.zip", data / "dsb2018"
    vrdl2025, segpc2021 = data / "vrdl2025" / "val_coco.json.gz", data / "segpc2021" / "train_cell_t298.json.gz"
    sets: list[tuple[str, Path, Callable[[], tuple[Dataset, Stratum]]]] = [
        ("vrdl2021 by site", vrdl2021, lambda: of_competition("vrdl2021", vrdl2021, {"group": "site"})),
        ("vrdl2021 by patient", vrdl2021, lambda: of_competition("vrdl2021", vrdl2021, {"group": "patient"})),
        ("dsb2018", dsb2018, lambda: of_competition("dsb2018", dsb2018, {})),
        ("vrdl2025, 50 images", vrdl2025, lambda: of_json(vrdl2025)),
        ("segpc2021", segpc2021, lambda: of_json(segpc2021)),
    ]
    for name, path, load in sets:
        if path.exists():
            yield name, *load()


def main(data: Path) -> None:
    print(f"{FOLDS} folds, {SEEDS} seeds: unevenness in percent, mean over quantities (largest)")
    for name, dataset, stratum in real(data):
        wanted = quantities(dataset, stratum)
        groups = len({i.group or i.file_name for i in dataset.images})
        print(f"\n{name}: {len(dataset.images)} images, {groups} groups, {len(wanted)} quantities")
        ways: dict[str, Callable[[int], np.ndarray]] = {"ours": lambda seed: by_us(dataset, stratum, seed)}  # noqa: B023
        for kind, what in enumerate(("stratum", "stratum, classes", "stratum, classes, thirds")):
            ways[f"scikit-learn, {what}"] = lambda seed, kind=kind: by_sklearn(dataset, stratum, seed, kind)  # noqa: B023
        for way, divided in ways.items():
            began = time.perf_counter()
            try:
                folds = [divided(seed) for seed in range(SEEDS)]
            except ValueError as error:
                print(f"  {way:40} refuses: {error}")
                continue
            seconds = (time.perf_counter() - began) / SEEDS
            values = np.array([[unevenness(f, q) for q in wanted.values()] for f in folds])
            detail = ", ".join(
                f"{values[:, list(wanted).index(q)].mean():.1f} {q}" for q in list(wanted) if "stratum" not in q
            )
            print(f"  {way:40} {values.mean():6.1f} ({values.max(axis=1).mean():5.1f})  {seconds:.3f} s   {detail}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="?", type=Path, default=DATA, help="the folder of real data (default: %(default)s)"
    )
    main(parser.parse_args().data)
