"""What competitions there are, which of them some files are of, what is missing, and whether the data are sound.

``python -m pipeline datasets [PATH]`` in functions. Nothing here trains or keeps anything: the files are read into a temporary
folder exactly as `prepare` reads them, looked at, and thrown away.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import competitions, near_duplicates
from pipeline.competitions import CompetitionError
from pipeline.competitions.formats.archive import Archive
from pipeline.competitions.formats.bundle import Bundle
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Image, Instance

SHOWN = 5
"""Examples named of a kind of finding."""


def listing() -> list[dict[str, Any]]:
    """Every competition: ``{"name", "metric", "submission", "download"}``."""
    found = []
    for name in competitions.names():
        competition = competitions.get(name)
        found.append(
            {
                "name": name,
                "metric": competition.metric,
                "submission": competition.suffix,
                "download": competition.download,
            }
        )
    return found


# ---------------------------------------------------------------- which competition -----------------------------------


@dataclass(frozen=True)
class Match:
    """How well some files fit a competition's layout: what is `missing` of its `parts`."""

    name: str
    missing: list[str]
    parts: int

    @property
    def present(self) -> int:
        return self.parts - len(self.missing)


def file_names(path: Path) -> list[str]:
    """The names in an archive or folder; zips in it count as unpacked, each into a folder of its name, unless one is damaged.

    Raises:
        CompetitionError: there is nothing at `path`, or it is not an archive.
    """
    try:
        with Bundle(path) as bundle:
            return bundle.names
    except CompetitionError:
        with Archive(path) as archive:
            return archive.names


def recognise(names: Sequence[str]) -> list[Match]:
    """Every competition whose layout the names have some of: those with most of its parts first, then those that lack least."""
    found = []
    for name in competitions.names():
        competition = competitions.get(name)
        missing, parts = competition.missing(names), len(competition.missing([]))
        if len(missing) < parts:
            found.append(Match(name, missing, parts))
    return sorted(found, key=lambda match: (-match.present, len(match.missing), match.name))


def choose(path: Path, names: Sequence[str], wanted: str | None) -> Match:
    """The competition that the files are of.

    Args:
        wanted: its name, where that is known.

    Raises:
        CompetitionError: they are of none, or of several equally well; the message says what to do.
    """
    if wanted is not None:
        competition = competitions.get(wanted)
        return Match(wanted, competition.missing(names), len(competition.missing([])))
    found = [match for match in recognise(names) if match.present > 1 or not match.missing]
    if not found:
        top = ", ".join(sorted({name.split("/")[0] for name in names})[:8]) or "nothing"
        raise CompetitionError(
            f"{path} looks like no competition that is known ({', '.join(competitions.names())}); it has {top}. "
            f"Name one with --competition to see what it lacks"
        )
    best = found[0]
    equals = [m.name for m in found if (m.present, len(m.missing)) == (best.present, len(best.missing))]
    if len(equals) > 1:
        raise CompetitionError(f"{path} may be of {' or of '.join(equals)}; say which with --competition NAME")
    return best


# ---------------------------------------------------------------- integrity -------------------------------------------


