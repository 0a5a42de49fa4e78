"""The training images in folds: balanced, never splitting a group, and kept in a CSV to read and edit."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import write_json, writing
from pipeline.records import Dataset, Image

COLUMNS = ("image", "fold", "stratum", "group", "instances")
"""Of a CSV with one division; each further one adds a column: fold_2, fold_3, …"""

MOST_STRATA = 100
"""So many of the commonest strata are balanced one by one; the rarer ones count as one more."""

SWAPPED_GROUPS = 1000
"""Up to so many groups are moved and exchanged after dealing; more than these are even enough as they are dealt."""


class FoldsError(ValueError):
    """A folds CSV that does not fit the images. The message names the file, the row, and the way out."""


@dataclass(frozen=True)
class Row:
    """One training image (by its `file_name`), the fold that validates on it, its stratum, its group, and how many instances
    it holds. The first two decide; the others are for whoever reads the CSV, and may be left out when it is written by hand.

    `further` are the folds that validate on it in the second and later divisions, whose numbers go on from the one before:
    with three folds the second division's are 3, 4 and 5."""

    image: str
    fold: int
    stratum: str = ""
    group: str = ""
    instances: int | None = None
    further: tuple[int, ...] = ()

    @property
    def folds(self) -> tuple[int, ...]:
        """The fold that validates on the image in every division."""
        return self.fold, *self.further


# ---------------------------------------------------------------- dividing --------------------------------------------


def divide(
    dataset: Dataset, count: int, seed: int, stratum: Callable[[Image], str] | None = None, repeats: int = 1
) -> list[Row]:
    """Divide images into folds that are alike in images, strata, and instances and presence of every class.

    Groups (`Image.group`; an image without one is its own) are never split. They are dealt out, the heaviest first,
    each to the fold that most lacks what it holds; then groups change place, singly or against one another, while that
    makes the folds more alike. The result depends on nothing but the arguments, and not on the images' order.

    Args:
        count: number of folds.
        seed: decides between equals.
        stratum: an image's stratum; what classes it holds where this is None or says nothing.
        repeats: number of divisions. The first is the same for any number; the later ones differ from it and from each
            other where the groups allow it, at the price of being a little less even.

    Returns:
        One row per image, by file name.

    Raises:
        FoldsError: there are fewer groups than folds.
    """
    images = sorted(dataset.images, key=lambda image: image.file_name)
    strata = [_stratum(dataset, image, stratum) for image in images]
    groups = [image.group or image.file_name for image in images]
    names = sorted(set(groups))
    if len(names) < count:
        raise FoldsError(
            f"{len(images)} images in {len(names)} groups cannot make {count} folds without splitting a group; "
            f"set folds.count to {len(names)} or less"
        )
    index = {name: k for k, name in enumerate(names)}
    features = _features(dataset, images, strata)
    weights = np.zeros((len(names), features.shape[1]))
    np.add.at(weights, [index[g] for g in groups], features)
    divisions = [_deal(weights, count, np.random.default_rng(seed))]
    for repeat in range(1, repeats):
        divisions.append(_another(weights, count, np.random.default_rng([seed, repeat]), divisions))
    numbers = np.stack([fold + repeat * count for repeat, fold in enumerate(divisions)], axis=1)
    return [
        Row(
            image.file_name,
            int(numbers[index[g], 0]),
            s,
            image.group,
            _instances(dataset, image),
            tuple(int(number) for number in numbers[index[g], 1:]),
        )
        for image, s, g in zip(images, strata, groups, strict=True)
    ]


def _another(
    weights: np.ndarray, count: int, rng: np.random.Generator, known: Sequence[np.ndarray], tries: int = 20
) -> np.ndarray:
    """A division unlike the known ones: what a group weighs is blurred, so that other divisions are the most even."""
    seen = {_partition(fold) for fold in known}
    for _ in range(tries):
        fold = _deal(weights * rng.uniform(0.7, 1.3, (len(weights), 1)), count, rng)
        if _partition(fold) not in seen:
            break
    return fold


