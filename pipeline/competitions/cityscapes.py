"""Cityscapes: street scenes of 2048x1024, eight classes of things with instances, nineteen classes in all.

Layout, as the zips that Cityscapes hands out, in one folder, whole or unpacked::

    leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png      train 2975, val 500, test 1525
    gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png    more than 8 bits a pixel

A pixel of instanceIds is ``1000 * label + number`` for a single object (numbers need not begin at 0 or be without gaps),
and the label alone for everything else: stuff, void, and groups of things that nobody could tell apart, which become
crowds. Category ids are Cityscapes' label ids. Objects of the ignored classes caravan and trailer are no instances.

The semantic maps hold label ids, with the nineteen evaluated ones as classes; everything else is void. Pixels of single
caravans and trailers are 255: void too, but not for the official AP, whose script looks for the bare label.

Submission: the zip of text files and masks that Cityscapes' server takes, or COCO results. Metric: COCO's segm AP on the
converted set; beside it the official AP, pixel accuracy, class IoU and panoptic quality.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, Problem, chosen_options
from pipeline.competitions.formats import cityscapes_results, coco_fix, coco_results, coco_score
from pipeline.competitions.formats.archive import is_stray
from pipeline.competitions.formats.bundle import Bundle
from pipeline.competitions.formats.cityscapes_results import FRAME, frame_of, is_official
from pipeline.competitions.formats.coco_competition import CocoCompetition
from pipeline.competitions.formats.image_size import size_of
from pipeline.competitions.formats.label_map import objects
from pipeline.competitions.formats.stored import fetch, remove_others, store
from pipeline.files import writing
from pipeline.masks import crop_to_rle
from pipeline.metrics import cityscapes_ap, scene
from pipeline.metrics.coco_ap import IOUS
from pipeline.records import Dataset, Detections, Image, Instance

CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Label ids that are evaluated."""

THINGS = {c: CLASSES[c] for c in (24, 25, 26, 27, 28, 31, 32, 33)}

FIVE = {c: CLASSES[c] for c in (24, 25, 26, 32, 33)}
"""The classes with most instances: person, rider, car, motorcycle and bicycle."""

VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Bare labels that Cityscapes' evaluation ignores (``ignoreInEval`` in its labels.py)."""

SINGLE_IGNORED = 255
"""In the semantic maps: a single object of an ignored class."""

IMAGE, INSTANCES = "_leftImg8bit.png", "_gtFine_instanceIds.png"

SPLITS = ("train", "val", "test")


class CityscapesOptions(Options):
    """Which scenes and classes, and what the folds must not split."""

    classes: int | list[str] = 8
    """8, 5 (those with most instances) or a list of names."""
    group: Literal["city", "sequence"] = "city"
    """What the folds must not split."""
    train: Literal["train", "val", "test"] = "train"
    """The split to learn from."""
    test: Literal["train", "val", "test"] | None = None
    """The split to predict; null for test, or for val where the test images are not there."""
    train_images: int | None = Field(None, ge=1)
    """Only so many, drawn by the seed; null for all."""
    test_images: int | None = Field(None, ge=1)
    """Only so many, drawn by the seed; null for all."""

    @field_validator("classes", mode="before")
    @classmethod
    def _are_known(cls, value: Any) -> Any:
        if type(value) is int and value in (5, 8):
            return value
        if not isinstance(value, list) or not value or not all(name in THINGS.values() for name in value):
            raise ValueError(f"8, 5, or a list of {', '.join(THINGS.values())}")
        return value


