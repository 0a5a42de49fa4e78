"""COCO, and any set in its format: annotation files and folders of images.

Layout, as a folder or zip, unpacked or with the zips that COCO hands out still whole in it::

    annotations/instances_train2017.json     annotations/instances_val2017.json     annotations/image_info_test-dev2017.json
    train2017/<name>.jpg                     val2017/<name>.jpg                     test2017/<name>.jpg

Other names are found too (train.json beside train/, Roboflow's train/_annotations.coco.json, a single annotation file), or
given as options.

Submission: a zip with one member detections_test-dev2017_<method>_results.json, the name that COCO's server asks for,
holding COCO results with the set's own category ids. Metric: pycocotools' segm AP, the mean over IoU 0.50 to 0.95 and
over classes, 100 detections an image and class; beside it the other eleven numbers of its summary.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, Problem, chosen_options
from pipeline.competitions.formats import coco_fix, coco_results, coco_score, coco_stream
from pipeline.competitions.formats.archive import is_stray
from pipeline.competitions.formats.bundle import Bundle
from pipeline.competitions.formats.coco_competition import CocoCompetition
from pipeline.competitions.formats.faults import Faults
from pipeline.competitions.formats.image_size import size_of
from pipeline.competitions.formats.stored import fetch, remove_others, store
from pipeline.masks import rle_to_crop
from pipeline.metrics.coco_ap import IOUS
from pipeline.metrics.coco_summary import LIMITS
from pipeline.records import Dataset, Image, Instance, compressed

COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""COCO's own 80 category ids, for test images that come without categories."""

OFFICIAL_NAMES = ("detections_*_results.json", "segm_*_results.json")
"""What COCO's server takes: [type]_[testset]_[alg]_results.json, in a zip."""

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

WRONG_AREA = 2.0
"""An annotation's area may be off by this factor: COCO's are measured on polygons, not on pixels."""

_OTHER_TASKS = re.compile(r"(captions|person_keypoints|panoptic|stuff|_results)", re.IGNORECASE)


class CocoOptions(Options):
    """Files and folders go by their names in the data or the ends of these."""

    train: str | None = Field(None, min_length=1)
    """The annotation file to learn from; null for instances_train*.json."""
    train_images: str | None = Field(None, min_length=1)
    """The folder with its images; null for wherever the names are found."""
    test: str | None = Field(None, min_length=1)
    """The annotation file to predict; null for image_info_test-dev*.json, else *test*.json, else *val*.json. It may be that
    of `train`; annotations in it are not used."""
    test_images: str | None = Field(None, min_length=1)
    """The folder with its images; null for wherever the names are found."""


