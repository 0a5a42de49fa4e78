"""Submissions as OpenImages' segmentation challenge has them: one CSV row an image, all its masks in one string.

::

    id,height,width,prediction_string
    abc,4,5,0 0.9 eNozNTL29zcyAgAGZAGd
    def,4,5,

The string is triples of label, confidence and mask, joined by spaces, blank where nothing was found. A mask is the text of
COCO's compressed run lengths, packed with zlib and written in base64 (the organisers' `encode_binary_mask`).
"""

from __future__ import annotations

import base64
import binascii
import csv
import difflib
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats.faults import Faults, too_large
from pipeline.competitions.formats.rle_csv import BLANK_WORDS, lines, name_of, unpacked
from pipeline.competitions.formats.score_scale import scaled
from pipeline.files import writing
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Image

COLUMNS = ("id", "height", "width", "prediction_string")

MAX_PIXELS = 1 << 28
"""A row that says its image is larger is not believed."""

LONGEST_COUNT = 7
"""Characters of the longest run length; a packed mask that unpacks to more than this for every pixel is no mask."""


# ---------------------------------------------------------------- masks -----------------------------------------------


def encode_mask(rle: Mapping[str, Any]) -> str:
    """A compressed COCO RLE as base64 of its zlib-packed counts."""
    counts = rle["counts"]
    return base64.b64encode(zlib.compress(counts.encode() if isinstance(counts, str) else counts, 9)).decode()


def decode_mask(text: str, size: Sequence[int]) -> dict[str, Any]:
    """The compressed COCO RLE of a string, for an image of `size` (height, width).

    Raises:
        ValueError: it is not base64, not zlib's, or no mask of this size; the message says which.
    """
    height, width = int(size[0]), int(size[1])
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the mask is not base64: {error}") from error
    inflater = zlib.decompressobj()
    try:
        counts = inflater.decompress(packed, LONGEST_COUNT * (height * width + 2))
    except zlib.error as error:
        raise ValueError(f"the mask is not packed with zlib: {error}") from error
    if not inflater.eof:
        raise ValueError("the mask is cut off" if not inflater.unconsumed_tail else "the mask unpacks to far too much")
    try:
        rle = {"size": [height, width], "counts": counts.decode("ascii")}
    except UnicodeDecodeError as error:
        raise ValueError("the mask does not hold COCO's run lengths") from error
    rle_to_crop(rle)
    return rle


# ---------------------------------------------------------------- rows ------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row as it stands in the file, and its line (from 1, the header)."""

    id: str
    height: str
    width: str
    predictions: str
    line: int = 0


@dataclass(frozen=True)
class Table:
    """The rows of a file under the names that its header has for the four columns, and columns that should not be.

    `names` has the file's own name of each column that was found; a column that is missing has empty cells. `member` is the
    name inside a zip, and `marked` whether the text begins with a byte order mark.
    """

    rows: list[Row]
    names: dict[str, str]
    spare: list[str]
    member: str = ""
    marked: bool = False

    @property
    def missing(self) -> list[str]:
        return [column for column in COLUMNS if column not in self.names]


def load(path: Path) -> Table:
    """Read the file as rows, whatever is in them.

    Raises:
        CompetitionError: there is no such file, it is too large, or no CSV with an id and a prediction string.
    """
    content, member = unpacked(path)
    rows_of_cells = lines(content, str(path))
    if not rows_of_cells:
        raise CompetitionError(f"{path} is empty; its first line must be {','.join(COLUMNS)}")
    header = [name.strip() for name in rows_of_cells[0][1]]
    names = _names(header)
    lacking = [column for column in ("id", "prediction_string") if column not in names]
    if lacking:
        raise CompetitionError(
            f"{path} has no column {' and '.join(lacking)}: its first line must be {','.join(COLUMNS)}, "
            f"and is {_short(','.join(header))}"
        )
    place = {column: header.index(name) for column, name in names.items()}

    def cell(cells: list[str], column: str) -> str:
        return cells[place[column]].strip() if column in place and place[column] < len(cells) else ""

    rows = []
    for line, cells in rows_of_cells[1:]:
        name, height, width, predictions = (cell(cells, column) for column in COLUMNS)
        rows.append(Row(name, height, width, predictions, line))
    spare = [name for name in header if name not in names.values()]
    return Table(rows, names, spare, member, content[:3] == b"\xef\xbb\xbf")