class Cityscapes(CocoCompetition):
    name = "cityscapes"
    options = CityscapesOptions
    metric = coco_score.metric()
    member = "results.json"
    ious: Sequence[float] = IOUS
    categories: Mapping[int, str] = THINGS
    download = (
        "https://www.cityscapes-dataset.com/downloads (after registering, for non-commercial use):\n"
        "pip install cityscapesscripts && csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip\n"
        "put both in one folder, as they are or unpacked"
    )

    # ------------------------------------------------ reading ---------------------------------------------------------

    def missing(self, names: Sequence[str]) -> list[str]:
        wanted = {
            f"leftImg8bit/<split>/<city>/*{IMAGE}": any(n.endswith(IMAGE) for n in names),
            f"gtFine/<split>/<city>/*{INSTANCES}": any(n.endswith(INSTANCES) for n in names),
        }
        return [what for what, there in wanted.items() if not there]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read images and instances, and make the semantic maps. `options`: see `CityscapesOptions`."""
        chosen = chosen_options(self.options, options)
        categories = _classes(chosen.classes)
        if path is None:
            raise CompetitionError(
                "cityscapes needs its files: set data.path in the experiment file or pass --data PATH"
            )
        integrity = Integrity()
        with Bundle(path) as files:
            if files.unsafe:
                text = f"names that leave the archive are not read: {', '.join(files.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            frames = _frames(files)
            if not any(frame.image for frame in frames):
                top = ", ".join(sorted({name.split("/")[0] for name in files.names})[:8]) or "nothing"
                raise CompetitionError(
                    f"{path} holds no *{IMAGE}; is it the folder with leftImg8bit and gtFine? It has {top}"
                )
            splits = _splits(frames, chosen)
            parts = []
            for part, split in zip(("train", "test"), splits, strict=True):
                own = [frame for frame in frames if frame.split == split and frame.image]
                own = _drawn(own, getattr(chosen, f"{part}_images"), f"data.options.{part}_images", seed)
                parts.append(_part(part, own, files, categories, chosen.group, target, integrity))
            train, test = parts
        if not train.images:
            reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
            raise CompetitionError(
                f"{path}: there is no usable training image in split {splits[0]!r}:\n  {reasons or 'it has none'}"
            )
        if not test.images:
            text = "there are no test images: nothing will be predicted; data.options.test may name another split"
            integrity.add("warning", str(path), text, "no test images")
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "splits": {"train": splits[0], "test": splits[1]},
            "train_images": len(train.images),
            "train_instances": sum(not a.crowd for a in train.instances),
            "groups": sum(a.crowd for a in train.instances),
            "test_images": len(test.images),
        }
        return Prepared(train, test, integrity)

    def read_truth(self, path: Path) -> Dataset:
        """The truth from a COCO json (train.json as `prepare` writes it, with the maps beside it), or from gtFine's zip
        or folder: its val split where it has one, images numbered from 1 by name."""
        if not path.is_dir() and path.suffix.lower() != ".zip":
            return super().read_truth(path)
        target = Path(tempfile.mkdtemp(prefix="maskfold-"))
        atexit.register(shutil.rmtree, target, ignore_errors=True)
        with Bundle(path) as files:
            frames = [frame for frame in _frames(files) if frame.instances]
            if any(frame.split == "val" for frame in frames):
                frames = [frame for frame in frames if frame.split == "val"]
            truth = _part("truth", frames, files, THINGS, "city", target, Integrity())
        if not truth.images:
            raise CompetitionError(f"{path} holds no *{INSTANCES}")
        return truth

    def read_ids(self, path: Path) -> Dataset:
        """The test images from a COCO json, or from leftImg8bit's zip or folder: all of them, numbered by name."""
        if not path.is_dir() and path.suffix.lower() != ".zip":
            return coco_results.read_ids(path, self.categories)
        with Bundle(path) as files:
            images = []
            for number, frame in enumerate((f for f in _frames(files) if f.image), start=1):
                try:
                    images.append(Image(number, PurePosixPath(frame.image).name, *size_of(fetch(files, frame.image))))
                except ValueError as error:
                    raise CompetitionError(f"{frame.image} in {path}: {error}") from error
        if not images:
            raise CompetitionError(f"{path} holds no *{IMAGE}")
        return Dataset(images, dict(self.categories))

    # ------------------------------------------------ scoring ---------------------------------------------------------

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """COCO's AP on the converted set, the official AP, and the measures of `scene.measure`.

        Returns:
            What the protocol asks for, with COCO's numbers, ``official_ap``, ``official_ap50``, ``official_classes``,
            ``pixel_accuracy``, ``miou``, ``pq``, ``sq``, ``rq``, ``iou_classes`` and ``pq_classes``.
        """
        official = cityscapes_ap.evaluate(truth, records, lambda image: _void(truth, image))
        return {
            **coco_score.score(self.name, truth, records),
            "official_ap": official.ap(),
            "official_ap50": official.ap50(),
            "official_classes": official.classes(),
            **scene.measure(truth, records),
        }

    # ------------------------------------------------ submissions -----------------------------------------------------

    def write(self, detections: Detections, test: Dataset, path: Path) -> None:
        """Write Cityscapes' own zip; COCO results where the file's name has .json in it."""
        records = self.records(detections, test)
        if ".json" in path.suffixes:
            with writing(path) as temporary:
                temporary.write_text(json.dumps(records, separators=(",", ":"), allow_nan=False))
        else:
            cityscapes_results.write(records, test.images, path)

    def read_submission(self, path: Path, images: Dataset | None = None) -> Sequence[dict[str, Any]]:
        if is_official(path):
            return cityscapes_results.read(path, images)
        return coco_results.read_records(path, self.member, images)

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        """Every problem, of Cityscapes' own form or of COCO results; the latter are not what the server takes."""
        categories = ids.categories or self.categories
        if is_official(path):
            return cityscapes_results.check(path, ids, categories)
        problems = coco_results.check(path, self.member, ids, categories, self.max_detections)
        text = "holds COCO results; Cityscapes' server takes its own zip, which `fuse` and `encode` write as .zip"
        return [*problems, Problem("warning", path.name, text, "form")]

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        """Repair either form: see `cityscapes_results.fix` and `coco_fix.fix`."""
        categories = ids.categories or self.categories
        if is_official(path):
            return cityscapes_results.fix(path, ids, categories, target)
        return coco_fix.fix(path, self.member, ids, categories, target)


