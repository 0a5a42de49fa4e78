"""Repairs of submissions that are COCO results: those that are certain, because only one reading fits."""

from __future__ import annotations

import ast
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats.coco_results import box_overlaps, load, write_zip
from pipeline.competitions.formats.record_keys import KEYS, misspelt
from pipeline.competitions.formats.score_scale import scaled
from pipeline.masks import polygons_to_rle, rle_to_crop, transposed
from pipeline.records import Dataset, Image, compressed

FITS = 0.2
"""IoU of a box with its mask's box from which on a reading of them fits: boxes are networks', not the masks' own."""

AS_GIVEN = 0.5
"""Mean IoU of boxes with their masks' boxes from which on they are taken to be meant as they stand."""

MOST = 0.9
"""The share of records that a reading has to fit before all are read so."""

LARGEST = 1 << 28
"""Pixels of an image; what says that it has more is not looked into."""

FEWEST = 2
"""Records that say something about how boxes and masks are meant."""


def fix(
    path: Path, member: str, ids: Dataset, categories: Iterable[int], target: Path, most: int | None = None
) -> list[str]:
    """Write a repaired copy and say what was changed; see `Competition.fix`.

    Args:
        member: the name of the zip's one file.
        ids: the images that may be spoken of.
        categories: the category ids that count.
        most: see `load`.
    """
    value, problems = load(path, member, ids, most)
    if value is None:
        raise CompetitionError(f"{path}: {'; '.join(p.text for p in problems if p.severity == 'error')}")
    repair = _Repair(ids, sorted(set(categories)))
    if problems:
        repair.changes[f"packed alone, as {member}, into a zip"] += 1
    records = repair.run(value)
    if not repair.changes:
        raise CompetitionError(f"{path} holds nothing that could be repaired with certainty")
    if not records:
        raise CompetitionError(f"{path}: no detection would be left")
    try:
        write_zip(records, target, member)
    except (ValueError, TypeError, RecursionError) as error:  # what is left may not be JSON, e.g. a NaN deep inside
        raise CompetitionError(f"{path} cannot be repaired: {error}") from error
    return [f"{text} ({count:,} records)" if count > 1 else text for text, count in repair.changes.items()]