def _names(header: Sequence[str]) -> dict[str, str]:
    """The header's name of each column: its own, else the nearest that means nothing else."""
    names = {column: column for column in COLUMNS if column in header}
    for column in COLUMNS:
        if column not in names:
            spare = {name.lower(): name for name in header if name not in COLUMNS and name not in names.values()}
            near = difflib.get_close_matches(column, spare, n=1, cutoff=0.6)
            if near:
                names[column] = spare[near[0]]
    return names


def write_rows(rows: Iterable[Row], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((row.id, row.height, row.width, row.predictions) for row in rows)
    with writing(path) as temporary:
        temporary.write_text(text.getvalue())


# ---------------------------------------------------------------- detections there and back ---------------------------


def write(records: Sequence[Mapping[str, Any]], test: Dataset, path: Path, label: str) -> None:
    """Write COCO results records of one category, image by image as in `test`, each image's in their order.

    Args:
        label: the category's name in the file.

    Raises:
        CompetitionError: there are records on images that are not in `test`.
    """
    masks: dict[int, list[str]] = {image.id: [] for image in test.images}
    for record in records:
        if record["image_id"] not in masks:
            raise CompetitionError(f"there are masks on an image that is not to be submitted: {record['image_id']}")
        masks[record["image_id"]].append(f"{label} {float(record['score'])!r} {encode_mask(record['segmentation'])}")
    write_rows(
        [Row(name_of(i), str(i.height), str(i.width), " ".join(masks[i.id])) for i in test.images],
        path,
    )


def read(path: Path, category_id: int, images: Dataset | None = None) -> list[dict[str, Any]]:
    """The COCO results records of a submission, all of one category.

    Args:
        images: gives the images their ids; without it an image's id is the place of its name among all, from 1.

    Raises:
        CompetitionError: the file cannot be read; the message names the line.
    """
    table = load(path)
    if images is None:
        number = {name: k for k, name in enumerate(sorted({row.id for row in table.rows}), start=1)}
    else:
        number = {name_of(image): image.id for image in images.images}
    records = []
    for row in table.rows:
        if row.id not in number:
            near = difflib.get_close_matches(row.id, number, n=1, cutoff=0.8)
            hint = f" (is it {near[0]}?)" if near else ""
            raise CompetitionError(f"{path}, line {row.line}: there is no image {_short(row.id)}{hint}")
        try:
            size = _size(row, None if images is None else images.image[number[row.id]])
            for _, score, mask in _triples(row.predictions):
                rle = decode_mask(mask, size)
                x0, y0, x1, y1 = (float(v) for v in rle_to_crop(rle)[0])
                records.append(
                    {
                        "image_id": number[row.id],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "score": _confidence(score),
                        "category_id": category_id,
                        "segmentation": rle,
                    }
                )
        except ValueError as error:
            text = f"{path}, line {row.line} ({_short(row.id)}): {error}; `validate` lists every fault of a submission"
            raise CompetitionError(text) from error
    return records


def _size(row: Row, image: Image | None) -> tuple[int, int]:
    """Height and width of a row's image.

    Raises:
        ValueError: they are no sizes, or not the image's.
    """
    try:
        size = (int(row.height), int(row.width))
    except ValueError as error:
        raise ValueError(f"height and width are {_short(row.height)!r} and {_short(row.width)!r}") from error
    if image is not None and size != (image.height, image.width):
        raise ValueError(
            f"the row says {size[0]} high and {size[1]} wide, the image is {image.height} and {image.width}"
        )
    if min(size) <= 0 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"no image is {size[0]} high and {size[1]} wide")
    return size


def _confidence(text: str) -> float:
    value = _number(text)
    if value is None or not math.isfinite(value):
        raise ValueError(f"the confidence {_short(text)!r} is not a finite number")
    return value


