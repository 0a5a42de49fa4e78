"""Kaggle Sartorius 2021: three kinds of neuronal cells in phase contrast, 606 training images of 704x520, 73,585 cells.

Layout, as Kaggle's zip or unpacked, in any outer folder::

    train.csv                 id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta
    train/<id>.png            one row of train.csv is one cell; pixels are numbered ALONG THE ROWS, from 1
    test/<id>.png             three images to try with; the notebook that is submitted meets some 240
    sample_submission.csv     id,predicted
    train_semi_supervised/, LIVECell_dataset_2021/      not read (but see the option livecell)

Submission: submission.csv ``id,predicted``, one row a cell, numbered along the rows, no pixel twice, every id present,
blank where an image has no cell. The competition takes a notebook: encode writes what it must leave as submission.csv.
Metric: as in the Data Science Bowl 2018. Submissions hold no cell types, and the metric looks at none.
"""

from __future__ import annotations

import re
from collections import Counter
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
from pipeline.competitions.formats.mask_files import Masks
from pipeline.competitions.formats.rle_competition import RleCompetition
from pipeline.competitions.formats.stored import remove_others, store
from pipeline.masks import rle_to_crop
from pipeline.records import Dataset, Image, Instance

SIZE = (520, 704)

CELLS = {1: "shsy5y", 2: "astro", 3: "cort"}

FORM = rle_csv.RleCsv(
    "id", "predicted", "rows", empty="", size=SIZE, truth="annotation", category="cell_type"
)  # fmt: skip

LABELS = "train.csv"

WRONG = ("03b27b381a5f", "e92c56871769", "eec79772cb99")
"""Training images whose annotation is known to be wrong."""

_SAMPLE = re.compile(r"(?P<culture>[^_]+)_(?P<well>[^_]+?)(?:-\d+)?_(?P<vessel>.+?)(?:_Ph_\d+)?")
"""``shsy5y[diff]_E10-4_Vessel-714_Ph_3``: the culture, the well with the position in it, the vessel, the phase ring."""


@dataclass
class _Cells:
    """What train.csv says of one image: the rows' lines and run lengths, and the columns that are alike in all of them."""

    row: dict[str, str]
    masks: list[tuple[int, str]] = field(default_factory=list)


class SartoriusOptions(Options):
    """How the training images are read."""

    group: Literal["well", "sample", "culture"] = "well"
    """What the folds must not split. well: a well's positions, at all times, show the same culture, some of them the same
    cells hours apart. sample: one position at all times. culture: a whole plate; there are few, so folds come out uneven."""
    fill_holes: bool = False
    """Fill the holes of true masks; the organisers' are partly hollow."""
    leave_out_wrong: bool = False
    """Leave out the images whose annotation is known to be wrong."""
    livecell: str | None = None
    """A COCO json of LIVECell's annotations, whose images (found by name in the data, or below the json's folder) join the
    training images: those of the line SHSY5Y only, the one that both sets have."""


