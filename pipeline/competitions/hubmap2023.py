"""Kaggle "HuBMAP - Hacking the Human Vasculature" (2023): blood vessels in PAS-stained kidney, tiles of 512x512.

Layout, as Kaggle's zip or unpacked, wholly or in part::

    train/<id>.tif                 7,033 tiles, of which 1,633 are annotated
    test/<id>.tif                  one tile in sight; the rest is there only when a notebook is scored
    polygons.jsonl                 a line a tile: {"id", "annotations": [{"type", "coordinates": [[[x, y], …]]}]}
    tile_meta.csv                  id,source_wsi,dataset,i,j
    wsi_meta.csv                   not read

Submission: a CSV ``id,height,width,prediction_string``, see formats/openimages_csv.py. Metric: OpenImages' average precision
of one class at mask IoU 0.6, see metrics/openimages_ap.py.

What is known of the metric and what is not: the rule is that of the OpenImages challenges, whose code is public; Kaggle's own
implementation is not. Unknown are the order of equal confidences, and whether regions marked "unsure" are in the hidden truth
in any way. The score takes them for background, which can only be too low; ``score_unsure_ignored`` stands beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.competitions import CompetitionError, Integrity, Options, Prepared, Problem, chosen_options
from pipeline.competitions.formats import coco_results, openimages_csv
from pipeline.competitions.formats.archive import is_stray
from pipeline.competitions.formats.bundle import Bundle
from pipeline.competitions.formats.rle_csv import name_of, table
from pipeline.competitions.formats.stored import remove_others, store
from pipeline.masks import polygons_to_rle, rle_to_crop
from pipeline.metrics.openimages_ap import evaluate
from pipeline.records import Dataset, Detections, Image, Instance

BLOOD_VESSEL, GLOMERULUS, UNSURE = 1, 2, 3
CATEGORIES = {BLOOD_VESSEL: "blood_vessel", GLOMERULUS: "glomerulus", UNSURE: "unsure"}
ID_OF = {name: number for number, name in CATEGORIES.items()}

LABEL = "0"
"""Of blood vessels in the submission."""

IOU = 0.6

SIDE = 512
"""Of every tile; polygons.jsonl does not say."""

POLYGONS, TILES = "polygons.jsonl", "tile_meta.csv"


@dataclass(frozen=True)
class _Tile:
    """A row of tile_meta.csv."""

    wsi: str
    dataset: str


class Hubmap2023Options(Options):
    """Which annotations."""

    classes: list[str] = [CATEGORIES[BLOOD_VESSEL]]
    """What is learnt, of blood_vessel (which is scored, and always among them), glomerulus and unsure. Unsure regions that
    are no class are marked as crowds, so that finding something there is neither right nor wrong where crowds are known
    of."""
    datasets: list[Literal[1, 2]] = Field([1, 2], min_length=1)
    """Of which annotations: 1 was reviewed by experts, as the test tiles were, 2 was not."""

    @field_validator("classes", mode="before")
    @classmethod
    def _are_known(cls, value: Any) -> Any:
        known = isinstance(value, list) and set(map(str, value)) <= set(ID_OF)
        if not known or CATEGORIES[BLOOD_VESSEL] not in value:
            raise ValueError(f"a list of {', '.join(ID_OF)}, blood_vessel among them")
        return value


class Hubmap2023:
    name = "hubmap2023"
    options = Hubmap2023Options
    metric = "OpenImages AP at mask IoU 0.6 (blood_vessel)"
    suffix = ".csv"
    max_detections: int | None = None
    ranked = True
    ious: Sequence[float] = (IOU,)
    download = (
        "Kaggle; accept the rules at https://www.kaggle.com/competitions/hubmap-hacking-the-human-vasculature, then\n"
        "kaggle competitions download -c hubmap-hacking-the-human-vasculature -p data/hubmap2023"
    )

    def missing(self, names: Sequence[str]) -> list[str]:
        have = ["/" + name for name in names]
        wanted = {
            "train/<id>.tif": any("/train/" in n and n.endswith(".tif") for n in have),
            "test/<id>.tif": any("/test/" in n and n.endswith(".tif") for n in have),
            POLYGONS: any(n.endswith("/" + POLYGONS) for n in have),
            TILES: any(n.endswith("/" + TILES) for n in have),
        }
        return [what for what, there in wanted.items() if not there]

    def read(self, path: Path | None, options: dict[str, Any], seed: int, target: Path) -> Prepared:
        """Read the annotated tiles of train/, and test/. `options`: see `Hubmap2023Options`."""
        wanted = chosen_options(self.options, options)
        classes = sorted({ID_OF[name] for name in wanted.classes})
        datasets = {str(number) for number in wanted.datasets}
        if path is None:
            raise CompetitionError(
                f"{self.name} needs its files: set data.path in the experiment file or pass --data PATH"
            )
        integrity = Integrity()
        with Bundle(path) as archive:
            root = _root(archive)
            if archive.unsafe:
                text = f"names that leave the archive are not read: {', '.join(archive.unsafe[:3])}"
                integrity.add("warning", str(path), text, "unsafe name")
            tiles = _tiles(archive, root)
            annotated = _polygons(archive.read(root + POLYGONS), f"{POLYGONS} in {path}", integrity)
            chosen = _chosen(annotated, tiles, datasets, integrity)
            train = _read_train(archive, root, chosen, tiles, classes, target, integrity)
            test = _read_test(archive, root, classes, target)
        remove_others(target, train, test)
        integrity.facts = {
            "competition": self.name,
            "source": str(path),
            "train_images": len(train.images),
            "train_instances": len(train.instances),
            "test_images": len(test.images),
            "tiles_without_annotation": sum(tile not in annotated for tile in tiles),
        }
        return Prepared(train, test, integrity)

    def stratum(self, image: Image) -> str:
        return ""

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """OpenImages' AP of blood vessels at IoU 0.6, unsure regions being background.

        ``score_unsure_ignored`` is what it would be if detections in unsure regions counted neither way.
        """
        result = evaluate(truth, records, IOU, BLOOD_VESSEL)
        unsure = {a.id for a in truth.instances if a.category_id == UNSURE or a.crowd}
        return {
            "competition": self.name,
            "metric": self.metric,
            "score": result.ap,
            "images": len(truth.images),
            "truths": result.truths,
            "detections": len(result.score),
            "true_positives": int(result.hit.sum()),
            "score_unsure_ignored": evaluate(truth, records, IOU, BLOOD_VESSEL, unsure).ap if unsure else result.ap,
            "classes": {CATEGORIES[BLOOD_VESSEL]: result.ap if result.truths else None},
        }

    def records(self, detections: Detections, images: Dataset) -> list[dict[str, Any]]:
        """The blood vessels, best first; what else may have been learnt is not submitted."""
        vessels = detections.take(np.flatnonzero(detections.category_id == BLOOD_VESSEL))
        return coco_results.submission_records(vessels, images)

    def write(self, detections: Detections, test: Dataset, path: Path) -> None:
        openimages_csv.write(self.records(detections, test), test, path, LABEL)

    def read_submission(self, path: Path, images: Dataset | None = None) -> Sequence[dict[str, Any]]:
        """The CSV's records; a Detections file or COCO results are read too."""
        if path.suffix.lower() in (".parquet", ".json"):
            return coco_results.read_records(path, "results.json", images)
        return openimages_csv.read(path, BLOOD_VESSEL, images)

    def read_truth(self, path: Path) -> Dataset:
        """polygons.jsonl, or a COCO json whose category 1 are the blood vessels."""
        if path.suffix.lower() != ".jsonl":
            truth = Dataset.read(path)
            if truth.categories.get(BLOOD_VESSEL) != CATEGORIES[BLOOD_VESSEL]:
                raise CompetitionError(
                    f"{path}: category {BLOOD_VESSEL} must be {CATEGORIES[BLOOD_VESSEL]}, it is "
                    f"{truth.categories.get(BLOOD_VESSEL)!r}"
                )
            return truth
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise CompetitionError(f"there is no file {path}") from error
        integrity = Integrity()
        annotated = _polygons(content, str(path), integrity)
        images = [Image(k, f"{name}.tif", SIDE, SIDE) for k, name in enumerate(sorted(annotated), start=1)]
        instances: list[Instance] = []
        for image in images:
            name = name_of(image)
            instances += _instances(image, annotated[name], [BLOOD_VESSEL], len(instances), integrity)
        errors = [str(problem) for problem in integrity.problems if problem.severity == "error"]
        if errors:
            raise CompetitionError(f"{path} is damaged:\n  " + "\n  ".join(errors[:10]))
        return Dataset(images, {BLOOD_VESSEL: CATEGORIES[BLOOD_VESSEL]}, instances, path.parent)

    def read_ids(self, path: Path) -> Dataset:
        """sample_submission.csv (or any submission, for its ids and sizes), or a COCO json."""
        categories = {BLOOD_VESSEL: CATEGORIES[BLOOD_VESSEL]}
        if path.suffix.lower() != ".csv":
            return coco_results.read_ids(path, categories)
        table = openimages_csv.load(path)
        sizes: dict[str, tuple[int, int]] = {}
        for row in table.rows:
            try:
                size = (int(row.height), int(row.width))
            except ValueError as error:
                text = f"{path}, line {row.line}: height and width are {row.height!r} and {row.width!r}"
                raise CompetitionError(text) from error
            if row.id in sizes:
                raise CompetitionError(f"{path}, line {row.line}: the id {row.id} occurs more than once")
            sizes[row.id] = size
        return Dataset([Image(k, f"{n}.tif", *sizes[n]) for k, n in enumerate(sorted(sizes), start=1)], categories)

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        return openimages_csv.check(path, ids, LABEL)

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        return openimages_csv.fix(path, ids, target, LABEL)