def _triples(text: str) -> list[tuple[str, str, str]]:
    """Label, confidence and mask of every detection.

    Raises:
        ValueError: they are not triples.
    """
    words = text.split()
    if len(words) % 3:
        raise ValueError(f"the prediction string has {len(words)} parts, which are no triples of label, score and mask")
    return [(words[k], words[k + 1], words[k + 2]) for k in range(0, len(words), 3)]


# ---------------------------------------------------------------- checking --------------------------------------------


def check(path: Path, ids: Dataset, label: str) -> list[Problem]:
    """Every problem of a submission for these images.

    Args:
        label: the one label that there is.
    """
    try:
        table = load(path)
    except CompetitionError as error:
        return [Problem("error", path.name, str(error), "file")]
    faults = Faults()
    _check_columns(table, path, faults)
    known = {name_of(image): image for image in ids.images}
    times = Counter(row.id for row in table.rows)
    masks: Counter[tuple[str, str]] = Counter()
    scores: list[float] = []
    for row in table.rows:
        place = f"line {row.line} ({_short(row.id)})"
        if times[row.id] > 1:
            faults.add(
                "error", "id", "the id stands there more than once; an image has one row for all its masks", place
            )
        if row.id not in known:
            hint = "; ids have no folder and no extension" if _stem(row.id) in known else ""
            faults.add(
                "error", "id", f"there is no test image of this id; the scorer refuses the whole file{hint}", place
            )
            continue
        image = known[row.id]
        _check_size(row, image, table, place, faults)
        for mask, score in _check_predictions(row, image, label, place, faults):
            masks[row.id, mask] += 1
            scores.append(score)
    for name in sorted(set(known) - set(times)):
        faults.add(
            "error", "id", "has no row; every image needs one, with a blank string where nothing was found", name
        )
    for (name, _), count in masks.items():
        if count > 1:
            faults.add("warning", "duplicate", "the same mask more than once; all but one are false", name)
    if known and not any(row.predictions for row in table.rows):
        faults.add("warning", "count", "holds no detection at all", path.name)
    if len(scores) >= 20:
        value, count = Counter(scores).most_common(1)[0]
        if count > len(scores) / 2:
            text = "more than half of the scores are the same; the metric ranks by score"
            faults.add("warning", "score", text, f"{count} of {len(scores)} detections ({value})")
    return faults.problems() + too_large(path)


def _check_columns(table: Table, path: Path, faults: Faults) -> None:
    if table.member:
        faults.add("warning", "file", f"is a zip archive; {table.member} in it is what counts", path.name)
    if table.marked:
        text = "begins with a byte order mark, which may be taken as a part of the first name"
        faults.add("warning", "file", text, path.name)
    for column, name in table.names.items():
        if name != column:
            faults.add("error", "column", f"the column {name!r} should be {column!r}", path.name)
    for column in table.missing:
        faults.add("error", "column", f"the column {column!r} is missing", path.name)
    for name in table.spare:
        faults.add("error", "column", f"the column {name!r} should not be there (pandas: index=False)", path.name)


def _check_size(row: Row, image: Image, table: Table, place: str, faults: Faults) -> None:
    if "height" in table.missing or "width" in table.missing:
        return
    if (row.height, row.width) != (str(image.height), str(image.width)):
        swapped = "; they are exchanged" if (row.width, row.height) == (str(image.height), str(image.width)) else ""
        text = f"height and width are not the image's{swapped}"
        detail = f"{place} ({_short(row.height)} and {_short(row.width)}, not {image.height} and {image.width})"
        faults.add("error", "size", text, detail)


