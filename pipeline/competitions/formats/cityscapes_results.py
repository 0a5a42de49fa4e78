"""Cityscapes' own form of instance results: for each image a text file, for each instance a line and a mask image.

A zip of ``<city>_<sequence>_<frame>*.txt``, one for every image (it may be empty), with lines ``mask label confidence``:
the mask's path from the text file's folder, without spaces, the label id (24 person … 33 bicycle, not the train id) and a
number. A mask is an image of the scene's size whose pixels other than 0 are the instance.
"""

from __future__ import annotations

import math
import posixpath
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats import png
from pipeline.competitions.formats.archive import Archive, is_stray
from pipeline.competitions.formats.coco_results import check_counting
from pipeline.competitions.formats.faults import Faults
from pipeline.files import writing
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Image

FRAME = re.compile(r"(?P<city>[^_/]+)_(?P<sequence>\d{6})_(?P<frame>\d{6})")
"""How every Cityscapes file's name begins."""

MOST_TEXT_BYTES = 16 << 20
"""A text file of more is none: 100 instances take 5 kB."""

MOST_PIXELS = 1 << 27
"""A larger mask is no scene's."""

REPAIRED = {
    "text file missing": "an empty text file is added for {} without one",
    "byte order mark": "byte order marks are removed: {}",
    "spacing": "label and confidence stand after single spaces: {}",
    "blank line": "blank lines are removed: {}",
    "empty mask": "empty masks are removed: {}",
    "repeated mask": "of lines that name one mask only the last is kept: {}",
}
"""By kind of problem, what `fix` does about it."""

TRAIN_IDS = range(11, 19)
"""What networks are taught for labels 24 to 33; here it would be building, wall, …"""


def frame_of(name: str) -> str:
    """``<city>_<sequence>_<frame>`` of a file's name.

    Raises:
        CompetitionError: the name does not begin so.
    """
    found = FRAME.match(PurePosixPath(name).name)
    if found is None:
        raise CompetitionError(f"{name} is not named <city>_<6 digits>_<6 digits>…, as Cityscapes names its images")
    return found.group()


def is_official(path: Path) -> bool:
    """Whether a file is a zip with such text files, or a folder, and not COCO results."""
    if path.is_dir():
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith(".txt") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError):
        return False


# ---------------------------------------------------------------- writing ---------------------------------------------


def write(records: Sequence[Mapping[str, Any]], images: Sequence[Image], path: Path) -> None:
    """Write records as such a zip, best first in each image; the same records give the same bytes.

    Raises:
        CompetitionError: an image's name is not Cityscapes'.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_image[record["image_id"]].append(record)
    with writing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            frame = frame_of(image.file_name)
            lines = []
            ranked = sorted(by_image[image.id], key=lambda r: -float(r["score"]))
            for number, record in enumerate(ranked):
                name = f"{frame}_{number:03d}.png"
                lines.append(f"{name} {record['category_id']} {float(record['score'])!r}\n")
                box, mask = rle_to_crop(record["segmentation"])
                _put(archive, name, png.write_mask(mask, box, image.height, image.width))
            _put(archive, f"{frame}.txt", "".join(lines).encode())


def _put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


# ---------------------------------------------------------------- reading ---------------------------------------------


@dataclass(frozen=True)
class _Line:
    """One line of a text file: `mask` is the member's name in the archive."""

    text_file: str
    number: int
    mask: str
    label: int
    confidence: float

    @property
    def place(self) -> str:
        return f"{self.text_file}, line {self.number}"


def read(path: Path, images: Dataset | None) -> list[dict[str, Any]]:
    """The records of such a zip or folder, in COCO's form, image by image.

    Args:
        images: whose names say which image is which; without them images are numbered from 1 by name.

    Raises:
        CompetitionError: something of it cannot be read; all of that is listed.
    """
    faults = Faults()
    with Archive(path) as archive:
        if images is None:
            frames = sorted({f.group() for n in _text_files(archive) if (f := FRAME.match(PurePosixPath(n).name))})
            numbers: dict[str, int | Image] = {frame: k for k, frame in enumerate(frames, start=1)}
        else:
            numbers = {frame_of(image.file_name): image for image in images.images}
        records = []
        for frame, number in numbers.items():
            for name in _texts_of(frame, _text_files(archive)):
                last = {line.mask: line for line in _lines(archive, name, faults)}
                found = (_record(archive, line, number, faults) for line in last.values())
                records += [record for record in found if record is not None]
    errors = [str(p) for p in faults.problems() if p.severity == "error" and p.kind not in REPAIRED]
    if errors:
        raise CompetitionError(f"{path} cannot be read whole:\n  " + "\n  ".join(errors))
    return records


def _text_files(archive: Archive) -> list[str]:
    return [name for name in archive.names if name.lower().endswith(".txt") and not is_stray(name)]


def _texts_of(frame: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if PurePosixPath(name).name.startswith(frame)]