class Coco(CocoCompetition):
    name = "coco"
    options = CocoOptions
    metric = coco_score.metric()
    ious: Sequence[float] = IOUS
    member = "detections_test-dev2017_maskfold_results.json"
    categories: Mapping[int, str] = {c: str(c) for c in COCO_IDS}
    download = (
        "curl -O http://images.cocodataset.org/zips/train2017.zip    (18 GB; also val2017.zip, test2017.zip)\n"
        "curl -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip\n"
        "curl -O http://images.cocodataset.org/annotations/image_info_test2017.zip\n"
        "put them in one folder, as they are or unpacked; any other set in COCO's format does too"
    )

    # ------------------------------------------------ reading ---------------------------------------------------------

    def missing(self, names: Sequence[str]) -> list[str]:
        pattern = re.compile(r"(instances|annotation|coco|train|val)[^/]*\.json$", re.IGNORECASE)
        annotated = any(map(pattern.search, names))
        wanted = {
            "an annotation file such as annotations/instances_train2017.json": annotated,
            # images alone may be of any competition
            "images such as train2017/<name>.jpg": annotated and any(n.lower().endswith(IMAGE_TYPES) for n in names),
        }
        return [what for what, there in wanted.items() if not there]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the annotation files and unpack the images. `options`: see `CocoOptions`."""
        chosen = chosen_options(self.options, options)
        if path is None:
            raise CompetitionError("coco needs its files: set data.path in the experiment file or pass --data PATH")
        integrity = Integrity()
        with Bundle(path) as files:
            if files.unsafe:
                text = f"names that leave the archive are not read: {', '.join(files.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            where = _Images.of(files.names)
            train_file, test_file = _annotation_files(path, files.names, chosen)
            raw = _load(files, train_file)
            train = _read_part("train", raw, train_file, chosen.train_images, files, where, target, integrity)
            train.instances.extend(_instances(raw, train, train_file, integrity))
            test = Dataset([], train.categories, root=target)
            if test_file is not None:
                raw = raw if test_file == train_file else _load(files, test_file)
                test = _read_part("test", raw, test_file, chosen.test_images, files, where, target, integrity)
                test.categories = test.categories or train.categories
            else:
                text = (
                    "there is no test or val annotation file: nothing will be predicted; data.options.test may name one"
                )
                integrity.add("warning", str(path), text, "no test images")
        if not train.images:
            reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
            raise CompetitionError(
                f"{path}: there is no usable training image:\n  {reasons or f'{train_file} has none'}"
            )
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train": train_file,
            "test": test_file,
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "crowds": sum(a.crowd for a in train.instances),
            "test_images": len(test.images),
        }
        return Prepared(train, test, integrity)

    def read_ids(self, path: Path) -> Dataset:
        """Test images from image_info_test-dev2017.json or any COCO json, with its categories."""
        ids = coco_results.read_ids(path, self.categories)
        raw = json.loads(path.read_bytes())
        if isinstance(raw, dict) and raw.get("categories"):
            ids.categories = _categories(raw, str(path))
        return ids

    # ------------------------------------------------ scoring ---------------------------------------------------------

    def score(
        self, truth: Dataset, records: Sequence[Mapping[str, Any]], limits: Sequence[int] = LIMITS
    ) -> dict[str, Any]:
        """COCO's summary, equal to pycocotools: what the protocol asks for, and the numbers of `coco_summary.Summary`.

        Args:
            limits: on detections of an image and class. AP looks at the largest.
        """
        return coco_score.score(self.name, truth, records, limits)

    # ------------------------------------------------ submissions -----------------------------------------------------

    def read_submission(self, path: Path, images: Dataset | None = None) -> Sequence[dict[str, Any]]:
        return coco_stream.read_results(path, _member(path, self.member), images)

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        """Every problem. A zip whose one file has another name than COCO's server asks for gets a warning: other servers
        that take COCO's format have other rules."""
        member = _member(path, self.member)
        problems = coco_results.check(
            path,
            member,
            ids,
            ids.categories or self.categories,
            self.max_detections,
            coco_stream.MAX_BYTES,
            box_needed=False,
        )
        if not _is_official(member):
            text = f"holds {member}; COCO's own server asks for a name such as {self.member}"
            problems.append(Problem("warning", path.name, text, "archive"))
        return problems

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        member = _member(path, self.member)
        member = member if _is_official(member) else self.member
        return coco_fix.fix(path, member, ids, ids.categories or self.categories, target, coco_stream.MAX_BYTES)


def _member(path: Path, usual: str) -> str:
    """The name of the JSON file at the top of a zip, where there is just one or one with an official name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i.filename for i in archive.infolist() if "/" not in i.filename and not is_stray(i.filename)]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError):
        return usual
    found = [name for name in names if name.lower().endswith(".json")]
    for chosen in ([name for name in found if _is_official(name)], found):
        if len(chosen) == 1:
            return chosen[0]
    return usual


def _is_official(member: str) -> bool:
    return any(fnmatchcase(member, pattern) for pattern in OFFICIAL_NAMES)


# ---------------------------------------------------------------- annotation files ------------------------------------


def _annotation_files(path: Path, names: Sequence[str], options: CocoOptions) -> tuple[str, str | None]:
    """The training and the test annotation files, as the options say or as their names tell."""
    candidates = [n for n in names if n.lower().endswith(".json") and not is_stray(n)]
    usual = [n for n in candidates if not _OTHER_TASKS.search(PurePosixPath(n).name)]
    if options.train is not None:
        train = _named(path, candidates, "train", options.train)
    else:
        ranked = _ranked(usual, [r"instances_train", r"train[^/]*\.json$", r"train[^/]*/[^/]*\.json$"])
        if not ranked and len(usual) == 1:
            ranked = usual
        if len(ranked) != 1:
            what = "several annotation files for training" if ranked else "no annotation file for training"
            shown = ", ".join(ranked or candidates[:8]) or "no .json at all"
            raise CompetitionError(f"{path} holds {what} ({shown}); name one with data.options.train")
        train = ranked[0]
    if options.test is not None:
        return train, _named(path, candidates, "test", options.test)
    others = [n for n in usual if n != train]
    ranked = _ranked(others, [r"image_info_test-dev", r"test[^/]*\.json$", r"test[^/]*/[^/]*\.json$", r"instances_val",
                              r"val[^/]*\.json$", r"val[^/]*/[^/]*\.json$"])  # fmt: skip
    if len(ranked) > 1:
        raise CompetitionError(
            f"{path} holds several annotation files for testing ({', '.join(ranked)}); name one with data.options.test"
        )
    return train, ranked[0] if ranked else None


def _ranked(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that fit the first pattern that any fits."""
    for pattern in patterns:
        found = [n for n in names if re.search(pattern, n, re.IGNORECASE)]
        if found:
            return found
    return []


