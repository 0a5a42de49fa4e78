"""NYCU VRDL 2021, homework 3: nuclei in H&E tissue, 24 training and 6 test images of 1000x1000 (MoNuSeg, from TCGA).

Layout, as a zip or unpacked, with or without the outer folder::

    dataset/train/<TCGA barcode>/images/<TCGA barcode>.png
    dataset/train/<TCGA barcode>/masks/mask_0001.png …      one nucleus each, 0 and 255
    dataset/test/<TCGA barcode>.png
    dataset/test_img_ids.json                               [{"file_name", "height", "id", "width"}, …]

Submission: a zip with one member answer.json, COCO results with category 1. Metric: pycocotools' segm AP50 with 100
detections an image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, Problem, chosen_options
from pipeline.competitions.formats import png, vrdl_layout
from pipeline.competitions.formats.archive import Archive, is_stray
from pipeline.competitions.formats.coco_competition import CocoCompetition
from pipeline.competitions.formats.mask_files import Masks, read_masks
from pipeline.competitions.formats.stored import remove_others, store
from pipeline.metrics.coco_ap import Evaluation
from pipeline.records import Dataset, Image, Instance

NUCLEUS = 1

TRUTH_CAP = 390
"""Truths of an image that count as findable in ``ap50_capped_truths``: the test images hold 2,360 / 6, about 390 each.

A training image with 1,862 nuclei, of which 100 detections can find 100, caps AP50 far lower than a test image does,
and drowns the others. With this cap an out-of-fold score is on the leaderboard's scale."""

IDS = "test_img_ids.json"

ORGAN = {
    "18": "lung", "21": "lung", "38": "lung", "49": "lung", "50": "lung",
    "A7": "breast", "AR": "breast", "E2": "breast",
    "B0": "kidney", "HE": "kidney",
    "CH": "prostate", "G9": "prostate",
    "DK": "bladder", "G2": "bladder",
    "AY": "colon", "NH": "colon",
    "KB": "stomach", "RD": "stomach",
}  # fmt: skip
"""By tissue source site, the second part of a TCGA barcode (TCGA's table of source sites)."""


