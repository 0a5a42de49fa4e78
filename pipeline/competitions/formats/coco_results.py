"""Submissions that are COCO results: a list of ``{image_id, bbox, score, category_id, segmentation}`` in a zip."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats import box_shift, zipped
from pipeline.competitions.formats.faults import SHOWN, Faults, too_large
from pipeline.competitions.formats.record_keys import KEYS, misspelt
from pipeline.files import writing
from pipeline.masks import FOREGROUND, rle_to_crop, tight_box
from pipeline.records import Dataset, Detections, Image

log = logging.getLogger("pipeline.competitions")

MAX_JSON_BYTES = 512 << 20
"""A submission that unpacks to more is refused unread: real ones hold a few MB."""

APART = 0.05
"""IoU of a box and its mask's tight box below which they are in different places."""

SAMPLE = 1000
"""Records that are looked at to tell how all are meant."""


# ---------------------------------------------------------------- reading ---------------------------------------------


def load(path: Path, member: str, images: Dataset | None = None, most: int | None = None) -> tuple[Any, list[Problem]]:
    """The JSON value of a submission, told by its content to be a zip, Parquet or bare JSON.

    Args:
        member: the name that the zip's one file should have; any other single JSON file is read too, with a problem.
        images: the images' sizes, for a Detections file.
        most: bytes of JSON, for competitions whose submissions may be larger than `MAX_JSON_BYTES`.

    Returns:
        The value, None when it cannot be read; and what is wrong with the container.
    """
    most = most or MAX_JSON_BYTES
    try:
        if path.stat().st_size > most:
            return None, [
                Problem("error", path.name, f"holds {path.stat().st_size:,} bytes, too large for a submission")
            ]
        with open(path, "rb") as handle:
            head = handle.read(4)
    except FileNotFoundError:
        return None, [Problem("error", str(path), "there is no such file")]
    except OSError as error:
        return None, [Problem("error", str(path), f"cannot be read: {error.strerror}")]
    if head[:2] == b"PK" or path.suffix.lower() == ".zip":
        content, problems = _from_zip(path, member, most)
    elif head == b"PAR1":
        return _from_parquet(path, images)
    else:
        content = path.read_bytes()
        problems = [
            Problem("warning", path.name, f"is a bare JSON file; the leaderboard takes a zip that holds {member}")
        ]
    if content is None:
        return None, problems
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:3] == b"\xef\xbb\xbf":
        text = "begins with a byte order mark, at which the scorer's reader stops; write it as plain UTF-8"
        problems.append(Problem("error", path.name, text, "not JSON"))
    try:
        return json.loads(content), problems
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        what = "is empty" if not content.strip() else f"is not JSON: {error}"
        return None, [*problems, Problem("error", path.name, what, "not JSON")]


def _from_zip(path: Path, member: str, most: int) -> tuple[bytes | None, list[Problem]]:
    problems: list[Problem] = []
    try:
        with zipped.opened(path, member, most, problems) as handle:
            return (None if handle is None else handle.read()), problems
    except zipped.DamagedError as error:
        return None, [Problem("error", path.name, str(error), "archive")]


def _from_parquet(path: Path, images: Dataset | None) -> tuple[Any, list[Problem]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    note = Problem("warning", path.name, "is a Parquet file; the leaderboard takes a zip of JSON", "archive")
    try:
        if b"maskfold" not in (pq.read_schema(path).metadata or {}):
            return pq.read_table(path).to_pylist(), [note]
        found = Detections.read(path)
    except (ValueError, OSError, pa.ArrowException) as error:
        return None, [Problem("error", path.name, f"is not a readable Parquet file: {error}", "archive")]
    if images is None:
        text = "holds detections without the images' sizes; give the images, or convert it with `encode`"
        return None, [Problem("error", path.name, text, "archive")]
    unknown = sorted(set(found.image_id.tolist()) - set(images.image))
    if unknown:
        return None, [
            Problem("error", path.name, f"speaks of image ids that are not known: {unknown[:10]}", "image id")
        ]
    try:
        return found.to_coco({i.id: (i.height, i.width) for i in images.images}), [note]
    except ValueError as error:
        return None, [Problem("error", path.name, f"does not fit the images: {error}", "archive")]


def read_records(path: Path, member: str, images: Dataset | None = None) -> list[dict[str, Any]]:
    """The records of a submission that can be read at all; oddities of its container are logged.

    Raises:
        CompetitionError: it cannot be read, or is no list of records.
    """
    value, problems = load(path, member, images)
    if value is None:
        raise CompetitionError("\n".join(f"{path}: {p.text}" for p in problems if p.severity == "error"))
    for problem in problems:
        log.warning("%s", problem)
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise CompetitionError(f"{path} holds {_shape(value)}, not a list of results records")
    return value


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(list(value)[:5])}"
    if isinstance(value, list):
        return "a list of things that are not all objects"
    return f"a {type(value).__name__}"


