"""SegPC-2021 (ISBI): plasma cells in bone marrow, nucleus and cytoplasm, 298 training, 200 validation and 277 test images.

Layout, as a zip, a tar, zips in a folder or unpacked, at any depth::

    train/x/<n>.bmp, validation/x/<n>.bmp, test/x/<n>.bmp       2560x1920 (n below 1000) or 2040x1536
    train/y/<n>_<k>.bmp, validation/y/<n>_<k>.bmp               one cell: 0, 20 cytoplasm, 40 nucleus; some in 3 channels

A cell is one instance of category 1 (nucleus and cytoplasm together), its nucleus one of category 2 with the next id. An
image's id is its number.

Submission: a zip with one member submission.txt, lists of pixels at 1080x1440 (see formats/pixel_lists.py). Metric: the
mean over all true cells of the best IoU (see metrics/segpc.py). Nuclei are not scored, yet a cell without one loses its
whole image, so each is paired with the predicted nucleus that it shares most pixels with, and gets one pixel where there
is none. Extra cells never hurt: everything found is worth submitting.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, Problem, chosen_options
from pipeline.competitions.formats import bmp, coco_results, pixel_lists, pixel_lists_check, zipped
from pipeline.competitions.formats.archive import is_stray
from pipeline.competitions.formats.bundle import Bundle
from pipeline.competitions.formats.pixel_lists import NUCLEUS as NUCLEUS_BIT
from pipeline.competitions.formats.pixel_lists import LinesError
from pipeline.competitions.formats.stored import remove_others, store
from pipeline.files import writing
from pipeline.masks import FOREGROUND, crop_to_rle, tight_box
from pipeline.metrics.coco_ap import IOUS
from pipeline.metrics.segpc import FRAME, best_overlaps, from_frame, to_frame
from pipeline.records import Dataset, Detections, Image, Instance

CELL, NUCLEUS = 1, 2

CATEGORIES = {CELL: "cell", NUCLEUS: "nucleus"}

MEMBER = "submission.txt"

PARTS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
"""Folders that hold labelled images; ``test`` holds those to submit."""

NUCLEUS_VALUE = 30
"""Mask values from here on are nucleus: 40 in the data, against 20 for cytoplasm."""

_NAME = re.compile(r"(\d{1,9})(?:_(\d{1,9}))?\.bmp", re.IGNORECASE)


@dataclass
class _Files:
    """One image's files by their names in the archive. `part` is ``train``, ``validation``, ``test`` or empty."""

    name: str
    part: str
    image: str | None = None
    masks: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _Cell:
    """One mask file: the cell's box and crop, uint8 of 0, 1 (cytoplasm) and 2 (nucleus); an empty crop for an empty mask."""

    box: tuple[int, int, int, int]
    crop: np.ndarray
    usual: bool
    """Whether the file holds nothing but 0, 20 and 40."""


class Segpc2021Options(Options):
    """Which part."""

    test: Literal["test", "validation"] = "test"
    """Which images are to be predicted. test: the labelled ones of both other parts are trained on. validation: these, and
    only the training part is trained on."""