def _named(path: Path, names: Sequence[str], option: str, value: str) -> str:
    wanted = value.strip("/")
    found = [n for n in names if n == wanted or n.endswith("/" + wanted)]
    if len(found) != 1:
        what = "several files fit" if found else "there is no such file"
        shown = ", ".join(found or names[:8]) or "no .json at all"
        raise CompetitionError(f"data.options.{option}: {what} {value!r} in {path}; it holds {shown}")
    return found[0]


def _load(files: Bundle, name: str) -> dict[str, Any]:
    place = f"{name} in {files.path}"
    try:
        raw = json.loads(files.read(name))
    except CompetitionError:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CompetitionError(f"{place} is not JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("images"), list):
        raise CompetitionError(f"{place} is not a COCO annotation file: it has no list of images")
    return raw


def _categories(raw: Mapping[str, Any], place: str) -> dict[int, str]:
    try:
        found = {int(c["id"]): str(c["name"]) for c in raw.get("categories") or []}
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise CompetitionError(f"{place}: the categories are not a list of {{id, name}}: {error}") from error
    return dict(sorted(found.items()))


# ---------------------------------------------------------------- images ----------------------------------------------


@dataclass(frozen=True)
class _Images:
    """The names of all image files, by their last part."""

    by_name: dict[str, list[str]]

    @staticmethod
    def of(names: Sequence[str]) -> _Images:
        by_name: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if name.lower().endswith(IMAGE_TYPES) and not is_stray(name):
                by_name[PurePosixPath(name).name].append(name)
        return _Images(dict(by_name))

    def find(self, file_name: str, annotations: str, folder: str | None) -> str | None:
        """Where an image lies: below `folder`; else where its whole name fits, in a folder that the annotation file is
        named after (train2017 for instances_train2017.json), or beside the annotation file.

        Raises:
            ValueError: several places are equally good.
        """
        wanted = file_name.replace("\\", "/").lstrip("/")
        found = self.by_name.get(PurePosixPath(wanted).name, [])
        if folder is not None:
            inside = "/" + folder.strip("/") + "/"
            found = [n for n in found if inside in "/" + n]
        whole = [n for n in found if n == wanted or n.endswith("/" + wanted)]
        found = whole or found
        stem, beside = PurePosixPath(annotations).stem.lower(), str(PurePosixPath(annotations).parent)
        for better in (
            [n for n in found if any(part.lower() in stem for part in PurePosixPath(n).parts[:-1])],
            [n for n in found if str(PurePosixPath(n).parent) == beside],
        ):
            if better and len(found) > 1:
                found = better
        if len(found) > 1:
            raise ValueError(f"several files have its name ({', '.join(found[:3])})")
        return found[0] if found else None


def _read_part(
    part: str,
    raw: Mapping[str, Any],
    annotations: str,
    folder: str | None,
    files: Bundle,
    where: _Images,
    target: Path,
    integrity: Integrity,
) -> Dataset:
    """The images of one annotation file, stored below `target`; those that cannot be used are reported and left out."""
    faults = Faults()
    images: list[Image] = []
    names: Counter[str] = Counter(
        PurePosixPath(str(row.get("file_name"))).name for row in raw["images"] if isinstance(row, dict)
    )
    seen: set[int] = set()
    for number, row in enumerate(raw["images"]):
        place = f"{annotations}: image {number}"
        try:
            image_id, file_name = int(row["id"]), str(row["file_name"])
            height, width = int(row["height"]), int(row["width"])
        except (TypeError, KeyError, ValueError, OverflowError):
            faults.add("error", "image entry", "has no whole id, file_name, height and width; it is left out", place)
            continue
        place = f"{annotations}: {file_name}"
        if image_id in seen:
            faults.add("error", "image entry", "has the id of another image; it is left out", place)
            continue
        seen.add(image_id)
        try:
            found = where.find(file_name, annotations, folder)
            if found is None:
                faults.add("error", "missing image", "is not among the files; it is left out", place)
                continue
            source = fetch(files, found)
            size = size_of(source)
        except ValueError as error:
            faults.add("error", "damaged image", f"cannot be used: {error}; it is left out", place)
            continue
        if size != (height, width):
            text = f"is {size[1]}x{size[0]}, its entry says {width}x{height}; it is left out"
            faults.add("error", "image size", text, place)
            continue
        name = PurePosixPath(found).name
        stored = f"images/{part}/{name if names[name] == 1 else f'{image_id}-{name}'}"
        store(source, target / stored)
        images.append(Image(image_id, stored, height, width))
    integrity.problems += faults.problems()
    return Dataset(images, _categories(raw, annotations), root=target)


# ---------------------------------------------------------------- instances -------------------------------------------


def _instances(raw: dict[str, Any], train: Dataset, annotations: str, integrity: Integrity) -> list[Instance]:
    """The annotations that can be learned from; the others are reported and left out."""
    faults = Faults()
    listed = raw.get("annotations")
    if not isinstance(listed, list):
        raise CompetitionError(f"{annotations} has no list of annotations; is it the file of test images?")
    known_images = {row["id"] for row in raw["images"] if isinstance(row, dict) and isinstance(row.get("id"), int)}
    found: list[Instance] = []
    ids = Counter(row.get("id") for row in listed if isinstance(row, dict) and isinstance(row.get("id"), int))
    spare = max((i for i in ids if isinstance(i, int)), default=0)
    for number, row in enumerate(listed):
        place = f"{annotations}: annotation {row.get('id', f'number {number}') if isinstance(row, dict) else number}"
        try:
            image_id, category_id = int(row["image_id"]), int(row["category_id"])
            segmentation = row["segmentation"]
            crowd = bool(row.get("iscrowd", 0))
        except (TypeError, KeyError, ValueError, OverflowError):
            text = "has no image_id, category_id and segmentation; it is left out"
            faults.add("warning", "annotation entry", text, place)
            continue
        if image_id not in train.image:
            if image_id not in known_images:
                faults.add("error", "annotation entry", "is of an image that is not listed; it is left out", place)
            continue
        if category_id not in train.categories:
            faults.add("error", "annotation entry", "is of a category that is not listed; it is left out", place)
            continue
        image = train.image[image_id]
        try:
            rle = _mask(segmentation, image)
            (x0, y0, x1, y1), mask = rle_to_crop(rle)
        except ValueError as error:
            faults.add("error", "damaged mask", f"has no usable mask ({error}); it is left out", place)
            continue
        area = int(mask.sum())
        if not area:
            faults.add("warning", "empty mask", "is empty; it is left out", place)
            continue
        said = row.get("area")
        if not isinstance(said, (int, float)) or isinstance(said, bool) or not 0 <= said < float("inf"):
            said = area
        elif not crowd and not area / WRONG_AREA - 50 <= said <= area * WRONG_AREA + 50:
            text = (
                "says another area than its mask has; it is kept, for the scorer goes by it: AP of small, medium and large "
                "objects is not what it seems"
            )
            faults.add("warning", "area", text, f"{place} ({said:g}, mask {area})")
        own = row.get("id")
        if not isinstance(own, int) or ids[own] > 1:
            faults.add("warning", "annotation id", "has no id of its own; it is given one", place)
            spare += 1
            own = spare
        elif own == 0:
            text = "has the id 0: pycocotools counts a detection that finds it as false"
            faults.add("warning", "annotation id", text, place)
        box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
        found.append(Instance(own, image_id, category_id, rle, box, float(said), crowd))
    integrity.problems += faults.problems()
    return found


def _mask(segmentation: Any, image: Image) -> dict[str, Any]:
    """A compressed RLE.

    Raises:
        ValueError: it is no segmentation of the image; the message says why.
    """
    size = (image.height, image.width)
    if isinstance(segmentation, list):
        if not all(isinstance(p, list) and all(isinstance(v, (int, float)) for v in p) for p in segmentation):
            raise ValueError("a polygon is not a list of numbers")
        # detectron2 and MMDetection drop what has fewer than three points, too
        segmentation = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        return compressed(segmentation, size)
    if not isinstance(segmentation, dict):
        raise ValueError("it is neither polygons nor an RLE")
    try:
        rle = compressed(segmentation, size)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is no RLE: {error}") from error
    if tuple(rle["size"]) != size:
        raise ValueError(f"its size is {rle['size']}, the image's {list(size)}")
    return rle


COMPETITION = Coco()