# ---------------------------------------------------------------- ids -------------------------------------------------


def read_ids(path: Path, categories: Mapping[int, str]) -> Dataset:
    """Test images from a list of ``{file_name, height, id, width}`` or from a COCO json, without instances.

    Raises:
        CompetitionError: there is no such file, or it is neither; ids or names occur twice.
    """
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CompetitionError(f"there is no file {path}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CompetitionError(f"{path} is not JSON: {error}") from error
    return parse_ids(raw, str(path), categories)


def parse_ids(raw: Any, place: str, categories: Mapping[int, str]) -> Dataset:
    """`read_ids` of a parsed file; `place` names it in errors."""
    rows = raw.get("images") if isinstance(raw, dict) else raw
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CompetitionError(f"{place} is neither a list of images nor a COCO json with the key 'images'")
    images = []
    for number, row in enumerate(rows):
        missing = [key for key in ("file_name", "height", "id", "width") if key not in row]
        if missing:
            raise CompetitionError(
                f"{place}: image {number} has no {' and no '.join(missing)}; it has {', '.join(row)}"
            )
        try:
            images.append(Image(int(row["id"]), str(row["file_name"]), int(row["height"]), int(row["width"])))
        except (TypeError, ValueError, OverflowError) as error:
            raise CompetitionError(f"{place}: image {number} ({row['file_name']}): {error}") from error
    for what, values in (("id", [i.id for i in images]), ("file_name", [i.file_name for i in images])):
        twice = [str(value) for value, count in Counter(values).items() if count > 1]
        if twice:
            raise CompetitionError(f"{place}: the {what} {', '.join(twice[:SHOWN])} occurs more than once")
    return Dataset(images, dict(categories))


# ---------------------------------------------------------------- writing ---------------------------------------------


def submission_records(detections: Detections, test: Dataset) -> list[dict[str, Any]]:
    """Detections as records: image by image as in `test`, best first; boxes clipped to the image, empty masks left out.

    A regressed box that has no area, or hardly overlaps its mask's (`APART`), gives way to the mask's: a scorer may take the
    one amiss, and `check` the other.
    """
    position = {image.id: k for k, image in enumerate(test.images)}
    unknown = sorted(set(detections.image_id.tolist()) - set(position))
    if unknown:
        raise CompetitionError(f"there are detections on images that are not to be submitted: {unknown[:10]}")
    order = np.lexsort((-detections.score, np.array([position[i] for i in detections.image_id.tolist()], np.int64)))
    records, regressed, of_masks, sides = [], [], [], []
    for i in order.tolist():
        seen = detections.crop(i) >= FOREGROUND
        if not seen.any():
            continue
        image = test.image[int(detections.image_id[i])]
        regressed.append(detections.box[i])
        of_masks.append(np.array(tight_box(seen)) + np.tile(detections.mask_box[i][:2], 2))
        sides.append((image.width, image.height))
        records.append(
            {
                "image_id": image.id,
                "bbox": None,  # below, all at once
                "score": float(detections.score[i]),
                "category_id": int(detections.category_id[i]),
                "segmentation": detections.rle(i, (image.height, image.width)),
            }
        )
    if not records:
        return []
    masks = np.stack(of_masks)
    boxes = np.clip(np.stack(regressed).astype(np.float64), 0, np.tile(np.array(sides), 2))
    boxes = np.where((box_overlaps(boxes, masks) < APART)[:, None], masks, boxes)
    boxes[:, 2:] -= boxes[:, :2]
    for record, box in zip(records, boxes.round(2).tolist(), strict=True):
        record["bbox"] = box
    return records


def write_zip(records: Sequence[Mapping[str, Any]], path: Path, member: str) -> None:
    """Write records as compact JSON into a zip with one deflated member; the same records give the same bytes."""
    content = json.dumps(list(records), separators=(",", ":"), allow_nan=False).encode()
    with writing(path) as temporary, zipped.written(temporary, member, level=9) as handle:
        handle.write(content)


# ---------------------------------------------------------------- checking --------------------------------------------


def check(
    path: Path,
    member: str,
    ids: Dataset,
    categories: Iterable[int],
    max_detections: int | None,
    most: int | None = None,
    box_needed: bool = True,
) -> list[Problem]:
    """Every problem of a submission.

    Args:
        member: the name of the zip's one file.
        ids: the images that may be, and should be, spoken of.
        categories: the category ids that count.
        max_detections: more detections than this on one image (and class) is worth a warning.
        most: see `load`.
        box_needed: whether records without a bbox are faults; to pycocotools they are none.
    """
    value, problems = load(path, member, ids, most)
    if value is None:
        return problems
    problems += too_large(path)
    return problems + check_records(value, ids, categories, max_detections, box_needed)


def check_records(
    value: Any, ids: Dataset, categories: Iterable[int], max_detections: int | None, box_needed: bool = True
) -> list[Problem]:
    """`check` of the parsed content."""
    if not isinstance(value, list):
        return [Problem("error", "the file", f"holds {_shape(value)}; it must be a list of records", "structure")]
    if not value:
        return [
            Problem("error", "the file", "holds no detections at all; the scorer stops on an empty list", "structure")
        ]
    faults = Faults()
    known = sorted(set(categories))
    boxes: list[tuple[np.ndarray, np.ndarray, str, dict[str, Any]]] = []
    masks: Counter[tuple[int, int, str]] = Counter()
    scores: list[float] = []
    per_image: Counter[tuple[int, int]] = Counter()
    for number, record in enumerate(value):
        place = f"record {number}"
        if not isinstance(record, dict):
            faults.add("error", "structure", "is not an object with image_id, score, …", f"{place} ({_short(record)})")
            continue
        _check_keys(record, place, faults, KEYS if box_needed else [key for key in KEYS if key != "bbox"])
        image = _check_image(record, ids, place, faults)
        category = _check_category(record, known, place, faults)
        score = _check_score(record, place, faults)
        box = _check_box(record, image, place, faults)
        mask_box = _check_mask(record, image, place, faults)
        if score is not None:
            scores.append(score)
        if image is not None:
            place = f"{place} (image {image.id})"
            if category is not None:
                per_image[image.id, category] += 1
            if box is not None and mask_box is not None:
                boxes.append((box, mask_box, place, record["segmentation"]))
            if mask_box is not None and category is not None:
                masks[image.id, category, str(record["segmentation"]["counts"])] += 1
    _check_boxes_against_masks(boxes, faults)
    check_counting(_whole_numbers(value, "image_id"), sorted(ids.image), "image_id", "image id", faults)
    check_counting(_whole_numbers(value, "category_id"), known, "category_id", "category", faults)
    _check_whole(ids, per_image, masks, scores, max_detections, faults)
    return faults.problems()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: float) -> bool:
    """Whether a number fits a float, which whole numbers in JSON need not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_keys(record: Mapping[str, Any], place: str, faults: Faults, needed: Sequence[str]) -> None:
    renamed = misspelt(record)
    for wrong, right in renamed.items():
        faults.add("error", "key", f"the key {wrong!r} should be {right!r}", place)
    for key in needed:
        if key not in record and key not in renamed.values():
            faults.add("error", "key", f"the key {key!r} is missing", place)
    for key in record:
        if key not in KEYS and key not in renamed:
            faults.add("warning", "key", f"the key {key!r} means nothing to the scorer", place)


def _check_image(record: Mapping[str, Any], ids: Dataset, place: str, faults: Faults) -> Image | None:
    if "image_id" not in record:
        return None
    value = record["image_id"]
    if not isinstance(value, int) or isinstance(value, bool):
        faults.add("error", "image id", "image_id is not an integer", f"{place} ({_short(value)})")
        return None
    if value not in ids.image:
        shown = sorted(ids.image)
        span = ", ".join(map(str, shown)) if len(shown) <= 12 else f"{shown[0]} … {shown[-1]}"
        text = f"image_id is not among the test images ({span}); the scorer refuses the whole file"
        faults.add("error", "image id", text, f"{place} ({value})")
        return None
    return ids.image[value]


def _check_category(record: Mapping[str, Any], known: Sequence[int], place: str, faults: Faults) -> int | None:
    if "category_id" not in record:
        return None
    value = record["category_id"]
    if not isinstance(value, int) or isinstance(value, bool):
        faults.add("error", "category", "category_id is not an integer", f"{place} ({_short(value)})")
    elif value not in known:
        hint = "; networks count classes from 0, the competition from 1" if value == 0 else ""
        text = f"category_id is not one of {', '.join(map(str, known))}; the scorer passes over it{hint}"
        faults.add("error", "category", text, f"{place} ({value})")
    else:
        return value
    return None


def _check_score(record: Mapping[str, Any], place: str, faults: Faults) -> float | None:
    if "score" not in record:
        return None
    value = record["score"]
    if not _number(value):
        faults.add("error", "score", "the score is not a number", f"{place} ({_short(value)})")
    elif not _finite(value):
        faults.add("error", "score", "the score is not finite", f"{place} ({value})")
    elif not 0 <= value <= 1:
        faults.add("error", "score", "the score is outside 0..1", f"{place} ({value})")
    else:
        return float(value)
    return None


def _check_box(record: Mapping[str, Any], image: Image | None, place: str, faults: Faults) -> np.ndarray | None:
    """The box as (4,) float64 x, y, width, height, if it is one."""
    if "bbox" not in record:
        return None
    value = record["bbox"]
    if not isinstance(value, list) or len(value) != 4 or not all(_number(v) and _finite(v) for v in value):
        faults.add("error", "box", "bbox is not four numbers [x, y, width, height]", f"{place} ({_short(value)})")
        return None
    if value[2] < 0 or value[3] < 0:
        faults.add("error", "box", "bbox has a negative width or height", f"{place} ({_short(value)})")
        return None
    box = np.array(value, np.float64)
    if image is not None:
        beyond = max(-box[0], -box[1], box[0] + box[2] - image.width, box[1] + box[3] - image.height)
        if beyond > 1:
            text = "bbox reaches out of the image"
            faults.add("warning", "box", text, f"{place} ({_short(value)} in {image.width}x{image.height})")
    return box


def _check_mask(record: Mapping[str, Any], image: Image | None, place: str, faults: Faults) -> np.ndarray | None:
    """The mask's tight box as (4,) float64 x, y, width, height, if it is a mask."""

    def error(text: str, detail: Any = None) -> None:
        faults.add("error", "mask", text, place if detail is None else f"{place} ({detail})")

    if "segmentation" not in record:
        return None
    value = record["segmentation"]
    if isinstance(value, list):
        error("segmentation is a polygon; it must be a compressed RLE {size, counts}")
        return None
    if not isinstance(value, dict) or not {"size", "counts"} <= set(value):
        error("segmentation is not an RLE {size, counts}", _short(value))
        return None
    size, counts = value["size"], value["counts"]
    if not (
        isinstance(size, list) and len(size) == 2 and all(isinstance(v, int) and not isinstance(v, bool) for v in size)
    ):
        error("the mask's size is not [height, width]", _short(size))
        return None
    if isinstance(counts, list):
        error("the mask's counts are a list of numbers; they must be COCO's compressed text")
        return None
    if not isinstance(counts, str):
        error("the mask's counts are not text", _short(counts))
        return None
    if counts[:2] in ("b'", 'b"'):
        error("the mask's counts are Python's way to write bytes, b'…'; decode them to text")
        return None
    if image is not None and size != [image.height, image.width]:
        swapped = "; height comes first" if size == [image.width, image.height] else ""
        error(
            f"the mask's size is not the image's{swapped}; bring masks back to the original image",
            f"{size}, image {image.id} is [{image.height}, {image.width}]",
        )
        return None
    if image is None and not 0 < size[0] * size[1] <= 1 << 32:
        return None
    try:
        box, _ = rle_to_crop(value)
    except ValueError as fault:
        error("the mask's run lengths are wrong", str(fault))
        return None
    if box[2] <= box[0]:
        error("the mask is empty: it can only be a false positive")
        return None
    return np.array([box[0], box[1], box[2] - box[0], box[3] - box[1]], np.float64)


