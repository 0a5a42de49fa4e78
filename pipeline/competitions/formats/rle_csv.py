"""CSV files with one mask a row, as its image's id and Kaggle's run lengths: submissions and the organisers' truth."""

from __future__ import annotations

import csv
import io
import logging
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats.kaggle_rle import Order, from_rle, parse, to_rle
from pipeline.files import writing
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Image, Instance

log = logging.getLogger("pipeline.competitions")

MAX_BYTES = 512 << 20
"""A CSV that is larger, or unpacks to more, is refused unread: real ones hold a few MB."""

BLANK_WORDS = ("nan", "none", "null", "na", "<na>", "[]", '""', "''")
"""What programs write where they mean that there is no mask."""

_LONGEST = MAX_BYTES
"""Of one value: the csv module's own limit of 128 kB is less than a mask of many runs."""


@dataclass(frozen=True)
class RleCsv:
    """How a competition writes its masks.

    Attributes:
        id, rle: the two columns' names, in this order.
        order: how pixels are numbered, see `kaggle_rle`.
        empty: what stands in the second column of an image without masks.
        size: (height, width) of every image, where all are alike and files do not say it.
        truth: the name of the masks' column in the organisers' file of the truth.
        category: the column there that names the class; none where there is one class.
    """

    id: str
    rle: str
    order: Order
    empty: str = ""
    size: tuple[int, int] | None = None
    truth: str = ""
    category: str = ""


def name_of(image: Image) -> str:
    """An image's id in the CSV: its file's name without folder and suffix."""
    return PurePosixPath(image.file_name).stem


# ---------------------------------------------------------------- any CSV ---------------------------------------------


def unpacked(path: Path) -> tuple[bytes, str]:
    """The bytes of a CSV, which may lie alone in a zip, and the zip member's name, blank where it is no zip.

    Raises:
        CompetitionError: there is no such file; it is too large, or a zip without exactly one CSV.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CompetitionError(f"{path} holds {path.stat().st_size:,} bytes, too large for a CSV of masks")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CompetitionError(f"there is no file {path}") from error
    except OSError as error:
        raise CompetitionError(f"{path} cannot be read: {error.strerror}") from error
    if content[:2] != b"PK":
        return content, ""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [m for m in archive.infolist() if m.filename.lower().endswith(".csv") and "/." not in m.filename]
            members = [m for m in members if not m.filename.startswith("__MACOSX")]
            if len(members) != 1:
                raise CompetitionError(f"{path} is a zip that holds {len(members)} CSV files; it must hold one")
            if members[0].file_size > MAX_BYTES:
                raise CompetitionError(f"{path}: {members[0].filename} unpacks to {members[0].file_size:,} bytes")
            return archive.read(members[0]), members[0].filename
    except CompetitionError:
        raise
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise CompetitionError(f"{path} is not a whole zip archive: {error}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma"):
            raise CompetitionError(f"{path} is damaged: {error}") from error
        raise


def lines(content: bytes, place: str) -> list[tuple[int, list[str]]]:
    """The rows of a CSV that hold anything, each with its line in the file.

    Raises:
        CompetitionError: it is not text, or not CSV.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CompetitionError(f"{place} is not a text file in UTF-8: {error}") from error
    before = csv.field_size_limit(_LONGEST)
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        return [(reader.line_num, row) for row in reader if any(value.strip() for value in row)]
    except csv.Error as error:
        raise CompetitionError(f"{place} is not a CSV file: {error}") from error
    finally:
        csv.field_size_limit(before)