def examine(path: Path, wanted: str | None = None) -> dict[str, Any]:
    """Which competition the files are of, what is missing, and the integrity report.

    Args:
        wanted: the competition's name, where the files do not tell.

    Returns:
        ``{"path", "competition", "missing", "error", "train", "test", "near_duplicates", "problems"}``, plain JSON values.
        ``error`` says why the data cannot be read, and is null where they can; then the parts are there, see `describe`.

    Raises:
        CompetitionError: nothing is at `path`, or it is of no competition.
    """
    match = choose(path, file_names(path), wanted)
    report: dict[str, Any] = {"path": str(path), "competition": match.name, "missing": match.missing, "error": None}
    with tempfile.TemporaryDirectory(prefix="maskfold-") as folder:
        try:
            prepared = competitions.get(match.name).read(path, {}, 0, Path(folder))
        except CompetitionError as error:
            return {**report, "error": str(error), "problems": []}
        prepared, copies = near_duplicates.keep_together(prepared)
        same = _same_files(prepared.train, prepared.test)
        train = describe(prepared.train)
        test = describe(prepared.test)
    return {
        **report,
        "train": train,
        "test": test,
        "same_files": same,
        "near_duplicates": copies.to_json(),
        "problems": prepared.integrity.to_json()["problems"],
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts and measures of a dataset, crowds apart.

    ``images``, ``groups`` (sources that folds keep together), ``sizes`` ({"WxH": images}), ``empty_images``, ``instances``,
    ``crowds``, ``per_image`` and ``classes`` ({name: {"instances", "images", "area"}}), spans being ``[least, median, most]``;
    ``overlaps`` (``pixels`` in more than one mask of a class, the ``images`` and ``masks`` that they are in; and pixels in masks
    of several classes, ``between_classes``), ``duplicate_masks`` and ``two_part_masks`` (``count`` and some ``examples``, as
    "image, annotation id").
    """
    whole = [a for a in dataset.instances if not a.crowd]
    areas: dict[int, list[int]] = {c: [] for c in dataset.categories}
    holding: dict[int, int] = Counter()
    overlaps = Counter({"pixels": 0, "images": 0, "masks": 0, "between_classes": 0})
    twice: list[str] = []
    parted: list[str] = []
    for image in dataset.images:
        own = [a for a in dataset.by_image[image.id] if not a.crowd]
        crops = [rle_to_crop(a.rle) for a in own]
        for category_id in {a.category_id for a in own}:
            holding[category_id] += 1
        for instance, (_, mask) in zip(own, crops, strict=True):
            areas.setdefault(instance.category_id, []).append(int(mask.sum()))
            if _parts(mask) > 1:
                parted.append(_place(image, instance))
        seen = set()
        for instance in own:
            if instance.rle["counts"] in seen:
                twice.append(_place(image, instance))
            seen.add(instance.rle["counts"])
        overlaps.update(_overlaps(image, own, crops))
    per_image = [sum(not a.crowd for a in dataset.by_image[i.id]) for i in dataset.images]
    return {
        "images": len(dataset.images),
        "groups": len({image.group or image.file_name for image in dataset.images}),
        "sizes": dict(Counter(f"{i.width}x{i.height}" for i in dataset.images).most_common()),
        "empty_images": sum(count == 0 for count in per_image),
        "instances": len(whole),
        "crowds": len(dataset.instances) - len(whole),
        "per_image": _span(per_image),
        "classes": {
            dataset.categories.get(c, str(c)): {"instances": len(a), "images": holding[c], "area": _span(a)}
            for c, a in areas.items()
        },
        "overlaps": dict(overlaps),
        "duplicate_masks": {"count": len(twice), "examples": twice[:SHOWN]},
        "two_part_masks": {"count": len(parted), "examples": parted[:SHOWN]},
    }


def _place(image: Image, instance: Instance) -> str:
    return f"{image.file_name}, annotation {instance.id}"


def _span(values: Sequence[int]) -> list[float]:
    return [float(v) for v in (min(values), np.median(values), max(values))] if values else []


def _parts(mask: np.ndarray) -> int:
    """How many pieces a mask has that touch nowhere, not even at corners."""
    if not mask.size:
        return 0
    import cv2

    return int(cv2.connectedComponents(mask, connectivity=8)[0]) - 1


def _overlaps(image: Image, own: Sequence[Instance], crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Pixels in more than one mask of a class, and in masks of more than one class; and the masks that the former are of."""
    classes = np.zeros((image.height, image.width), np.uint16)
    pixels = masks = 0
    for category_id in {a.category_id for a in own}:
        chosen = [crop for a, crop in zip(own, crops, strict=True) if a.category_id == category_id]
        count = np.zeros_like(classes)
        for (x0, y0, x1, y1), mask in chosen:
            count[y0:y1, x0:x1] += mask
        classes += count > 0
        shared = int((count > 1).sum())
        if shared:
            pixels += shared
            masks += sum(bool((count[y0:y1, x0:x1][mask > 0] > 1).any()) for (x0, y0, x1, y1), mask in chosen)
    return {"pixels": pixels, "images": int(pixels > 0), "masks": masks, "between_classes": int((classes > 1).sum())}


def _same_files(*datasets: Dataset) -> list[list[str]]:
    """Sets of images that are the same file to the byte."""
    import hashlib

    found: dict[str, list[str]] = {}
    for dataset in datasets:
        for image in dataset.images:
            digest = hashlib.sha256(dataset.path(image).read_bytes()).hexdigest()
            found.setdefault(digest, []).append(image.file_name)
    return [names for names in found.values() if len(names) > 1]


# ---------------------------------------------------------------- in words --------------------------------------------


def is_sound(report: dict[str, Any]) -> bool:
    """Whether nothing is missing and nothing is wrong beyond warnings."""
    errors = any(problem["severity"] == "error" for problem in report["problems"])
    return not (report["missing"] or report["error"] or errors)


def listed(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """`listing` in lines."""
    for one in found:
        yield f"{one['name']}"
        yield f"    metric:     {one['metric']}"
        yield f"    submission: {one['submission']}"
        head, *rest = one["download"].splitlines()
        yield f"    data:       {head}"
        yield from (f"                {line}" for line in rest)


def told(report: dict[str, Any]) -> Iterator[str]:
    """`examine` in lines."""
    yield f"{report['path']} is of {report['competition']}"
    for part in report["missing"]:
        yield f"missing: {part}"
    if report["missing"]:
        yield "where to get the data:"
        yield from (f"  {line}" for line in competitions.get(report["competition"]).download.splitlines())
    if report["error"]:
        yield f"it cannot be read: {report['error']}"
        return
    for part in ("train", "test"):
        yield from _told_part(part, report[part])
    for names in report["same_files"][:SHOWN]:
        yield f"the same file: {', '.join(names[:SHOWN])}"
    pairs, sets = report["near_duplicates"]["pairs"], report["near_duplicates"]["sets"]
    yield f"near-duplicate images: {len(pairs)} pairs; {len(sets)} sets of training images that folds keep together"
    for problem in report["problems"]:
        yield f"{problem['severity']}: {problem['file']}: {problem['text']}"


def _told_part(part: str, facts: dict[str, Any]) -> Iterator[str]:
    sizes = list(facts["sizes"].items())
    shown = ", ".join(f"{size} ({count})" for size, count in sizes[:SHOWN]) + (" …" if len(sizes) > SHOWN else "")
    yield f"{part}: {facts['images']:,} images of {facts['groups']:,} sources; sizes {shown or 'none'}"
    if not facts["instances"]:
        return
    least, median, most = facts["per_image"]
    yield (
        f"  {facts['instances']:,} instances, {least:g} to {most:g} an image (median {median:g}); "
        f"{facts['empty_images']} images without any; {facts['crowds']} crowds"
    )
    for name, one in facts["classes"].items():
        if one["instances"]:
            least, median, most = one["area"]
            yield (
                f"  {name}: {one['instances']:,} instances on {one['images']:,} images, "
                f"{least:g} to {most:g} pixels (median {median:g})"
            )
        else:
            yield f"  {name}: none"
    over = facts["overlaps"]
    yield (
        f"  overlaps: {over['pixels']:,} pixels of {over['masks']:,} masks on {over['images']:,} images; "
        f"between classes {over['between_classes']:,} pixels"
    )
    for key, what in (("duplicate_masks", "masks that are there twice"), ("two_part_masks", "masks in several parts")):
        examples = "; ".join(facts[key]["examples"])
        yield f"  {what}: {facts[key]['count']:,}" + (f" ({examples})" if examples else "")