def _classes(option: int | list[str]) -> dict[int, str]:
    if isinstance(option, int):
        return dict(THINGS if option == 8 else FIVE)
    return {c: name for c, name in THINGS.items() if name in option}


# ---------------------------------------------------------------- files -----------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """One scene: its split, and the names of its image and of its instanceIds, empty where they are not there."""

    name: str
    split: str
    image: str
    instances: str


def _frames(files: Bundle) -> list[_Frame]:
    """All scenes, by name. The split is the folder above the city's; without such folders all is for training."""
    images: dict[str, str] = {}
    instances: dict[str, str] = {}
    for name in files.names:
        base = PurePosixPath(name).name
        if is_stray(name) or not FRAME.match(base):
            continue
        if base == frame_of(base) + IMAGE:
            images.setdefault(frame_of(base), name)
        elif base == frame_of(base) + INSTANCES:
            instances.setdefault(frame_of(base), name)
    found = []
    for frame in sorted(set(images) | set(instances)):
        place = images.get(frame) or instances[frame]
        folders = [part for part in PurePosixPath(place).parts[:-1] if part in SPLITS]
        found.append(
            _Frame(frame, folders[-1] if folders else "train", images.get(frame, ""), instances.get(frame, ""))
        )
    return found


def _splits(frames: Sequence[_Frame], options: CityscapesOptions) -> tuple[str, str]:
    """The splits to train on and to predict."""
    there = {frame.split for frame in frames if frame.image}
    for key, split in (("train", options.train), ("test", options.test)):
        if split is not None and split not in there:
            raise CompetitionError(
                f"data.options.{key}: there are no images of split {split!r}, but of {', '.join(sorted(there))}"
            )
    return options.train, options.test or ("test" if "test" in there else "val")


def _drawn(frames: list[_Frame], count: int | None, option: str, seed: int) -> list[_Frame]:
    if count is None:
        return frames
    if count > len(frames):
        raise CompetitionError(f"{option} is {count}, but there are only {len(frames)} images")
    chosen = np.random.default_rng(seed).choice(len(frames), count, replace=False)
    return [frames[k] for k in sorted(chosen.tolist())]