def _partition(fold: np.ndarray) -> tuple[int, ...]:
    """The same for two divisions that differ in nothing but the folds' numbers."""
    order: dict[int, int] = {}
    return tuple(order.setdefault(int(f), len(order)) for f in fold)


def described(rows: Iterable[Row], dataset: Dataset, stratum: Callable[[Image], str] | None = None) -> list[Row]:
    """The rows with what `divide` says of their images beside the folds."""
    known = {image.file_name: image for image in dataset.images}
    return [
        replace(row, stratum=_stratum(dataset, image, stratum), group=image.group, instances=_instances(dataset, image))
        for row in rows
        for image in [known[row.image]]
    ]


def _stratum(dataset: Dataset, image: Image, stratum: Callable[[Image], str] | None) -> str:
    return (stratum(image) if stratum else "") or _content(dataset, image)


def _instances(dataset: Dataset, image: Image) -> int:
    return sum(not a.crowd for a in dataset.by_image[image.id])


def _content(dataset: Dataset, image: Image) -> str:
    present = sorted({instance.category_id for instance in dataset.by_image[image.id]})
    return "+".join(dataset.categories.get(c, str(c)) for c in present) or "none"


def _features(dataset: Dataset, images: Sequence[Image], strata: Sequence[str]) -> np.ndarray:
    """(images, features) float64: what should be spread evenly; each column sums to its importance."""
    commonest = [kind for kind, _ in Counter(sorted(strata)).most_common(MOST_STRATA)]
    kinds = [*commonest, ""] if len(set(strata)) > MOST_STRATA else commonest
    held_by = [s if s in set(commonest) else "" for s in strata]
    columns: list[tuple[float, np.ndarray]] = [(2.0, np.ones(len(images)))]
    columns += [(1.0, np.array([s == kind for s in held_by], np.float64)) for kind in kinds if len(kinds) > 1]
    counts = [Counter(i.category_id for i in dataset.by_image[image.id] if not i.crowd) for image in images]
    for category_id in sorted({c for count in counts for c in count}):
        held = np.array([count[category_id] for count in counts], np.float64)
        columns += [(1.0, held), (0.5, (held > 0).astype(np.float64))]
    return np.stack([importance * column / max(column.sum(), 1.0) for importance, column in columns], axis=1)


