"""NYCU VRDL 2025, homework 3: four classes of cells in H&E tissue, 209 training and 101 test images of 33 to 2,500 pixels.

The images and labels are those of MoNuSAC 2020. Layout, as a tar, tar.gz, zip or unpacked, in any outer folder::

    train/<uuid>/image.tif                      RGBA, alpha 255 everywhere
    train/<uuid>/class1.tif … class4.tif        float64, 0 and a number per cell; no file for a class without cells
    test_release/<uuid>.tif
    test_image_name_to_ids.json                 [{"file_name", "height", "id", "width"}, …]

Numbers of cells run on across an image's classes. A number whose pixels lie in two places is one cell.

Submission: a zip with one member test-results.json, COCO results. Metric: pycocotools' segm AP50, the mean over classes.
How many detections of an image (and class) count is not known: 100 by default, COCO's own, and the score at 1000 stands
beside it; ``submission.counted`` makes another number the one that ranks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, Problem, chosen_options
from pipeline.competitions.formats import coco_results, vrdl_layout
from pipeline.competitions.formats.archive import Archive, is_stray
from pipeline.competitions.formats.coco_competition import IOU, CocoCompetition
from pipeline.competitions.formats.images import decode
from pipeline.competitions.formats.stored import remove_others, store
from pipeline.masks import crop_to_rle
from pipeline.metrics.coco_ap import Evaluation, evaluate
from pipeline.records import Dataset, Image, Instance

CATEGORIES = {1: "epithelial", 2: "lymphocyte", 3: "neutrophil", 4: "macrophage"}

IDS = "test_image_name_to_ids.json"

LIMITS = (100, 1000)
"""Detections of an image and class that may be what the leaderboard counts; the score is given at each."""

LARGEST_NUMBER = 2**31 - 1


@dataclass
class _Cell:
    """One cell: class, half-open box ``x0, y0, x1, y1`` and the pixels in it, uint8 of 0 and 1."""

    category_id: int
    box: tuple[int, int, int, int]
    crop: np.ndarray


@dataclass
class _TrainImage:
    """One training image's files, and what reading them gave."""

    name: str
    image: str | None = None
    classes: dict[int, str] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    cells: list[_Cell] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    usable: bool = True

    def fault(self, severity: Literal["error", "warning"], place: str, text: str, kind: str) -> None:
        self.problems.append(Problem(severity, place, text, kind))