def _check_predictions(row: Row, image: Image, label: str, place: str, faults: Faults) -> list[tuple[str, float]]:
    """The mask and the score of every detection that is sound."""
    if row.predictions.lower() in BLANK_WORDS:
        text = f"{row.predictions!r} stands where nothing was found; the string must be blank there"
        faults.add("error", "blank", text, place)
        return []
    try:
        triples = _triples(row.predictions)
    except ValueError as error:
        faults.add("error", "structure", str(error), place)
        return []
    found = []
    for number, (name, score, mask) in enumerate(triples, start=1):
        where = f"{place}, mask {number}"
        if name != label:
            hint = "; labels count from 0" if name == "1" else ""
            faults.add("error", "label", f"the label is not {label}{hint}", f"{where} ({_short(name)})")
        value = _number(score)
        if value is None or not math.isfinite(value):
            faults.add("error", "score", "the confidence is not a finite number", f"{where} ({_short(score)})")
        elif not 0 <= value <= 1:
            faults.add("error", "score", "the confidence is outside 0..1", f"{where} ({value})")
        try:
            rle = decode_mask(mask, (image.height, image.width))
        except ValueError as error:
            hint = "; it was written as Python shows bytes: decode them first" if _LITERAL.fullmatch(mask) else ""
            faults.add("error", "mask", _kind_of(error) + hint, f"{where} ({error})")
            continue
        if not rle_to_crop(rle)[1].size:
            faults.add("error", "mask", "the mask is empty: it can only be a false positive", where)
        elif value is not None and math.isfinite(value):
            found.append((rle["counts"], value))
    return found


def _kind_of(error: ValueError) -> str:
    """What is wrong with a mask, without the numbers that differ from mask to mask."""
    text = str(error)
    if "pixels, its size" in text:
        return "the mask is not of the image's size; bring masks back to the original image"
    return text.split(":")[0]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "…"


# ---------------------------------------------------------------- repairing -------------------------------------------

_LITERAL = re.compile(r"b'([^']*)'|b\"([^\"]*)\"")
"""Bytes as Python shows them, which is what comes of formatting them into a string."""


def fix(path: Path, ids: Dataset, target: Path, label: str) -> list[str]:
    """Write a copy in which everything is mended that can only have been meant in one way; the rest is left as it is.

    Returns:
        What was changed, in plain words.

    Raises:
        CompetitionError: the file cannot be read, speaks of none of the images, or nothing can be mended with certainty.
    """
    table = load(path)
    known = {name_of(image): image for image in ids.images}
    changes = [f"column {name!r} renamed {column!r}" for column, name in table.names.items() if name != column]
    changes += [f"column {column!r} added" for column in table.missing]
    changes += [f"column {name!r} removed" for name in table.spare]
    changes += ["the byte order mark is gone"] if table.marked else []
    rows, said = _fix_ids(table.rows, known)
    if not rows and known:
        raise CompetitionError(f"{path} speaks of none of the {len(known)} test images; is it of another competition?")
    changes += said
    rows, said = _fix_predictions(rows, known, label)
    changes += said
    rows, said = _fix_confidences(rows)
    changes += said
    rows, said = _fix_sizes(rows, known, table)
    changes += said
    if not changes:
        raise CompetitionError(f"{path}: there is nothing that can be repaired with certainty")
    write_rows(rows, target)
    return changes


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _fix_ids(rows: Sequence[Row], known: Mapping[str, Image]) -> tuple[list[Row], list[str]]:
    renamed, gone = 0, 0
    merged: dict[str, Row] = {}
    twice = set()
    for row in rows:
        stem = _stem(row.id)
        if row.id not in known and stem in known:
            row = replace(row, id=stem)
            renamed += 1
        if row.id not in known:
            gone += 1
        elif row.id in merged:
            twice.add(row.id)
            first = merged[row.id]
            if row.predictions != first.predictions:
                merged[row.id] = replace(first, predictions=f"{first.predictions} {row.predictions}".strip())
        else:
            merged[row.id] = row
    lost = [name for name in known if name not in merged]
    if merged:
        merged |= {name: Row(name, str(known[name].height), str(known[name].width), "") for name in lost}
    changes = [
        (renamed, "ids stripped of folder and extension"),
        (gone, "rows removed that speak of no test image"),
        (len(twice), "images' rows joined to one"),
        (len(lost), "images added that had no row, with a blank string"),
    ]
    return list(merged.values()), [f"{count:,} {what}" for count, what in changes if count]