class Segpc2021:
    name = "segpc2021"
    options = Segpc2021Options
    metric = "mean IoU of every true cell with the best prediction"
    suffix = ".zip"
    max_detections: int | None = None
    ranked = True
    ious: Sequence[float] = IOUS  # their mean rises with the overlap itself
    download = (
        "SegPC-2021 grand challenge: https://segpc-2021.grand-challenge.org (data after registration), or its mirror:\n"
        "kaggle datasets download -d sbilab/segpc2021dataset -p data/segpc2021"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        files = _list(names, [])
        wanted = {
            "train/x/<n>.bmp": any(f.image and f.part == "train" for f in files),
            "train/y/<n>_<k>.bmp": any(f.masks and f.part == "train" for f in files),
            "validation/x/<n>.bmp": any(f.image and f.part == "validation" for f in files),
            "validation/y/<n>_<k>.bmp": any(f.masks and f.part == "validation" for f in files),
            "test/x/<n>.bmp": any(f.image and f.part == "test" for f in files),
        }
        return [what for what, there in wanted.items() if not there]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the archive or folder. `options`: see `Segpc2021Options`."""
        chosen = chosen_options(self.options, options).test
        if path is None:
            raise CompetitionError(
                "segpc2021 needs its images: set data.path in the experiment file or pass --data PATH"
            )
        target.mkdir(parents=True, exist_ok=True)
        integrity = Integrity()
        with Bundle(path, target) as archive:
            files = _listed(archive, integrity)
            labelled = [f for f in files if f.part not in ("test", chosen)]
            train = _read_train(archive, labelled, target, integrity)
            test = _read_test(archive, [f for f in files if f.part == chosen and f.image], chosen, target, integrity)
        remove_others(target, train, test)
        cells = sum(a.category_id == CELL for a in train.instances)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(test.images),
            "mask_files": sum(len(f.masks) for f in labelled),
            "instances_per_class": {"cell": cells, "nucleus": len(train.instances) - cells},
        }
        return Prepared(train, test, integrity)

    def stratum(self, image: Image) -> str:
        """The image's size, which tells the two cameras apart."""
        return f"{image.width}x{image.height}"

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Every true cell's best IoU, averaged; ``classes`` has the same of the nuclei, which are not scored."""
        overlaps = {category: best_overlaps(truth, records, category) for category in (CELL, NUCLEUS)}
        cells = overlaps[CELL]
        return {
            "competition": self.name,
            "metric": self.metric,
            "score": cells.score,
            "images": len(truth.images),
            "truths": cells.cells,
            "detections": sum(record.get("category_id") == CELL for record in records),
            "cells_found_at_0.5": cells.found(0.5),
            "classes": {name: overlaps[c].score if overlaps[c].cells else None for c, name in CATEGORIES.items()},
        }

    def records(self, detections: Detections, images: Dataset) -> list[dict[str, Any]]:
        """Each cell that leaves a pixel at 1080x1440, and behind it its nucleus, cut to the cell, where it has one."""
        records = []
        for image, rows in _by_image(detections, images):
            size = (image.height, image.width)
            for i, cell, nucleus in _paired(detections, rows):
                x0, y0, x1, y1 = (int(v) for v in detections.mask_box[i])
                if not to_frame((x0, y0, x1, y1), cell, size)[1].any():
                    continue
                for category_id, mask in ((CELL, cell), (NUCLEUS, nucleus)):
                    if mask is not None:
                        u0, v0, u1, v1 = tight_box(mask)
                        box = np.array([x0 + u0, y0 + v0, x0 + u1, y0 + v1])
                        score = float(detections.score[i])
                        records.append(_record(image.id, category_id, box, mask[v0:v1, u0:u1], size, score))
        return records

    def write(self, detections: Detections, test: Dataset, path: Path) -> None:
        large = len(detections) > 100  # of which each may be the whole frame
        with writing(path) as temporary, zipped.written(temporary, MEMBER, large=large) as out:
            first = True
            for image, rows in _by_image(detections, test):
                cells = []
                for i, cell, nucleus in _paired(detections, rows):
                    size = (image.height, image.width)
                    box, mask = to_frame(detections.mask_box[i], cell, size)
                    if mask.any():
                        inside = None if nucleus is None else to_frame(detections.mask_box[i], nucleus, size)[1]
                        cells.append((box, pixel_lists.split(mask, inside)))
                if not cells:
                    continue
                out.write(b"" if first else b"\n")
                first = False
                for piece in pixel_lists.line(_stem(image), cells):
                    out.write(piece)

    def read_submission(self, path: Path, images: Dataset | None = None) -> list[dict[str, Any]]:
        """The cells and nuclei as records with score 1, as the scorer reads them: an image that it would stop at has none.

        Args:
            images: tell which lines are read and the images' sizes, which the masks are brought to where that loses
                nothing: always, but for images smaller than 1080x1440. Without, an image's id is its number.
        """
        if _head(path)[:4] == b"PAR1":
            if images is None:
                raise CompetitionError(f"{path} holds detections without the images' sizes; give the images")
            try:
                return self.records(Detections.read(path), images)
            except (KeyError, ValueError) as error:
                raise CompetitionError(f"{path}: {error}") from error
        known = None if images is None else {_stem(image): image for image in images.images}
        found: dict[int, list[dict[str, Any]]] = {}
        problems: list[Problem] = []
        try:
            with pixel_lists_check.opened(path, MEMBER, problems) as handle:
                if handle is None:
                    raise CompetitionError("\n".join(f"{path}: {p.text}" for p in problems if p.severity == "error"))
                for line in pixel_lists.read_lines(handle):
                    image = _image_of(line.name, known)
                    if image is None:
                        coco_results.log.warning("%s: line %d is of no known image", path, line.number)
                        continue
                    stops = next((cell.fault for cell in line.cells if cell.fault), "")
                    if stops:
                        coco_results.log.warning("%s: image %s scores 0: a cell %s", path, line.name, stops)
                    found[image.id] = [] if stops else _line_records(line, image)
        except (zipped.DamagedError, LinesError) as error:
            raise CompetitionError(f"{path} {error}") from error
        for problem in problems:
            coco_results.log.warning("%s", problem)
        return [record for records in found.values() for record in records]

    def read_truth(self, path: Path) -> Dataset:
        """From the mask files (a folder or archive that holds y/), every one of them; or from a COCO json."""
        if _is_json(path):
            return Dataset.read(path)
        with Bundle(path) as archive:
            return _read_truth(archive, _listed(archive, Integrity()))

    def read_ids(self, path: Path) -> Dataset:
        """From the test images (a folder or archive that holds test/x, or x alone); or from a json."""
        if _is_json(path):
            return coco_results.read_ids(path, CATEGORIES)
        with Bundle(path) as archive:
            files = [f for f in _listed(archive, Integrity()) if f.image]
            chosen = [f for f in files if f.part == "test"] or files
            images = []
            for f in chosen:
                try:
                    picture = bmp.parse(archive.read(f.image or ""))
                except ValueError as error:
                    raise CompetitionError(f"{f.image} in {path}: {error}") from error
                images.append(Image(int(f.name), f"{f.name}.bmp", picture.height, picture.width))
        if not images:
            raise CompetitionError(f"{path} holds no test/x/<n>.bmp")
        return Dataset(images, dict(CATEGORIES))

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        return pixel_lists_check.check(path, MEMBER, {_stem(image): image for image in ids.images})

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        return pixel_lists_check.fix(path, MEMBER, {_stem(image): image for image in ids.images}, target)


# ---------------------------------------------------------------- the files -------------------------------------------


def _list(names: Sequence[str], stray: list[str]) -> list[_Files]:
    """Images and masks by their numbers, ascending; what is neither is added to `stray`."""
    found: dict[tuple[str, str], _Files] = {}
    for name in names:
        path = PurePosixPath(name)
        match = _NAME.fullmatch(path.name)
        if match is None or is_stray(name):
            stray.append(name)
            continue
        folders = [folder.lower() for folder in path.parts[:-1]]
        parts = [folder for folder in reversed(folders) if folder in PARTS or folder == "test"]
        part = PARTS.get(parts[0], "test") if parts else ""
        files = found.setdefault((part, match[1]), _Files(match[1], part))
        if match[2] is not None:
            files.masks.append((int(match[2]), name))
        elif files.image is None:
            files.image = name
        else:
            stray.append(name)
    for files in found.values():
        files.masks.sort()
    return sorted(found.values(), key=lambda f: (int(f.name), f.part))


def _listed(archive: Bundle, integrity: Integrity) -> list[_Files]:
    """`_list` of an archive, without images whose number another part has already.

    Raises:
        CompetitionError: there is none.
    """
    stray: list[str] = []
    files = _list(archive.names, stray)
    if not files:
        top = sorted({name.removeprefix(f"{archive.path.stem}/").split("/")[0] for name in archive.names})[:8]
        raise CompetitionError(
            f"{archive.path} holds no x/<n>.bmp and no y/<n>_<k>.bmp; is it SegPC-2021? It has {', '.join(top) or 'nothing'}"
        )
    if stray:
        text = f"{len(stray)} files that are no part of the data are ignored: {', '.join(stray[:3])}"
        integrity.add("warning", str(archive.path), text + (" …" if len(stray) > 3 else ""), "stray files")
    if archive.unsafe:
        text = f"members that are no plain files inside are not read: {', '.join(archive.unsafe[:3])}"
        integrity.add("warning", str(archive.path), text, "unsafe name")
    kept: dict[int, _Files] = {}
    for f in sorted(files, key=lambda f: ["train", "validation", "", "test"].index(f.part)):
        if int(f.name) in kept:
            text = f"number {f.name} is in {kept[int(f.name)].part or 'no part'} too; it is left out"
            integrity.add("error", f"{f.part or 'no part'}/{f.name}", text, "number twice")
        else:
            kept[int(f.name)] = f
    return [kept[number] for number in sorted(kept)]


def _read_mask(content: bytes, size: tuple[int, int] | None) -> _Cell:
    """Read a mask file.

    Raises:
        ValueError: it is damaged or has another size than the image.
    """
    file = bmp.parse(content)
    if size is not None and (file.height, file.width) != size:
        raise ValueError(f"it is {file.width}x{file.height} pixels, the image is {size[1]}x{size[0]}")
    values = file.values()
    x0, y0, x1, y1 = tight_box(values)
    values = values[y0:y1, x0:x1]
    crop = (values > 0).astype(np.uint8) + (values >= NUCLEUS_VALUE)
    usual = bool(np.isin(values, (0, 20, 40)).all())
    return _Cell((x0, y0, x1, y1), crop.astype(np.uint8), usual)


def _instances(cell: _Cell, image: Image, first_id: int) -> list[Instance]:
    """The cell, and its nucleus if it has one."""
    found: list[Instance] = []
    for category_id, mask in ((CELL, cell.crop > 0), (NUCLEUS, cell.crop > 1)):
        if category_id == NUCLEUS and not mask.any():
            continue
        u0, v0, u1, v1 = tight_box(mask)
        box = (cell.box[0] + u0, cell.box[1] + v0, cell.box[0] + u1, cell.box[1] + v1)
        rle = crop_to_rle(mask[v0:v1, u0:u1].astype(np.uint8), box, (image.height, image.width), threshold=1)
        x, y, width, height = float(box[0]), float(box[1]), float(u1 - u0), float(v1 - v0)
        number = first_id + len(found)
        found.append(Instance(number, image.id, category_id, rle, (x, y, width, height), float(mask.sum())))
    return found


def _read_train(archive: Bundle, files: list[_Files], target: Path, integrity: Integrity) -> Dataset:
    images: list[Image] = []
    instances: list[Instance] = []
    for f in files:
        place = f"{f.part or 'data'}/x/{f.name}.bmp"
        if f.image is None:
            integrity.add(
                "error", place, f"is not there, but {len(f.masks)} masks of it; they are left out", "no image"
            )
            continue
        if not f.masks:
            text = "has no masks; it is left out, for it would teach that its cells are background"
            integrity.add("error", place, text, "image without masks")
            continue
        try:
            content = archive.read(f.image)
            picture = bmp.parse(content)
        except ValueError as error:
            integrity.add("error", place, f"{error}; the image is left out", "damaged image")
            continue
        image = Image(int(f.name), f"images/train/{f.name}.bmp", picture.height, picture.width, f.name)
        own = _read_cells(archive, f, image, len(instances) + 1, integrity)
        if not own:
            integrity.add("error", place, "has no usable mask; it is left out", "image without masks")
            continue
        store(archive.file(f.image) or content, target / image.file_name)
        images.append(image)
        instances += own
    if not images:
        reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
        raise CompetitionError(f"there is no usable training image:\n  {reasons or 'train/ is empty'}")
    return Dataset(images, dict(CATEGORIES), instances, target)


def _read_cells(archive: Bundle, files: _Files, image: Image, first_id: int, integrity: Integrity) -> list[Instance]:
    found: list[Instance] = []
    seen: dict[tuple[Any, bytes], str] = {}
    for _, name in files.masks:
        place = f"{files.part or 'data'}/y/{PurePosixPath(name).name}"
        try:
            cell = _read_mask(archive.read(name), (image.height, image.width))
        except ValueError as error:
            integrity.add("error", place, f"{error}; it is left out", "damaged mask")
            continue
        if not cell.crop.size:
            integrity.add("warning", place, "is empty; it is left out", "empty mask")
            continue
        key = (cell.box, cell.crop.tobytes())
        if key in seen:
            integrity.add("warning", place, f"is the same as {seen[key]}; it is left out", "duplicate mask")
            continue
        seen[key] = PurePosixPath(name).name
        if not cell.usual:
            text = "holds values other than 0, 20 and 40; all but 0 is taken as cell, 30 and more as nucleus"
            integrity.add("warning", place, text, "values")
        if not (cell.crop > 1).any():
            integrity.add("warning", place, "has no nucleus", "no nucleus")
        found += _instances(cell, image, first_id + len(found))
    return found


def _read_test(archive: Bundle, files: list[_Files], part: str, target: Path, integrity: Integrity) -> Dataset:
    images, damaged = [], []
    for f in files:
        name = f.image or ""
        try:
            content = archive.read(name)
            picture = bmp.parse(content)
        except ValueError as error:
            damaged.append(f"{name}: {error}")
            continue
        image = Image(int(f.name), f"images/test/{f.name}.bmp", picture.height, picture.width, f.name)
        store(archive.file(name) or content, target / image.file_name)
        images.append(image)
    if damaged:
        raise CompetitionError(
            "every test image must be whole, or the submission is not; get the archive again:\n  "
            + "\n  ".join(damaged)
        )
    if not images:
        text = f"there is no {part}/x/<n>.bmp: nothing can be submitted; data.options.test: validation predicts those"
        integrity.add("error", str(archive.path), text, "no test images")
    return Dataset(images, dict(CATEGORIES), root=target)


def _read_truth(archive: Bundle, files: list[_Files]) -> Dataset:
    """Every mask file is a true cell, repeated and empty ones too: that is how the scorer counts."""
    images: list[Image] = []
    instances: list[Instance] = []
    for f in files:
        size: tuple[int, int] | None = None
        for _, name in f.masks:
            try:
                content = archive.read(name)
                file = bmp.parse(content)
                size = size or (file.height, file.width)
                cell = _read_mask(content, size)
            except ValueError as error:
                raise CompetitionError(f"{name} in {archive.path}: {error}") from error
            image = Image(int(f.name), f"{f.name}.bmp", *size)
            instances += _instances(cell, image, len(instances) + 1)
        if size is not None:
            images.append(Image(int(f.name), f"{f.name}.bmp", *size))
    if not images:
        raise CompetitionError(f"{archive.path} holds no y/<n>_<k>.bmp, so no true cell")
    return Dataset(images, dict(CATEGORIES), instances)


def _head(path: Path) -> bytes:
    """How a file begins; nothing of a folder."""
    if path.is_dir():
        return b""
    try:
        with open(path, "rb") as handle:
            return handle.read(64)
    except FileNotFoundError as error:
        raise CompetitionError(f"there is no file {path}") from error


def _is_json(path: Path) -> bool:
    return _head(path).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


# ---------------------------------------------------------------- submissions -----------------------------------------


def _stem(image: Image) -> str:
    return PurePosixPath(image.file_name).stem


def _image_of(name: str, known: Mapping[str, Image] | None) -> Image | None:
    if known is not None:
        return known.get(name)
    return Image(int(name), name, *FRAME) if re.fullmatch(r"\d{1,9}", name, re.ASCII) else None


def _record(
    image_id: int,
    category_id: int,
    box: np.ndarray,
    mask: np.ndarray,
    size: tuple[int, int] | None = None,
    score: float = 1.0,
) -> dict[str, Any]:
    """A record of a mask's crop, uint8 of 0 and 1, in an image of `size` (that of submissions by default)."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return {
        "image_id": image_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
        "category_id": category_id,
        "segmentation": crop_to_rle(mask, box, size or FRAME, threshold=1),
    }


def _line_records(line: pixel_lists.Line, image: Image) -> list[dict[str, Any]]:
    records = []
    size = (image.height, image.width)
    for cell in line.cells:
        for category_id, mask in ((CELL, cell.bits > 0), (NUCLEUS, cell.bits & NUCLEUS_BIT > 0)):
            u0, v0, u1, v1 = tight_box(mask)
            if u1 > u0:
                box = np.array([cell.box[0] + u0, cell.box[1] + v0, cell.box[0] + u1, cell.box[1] + v1])
                crop = mask[v0:v1, u0:u1].astype(np.uint8)
                own = from_frame(box, crop, size)
                records.append(
                    _record(image.id, category_id, box, crop)
                    if own is None
                    else _record(image.id, category_id, *own, size)
                )
    return records


def _by_image(detections: Detections, images: Dataset) -> Iterator[tuple[Image, np.ndarray]]:
    """The images in their order, each with its rows, best first.

    Raises:
        CompetitionError: there are detections on other images.
    """
    unknown = sorted(set(detections.image_id.tolist()) - set(images.image))
    if unknown:
        raise CompetitionError(f"there are detections on images that are not to be submitted: {unknown[:10]}")
    rows_of: dict[int, list[int]] = defaultdict(list)
    for i in np.argsort(-detections.score, kind="stable").tolist():
        rows_of[int(detections.image_id[i])].append(i)
    for image in images.images:
        yield image, np.array(rows_of[image.id], np.int64)


def _paired(detections: Detections, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """An image's cells, best first: the row, the mask over its mask box, uint8 of 0 and 1, and the pixels in it of the
    nucleus that shares most with it; None where none shares any. Cells without a pixel are left out."""
    nuclei = [
        (detections.mask_box[i], detections.crop(i) >= FOREGROUND) for i in rows if detections.category_id[i] == NUCLEUS
    ]
    for i in rows.tolist():
        if detections.category_id[i] != CELL:
            continue
        cell = detections.crop(i) >= FOREGROUND
        if not cell.any():
            continue
        best, most = None, 0
        for box, nucleus in nuclei:
            shared = _shared(detections.mask_box[i], cell, box, nucleus)
            if shared is not None and (count := int(shared.sum())) > most:
                best, most = shared, count
        yield i, cell.astype(np.uint8), best


def _shared(box: np.ndarray, cell: np.ndarray, other_box: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """The pixels that two masks share, uint8 of 0 and 1 over the first's box; None where the boxes are apart."""
    x0, y0 = np.maximum(box[:2], other_box[:2]).tolist()
    x1, y1 = np.minimum(box[2:], other_box[2:]).tolist()
    if x1 <= x0 or y1 <= y0:
        return None
    shared = np.zeros(cell.shape, np.uint8)
    own = (slice(y0 - box[1], y1 - box[1]), slice(x0 - box[0], x1 - box[0]))
    others = (slice(y0 - other_box[1], y1 - other_box[1]), slice(x0 - other_box[0], x1 - other_box[0]))
    shared[own] = cell[own] & other[others]
    return shared


COMPETITION = Segpc2021()