def _lines(archive: Archive, name: str, faults: Faults) -> Iterator[_Line]:
    """The lines that can be read; the others are faults."""
    try:
        content = archive.read(name)
        if len(content) > MOST_TEXT_BYTES:
            raise CompetitionError(f"holds {len(content):,} bytes, no list of instances")
        text = content.decode("utf-8")
    except (CompetitionError, UnicodeDecodeError, OSError) as error:
        faults.add("error", "text", f"cannot be read: {error}", name)
        return
    if text.startswith("\ufeff"):
        faults.add("error", "byte order mark", "begins with a byte order mark, which spoils the first path", name)
        text = text[1:]
    seen: set[str] = set()
    for number, row in enumerate(text.split("\n"), start=1):
        row = row.rstrip("\r")
        place = f"{name}, line {number}"
        if not row.strip():
            if number <= text.count("\n"):
                faults.add("error", "blank line", "is blank; the official script stops there", place)
            continue
        parts = row.split(" ")
        if (len(parts) != 3 or "" in parts) and len(apart := re.split(r"[ \t]+|,[ \t]*", row.strip())) == 3:
            faults.add("error", "spacing", "is not separated by single spaces; the official script stops there", place)
            parts = apart
        if len(parts) != 3:
            text_ = "is not `mask label confidence` with single spaces, and none in the path"
            faults.add("error", "line", text_, f"{place} ({row[:60]!r})")
            continue
        mask = posixpath.normpath(posixpath.join(posixpath.dirname(name), parts[0].replace("\\", "/")))
        if parts[0].startswith("/") or mask.startswith("../") or mask == ".." or ":" in parts[0]:
            faults.add("error", "path", "points outside of the submission", f"{place} ({parts[0][:60]})")
            continue
        try:
            label, confidence = int(float(parts[1])), float(parts[2])
            if math.isnan(confidence):
                raise ValueError("nan")
        except (ValueError, OverflowError):
            faults.add("error", "line", "has a label or confidence that is no number", f"{place} ({row[:60]!r})")
            continue
        if mask in seen:
            faults.add(
                "warning", "repeated mask", "names a mask that an earlier line names; only the last counts", place
            )
        seen.add(mask)
        yield _Line(name, number, mask, label, confidence)


def _record(archive: Archive, line: _Line, image: int | Image, faults: Faults) -> dict[str, Any] | None:
    """A line with its mask as a COCO record; None, and a fault, where the mask cannot be used or is empty."""
    if line.mask not in archive.names:
        faults.add("error", "mask", "names a mask that is not there", f"{line.place} ({line.mask})")
        return None
    try:
        content = archive.read(line.mask)
        header = png.parse(content)
        size = (header.height, header.width)
        if isinstance(image, Image) and size != (image.height, image.width):
            text = f"is {header.width}x{header.height}, its image {image.width}x{image.height}"
            faults.add("error", "mask size", text, line.mask)
            return None
        if size[0] * size[1] > MOST_PIXELS:
            raise ValueError(f"it says that it is {header.width}x{header.height}")
        mask = png.read_mask(content, *size, least=1)
    except (ValueError, OSError) as error:
        faults.add("error", "mask", f"names a mask that is no usable PNG: {error}", f"{line.place} ({line.mask})")
        return None
    if not mask.crop.size:
        faults.add("warning", "empty mask", "is empty; the official script passes over it", line.mask)
        return None
    x0, y0, x1, y1 = (float(v) for v in mask.box)
    return {
        "image_id": image.id if isinstance(image, Image) else image,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": line.confidence,
        "category_id": line.label,
        "segmentation": crop_to_rle(mask.crop, mask.box, size, threshold=1),
    }


# ---------------------------------------------------------------- checking --------------------------------------------


def check(path: Path, ids: Dataset, categories: Mapping[int, str]) -> list[Problem]:
    """Every problem of a zip (or a folder that is to become one)."""
    faults = Faults()
    try:
        with Archive(path) as archive:
            for name in archive.unsafe:
                faults.add("error", "archive", "has a name that leaves the archive", name)
            names = _text_files(archive)
            known = {frame_of(image.file_name): image for image in ids.images}
            used: set[str] = set()
            labels: list[int] = []
            for frame, image in known.items():
                texts = _texts_of(frame, names)
                used.update(texts)
                if not texts:
                    text = "has no text file; every image needs one, if an empty one"
                    faults.add("error", "text file missing", text, frame)
                if len(texts) > 1:
                    faults.add("error", "text file", "has several text files", frame)
                for name in texts:
                    for line in _lines(archive, name, faults):
                        _check_line(archive, line, image, categories, faults)
                        labels.append(line.label)
            if used and not labels:
                faults.add("warning", "count", "names no instance at all", path.name)
            check_counting(set(labels), sorted(categories), "the label", "label", faults, "all lines")
            for name in set(names) - used:
                faults.add("warning", "text file", "belongs to none of the test images", name)
    except CompetitionError as error:
        return [Problem("error", path.name, str(error), "archive")]
    return faults.problems()


def _check_line(archive: Archive, line: _Line, image: Image, categories: Mapping[int, str], faults: Faults) -> None:
    if line.label not in categories:
        shown = ", ".join(f"{k} {v}" for k, v in categories.items())
        hint = "; it looks like a train id" if line.label in TRAIN_IDS else ""
        text = f"has a label that is none of {shown}{hint}"
        faults.add("error", "label", text, f"{line.place} ({line.label})")
    if not 0 <= line.confidence <= 1:
        faults.add("warning", "score", "has a confidence outside 0..1", f"{line.place} ({line.confidence})")
    _record(archive, line, image, faults)


def fix(path: Path, ids: Dataset, categories: Mapping[int, str], target: Path) -> list[str]:
    """Write a copy without the faults of `REPAIRED`, and say what was changed.

    Raises:
        CompetitionError: there are none of these, or others too, which only the submission's author can repair.
    """
    problems = check(path, ids, categories)
    others = [str(p) for p in problems if p.severity == "error" and p.kind not in REPAIRED]
    if others:
        raise CompetitionError(f"{path} cannot be repaired with certainty:\n  " + "\n  ".join(others))
    with Archive(path) as archive:
        if not any(_texts_of(frame_of(image.file_name), _text_files(archive)) for image in ids.images):
            raise CompetitionError(
                f"{path} has no text file of any test image: with empty ones it would be nobody's work"
            )
    changes = [REPAIRED[p.kind].format(p.place) for p in problems if p.kind in REPAIRED]
    if not changes:
        raise CompetitionError(f"{path} has nothing to repair")
    write(read(path, ids), ids.images, target)
    return changes