class _Repair:
    """One file's repair. `changes` counts, by what was done, how many records it was done to."""

    def __init__(self, ids: Dataset, categories: list[int]) -> None:
        self.ids = ids
        self.categories = categories
        self.by_name = _names(ids.images)
        self.changes: Counter[str] = Counter()

    def run(self, value: Any) -> list[dict[str, Any]]:
        """The records of a parsed submission, repaired.

        Raises:
            CompetitionError: there are none.
        """
        records = [copy.copy(record) for record in self._records(value)]
        for record in records:
            self._keys(record)
            self._number(record, "image_id", self._image_id)
            self._number(record, "category_id", _whole)
            self._number(record, "score", _float)
            self._mask(record)
        # what will not stay is no evidence of how the rest is meant
        records = [record for record in records if self._has_rank(record) and not self._is_empty(record)]
        self._shifted_images(records)
        self._one_category(records)
        self._scale_of_scores(records)
        self._swapped_sizes(records)
        self._readings(records)
        for record in records:
            self._box(record)
        self._from_one(records)
        return records

    def _image(self, record: dict[str, Any]) -> Image | None:
        number = _int(record, "image_id")
        return None if number is None else self.ids.image.get(number)

    # ------------------------------------------------ the whole -------------------------------------------------------

    def _records(self, value: Any) -> list[dict[str, Any]]:
        if isinstance(value, dict):
            lists = [v for v in value.values() if isinstance(v, list) and any(_is_result(r) for r in v)]
            if _is_result(value):
                lists.append([value])
            if len(lists) == 1:
                value = lists[0]
                self.changes["the list of records taken out of the object around it"] += 1
        if not isinstance(value, list):
            raise CompetitionError("the file holds no list of records, and it is not certain where they are")
        records = [record for record in value if isinstance(record, dict)]
        if len(records) < len(value):
            self.changes["entries that are no records left out"] += len(value) - len(records)
        return records

    def _keys(self, record: dict[str, Any]) -> None:
        for wrong, right in misspelt(record).items():
            record[right] = record.pop(wrong)
            self.changes[f"the key {wrong!r} is now {right!r}"] += 1
        made = {"bbox", "category_id"} if len(self.categories) == 1 else {"bbox"}
        if not set(KEYS) <= set(record) | made:
            return  # a spare key may hold, by whatever name, what is missing
        for key in [key for key in record if key not in KEYS]:
            del record[key]
            self.changes[f"the key {key!r}, which means nothing to the scorer, removed"] += 1

    def _number(self, record: dict[str, Any], key: str, read: Callable[[Any], Any]) -> None:
        if key not in record:
            return
        value = read(record[key])
        if value is not None and value is not record[key]:
            record[key] = value
            self.changes[f"{key} is now a number"] += 1

    def _image_id(self, value: Any) -> int | None:
        number = _whole(value)
        if number is None and isinstance(value, str):
            return self.by_name.get(value.rsplit("/", 1)[-1])
        return number

    def _shifted_images(self, records: list[dict[str, Any]]) -> None:
        """Ids counted from 0, which the masks' sizes give away where images differ in theirs."""
        chosen = [record for record in records if _int(record, "image_id") is not None]
        used = {record["image_id"] for record in chosen}
        if not (0 in used and 0 not in self.ids.image and all(i + 1 in self.ids.image for i in used)):
            return
        sizes = [(self.ids.image[record["image_id"] + 1], _size(record)) for record in chosen]
        if len({size for _, size in sizes}) >= 3 and all(size == (i.height, i.width) for i, size in sizes):
            for record in chosen:
                record["image_id"] += 1
            self.changes["image ids counted from 0 now count from 1"] += len(sizes)

    def _one_category(self, records: list[dict[str, Any]]) -> None:
        """Where there is one class, a missing id and an id counted from 0 mean it."""
        if len(self.categories) != 1:
            return
        (only,) = self.categories
        given = {_int(record, "category_id") for record in records if "category_id" in record}
        for record in records:
            if "category_id" not in record or (record["category_id"] == only - 1 and given == {only - 1}):
                record["category_id"] = only
                self.changes[f"category_id is now {only}, the only one"] += 1

    def _has_rank(self, record: dict[str, Any]) -> bool:
        score = record.get("score")
        if isinstance(score, float) and not math.isfinite(score):
            self.changes["a record left out whose score is not finite, so that it has no rank"] += 1
            return False
        return True

    def _scale_of_scores(self, records: list[dict[str, Any]]) -> None:
        """Scores outside 0..1 are scaled all together: the metric looks at their order alone, and that is kept."""
        scores = [r["score"] for r in records if _is_number(r.get("score"))]
        new = scaled(scores)
        if not new:
            return
        for record in records:
            if _is_number(record.get("score")):
                record["score"] = float(new[record["score"]])
        self.changes["scores scaled to 0..1, in the same order"] += len(scores)

    # ------------------------------------------------ masks -----------------------------------------------------------

    def _mask(self, record: dict[str, Any]) -> None:
        """Polygons, lists of runs and Python's way to write bytes become compressed run lengths."""
        image, mask = self._image(record), record.get("segmentation")
        if isinstance(mask, list):
            rle = _rasterised(mask, image)
            if rle is not None:
                record["segmentation"] = rle
                self.changes["polygons rasterised, as pycocotools does, to run lengths"] += 1
            return
        if not isinstance(mask, dict) or set(mask) != {"size", "counts"}:
            return
        size = mask["size"]
        whole = [_whole(v) for v in size] if isinstance(size, list) else []
        if len(whole) == 2 and None not in whole and (whole != size or any(type(v) is not int for v in size)):
            mask = record["segmentation"] = {**mask, "size": whole}
            self.changes["the masks' size is now whole numbers"] += 1
        counts = mask["counts"]
        if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
            text = _literal_bytes(counts)
            if text is not None and _readable({**mask, "counts": text}) is not None:
                record["segmentation"] = {**mask, "counts": text}
                self.changes["counts are the text itself, not Python's way to write bytes"] += 1
        elif isinstance(counts, list) and all(type(v) is int for v in counts) and _readable(mask) is not None:
            record["segmentation"] = compressed(mask, mask["size"])
            self.changes["lists of run lengths compressed"] += 1

    def _swapped_sizes(self, records: list[dict[str, Any]]) -> None:
        """Masks whose size is [width, height]: either only that is swapped or the mask is transposed; the boxes tell."""
        swapped = []
        for record in records:
            image, size = self._image(record), _size(record)
            if image is None or size is None or size == (image.height, image.width):
                continue
            if size != (image.width, image.height):
                return  # of another scale: nothing is certain
            swapped.append(record)
        if any(_readable(record["segmentation"]) is None for record in swapped):
            return
        masks = {
            False: {
                id(r): {"size": r["segmentation"]["size"][::-1], "counts": r["segmentation"]["counts"]} for r in swapped
            },
            True: {id(r): transposed(r["segmentation"]) for r in swapped},
        }
        fits = {
            (turned, corners): self._fit(swapped, [_given(r, corners) for r in swapped], masks[turned])
            for turned in (False, True)
            for corners in (False, True)
        }
        if len(fits[False, False]) < FEWEST:
            return
        turned, corners = max(fits, key=lambda reading: fits[reading].mean())
        rival = max((fits[not turned, c] for c in (False, True)), key=lambda fit: fit.mean())
        if _fitting(fits[turned, corners], rival):
            for record in swapped:
                record["segmentation"] = masks[turned][id(record)]
            self.changes["the masks' size is now [height, width]"] += len(swapped)

    def _fit(
        self, records: list[dict[str, Any]], given: list[np.ndarray | None], masks: dict[int, dict[str, Any]]
    ) -> np.ndarray:
        """IoU of each record's box with that of a mask given for it; of records that have both."""
        pairs = [
            (g, b)
            for r, g in zip(records, given, strict=True)
            if g is not None and (b := _readable(masks[id(r)])) is not None
        ]
        return box_overlaps(
            np.array([g for g, _ in pairs]).reshape(-1, 4), np.array([b for _, b in pairs]).reshape(-1, 4)
        )

    def _readings(self, records: list[dict[str, Any]]) -> None:
        """Boxes given as corners and runs that go along the rows, where all masks and boxes fit only when read so."""
        usable = []
        for record in records:
            image = self._image(record)
            if (
                image is not None
                and _size(record) == (image.height, image.width)
                and _readable(record["segmentation"]) is not None
            ):
                usable.append(record)
        as_is = {id(r): r["segmentation"] for r in usable}
        fits = {(False, c): self._fit(usable, [_given(r, c) for r in usable], as_is) for c in (False, True)}
        given = fits[False, False]
        if len(given) < FEWEST or given.mean() >= AS_GIVEN:
            return
        along = {id(r): transposed({**r["segmentation"], "size": r["segmentation"]["size"][::-1]}) for r in usable}
        if len(given) > FEWEST:
            fits |= {(True, c): self._fit(usable, [_given(r, c) for r in usable], along) for c in (False, True)}
        best, second = sorted(fits, key=lambda reading: -fits[reading].mean())[:2]
        if best == (False, False) or not _fitting(fits[best], given) or fits[best].mean() - fits[second].mean() < 0.1:
            return
        if best[0]:
            for record in usable:
                record["segmentation"] = along[id(record)]
            self.changes["runs that went along the rows now go down the columns"] += len(usable)
        if best[1]:
            self._from_corners(records)

    def _from_corners(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            box = record.get("bbox")
            if _is_box(box):
                record["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                self.changes["bbox is now [x, y, width, height], it was corners"] += 1

    def _is_empty(self, record: dict[str, Any]) -> bool:
        box = _readable(record.get("segmentation"))
        if box is not None and box[2] <= box[0]:
            self.changes["a record left out whose mask is empty"] += 1
            return True
        return False

    # ------------------------------------------------ boxes -----------------------------------------------------------

    def _box(self, record: dict[str, Any]) -> None:
        """A box that is missing or none at all is the mask's."""
        box = record.get("bbox")
        if _is_box(box) and box[2] >= 0 and box[3] >= 0:
            return
        own = _readable(record.get("segmentation"))
        if own is not None:
            x0, y0, x1, y1 = (float(v) for v in own)
            record["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            self.changes["bbox made from the mask"] += 1

    def _from_one(self, records: list[dict[str, Any]]) -> None:
        """Boxes that are their masks' exactly, but for a pixel further right and down."""
        chosen = [r for r in records if _is_box(r.get("bbox"))]
        masks = [_readable(r.get("segmentation")) for r in chosen]
        if len(chosen) <= FEWEST or any(m is None for m in masks):
            return
        expected = [[m[0] + 1, m[1] + 1, m[2] - m[0], m[3] - m[1]] for m in masks if m is not None]
        if np.array_equal([r["bbox"] for r in chosen], expected):
            for record in chosen:
                x, y, width, height = record["bbox"]
                record["bbox"] = [x - 1, y - 1, width, height]
            self.changes["boxes counted from 1 now count from 0"] += len(chosen)


# ---------------------------------------------------------------- values ----------------------------------------------


def _names(images: Iterable[Image]) -> dict[str, int]:
    """Image ids by file name and by its stem, where these are one image's alone."""
    found: dict[str, set[int]] = {}
    for image in images:
        name = image.file_name.rsplit("/", 1)[-1]
        for key in {name, name.rsplit(".", 1)[0]}:
            found.setdefault(key, set()).add(image.id)
    return {key: next(iter(numbers)) for key, numbers in found.items() if len(numbers) == 1}


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and "image_id" in value and "score" in value


def _int(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if type(value) is int else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> int | None:
    """A whole number that is written as text or with a point; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _float(value: Any) -> float | int | None:
    """A number, also from text; whole ones that are too large are infinite."""
    if _is_number(value) and (isinstance(value, float) or abs(value) < 1 << 53):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return math.inf


def _is_box(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(v) and abs(v) < 1e15 for v in value)


def _given(record: dict[str, Any], corners: bool) -> np.ndarray | None:
    """A record's box as (4,) float64 x0, y0, x1, y1, read as corners or as place and size."""
    box = record.get("bbox")
    if not _is_box(box):
        return None
    x, y, right, bottom = (float(v) for v in box)
    return np.array([x, y, right, bottom] if corners else [x, y, x + right, y + bottom])


def _fitting(own: np.ndarray, other: np.ndarray) -> bool:
    """Whether one reading fits nearly all records, and the other none of those that can tell them apart."""
    told = np.abs(own - other) > 0.1 if len(own) == len(other) else np.zeros(0, bool)
    return bool(told.sum() >= FEWEST and (own >= FITS).mean() >= MOST and (own[told] > other[told]).mean() >= MOST)


def _size(record: dict[str, Any]) -> tuple[int, int] | None:
    mask = record.get("segmentation")
    size = mask.get("size") if isinstance(mask, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(v) is int for v in size):
        return size[0], size[1]
    return None


def _readable(mask: Any) -> np.ndarray | None:
    """The half-open box of a run-length mask, (4,) int32, zeros for an empty one; None where it cannot be read."""
    if not isinstance(mask, dict) or _size({"segmentation": mask}) is None:
        return None
    height, width = mask["size"]
    if not 0 < height * width <= LARGEST or not isinstance(mask.get("counts"), (str, list)):
        return None
    try:
        return rle_to_crop(mask)[0]
    except (ValueError, TypeError, OverflowError):
        return None


def _literal_bytes(text: str) -> str | None:
    """The text inside ``b'…'``."""
    try:
        value = ast.literal_eval(text)
        return value.decode("ascii") if isinstance(value, bytes) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _rasterised(polygons: list[Any], image: Image | None) -> dict[str, Any] | None:
    """Polygons as run lengths; None where they are none, or reach so far out that they cannot be meant."""
    parts = [polygons] if polygons and all(_is_number(v) for v in polygons) else polygons
    if image is None or not parts or not all(isinstance(part, list) and len(part) >= 6 for part in parts):
        return None
    furthest = 2 * max(image.height, image.width)
    if not all(len(part) % 2 == 0 and all(_is_number(v) and abs(v) <= furthest for v in part) for part in parts):
        return None
    return polygons_to_rle(parts, (image.height, image.width))