# ---------------------------------------------------------------- reading ---------------------------------------------


def _root(archive: Bundle) -> str:
    """The folder inside that holds the polygons, with a trailing slash unless it is the top."""
    places = [n[: -len(POLYGONS)] for n in archive.names if PurePosixPath(n).name == POLYGONS and not is_stray(n)]
    good = [place for place in places if any(name.startswith(f"{place}train/") for name in archive.names)]
    if good:
        return min(good, key=len)
    top = sorted({name.split("/")[0] for name in archive.names})[:8]
    what = f"train/ beside {POLYGONS}" if places else POLYGONS
    raise CompetitionError(
        f"{archive.path} holds no {what}; is it HuBMAP's Hacking the Human Vasculature? It has {', '.join(top) or 'nothing'}"
    )


def _tiles(archive: Bundle, root: str) -> dict[str, _Tile]:
    """The rows of tile_meta.csv by tile."""
    place = f"{TILES} in {archive.path}"
    if root + TILES not in archive.names:
        raise CompetitionError(f"there is no {place}: it says which slide a tile is of, which folds must not split")
    rows = table(archive.read(root + TILES), place, ["id", "source_wsi", "dataset"])
    return {row["id"]: _Tile(row["source_wsi"], row["dataset"]) for _, row in rows if row["id"]}