class Sartorius(RleCompetition):
    name = "sartorius"
    options = SartoriusOptions
    form = FORM
    categories: Mapping[int, str] = CELLS
    least_area = 30  # public solutions drop masks below 75 to 150 pixels; `tune` may do so by fusion's min_area
    download = (
        "kaggle competitions download -c sartorius-cell-instance-segmentation -p data/sartorius\n"
        "  (after accepting the rules on https://www.kaggle.com/c/sartorius-cell-instance-segmentation)"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        have = ["/" + name for name in names if not is_stray(name)]
        whole = any(name.endswith("/sartorius-cell-instance-segmentation.zip") for name in have)
        wanted = {
            LABELS: any(name.endswith("/" + LABELS) for name in have),
            "train/<id>.png": any(re.search(r"/train/[^/]+\.png$", name) for name in have),
            "test/<id>.png": any(re.search(r"/test/[^/]+\.png$", name) for name in have),
        }
        return [what for what, there in wanted.items() if not (there or whole)]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the archive or folder. `options`: see `SartoriusOptions`."""
        chosen = chosen_options(self.options, options)
        if path is None:
            raise CompetitionError("sartorius needs its zip: set data.path in the experiment file or pass --data PATH")
        integrity = Integrity()
        with Bundle(path) as bundle:
            if bundle.unsafe:
                text = f"names that leave the archive are not read: {', '.join(bundle.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            root = _root(bundle)
            _note_others(bundle, root, integrity)
            train = _read_train(bundle, root, chosen, target, integrity)
            if chosen.livecell:
                _join_livecell(bundle, Path(chosen.livecell).expanduser(), train, target, integrity)
            test = _read_test(bundle, root, target, integrity)
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(test.images),
            "images_by_cell_type": dict(Counter(self.stratum(image) for image in train.images).most_common()),
        }
        return Prepared(train, test, integrity)

    def stratum(self, image: Image) -> str:
        """The cell type, which is the folder that `read` stores a training image in."""
        return PurePosixPath(image.file_name).parent.name


def _root(bundle: Bundle) -> str:
    """The folder inside that holds train.csv, with a trailing slash unless it is the top."""
    places = [
        n[: -len(LABELS)] for n in bundle.names if PurePosixPath(n).name == LABELS and not is_stray(n)
    ]  # a csv in a zip of its name lies in a folder of its name
    places = [place.removesuffix(f"{LABELS}/") for place in places]
    good = [place for place in places if any(name.startswith(f"{place}train/") for name in bundle.names)]
    if good:
        return min(good, key=len)
    shown = sorted({name.split("/")[0] for name in bundle.names})[:8]
    what = f"train/ beside {LABELS}" if places else LABELS
    raise CompetitionError(
        f"{bundle.path} holds no {what}; is it the data of Sartorius 2021? It has {', '.join(shown) or 'nothing'}"
    )


def _pngs(bundle: Bundle, folder: str) -> dict[str, str]:
    """The PNG files right inside a folder, by their stems."""
    return {
        PurePosixPath(name).stem: name
        for name in bundle.names
        if name.startswith(folder) and re.fullmatch(r"[^/]+\.png", name[len(folder) :]) and not is_stray(name)
    }


def _note_others(bundle: Bundle, root: str, integrity: Integrity) -> None:
    for folder, why in (
        ("train_semi_supervised", "images without annotation"),
        ("LIVECell_dataset_2021", "another data set; the option livecell takes its annotations"),
    ):
        count = sum(name.startswith(f"{root}{folder}/") for name in bundle.names)
        if count:
            integrity.add("warning", f"{folder}/", f"{count:,} files are not read: {why}", "not read")


def group_of(sample_id: str, group: str) -> str:
    """What of a sample's id folds must not split; all of an id that is not made as expected."""
    match = _SAMPLE.fullmatch(sample_id)
    if match is None or group == "sample":
        return sample_id
    if group == "culture":
        return f"{match['culture']}_{match['vessel']}"
    return f"{match['culture']}_{match['well']}_{match['vessel']}"


# ---------------------------------------------------------------- training images -------------------------------------


def _labels(bundle: Bundle, root: str) -> dict[str, _Cells]:
    """What train.csv says of every image."""
    name = next(n for n in (f"{root}{LABELS}", f"{root}{LABELS}/{LABELS}") if n in bundle.names)
    found: dict[str, _Cells] = {}
    for line, row in rle_csv.table(bundle.read(name), name, ["id", "annotation", "cell_type"]):
        found.setdefault(row["id"], _Cells(row)).masks.append((line, row["annotation"]))
        if row["cell_type"] != found[row["id"]].row["cell_type"]:
            raise CompetitionError(
                f"{LABELS}, line {line}: {row['id']} is of two cell types; one is expected of an image"
            )
    return found


def _read_train(bundle: Bundle, root: str, options: SartoriusOptions, target: Path, integrity: Integrity) -> Dataset:
    labels = _labels(bundle, root)
    number = {name: category_id for category_id, name in CELLS.items()}
    files = _pngs(bundle, f"{root}train/")
    images: list[Image] = []
    instances: list[Instance] = []
    for name in sorted(set(files) | set(labels)):
        if name not in files or name not in labels:
            what = "has no image" if name not in files else f"is not in {LABELS}"
            integrity.add("error", f"train/{name}.png", f"{what}; it is left out", "no image or no annotation")
            continue
        cells = labels[name]
        if name in WRONG:
            gone = options.leave_out_wrong
            what = "it is left out" if gone else "leave it out with data.options.leave_out_wrong: true"
            integrity.add("warning", f"train/{name}.png", f"its annotation is known to be wrong; {what}", "wrong image")
            if gone:
                continue
        kind = cells.row["cell_type"]
        if kind not in number:
            integrity.add(
                "error", f"{LABELS}, {name}", f"the cell type {kind!r} is unknown; it is left out", "cell type"
            )
            continue
        try:
            content = bundle.read(files[name])
            header = png.parse(content)
            said = (cells.row.get("height"), cells.row.get("width"))
            if all(said) and said != (str(header.height), str(header.width)):
                raise ValueError(f"it is {header.width}x{header.height}, {LABELS} says {said[1]}x{said[0]}")
        except ValueError as error:
            integrity.add("error", f"train/{name}.png", f"{error}; the image is left out", "damaged image")
            continue
        size = (header.height, header.width)
        masks = _masks(cells.masks, size, f"train/{name}.png", options.fill_holes)
        integrity.problems += masks.problems
        if not masks.rles:
            integrity.add("error", f"train/{name}.png", "has no usable mask; it is left out", "image without masks")
            continue
        file = f"images/train/{kind}/{name}.png"
        store(content, target / file)
        sample = cells.row.get("sample_id") or name
        images.append(Image(len(images) + 1, file, *size, group_of(sample, options.group)))
        instances += masks.instances(len(instances) + 1, images[-1].id, number[kind])
    if not images:
        reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
        raise CompetitionError(f"there is no usable training image:\n  {reasons or f'{LABELS} is empty'}")
    return Dataset(images, dict(CELLS), instances, target)


def _masks(rows: Sequence[tuple[int, str]], size: tuple[int, int], image: str, fill_holes: bool) -> Masks:
    """The cells of one image; hollow ones and shared pixels are reported by their number."""
    masks = Masks()
    count = np.zeros(size, np.uint8)
    seen: set[str] = set()
    hollow = 0
    for line, text in rows:
        where = f"{LABELS}, line {line}"
        try:
            box, crop = rle_to_crop(to_rle(parse(text), size, FORM.order))
        except ValueError as error:
            masks.fault("error", where, f"{error}; it is left out", "damaged mask")
            continue
        if not crop.size or text in seen:
            what = "is the same as one before" if crop.size else "is empty"
            kind = "duplicate mask" if crop.size else "empty mask"
            masks.fault("warning", where, f"{what}; it is left out", kind)
            continue
        seen.add(text)
        filled = _filled(crop)
        hollow += bool((filled != crop).any())
        crop = filled if fill_holes else crop
        x0, y0, x1, y1 = box.tolist()
        part = count[y0:y1, x0:x1]
        np.add(part, crop, out=part, where=part < 255)
        masks.add(box, crop, size)
    shared = int((count > 1).sum())
    if shared:
        share = 100 * shared / sum(masks.areas)
        text = f"{shared:,} pixels lie in more than one mask ({share:.1f} % of the cells)"
        masks.fault("warning", image, text, "overlapping masks")
    if hollow:
        what = "they are filled" if fill_holes else "data.options.fill_holes: true fills them"
        masks.fault("warning", image, f"{hollow} masks have holes; {what}", "hollow masks")
    return masks


def _filled(crop: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of 0 and 1 with its holes, background that does not reach the crop's edge, filled."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(crop)).astype(np.uint8)


def _join_livecell(bundle: Bundle, path: Path, train: Dataset, target: Path, integrity: Integrity) -> None:
    """Add LIVECell's images of the line SHSY5Y to the training images, in place, as PNGs; each well is a group."""
    import cv2

    try:
        added = Dataset.read(path)
    except (OSError, ValueError) as error:
        raise CompetitionError(f"data.options.livecell: {error}") from error
    inside = {PurePosixPath(name).name: name for name in bundle.names}
    outside = {p.name: p for p in path.parent.rglob("*") if p.suffix.lower() in (".tif", ".png")}
    category = next(category_id for category_id, name in CELLS.items() if name == "shsy5y")
    lost = 0
    for image in added.images:
        name = PurePosixPath(image.file_name).name
        instances = [a for a in added.by_image[image.id] if not a.crowd]
        if not name.upper().startswith("SHSY5Y") or not instances:
            continue
        if name not in inside and name not in outside:
            lost += 1
            continue
        content = bundle.read(inside[name]) if name in inside else outside[name].read_bytes()
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.shape[:2] != (image.height, image.width):
            integrity.add("error", name, "cannot be decoded or has another size; it is left out", "damaged image")
            continue
        stem = PurePosixPath(name).stem
        file = f"images/train/shsy5y/{stem}.png"
        store(cv2.imencode(".png", pixels)[1].tobytes(), target / file)
        well = "_".join(stem.split("_")[:3])  # SHSY5Y_Phase_A10_1_00d04h00m_1
        train.images.append(Image(len(train.images) + 1, file, image.height, image.width, f"LIVECell {well}"))
        for a in instances:
            number = len(train.instances) + 1
            train.instances.append(Instance(number, len(train.images), category, a.rle, a.box, a.area))
    if lost:
        text = f"{lost:,} images of the line SHSY5Y are neither in the data nor below {path.parent}; they are left out"
        integrity.add("warning", str(path), text, "no image or no annotation")


# ---------------------------------------------------------------- test images -----------------------------------------


def _read_test(bundle: Bundle, root: str, target: Path, integrity: Integrity) -> Dataset:
    """Every test/*.png: the hidden test set has others than those that were handed out."""
    images: list[Image] = []
    faults: list[str] = []
    files = _pngs(bundle, f"{root}test/")
    for name in sorted(files):
        try:
            content = bundle.read(files[name])
            header = png.parse(content)
        except ValueError as error:
            faults.append(f"test/{name}.png: {error}")
            continue
        file = f"images/test/{name}.png"
        store(content, target / file)
        images.append(Image(len(images) + 1, file, header.height, header.width, name))
    if faults or not images:
        raise CompetitionError(
            "every test image must be whole, or the submission is not; get the data again:\n  "
            + "\n  ".join(faults[:20] or ["there is no test/<id>.png"])
        )
    sample = next((n for n in bundle.names if n == f"{root}sample_submission.csv"), None)
    if sample is not None:
        ids = {row["id"] for _, row in rle_csv.table(bundle.read(sample), sample, ["id"])}
        for name in sorted(ids - set(files)):
            integrity.add("warning", "sample_submission.csv", f"{name} has no test/{name}.png", "unknown id")
    return Dataset(images, dict(CELLS), root=target)


COMPETITION = Sartorius()