def _part(
    part: str,
    frames: Iterable[_Frame],
    files: Bundle,
    categories: Mapping[int, str],
    group: str,
    target: Path,
    integrity: Integrity,
) -> Dataset:
    """Store the scenes of a part below `target`; the test part has images alone, the truth no images."""
    images: list[Image] = []
    instances: list[Instance] = []
    broken: list[str] = []
    for frame in frames:
        stored, semantic = f"images/{part}/{frame.name}{IMAGE}", f"semantic/{part}/{frame.name}.png"
        try:
            source = fetch(files, frame.image or frame.instances)
            size = size_of(source)
            labels = None if part == "test" else _labels(files, frame, size)
        except ValueError as error:
            broken.append(f"{frame.image or frame.instances}: {error}")
            continue
        city, sequence, _ = frame.name.split("_")
        image = Image(
            len(images) + 1, stored, *size, city if group == "city" else f"{city}_{sequence}",
            "" if labels is None else semantic,
        )  # fmt: skip
        if part != "truth":
            store(source, target / stored)
        images.append(image)
        if labels is not None:
            _write_map(_semantic(labels), target / semantic)
            instances += _instances(labels, image, len(instances) + 1, categories)
    if broken and part != "train":
        raise CompetitionError(
            f"every scene of the {part} must be whole; get the files again:\n  " + "\n  ".join(broken)
        )
    for place, _, text in (one.partition(": ") for one in broken):
        integrity.add("error", place, f"{text}; the scene is left out", "damaged scene")
    classes = {} if part == "test" else dict(CLASSES)
    return Dataset(images, dict(categories), instances, target, classes)


def _labels(files: Bundle, frame: _Frame, size: tuple[int, int]) -> np.ndarray:
    """instanceIds, (H, W) integers.

    Raises:
        ValueError: they are missing, damaged, or of another size than the image.
    """
    import cv2

    if not frame.instances:
        raise ValueError(f"has no {frame.name}{INSTANCES}")
    labels = cv2.imdecode(np.frombuffer(files.read(frame.instances), np.uint8), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2:
        raise ValueError(f"{frame.instances} is no image of one channel")
    if labels.shape != size:
        raise ValueError(f"{frame.instances} is {labels.shape[1]}x{labels.shape[0]}, the image {size[1]}x{size[0]}")
    return np.asarray(labels).astype(np.int32)


def _semantic(labels: np.ndarray) -> np.ndarray:
    """(H, W) uint8 label ids; see the module's text for 255."""
    ids = np.where(labels >= 1000, labels // 1000, labels)
    ids[(labels >= 1000) & np.isin(ids, VOID)] = SINGLE_IGNORED
    return np.asarray(np.clip(ids, 0, 255)).astype(np.uint8)


def _instances(labels: np.ndarray, image: Image, first: int, categories: Mapping[int, str]) -> list[Instance]:
    found: list[Instance] = []
    for value, box, crop in objects(labels):
        category_id = value // 1000 if value >= 1000 else value
        if category_id in categories:
            x0, y0, x1, y1 = (float(v) for v in box)
            rle = crop_to_rle(crop, box, (image.height, image.width), threshold=1)
            place = (x0, y0, x1 - x0, y1 - y0)
            number, area = first + len(found), float(crop.sum())
            found.append(Instance(number, image.id, category_id, rle, place, area, value < 1000))
    return found


def _write_map(labels: np.ndarray, path: Path) -> None:
    import cv2

    _, content = cv2.imencode(".png", labels)
    store(content.tobytes(), path)


def _void(truth: Dataset, image: Image) -> np.ndarray | None:
    """(H, W) bool, what the official AP calls void; None without a map."""
    path = truth.root / image.semantic
    if not image.semantic or not path.exists():
        return None
    return np.isin(scene.read_map(path, (image.height, image.width)), VOID)


COMPETITION = Cityscapes()