class Vrdl2025(CocoCompetition):
    name = "vrdl2025"
    options = Options
    metric = "segm AP50 (mean over classes) maxDets=100"
    member = "test-results.json"
    categories: Mapping[int, str] = CATEGORIES
    download = (
        "homework 3 of NYCU's course VRDL, spring 2025; CodaBench: https://www.codabench.org/competitions/7325/\n"
        "hw3-data-release.tar.gz is linked from the course's slides, for its participants"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        have = ["/" + name for name in names]

        def there(pattern: str) -> bool:
            return any(re.search(pattern, name) for name in have)

        wanted = {
            "train/<uuid>/image.tif": r"/train/[^/]+/image\.tiff?$",
            "train/<uuid>/class1.tif … class4.tif": r"/train/[^/]+/class[1-4]\.tiff?$",
            "test_release/<uuid>.tif": r"/test_release/[^/]+\.tiff?$",
            IDS: "/" + re.escape(IDS) + "$",
        }
        return [what for what, pattern in wanted.items() if not there(pattern)]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the archive or folder. Every image is a group of its own."""
        chosen_options(self.options, options)
        if path is None:
            raise CompetitionError(
                "vrdl2025 needs its hw3-data-release.tar.gz: set data.path in the experiment file or pass --data PATH"
            )
        target.mkdir(parents=True, exist_ok=True)
        with Archive(path, target) as archive:
            root = vrdl_layout.root(archive, IDS, "hw3-data-release.tar.gz of VRDL 2025")
            integrity = Integrity()
            if archive.unsafe:
                text = f"members that are no plain files inside are not read: {', '.join(archive.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            found = _list_train(archive, root, integrity)
            for train_image in found:
                _read_train(archive, train_image, target)
            train = _train_dataset(found, target, integrity)
            test = self._read_test(archive, root, target, integrity)
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(test.images),
            "instances_per_class": {
                name: sum(a.category_id == number for a in train.instances) for number, name in CATEGORIES.items()
            },
            "instances_in_parts": sum(_parts(cell.crop) > 1 for image in found if image.usable for cell in image.cells),
        }
        return Prepared(train, test, integrity)

    def _read_test(self, archive: Archive, root: str, target: Path, integrity: Integrity) -> Dataset:
        def size(content: bytes) -> tuple[int, int]:
            pixels = decode(content)
            return pixels.shape[0], pixels.shape[1]

        def keep(content: bytes, image: Image) -> Image:
            name = f"images/test/{PurePosixPath(image.file_name).name}"
            store(content, target / name)
            return Image(image.id, name, image.height, image.width, PurePosixPath(image.file_name).stem)

        images = vrdl_layout.read_test(
            archive, f"{root}test_release/", root + IDS, self.categories, size, keep, integrity
        )
        return Dataset(images, dict(self.categories), root=target)

    def counting(self, max_detections: int) -> Vrdl2025:
        """The competition whose metric counts so many detections of an image and class."""
        changed = copy.copy(self)
        changed.max_detections = max_detections
        changed.metric = f"segm AP50 (mean over classes) maxDets={max_detections}"
        return changed

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        """Every problem. Only what no known limit counts is too many: which of `LIMITS` counts is not known, and more
        detections than 100 cost nothing if it is 100."""
        most = max(self.max_detections or 0, *LIMITS)
        return coco_results.check(path, self.member, ids, self.categories, most)

    def summary(self, truth: Dataset, evaluation: Evaluation, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Beside the score, ``ap50_by_max_detections``: what it is at each of `LIMITS`."""
        at = {
            str(limit): (
                evaluation if limit == evaluation.max_detections else evaluate(truth, records, [IOU], limit)
            ).ap()
            for limit in LIMITS
        }
        return {**super().summary(truth, evaluation, records), "ap50_by_max_detections": at}


def _list_train(archive: Archive, root: str, integrity: Integrity) -> list[_TrainImage]:
    """Sort the names below train/ into images and their class files; the rest is reported and left."""
    found: dict[str, _TrainImage] = {}
    stray = [name for name in archive.names if name.startswith(f"{root}test_release/") and is_stray(name)]
    for name in archive.names:
        if not name.startswith(f"{root}train/"):
            continue
        parts = name[len(root) + 6 :].split("/")
        kind = re.fullmatch(r"(image|class([1-4]))\.tiff?", parts[-1].lower())
        if is_stray(name) or len(parts) != 2 or kind is None:
            stray.append(name)
            continue
        train = found.setdefault(parts[0], _TrainImage(parts[0]))
        if kind[2]:
            train.classes[int(kind[2])] = name
        else:
            train.image = name
    if stray:
        shown = ", ".join(name[len(root) :] for name in stray[:3])
        text = f"{len(stray)} files that are no part of the data are ignored: {shown}{' …' if len(stray) > 3 else ''}"
        integrity.add("warning", str(archive.path), text, "stray files")
    return [found[key] for key in sorted(found)]


def _read_train(archive: Archive, train: _TrainImage, target: Path) -> None:
    place = f"train/{train.name}"
    train.usable = False
    if train.image is None:
        train.fault(
            "error", place, f"has {len(train.classes)} class files and no image.tif; it is left out", "no image"
        )
        return
    try:
        content = archive.read(train.image)
        pixels = decode(content)
    except ValueError as error:
        train.fault("error", f"{place}/image.tif", f"{error}; the image is left out", "damaged image")
        return
    if not train.classes:
        text = "has no class file; it is left out, for it would teach that its cells are background"
        train.fault("error", place, text, "image without cells")
        return
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not (pixels[:, :, 3] == 255).all():
        train.fault("warning", f"{place}/image.tif", "is transparent in places; its alpha is dropped", "alpha")
    train.size = (pixels.shape[0], pixels.shape[1])
    for category_id, name in sorted(train.classes.items()):
        try:
            numbers = _numbers(decode(archive.read(name)), train.size)
        except ValueError as error:
            text = f"{error}; the image is left out, for it would teach that these cells are background"
            train.fault("error", f"{place}/class{category_id}.tif", text, "damaged class file")
            return
        cells = _cells(numbers, category_id)
        if not cells:
            train.fault("warning", f"{place}/class{category_id}.tif", "holds no cell", "empty class file")
        train.cells += cells
    if not train.cells:
        train.fault("error", place, "has no usable cell; it is left out", "image without cells")
        return
    shared = _shared_pixels(train)
    if shared:
        train.fault("warning", place, f"{shared:,} pixels lie in cells of two classes", "overlapping masks")
    store(archive.file(train.image) or content, target / _stored_name(train.name))
    train.usable = True


def _numbers(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A class file's pixels as (H, W) int64: 0 for background, a cell's number elsewhere.

    Raises:
        ValueError: another size than the image; values that are no whole numbers from 0 on; several channels.
    """
    if pixels.shape[:2] != size:
        raise ValueError(f"it is {pixels.shape[1]}x{pixels.shape[0]} pixels, the image is {size[1]}x{size[0]}")
    if pixels.ndim == 3:
        if not (pixels == pixels[:, :, :1]).all():
            raise ValueError("it is a colour image, not one number per pixel")
        pixels = pixels[:, :, 0]
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > LARGEST_NUMBER:
        raise ValueError("it holds values that are no numbers of cells (negative, too large, or not finite)")
    numbers = pixels.astype(np.int64)
    if not (numbers == pixels).all():
        raise ValueError("it holds fractions, so it has been resampled; cells are whole numbers")
    return numbers


def _cells(numbers: np.ndarray, category_id: int) -> list[_Cell]:
    """The cells of a class in the order of their numbers."""
    from scipy import ndimage

    values, dense = np.unique(numbers, return_inverse=True)
    dense = dense.reshape(numbers.shape).astype(np.int32)
    if values[0] != 0:  # no background at all
        dense += 1
    cells = []
    for k, place in enumerate(ndimage.find_objects(dense), start=1):
        rows, columns = place
        crop = (dense[place] == k).astype(np.uint8)
        cells.append(_Cell(category_id, (columns.start, rows.start, columns.stop, rows.stop), crop))
    return cells


def _parts(crop: np.ndarray) -> int:
    from scipy import ndimage

    return int(ndimage.label(crop, np.ones((3, 3)))[1])


def _shared_pixels(train: _TrainImage) -> int:
    count = np.zeros(train.size, np.uint8)
    for cell in train.cells:
        x0, y0, x1, y1 = cell.box
        count[y0:y1, x0:x1] += cell.crop
    return int((count > 1).sum())


def _train_dataset(found: list[_TrainImage], target: Path, integrity: Integrity) -> Dataset:
    images: list[Image] = []
    instances: list[Instance] = []
    for train in found:
        integrity.problems += train.problems
        if not train.usable:
            continue
        image = Image(len(images) + 1, _stored_name(train.name), *train.size, train.name)
        images.append(image)
        for cell in train.cells:
            x0, y0, x1, y1 = (float(v) for v in cell.box)
            rle = crop_to_rle(cell.crop, cell.box, train.size, threshold=1)
            box = (x0, y0, x1 - x0, y1 - y0)
            instances.append(Instance(len(instances) + 1, image.id, cell.category_id, rle, box, float(cell.crop.sum())))
    if not images:
        reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
        raise CompetitionError(f"there is no usable training image:\n  {reasons or 'train/ is empty'}")
    return Dataset(images, dict(CATEGORIES), instances, target)


def _stored_name(name: str) -> str:
    return f"images/train/{name}.tif"


COMPETITION = Vrdl2025()