def _polygons(content: bytes, place: str, integrity: Integrity) -> dict[str, list[Any]]:
    """The annotations of every tile of polygons.jsonl, as they stand there."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CompetitionError(f"{place} is not text: {error}") from error
    found: dict[str, list[Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CompetitionError(f"{place}, line {number} is not JSON: {error}; get the file again") from error
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise CompetitionError(f"{place}, line {number} is not a tile with id and annotations")
        annotations = value.get("annotations")
        if not isinstance(annotations, list):
            raise CompetitionError(f"{place}, line {number} ({value['id']}) has no list of annotations")
        if value["id"] in found:
            integrity.add("warning", value["id"], f"stands in {POLYGONS} twice; the last line counts", "duplicate tile")
        found[value["id"]] = annotations
    return found


def _chosen(
    annotated: Mapping[str, list[Any]], tiles: Mapping[str, _Tile], datasets: set[str], integrity: Integrity
) -> dict[str, list[Any]]:
    """The annotated tiles that are wanted."""
    unknown = sorted(set(annotated) - set(tiles))
    for name in unknown:
        integrity.add("warning", name, f"has polygons but no row in {TILES}; it is left out", "no tile row")
    bare = Counter(t.dataset for name, t in tiles.items() if name not in annotated and t.dataset in datasets)
    for number, count in sorted(bare.items()):
        text = f"{count} tiles of dataset {number} have no line in {POLYGONS}; they are left out"
        integrity.add("warning", POLYGONS, text, "tile without annotation")
    return {n: a for n, a in annotated.items() if n in tiles and tiles[n].dataset in datasets}


def _read_train(
    archive: Bundle,
    root: str,
    chosen: Mapping[str, list[Any]],
    tiles: Mapping[str, _Tile],
    classes: Sequence[int],
    target: Path,
    integrity: Integrity,
) -> Dataset:
    images: list[Image] = []
    instances: list[Instance] = []
    have = set(archive.names)
    for name in sorted(chosen):
        file = f"{root}train/{name}.tif"
        if file not in have:
            integrity.add("error", f"train/{name}.tif", "is annotated but not there; it is left out", "no image")
            continue
        try:
            content = archive.read(file)
            height, width = _size(content)
        except ValueError as error:
            integrity.add("error", f"train/{name}.tif", f"{error}; the image is left out", "damaged image")
            continue
        image = Image(len(images) + 1, f"images/train/{name}.tif", height, width, f"wsi-{tiles[name].wsi}")
        store(content, target / image.file_name)
        images.append(image)
        instances += _instances(image, chosen[name], classes, len(instances), integrity)
    if not images:
        reasons = "\n  ".join(str(problem) for problem in integrity.problems[:10])
        raise CompetitionError(f"there is no usable training image:\n  {reasons or 'no tile of these datasets'}")
    return Dataset(images, {c: CATEGORIES[c] for c in classes}, instances, target)


def _read_test(archive: Bundle, root: str, classes: Sequence[int], target: Path) -> Dataset:
    prefix = f"{root}test/"
    files = [n for n in archive.names if n.startswith(prefix) and n.endswith(".tif") and not is_stray(n)]
    images: list[Image] = []
    faults = []
    for file in files:
        name = PurePosixPath(file).stem
        try:
            content = archive.read(file)
            height, width = _size(content)
        except ValueError as error:
            faults.append(f"test/{name}.tif: {error}")
            continue
        image = Image(len(images) + 1, f"images/test/{name}.tif", height, width)
        store(content, target / image.file_name)
        images.append(image)
    if faults or not images:
        raise CompetitionError(
            "every test image must be whole, or the submission is not; get the archive again:\n  "
            + "\n  ".join(faults or ["there is no test/<id>.tif"])
        )
    return Dataset(images, {c: CATEGORIES[c] for c in classes}, root=target)


def _size(content: bytes) -> tuple[int, int]:
    """Height and width of an image file that can be decoded.

    Raises:
        ValueError: it cannot.
    """
    import cv2

    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if image is None:
        raise ValueError("it cannot be decoded" if content else "it is empty")
    return image.shape[0], image.shape[1]


def _instances(
    image: Image, annotations: Sequence[Any], classes: Sequence[int], last: int, integrity: Integrity
) -> Iterator[Instance]:
    """A tile's instances, rasterised as pycocotools does, with ids from `last` + 1.

    Unsure regions that are no class become crowds of blood vessels; glomeruli that are none are left out.
    """
    seen = set()
    name = name_of(image)
    for number, annotation in enumerate(annotations):
        place = f"{name}, annotation {number}"
        kind = annotation.get("type") if isinstance(annotation, dict) else None
        if not isinstance(kind, str) or kind not in ID_OF:
            integrity.add("error", place, f"is of the unknown type {kind!r}; it is left out", "unknown type")
            continue
        category_id = ID_OF[kind]
        crowd = category_id == UNSURE and UNSURE not in classes
        if category_id not in classes and not crowd:
            continue
        try:
            rings = _rings(annotation.get("coordinates"), image)
        except ValueError as error:
            integrity.add("error", place, f"{error}; it is left out", "damaged polygon")
            continue
        if len(rings) > 1:
            integrity.add("warning", place, f"has {len(rings)} outlines, which are joined", "several outlines")
        rle = polygons_to_rle(rings, (image.height, image.width))
        (x0, y0, x1, y1), mask = rle_to_crop(rle)
        if not mask.size:
            integrity.add("warning", place, "covers no pixel; it is left out", "empty mask")
            continue
        if (category_id, rle["counts"]) in seen:
            integrity.add("warning", place, "is there twice; one is left out", "duplicate mask")
            continue
        seen.add((category_id, rle["counts"]))
        last += 1
        box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
        held = BLOOD_VESSEL if crowd else category_id
        yield Instance(last, image.id, held, rle, box, float(mask.sum()), crowd)


def _rings(coordinates: Any, image: Image) -> list[list[float]]:
    """Outlines as x, y, x, y, …

    Raises:
        ValueError: they are no lists of points about the image. (Points far away would cost pycocotools all memory.)
    """
    if not isinstance(coordinates, list) or not coordinates:
        raise ValueError("has no coordinates")
    rings = []
    for ring in coordinates:
        if not isinstance(ring, list) or len(ring) < 3:
            raise ValueError("has an outline of fewer than three points")
        flat = []
        for point in ring:
            if not isinstance(point, list) or len(point) != 2 or not all(_is_coordinate(v, image) for v in point):
                raise ValueError(f"has the point {str(point)[:40]}, which is none of the image")
            flat += [float(v) for v in point]
        rings.append(flat)
    return rings


def _is_coordinate(value: Any, image: Image) -> bool:
    side = max(image.height, image.width)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -side <= value <= 2 * side


COMPETITION = Hubmap2023()