@dataclass
class _TrainImage:
    """One training image's files, and what reading them gave."""

    name: str
    image: str | None = None
    masks: list[str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    objects: Masks = field(default_factory=Masks)
    problems: list[Problem] = field(default_factory=list)
    usable: bool = True

    def fault(self, severity: Any, place: str, text: str, kind: str) -> None:
        self.problems.append(Problem(severity, place, text, kind))


class Vrdl2021Options(Options):
    """What the folds know of the images."""

    group: Literal["site", "patient"] = "site"
    """What the folds must not split. site: images of one tissue source site share the slide preparation, the stain, the
    scanner and often the organ, so a site in training gives its look away. patient: only images of one TCGA participant; half
    of the test images come from sites that training knows, so this is nearer to the leaderboard, and more hopeful."""


class Vrdl2021(CocoCompetition):
    name = "vrdl2021"
    options = Vrdl2021Options
    metric = "segm AP50 maxDets=100"
    member = "answer.json"
    categories: Mapping[int, str] = {NUCLEUS: "nucleus"}
    download = (
        "homework 3 of NYCU's course VRDL, fall 2021; CodaLab: https://codalab.lisn.upsaclay.fr/competitions/333\n"
        "dataset.zip is linked from the competition's page, for its participants"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        have = ["/" + name for name in names]
        wanted = {
            "train/<id>/images/<id>.png": any("/train/" in n and "/images/" in n and n.endswith(".png") for n in have),
            "train/<id>/masks/mask_*.png": any("/train/" in n and "/masks/mask_" in n for n in have),
            "test/<id>.png": any("/test/" in n and n.endswith(".png") for n in have),
            IDS: any(n.endswith("/" + IDS) for n in have),
        }
        return [what for what, there in wanted.items() if not there]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the archive or folder. `options`: see `Vrdl2021Options`."""
        group = chosen_options(self.options, options).group
        if path is None:
            raise CompetitionError(
                "vrdl2021 needs its dataset.zip: set data.path in the experiment file or pass --data PATH"
            )
        with Archive(path) as archive:
            root = vrdl_layout.root(archive, IDS, "dataset.zip of VRDL 2021")
            integrity = Integrity()
            if archive.unsafe:
                text = f"names that leave the archive are not read: {', '.join(archive.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            found = _list_train(archive, root, integrity)
            for train_image in found:
                _read_train(archive, train_image, target)
            train = _train_dataset(found, group, target, integrity)
            test = self._read_test(archive, root, target, integrity)
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(test.images),
            "mask_files": sum(len(t.masks) for t in found),
        }
        return Prepared(train, test, integrity)

    def _read_test(self, archive: Archive, root: str, target: Path, integrity: Integrity) -> Dataset:
        def size(content: bytes) -> tuple[int, int]:
            header = png.parse(content)
            return header.height, header.width

        def keep(content: bytes, image: Image) -> Image:
            name = f"images/test/{PurePosixPath(image.file_name).name}"
            store(content, target / name)
            return Image(image.id, name, image.height, image.width, _groups(image.file_name, "site"))

        images = vrdl_layout.read_test(archive, f"{root}test/", root + IDS, self.categories, size, keep, integrity)
        return Dataset(images, dict(self.categories), root=target)

    def stratum(self, image: Image) -> str:
        site = _groups(image.file_name, "site").removeprefix("TCGA-")
        return ORGAN.get(site, site)

    def summary(self, truth: Dataset, evaluation: Evaluation, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**super().summary(truth, evaluation, records), "ap50_capped_truths": evaluation.ap(cap=TRUTH_CAP)}


def _groups(file_name: str, what: str) -> str:
    """``TCGA-HE`` (site) or ``TCGA-HE-7128`` (patient) of a TCGA barcode; the whole stem of any other name."""
    stem = PurePosixPath(file_name).stem
    parts = stem.split("-")
    if len(parts) < 3 or parts[0] != "TCGA":
        return stem
    return "-".join(parts[: 2 if what == "site" else 3])


def _list_train(archive: Archive, root: str, integrity: Integrity) -> list[_TrainImage]:
    """Sort the names below train/ into images and their masks; the rest is reported and left."""
    found: dict[str, _TrainImage] = {}
    others: dict[str, list[str]] = defaultdict(list)
    stray = [name for name in archive.names if name.startswith(f"{root}test/") and is_stray(name)]
    for name in archive.names:
        if not name.startswith(f"{root}train/"):
            continue
        parts = name[len(root) + 6 :].split("/")
        copy = any("_aug" in part for part in parts)
        if is_stray(name) or copy or len(parts) != 3 or not parts[2].lower().endswith(".png"):
            stray.append(name)
            continue
        folder, kind, file = parts
        if kind == "masks" and file.startswith("mask_"):
            found.setdefault(folder, _TrainImage(folder)).masks.append(name)
        elif kind == "images" and file == f"{folder}.png":
            found.setdefault(folder, _TrainImage(folder)).image = name
        elif kind == "images":
            others[folder].append(name)
        else:
            stray.append(name)
    for folder, names in others.items():
        train = found.setdefault(folder, _TrainImage(folder))
        if train.image is None and len(names) == 1:
            train.image = names[0]
        else:
            stray += names
    if stray:
        shown = ", ".join(name[len(root) :] for name in stray[:3])
        text = f"{len(stray)} files that are no part of the data are ignored: {shown}{' …' if len(stray) > 3 else ''}"
        integrity.add("warning", str(archive.path), text, "stray files")
    return [found[key] for key in sorted(found)]


def _read_train(archive: Archive, train: _TrainImage, target: Path) -> None:
    if train.image is None:
        text = f"has {len(train.masks)} masks and no image; it is left out"
        train.fault("error", f"train/{train.name}", text, "no image")
        train.usable = False
        return
    try:
        content = archive.read(train.image)
        header = png.parse(content)
    except ValueError as error:
        train.fault("error", f"train/{train.name}/images", f"{error}; the image is left out", "damaged image")
        train.usable = False
        return
    if not train.masks:
        text = "has no masks; it is left out, for it would teach that its nuclei are background"
        train.fault("error", f"train/{train.name}", text, "image without masks")
        train.usable = False
        return
    train.size = (header.height, header.width)
    store(content, target / _stored_name(train.name))
    train.objects = read_masks(archive, train.masks, train.size, f"train/{train.name}")
    train.problems += train.objects.problems
    if not train.objects.rles:
        train.fault("error", f"train/{train.name}", "has no usable mask; it is left out", "image without masks")
        train.usable = False


def _train_dataset(found: list[_TrainImage], group: str, target: Path, integrity: Integrity) -> Dataset:
    images: list[Image] = []
    instances: list[Instance] = []
    for train in found:
        integrity.problems += train.problems
        if not train.usable:
            continue
        image = Image(len(images) + 1, _stored_name(train.name), *train.size, _groups(train.name + ".png", group))
        images.append(image)
        instances += train.objects.instances(len(instances) + 1, image.id, NUCLEUS)
    if not images:
        reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
        raise CompetitionError(f"there is no usable training image:\n  {reasons or 'train/ is empty'}")
    return Dataset(images, {NUCLEUS: "nucleus"}, instances, target)


def _stored_name(name: str) -> str:
    return f"images/train/{name}.png"


COMPETITION = Vrdl2021()