def _deal(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of every group. `weights` is (groups, features)."""
    groups = len(weights)
    fold = np.full(groups, -1, np.int64)
    held = np.zeros((count, weights.shape[1]))
    shuffled = rng.permutation(groups)
    order = shuffled[np.argsort(-weights.sum(axis=1)[shuffled], kind="stable")]
    preference = rng.permutation(count)
    empty = list(preference)
    for position, g in enumerate(order):
        # Of the folds still empty one must be taken as soon as there are only as many groups left.
        open_folds = empty if empty and groups - position <= len(empty) else list(preference)
        costs = (2 * held[open_folds] * weights[g]).sum(axis=1)  # growth of the squared sums, but a constant
        chosen = open_folds[int(np.argmin(costs))]
        fold[g] = chosen
        held[chosen] += weights[g]
        empty = [f for f in empty if f != chosen]
    if groups <= SWAPPED_GROUPS:
        _improve(weights, fold, held)
    return fold


def _improve(weights: np.ndarray, fold: np.ndarray, held: np.ndarray, rounds: int = 500) -> None:
    """Move single groups, and exchange pairs, while the sum of squares over folds falls; in place.

    Each round takes what helps most. The sum of squares grows by ``2 m (held[b] - held[a] + m)`` when m goes from fold a to
    fold b, where an exchange of g and h moves the difference of their weights.
    """
    groups = np.arange(len(weights))
    gram = np.einsum("gf,hf->gh", weights, weights)  # not by BLAS: equals must stay equal on every machine
    own = np.diagonal(gram)
    for _ in range(rounds):
        reach = np.einsum("gf,kf->gk", weights, held)
        here = reach[groups, fold]
        alone = np.bincount(fold, minlength=len(held))[fold] == 1
        moves = np.round(2 * (reach - here[:, None] + own[:, None]), 12)
        moves[groups, fold] = 0
        moves[alone] = 0
        there = reach[:, fold]  # of g with the fold of h
        swaps = there - here[:, None] + own[:, None] - gram
        swaps = np.round(2 * (swaps + swaps.T), 12)
        swaps[fold[:, None] == fold] = 0
        if min(moves.min(), swaps.min()) >= 0:
            return
        if moves.min() <= swaps.min():
            g, f = divmod(int(moves.argmin()), moves.shape[1])
            action = [(g, f)]
        else:
            g, h = divmod(int(swaps.argmin()), len(weights))
            action = [(g, int(fold[h])), (h, int(fold[g]))]
        for g, f in action:
            held[fold[g]] -= weights[g]
            held[f] += weights[g]
            fold[g] = f


# ---------------------------------------------------------------- the CSV ---------------------------------------------


def to_csv(rows: Iterable[Row]) -> str:
    text, rows = io.StringIO(), list(rows)
    writer = csv.writer(text, lineterminator="\n")
    image, fold, *others = COLUMNS
    divisions = max((len(row.folds) for row in rows), default=1)
    writer.writerow((image, fold, *(f"{fold}_{k + 1}" for k in range(1, divisions)), *others))
    for row in rows:
        held = "" if row.instances is None else row.instances
        writer.writerow((row.image, *row.folds, row.stratum, row.group, held))
    return text.getvalue()


def write_csv(rows: Iterable[Row], path: Path) -> None:
    with writing(path) as temporary:
        temporary.write_text(to_csv(rows))


def read_csv(path: Path) -> list[Row]:
    """The rows of a folds CSV; only the columns image and fold are needed, and fold_2, … where there are more divisions.

    Raises:
        FoldsError: a column is missing, a fold is not a whole number, an image stands there twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            fields = [field.strip() for field in reader.fieldnames or []]
            reader.fieldnames = fields
            table = list(reader)
    except FileNotFoundError as error:
        raise FoldsError(f"there is no folds CSV {path}; make it with: python -m pipeline split") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FoldsError(f"{path} is not a CSV: {error}") from error
    missing = [column for column in COLUMNS[:2] if column not in fields]
    if missing:
        raise FoldsError(
            f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(fields) or 'none'}"
        )
    further = sorted((field for field in fields if re.fullmatch(r"fold_\d+", field)), key=lambda field: int(field[5:]))
    rows = []
    for number, line in enumerate(table, start=2):
        image, fold = (line["image"] or "").strip(), (line["fold"] or "").strip()
        if not image and not fold:
            continue
        folds = [fold, *((line[column] or "").strip() for column in further)]
        for name in folds:
            if not name.isdecimal():
                raise FoldsError(
                    f"{path}, line {number}: the fold of {image} is {name!r}; it must be a whole number from 0"
                )
        stratum, group, held = ((line.get(column) or "").strip() for column in COLUMNS[2:])
        instances = int(held) if held.isdecimal() else None
        rows.append(Row(image, int(fold), stratum, group, instances, tuple(map(int, folds[1:]))))
    twice = [image for image, times in Counter(row.image for row in rows).items() if times > 1]
    if twice:
        raise FoldsError(f"{path} names {_some(twice)} more than once")
    return rows


WRITTEN = "mend it, or delete it to have a new one made by: python -m pipeline split"
NAMED = "mend it, or leave folds.file out of the experiment to have the images divided"
"""The ways out where a folds CSV is wrong: folds/<run>.csv, and one that an experiment names."""