def box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) IoU of boxes (N, 4) x0, y0, x1, y1, pair by pair."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(union), where=union > 0))


def _check_boxes_against_masks(
    found: Sequence[tuple[np.ndarray, np.ndarray, str, dict[str, Any]]], faults: Faults
) -> None:
    """Boxes or masks that fit each other only when read in another way, and boxes that lie elsewhere than their masks."""
    if not found:
        return
    given, mask = np.stack([f[0] for f in found]), np.stack([f[1] for f in found])
    corners_of_mask = np.concatenate([mask[:, :2], mask[:, :2] + mask[:, 2:]], axis=1)
    corners_given = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)
    as_size = box_overlaps(corners_given, corners_of_mask)
    as_corners = box_overlaps(given, corners_of_mask)
    corners = as_corners > as_size + 0.1
    if corners.mean() > 0.5:
        text = "bbox looks like corners [x0, y0, x1, y1]; it must be [x, y, width, height]"
        for i in np.flatnonzero(corners):
            faults.add("error", "box", text, found[i][2])
        return
    half = given[:, 2:] / 2
    as_centres = box_overlaps(np.concatenate([given[:, :2] - half, given[:, :2] + half], axis=1), corners_of_mask)
    if (as_centres > as_size + 0.1).mean() > 0.5:
        text = "bbox looks like [centre x, centre y, width, height]; x and y are those of its upper left corner"
        for i in np.flatnonzero(as_centres > as_size + 0.1):
            faults.add("warning", "box", text, found[i][2])
        return
    for i in np.flatnonzero((as_corners > 0.5) & (as_size < 0.5)):
        text = "bbox looks like corners [x0, y0, x1, y1], while most others are [x, y, width, height]"
        faults.add("warning", "box", text, found[i][2])
    apart = np.flatnonzero(as_size < APART)
    if len(apart) > len(found) / 2 and _along_rows(
        [found[i][3] for i in apart[:SAMPLE]], corners_given[apart[:SAMPLE]]
    ):
        text = "the mask's runs look as if they went along the rows; COCO's go down the columns"
        for i in apart:
            faults.add("error", "mask", text, found[i][2])
        return
    for i in apart:
        text = "bbox and mask lie in different places; one of them may be of a resized image"
        faults.add("warning", "box", text, found[i][2])
    shift = box_shift.tight_shift(given, mask)
    if shift == (1, 1):
        text = "bbox is its mask's, moved right and down by one: boxes count from 0 (or the masks lie one too far left and up)"
        faults.add("warning", "box", text, "all records")
    elif shift is not None:
        moved = box_shift.direction((-shift[0], -shift[1]))
        text = f"the masks lie one pixel {moved} of their bbox, which fits them otherwise: both count pixels from 0"
        faults.add("warning", "mask", text, "all records")
    elif box_shift.regressed_from_one(given, mask):
        text = "bbox begins inside its mask and ends beyond it, as if counted from 1: boxes and masks count from 0"
        faults.add("warning", "box", text, "most records")