def table(content: bytes, place: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with a header, by column name in lower case, spaces around everything removed.

    Raises:
        CompetitionError: it is not CSV, or one of the `needed` columns (in lower case) is not there.
    """
    rows = lines(content, place)
    header = [value.strip().lower() for value in rows[0][1]] if rows else []
    missing = [column for column in needed if column not in header]
    if missing:
        raise CompetitionError(
            f"{place} has no column {' and no column '.join(missing)}; it has {', '.join(header[:9]) or 'nothing'}"
        )
    for line, row in rows[1:]:
        yield line, {column: value.strip() for column, value in zip(header, [*row, *[""] * len(header)], strict=False)}


def _whole(value: str, place: str, what: str) -> int:
    text = value.removesuffix(".0")
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise CompetitionError(f"{place}: the {what} {value!r} is not a whole number")
    return int(text)


# ---------------------------------------------------------------- the organisers' files -------------------------------


def read_ids(path: Path, form: RleCsv, categories: Mapping[int, str]) -> Dataset:
    """The images of a sample submission or solution, sorted by name, without instances.

    An image whose size nothing says has height and width 0.

    Raises:
        CompetitionError: the file cannot be read or has no ids.
    """
    content, _ = unpacked(path)
    sizes: dict[str, tuple[int, int]] = {}
    for line, row in table(content, str(path), [form.id.lower()]):
        name = row[form.id.lower()]
        size = _size(row, form, f"{path}, line {line}") or (0, 0)
        if sizes.setdefault(name, size) != size:
            raise CompetitionError(f"{path}, line {line}: {name} has another size than in a line before")
    if not sizes:
        raise CompetitionError(f"{path} names no images")
    images = [Image(k, f"{name}.png", *sizes[name]) for k, name in enumerate(sorted(sizes), start=1)]
    return Dataset(images, dict(categories))


def _size(row: Mapping[str, str], form: RleCsv, place: str) -> tuple[int, int] | None:
    if row.get("height") and row.get("width"):
        return _whole(row["height"], place, "height"), _whole(row["width"], place, "width")
    return form.size


def read_truth(path: Path, form: RleCsv, categories: Mapping[int, str]) -> Dataset:
    """The images that are scored, sorted by name, and their true instances.

    Rows whose column ``Usage`` says ``Ignored`` belong to images that the organisers leave out of the score.

    Raises:
        CompetitionError: the file cannot be read, does not say how large its images are, or holds a mask that is none.
    """
    content, _ = unpacked(path)
    key, masks = form.id.lower(), (form.truth or form.rle).lower()
    number = {name: category_id for category_id, name in categories.items()}
    sizes: dict[str, tuple[int, int]] = {}
    found: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for line, row in table(content, str(path), [key, masks, *([form.category] if form.category else [])]):
        place = f"{path}, line {line}"
        if row.get("usage", "").lower() == "ignored":
            continue
        size = _size(row, form, place)
        if size is None:
            raise CompetitionError(
                f"{path} has no columns Height and Width, so masks cannot be laid out; score against the solution "
                "with sizes, or against a COCO json of the truth (data/train.json of a run)"
            )
        category = number.get(row[form.category]) if form.category else min(categories)
        if category is None:
            raise CompetitionError(
                f"{place}: the {form.category} {row[form.category]!r} is not one of {', '.join(number)}"
            )
        if sizes.setdefault(row[key], size) != size:
            raise CompetitionError(f"{place}: {row[key]} has another size than in a line before")
        try:
            runs = parse(row[masks])
            if len(runs):
                found[row[key]].append((category, to_rle(runs, size, form.order)))
        except ValueError as error:
            raise CompetitionError(f"{place}: {error}") from error
    if not sizes:
        raise CompetitionError(f"{path} names no images that are scored")
    images = [Image(k, f"{name}.png", *sizes[name]) for k, name in enumerate(sorted(sizes), start=1)]
    instances: list[Instance] = []
    for image in images:
        for category, rle in found[name_of(image)]:
            instances.append(_instance(len(instances) + 1, image.id, category, rle))
    return Dataset(images, dict(categories), instances)


def _instance(number: int, image_id: int, category_id: int, rle: dict[str, Any]) -> Instance:
    (x0, y0, x1, y1), mask = rle_to_crop(rle)
    box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
    return Instance(number, image_id, category_id, rle, box, float(mask.sum()))


# ---------------------------------------------------------------- submissions -----------------------------------------


def read_records(path: Path, form: RleCsv, images: Dataset, category_id: int) -> list[dict[str, Any]]:
    """The masks of a submission as COCO results records of score 1 and one category; the format knows neither.

    Rows of images that `images` does not have are left out: a truth has no ignored images. That, and images without a
    row, are logged.

    Raises:
        CompetitionError: the file cannot be read, a mask is none or leaves its image, or no size is known.
    """
    content, _ = unpacked(path)
    known = {name_of(image): image for image in images.images}
    records, strange, spoken = [], Counter[str](), set()
    for line, row in table(content, str(path), [form.id.lower(), form.rle.lower()]):
        name = row[form.id.lower()]
        image = known.get(name)
        if image is None:
            strange[name] += 1
            continue
        spoken.add(name)
        place = f"{path}, line {line}"
        if not image.height:
            raise CompetitionError(
                f"{place}: nothing says how large {name} is; give a file with sizes: a solution, or a COCO json of the "
                "images (data/test.json of a run)"
            )
        try:
            runs = parse(row[form.rle.lower()])
            if not len(runs):
                continue
            rle = to_rle(runs, (image.height, image.width), form.order)
        except ValueError as error:
            raise CompetitionError(f"{place}: {error}; `validate` lists every fault of a submission") from error
        x0, y0, x1, y1 = (float(v) for v in rle_to_crop(rle)[0])
        records.append(
            {
                "image_id": image.id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": 1.0,
                "category_id": category_id,
                "segmentation": rle,
            }
        )
    if strange and not spoken:
        raise CompetitionError(f"{path}: none of its ids is among the images, e.g. {next(iter(strange))!r}")
    if strange:
        log.warning("%s: %d ids are not among the images and are left out", path, len(strange))
    if len(spoken) < len(known):
        log.warning(
            "%s: %d of %d images have no row; the server refuses that", path, len(known) - len(spoken), len(known)
        )
    return records


def write_records(records: Sequence[Mapping[str, Any]], images: Dataset, path: Path, form: RleCsv) -> None:
    """Write a submission: images by name, each with its records in their order, or with the mark of an empty image.

    Raises:
        CompetitionError: a record is of an image that is not to be submitted.
    """
    texts: dict[int, list[str]] = {image.id: [] for image in images.images}
    for record in records:
        if record["image_id"] not in texts:
            raise CompetitionError(f"there are masks on an image that is not to be submitted: {record['image_id']}")
        text = from_rle(record["segmentation"], form.order)
        if text:
            texts[record["image_id"]].append(text)
    ordered = sorted(images.images, key=name_of)
    write_rows([(name_of(image), text) for image in ordered for text in texts[image.id] or [form.empty]], path, form)


def write_rows(rows: Sequence[tuple[str, str]], path: Path, form: RleCsv) -> None:
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow((form.id, form.rle))
        writer.writerows(rows)