def check(
    rows: Sequence[Row],
    path: Path,
    dataset: Dataset,
    count: int | None = None,
    repeats: int | None = None,
    way_out: str = WRITTEN,
) -> list[str]:
    """Hold a division against the images.

    Args:
        path: names the file in messages.
        count, repeats: the experiment's numbers of folds and of divisions, where they are known.

    Returns:
        Warnings: groups that are split, so that a fold is validated on what its training has as good as seen.

    Raises:
        FoldsError: unknown images, images without a fold, folds that are empty or too many.
    """
    known = {image.file_name: image for image in dataset.images}
    faults = []
    unknown = [row.image for row in rows if row.image not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.4)
        faults.append(
            f"names images that are not in the data: {_some(unknown)}" + (f" (is it {near[0]}?)" if near else "")
        )
    lost = sorted(set(known) - {row.image for row in rows})
    if lost:
        faults.append(f"misses images of the data: {_some(lost)}")
    if repeats is not None and any(len(row.folds) != repeats for row in rows):
        columns = ", ".join(["fold", *(f"fold_{k + 1}" for k in range(1, repeats))])
        faults.append(f"needs the columns {columns}, and no other folds, because folds.repeats is {repeats}")
    elif count is not None:
        for k in range(repeats or 1):
            first, last = k * count, (k + 1) * count - 1
            used, wanted = {row.folds[k] for row in rows}, set(range(first, last + 1))
            spare, empty = sorted(used - wanted), sorted(wanted - used)
            if spare:
                faults.append(
                    f"has the folds {_some(spare)}, but folds.count is {count}, so folds run from {first} to {last}"
                    + (f" in column fold_{k + 1}" if k else "")
                )
            if empty and rows:
                faults.append(f"leaves the folds {_some(empty)} without an image (folds.count is {count})")
    if faults:
        raise FoldsError(f"{path}\n  " + "\n  ".join(faults) + f"\n  {way_out}")
    spread: dict[tuple[str, int], set[int]] = defaultdict(set)
    for row in rows:
        group = known[row.image].group or row.group
        for k, fold in enumerate(row.folds if group else ()):
            spread[group, k].add(fold)
    split = sorted({group for (group, _), folds in spread.items() if len(folds) > 1})
    if not split:
        return []
    return [f"{path} splits groups over folds, so that scores are flattered: {_some(split)}"]


def read_folds(path: Path, dataset: Dataset) -> dict[int, tuple[int, ...]]:
    """By image id of the dataset, the folds that validate on it: one of every division.

    Raises:
        FoldsError: the CSV cannot be read or does not fit the images.
    """
    rows = read_csv(path)
    check(rows, path, dataset)
    folds = {row.image: row.folds for row in rows}
    return {image.id: folds[image.file_name] for image in dataset.images}


def used_folds(folds: Mapping[int, Sequence[int]], used: Iterable[int]) -> dict[int, list[int]]:
    """By image id, those of its folds that are used; images that have none are left out."""
    wanted = set(used)
    kept = {image_id: [fold for fold in own if fold in wanted] for image_id, own in folds.items()}
    return {image_id: own for image_id, own in kept.items() if own}


def _some(things: Sequence[object], shown: int = 5) -> str:
    more = f" and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(map(str, things[:shown])) + more


# ---------------------------------------------------------------- whose CSV it is -------------------------------------


def remember(path: Path, record: Path, by_hand: bool) -> None:
    """Keep the CSV's hash: any other content was written or edited by hand since."""
    path.touch()  # made now, even where nothing needed to change: the graph goes by time
    write_json(record, {"by_hand": by_hand, "sha256": _sha256(path)})


def remembered(record: Path) -> dict[str, Any]:
    """What `remember` kept; empty where nothing was."""
    try:
        return dict(json.loads(record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def is_known(path: Path, record: Path) -> bool:
    """Whether the CSV is as it was when it was last made or checked."""
    return remembered(record).get("sha256") == _sha256(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