def check_counting(
    values: set[int], known: Sequence[int], name: str, kind: str, faults: Faults, place: str = "all records"
) -> None:
    """Ids that are all one too low or too high, so that one is not known; and places in a list of ids with gaps.

    Args:
        known: ascending.
        name: of the ids, to be told.
    """
    if len(known) < 2 or not values:
        return
    places = list(range(1, len(known) + 1))
    if min(values) == 0 and max(values) < len(known) and known != places and not values <= set(known):
        text = f"{name} looks like the place in the list of ids, from 0, and not like the id that stands there"
    elif min(values) == known[0] - 1 and known[-1] not in values:
        text = f"{name} looks counted from {known[0] - 1}: then every record's is one too low"
    elif max(values) == known[-1] + 1 and known[0] not in values:
        text = f"{name} looks counted from {known[0] + 1}: then every record's is one too high"
    else:
        return
    faults.add("error", kind, text, place)


def _whole_numbers(records: Sequence[Any], key: str) -> set[int]:
    return {record[key] for record in records if isinstance(record, dict) and type(record.get(key)) is int}


def _along_rows(rles: Sequence[dict[str, Any]], boxes: np.ndarray) -> bool:
    """Whether most masks fit their boxes, (N, 4) corners, when their runs are taken to go along the rows."""
    places = [rle_to_crop({"size": rle["size"][::-1], "counts": rle["counts"]})[0][[1, 0, 3, 2]] for rle in rles]
    return bool((box_overlaps(boxes, np.array(places, np.float64)) >= 0.5).mean() > 0.5)


def _check_whole(
    ids: Dataset,
    per_image: Counter[tuple[int, int]],
    masks: Counter[tuple[int, int, str]],
    scores: Sequence[float],
    max_detections: int | None,
    faults: Faults,
) -> None:
    spoken = {image_id for image_id, _ in per_image}
    for image in ids.images:
        if image.id not in spoken:
            text = "has no detection in the submission"
            faults.add("warning", "image id", text, f"image {image.id} ({image.file_name})")
    for (image_id, _), count in sorted(per_image.items()):
        if max_detections is not None and count > max_detections:
            text = f"more than {max_detections} detections; only the {max_detections} best-scored count"
            faults.add("warning", "count", text, f"image {image_id} ({count})")
    for (image_id, _, _), count in masks.items():
        if count > 1:
            faults.add(
                "warning", "duplicate", "the same mask more than once; all but one are false", f"image {image_id}"
            )
    if len(scores) >= 20:
        value, count = Counter(scores).most_common(1)[0]
        if count > len(scores) / 2:
            text = "more than half of the scores are the same; the metric ranks by score"
            faults.add("warning", "score", text, f"{count} of {len(scores)} records ({value})")