def _fix_predictions(rows: Sequence[Row], known: Mapping[str, Image], label: str) -> tuple[list[Row], list[str]]:
    count: Counter[str] = Counter()
    mended = []
    count["words for nothing made blank"] = sum(row.predictions.lower() in BLANK_WORDS for row in rows)
    rows = [replace(row, predictions="") if row.predictions.lower() in BLANK_WORDS else row for row in rows]
    labels = {name for row in rows for name in row.predictions.split()[::3]}
    for row in rows:
        image = known[row.id]
        size = (image.height, image.width)
        words = row.predictions.split()
        plain = [_unquoted(word) for word in words]
        count["masks written as Python shows bytes"] += sum(a != b for a, b in zip(words, plain, strict=True))
        if len(plain) % 2 == 0 and plain and all(map(_is_pair, plain[::2], plain[1::2], [size] * (len(plain) // 2))):
            count[f"masks given the label {label}, which was missing"] += len(plain) // 2
            plain = [word for pair in zip(plain[::2], plain[1::2], strict=True) for word in (label, *pair)]
        kept = []
        if len(plain) % 3 == 0:
            for name, score, mask in zip(plain[::3], plain[1::3], plain[2::3], strict=True):
                if _is_empty(mask, size):
                    count["empty masks removed"] += 1
                    continue
                if name != label and labels == {name} and _is_pair(score, mask, size):
                    count[f"labels {name} made {label}, the only one there is"] += 1
                    name = label
                kept += [name, score, mask]
            plain = kept
        mended.append(replace(row, predictions=" ".join(plain)))
    return mended, [f"{times:,} {what}" for what, times in count.items() if times]


def _fix_confidences(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Confidences scaled to 0..1 all together; a mask whose confidence is not finite has no rank and goes."""
    triples: list[list[tuple[str, str, str]]] = []
    for row in rows:
        try:
            triples.append(_triples(row.predictions))
        except ValueError:
            return list(rows), []
    numbers = [_number(score) for found in triples for _, score, _ in found]
    if any(number is None for number in numbers):
        return list(rows), []
    new = scaled(number for number in numbers if number is not None and math.isfinite(number))
    gone = sum(not math.isfinite(number) for number in numbers if number is not None)
    if not new and not gone:
        return list(rows), []
    mended = []
    for row, found in zip(rows, triples, strict=True):
        ranked = [(name, float(score), mask) for name, score, mask in found if math.isfinite(float(score))]
        words = [f"{name} {new.get(score, score)!r} {mask}" for name, score, mask in ranked]
        mended.append(replace(row, predictions=" ".join(words)))
    changes = [
        (gone, "masks removed whose confidence is not finite, so that they have no rank"),
        (len(numbers) - gone if new else 0, "confidences scaled to 0..1, in the same order"),
    ]
    return mended, [f"{times:,} {what}" for times, what in changes if times]


def _fix_sizes(rows: Sequence[Row], known: Mapping[str, Image], table: Table) -> tuple[list[Row], list[str]]:
    """Heights and widths, where every mask has the image's number of pixels, so that nothing else can be meant.

    With height and width exchanged the masks may lie on their sides, which nothing tells: those are left alone.
    """
    changed = 0
    mended = []
    absent = {"height", "width"} & set(table.missing)
    for row in rows:
        image = known[row.id]
        right = (str(image.height), str(image.width))
        exchanged = (row.width, row.height) == right and row.predictions
        if (row.height, row.width) != right and not exchanged and _all_fit(row, image):
            changed += not absent
            row = replace(row, height=right[0], width=right[1])
        mended.append(row)
    return mended, [f"{changed:,} heights and widths made the images'"] if changed else []


def _unquoted(word: str) -> str:
    match = _LITERAL.fullmatch(word)
    return (match[1] or match[2] or "") if match else word


def _is_pair(score: str, mask: str, size: Sequence[int]) -> bool:
    """Whether this is a confidence and a mask of this size."""
    value = _number(score)
    if value is None or not 0 <= value <= 1:
        return False
    try:
        decode_mask(mask, size)
    except ValueError:
        return False
    return True


def _is_empty(mask: str, size: Sequence[int]) -> bool:
    try:
        return not rle_to_crop(decode_mask(mask, size))[1].size
    except ValueError:
        return False


def _all_fit(row: Row, image: Image) -> bool:
    try:
        return all(_is_pair(score, mask, (image.height, image.width)) for _, score, mask in _triples(row.predictions))
    except ValueError:
        return False
