"""The two tables that everything speaks: `Dataset` (images and true instances) and `Detections` (found instances)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from pipeline.files import writing
from pipeline.masks import FOREGROUND, crop_to_rle, polygons_to_rle, rle_to_crop

GRID_CAP = 128
"""Largest side of a stored soft mask. Up to it a grid has one cell per pixel; a larger object is sampled down to it."""


# ---------------------------------------------------------------- Dataset ---------------------------------------------


@dataclass(frozen=True)
class Image:
    """One image. `file_name` is relative to the dataset's root; `group` names what must not be split across folds.

    `semantic` is the file name of the image's label map, relative to the root: a PNG with one 8-bit class a pixel, whose
    names are the dataset's `semantic_classes`; empty where there is none. `sha256` is of the image's file, so that a
    dataset with other pixels is another one; empty where nobody has looked.
    """

    id: int
    file_name: str
    height: int
    width: int
    group: str = ""
    semantic: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Instance:
    """One true object, in original pixels. `rle` is a COCO RLE with text counts, `box` is x, y, width, height."""

    id: int
    image_id: int
    category_id: int
    rle: dict[str, Any]
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False


@dataclass
class Dataset:
    """Images plus instances: COCO json with compressed RLE, original pixels and original category ids.

    `semantic_classes` names the values of the images' label maps; other values are void. A category and a class of the
    same number are the same thing.
    """

    images: list[Image]
    categories: dict[int, str]
    instances: list[Instance] = field(default_factory=list)
    root: Path = Path(".")
    semantic_classes: dict[int, str] = field(default_factory=dict)

    @cached_property
    def by_image(self) -> dict[int, list[Instance]]:
        """Instances of every image id, in file order; images without any have an empty list."""
        found: dict[int, list[Instance]] = {image.id: [] for image in self.images}
        for instance in self.instances:
            found.setdefault(instance.image_id, []).append(instance)
        return found

    @cached_property
    def image(self) -> dict[int, Image]:
        return {image.id: image for image in self.images}

    def path(self, image: Image) -> Path:
        return self.root / image.file_name

    def subset(self, image_ids: Iterable[int]) -> Dataset:
        """The images with these ids (in the dataset's own order) and their instances."""
        wanted = set(image_ids)
        return Dataset(
            [image for image in self.images if image.id in wanted],
            self.categories,
            [instance for instance in self.instances if instance.image_id in wanted],
            self.root,
            self.semantic_classes,
        )

    @staticmethod
    def read(path: str | Path, root: str | Path | None = None) -> Dataset:
        """Read a COCO annotation file; polygons and uncompressed RLEs are accepted.

        Args:
            path: the json file.
            root: folder that `file_name`s are relative to; the json's own folder by default.

        Raises:
            ValueError: the file is not COCO json; the message names the file and what is missing.
        """
        path = Path(path)
        try:
            raw = json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(raw, dict) or "images" not in raw:
            raise ValueError(f"{path} is not a COCO annotation file: it needs the keys images, annotations, categories")
        try:
            images = [
                Image(
                    _whole(i["id"]),
                    str(i["file_name"]),
                    _whole(i["height"]),
                    _whole(i["width"]),
                    str(i.get("group", "")),
                    str(i.get("semantic", "")),
                    str(i.get("sha256", "")),
                )  # fmt: skip
                for i in raw["images"]
            ]
            sizes = {image.id: (image.height, image.width) for image in images}
            categories = {_whole(c["id"]): str(c["name"]) for c in raw.get("categories", [])}
            semantic_classes = {_whole(c["id"]): str(c["name"]) for c in raw.get("semantic_classes", [])}
            instances = []
            annotations = list(reversed(raw.pop("annotations", [])))
            while annotations:
                a = annotations.pop()  # each goes as its instance comes: a large file is not in memory twice
                rle = compressed(a["segmentation"], sizes[int(a["image_id"])])
                box = a.get("bbox")
                if box is None:
                    x0, y0, x1, y1 = (int(v) for v in rle_to_crop(rle)[0])
                    box = (x0, y0, x1 - x0, y1 - y0)
                area = a.get("area")
                if area is None:
                    area = float(rle_to_crop(rle)[1].sum())
                instances.append(
                    Instance(
                        _whole(a["id"]),
                        _whole(a["image_id"]),
                        _whole(a["category_id"]),
                        rle,
                        (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                        float(area),
                        bool(a.get("iscrowd", 0)),
                    )
                )
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, ValueError) as error:
            raise ValueError(f"{path} is not a usable COCO annotation file: {type(error).__name__} {error}") from error
        return Dataset(images, categories, instances, Path(root) if root is not None else path.parent, semantic_classes)

    def to_coco(self) -> dict[str, Any]:
        """The dataset as COCO's annotation dictionary; label maps stand under the keys semantic and semantic_classes."""
        classes = [{"id": k, "name": v} for k, v in self.semantic_classes.items()]
        return {
            "images": [
                {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width, "group": i.group}
                | {key: value for key, value in (("semantic", i.semantic), ("sha256", i.sha256)) if value}
                for i in self.images
            ],
            "categories": [{"id": k, "name": v} for k, v in self.categories.items()],
            **({"semantic_classes": classes} if classes else {}),
            "annotations": [
                {
                    "id": a.id,
                    "image_id": a.image_id,
                    "category_id": a.category_id,
                    "segmentation": a.rle,
                    "bbox": list(a.box),
                    "area": a.area,
                    "iscrowd": int(a.crowd),
                }
                for a in self.instances
            ],
        }

    def write(self, path: str | Path) -> None:
        with writing(path) as temporary:
            temporary.write_text(json.dumps(self.to_coco()))


def _whole(value: Any) -> int:
    """An id or a size; tables hold them in 64 bits."""
    number = int(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{str(value)[:30]} is too large for an id or a size")
    return number


def compressed(segmentation: Any, size: Sequence[int]) -> dict[str, Any]:
    """Any COCO segmentation (polygons, list counts, text counts) as a compressed RLE with text counts."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, str):
            return {"size": [int(v) for v in segmentation["size"]], "counts": counts}
        if isinstance(counts, bytes):
            return {"size": [int(v) for v in segmentation["size"]], "counts": counts.decode("ascii")}
        box, mask = rle_to_crop(segmentation)
        return crop_to_rle(mask, box, segmentation["size"], threshold=1)
    return polygons_to_rle(segmentation, size)


# ---------------------------------------------------------------- Detections ------------------------------------------


@dataclass
class Detections:
    """Found instances of any number of images, one row each, held as columns.

    Attributes:
        image_id: (N,) int64.
        category_id: (N,) int32, the competition's own ids.
        score: (N,) float64 in 0..1 (as wide as JSON's, so that a ranking survives the round trip).
        box: (N, 4) float32, the regressed box x0, y0, x1, y1 in pixels of the original image.
        mask_box: (N, 4) int32, the pixels that the soft mask covers, half open, inside the image. Not the regressed box:
            masks leak out of boxes.
        shape: (N, 2) int32, rows and columns of each grid: the mask box's own up to `GRID_CAP` a side.
        offset: (N + 1,) int64; row i's grid is ``pixels[offset[i]:offset[i + 1]].reshape(shape[i])``.
        pixels: (P,) uint8 probabilities, 255 is certain.
        source: (N,) int16, index into `sources`: which voter (model, fold, view) said so.
        sources: names of the voters.
        extra: further float32 columns of length N, e.g. the fraction of voters that agreed.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    score: np.ndarray
    box: np.ndarray
    mask_box: np.ndarray
    shape: np.ndarray
    offset: np.ndarray
    pixels: np.ndarray
    source: np.ndarray
    sources: list[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_id)

    # ------------------------------------------------ making ----------------------------------------------------------

    @staticmethod
    def build(
        image_id: Any,
        category_id: Any,
        score: Any,
        box: Any,
        mask_box: Any,
        grids: Sequence[np.ndarray],
        source: str | None = None,
        extra: Mapping[str, Any] | None = None,
        cap: bool = True,
    ) -> Detections:
        """Pack rows whose masks are given as a list of uint8 grids.

        A grid has the shape of its mask box, or is one that the cap has already sampled down. Scalars for `image_id` and
        `category_id` hold for all rows. Without `cap` a grid keeps one cell per pixel however large it is: for rows that
        are still to be joined with others, and packed again.

        Raises:
            ValueError: the columns do not have the same length, or a grid fits neither its box nor the cap.
        """
        n = len(grids)
        mask_box = np.asarray(mask_box, np.int32).reshape(n, 4)
        capped = []
        for i, grid in enumerate(grids):
            full = (int(mask_box[i, 3] - mask_box[i, 1]), int(mask_box[i, 2] - mask_box[i, 0]))
            if grid.shape == full:
                capped.append(shrink(grid) if cap else grid)
            elif grid.shape == (min(full[0], GRID_CAP), min(full[1], GRID_CAP)):
                capped.append(grid)
            else:
                raise ValueError(f"a soft mask of shape {grid.shape} does not fit its mask box {mask_box[i].tolist()}")
        table = Detections(
            image_id=np.broadcast_to(np.asarray(image_id, np.int64), (n,)).copy(),
            category_id=np.broadcast_to(np.asarray(category_id, np.int32), (n,)).copy(),
            score=np.asarray(score, np.float64).reshape(n),
            box=np.asarray(box, np.float32).reshape(n, 4),
            mask_box=mask_box,
            shape=np.array([g.shape for g in capped], np.int32).reshape(n, 2),
            offset=np.concatenate([[0], np.cumsum([g.size for g in capped])]).astype(np.int64),
            pixels=np.concatenate([g.ravel() for g in capped]).astype(np.uint8) if n else np.zeros(0, np.uint8),
            source=np.zeros(n, np.int16),
            sources=[source or ""],
            extra={k: np.asarray(v, np.float32).reshape(n) for k, v in (extra or {}).items()},
        )
        return table

    @staticmethod
    def empty(sources: Sequence[str] = ("",)) -> Detections:
        table = Detections.build(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 4)), np.zeros((0, 4)), [])
        table.sources = list(sources)
        return table

    @staticmethod
    def concatenate(tables: Sequence[Detections]) -> Detections:
        """All rows of all tables, in order. Sources are joined by name; a missing extra column becomes NaN."""
        if not tables:
            return Detections.empty()
        sources: list[str] = []
        index: dict[str, int] = {}
        for table in tables:
            for name in table.sources:
                if name not in index:
                    index[name] = len(sources)
                    sources.append(name)
        extra_names = list(dict.fromkeys(name for table in tables for name in table.extra))
        starts = np.cumsum([0] + [len(t.pixels) for t in tables])
        return Detections(
            image_id=np.concatenate([t.image_id for t in tables]),
            category_id=np.concatenate([t.category_id for t in tables]),
            score=np.concatenate([t.score for t in tables]),
            box=np.concatenate([t.box for t in tables]),
            mask_box=np.concatenate([t.mask_box for t in tables]),
            shape=np.concatenate([t.shape for t in tables]),
            offset=np.concatenate([t.offset[:-1] + s for t, s in zip(tables, starts, strict=False)] + [starts[-1:]]),
            pixels=np.concatenate([t.pixels for t in tables]),
            source=np.concatenate([np.array([index[s] for s in t.sources], np.int16)[t.source] for t in tables]).astype(
                np.int16
            ),
            sources=sources,
            extra={
                name: np.concatenate([t.extra.get(name, np.full(len(t), np.nan, np.float32)) for t in tables])
                for name in extra_names
            },
        )

    # ------------------------------------------------ looking ---------------------------------------------------------

    def grid(self, i: int) -> np.ndarray:
        """Row i's stored soft mask, (shape[i]) uint8, a view."""
        return self.pixels[self.offset[i] : self.offset[i + 1]].reshape(self.shape[i])

    def crop(self, i: int) -> np.ndarray:
        """Row i's soft mask with one cell per pixel of its mask box, uint8 (a view unless the cap applied)."""
        grid = self.grid(i)
        x0, y0, x1, y1 = self.mask_box[i]
        return grid if grid.shape == (y1 - y0, x1 - x0) else stretch(grid, (int(y1 - y0), int(x1 - x0)))

    def rle(self, i: int, size: Sequence[int]) -> dict[str, Any]:
        """Row i's mask (probability at least one half) as a compressed COCO RLE of an image of `size` (height, width)."""
        return crop_to_rle(self.crop(i), self.mask_box[i], size)

    def area(self) -> np.ndarray:
        """(N,) int64, pixels of each mask at probability one half."""
        return np.array([int((self.crop(i) >= FOREGROUND).sum()) for i in range(len(self))], np.int64)

    # ------------------------------------------------ choosing --------------------------------------------------------

    def take(self, rows: Any) -> Detections:
        """The rows chosen by an index array or a boolean mask, in that order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        sizes = (self.offset[1:] - self.offset[:-1])[rows]
        offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return Detections(
            self.image_id[rows],
            self.category_id[rows],
            self.score[rows],
            self.box[rows],
            self.mask_box[rows],
            self.shape[rows],
            offset,
            _gather(self.pixels, self.offset[:-1][rows], offset),
            self.source[rows],
            list(self.sources),
            {k: v[rows] for k, v in self.extra.items()},
        )

    def images(self) -> Iterator[tuple[int, Detections]]:
        """Every image id that occurs, ascending, with its rows."""
        for image_id in np.unique(self.image_id):
            yield int(image_id), self.take(self.image_id == image_id)

    def top(self, count: int) -> Detections:
        """The `count` best-scored rows of every image, best first, images ascending."""
        order = np.lexsort((np.arange(len(self)), -self.score, self.image_id))
        ranked = self.image_id[order]
        first = np.searchsorted(ranked, ranked, side="left")
        return self.take(order[np.arange(len(order)) - first < count])

    # ------------------------------------------------ COCO results ----------------------------------------------------

    @staticmethod
    def from_coco(results: Iterable[Mapping[str, Any]], source: str = "") -> Detections:
        """A COCO results list (binary masks). A record without a box takes its mask's; empty masks keep an empty grid."""
        image_id, category_id, score, boxes, mask_boxes, grids = [], [], [], [], [], []
        for record in results:
            mask_box, mask = rle_to_crop(record["segmentation"])
            if "bbox" in record:
                x, y, w, h = (float(v) for v in record["bbox"])
                box = [x, y, x + w, y + h]
            else:
                box = [float(v) for v in mask_box]
            image_id.append(int(record["image_id"]))
            category_id.append(int(record["category_id"]))
            score.append(float(record["score"]))
            boxes.append(box)
            mask_boxes.append(mask_box)
            grids.append(mask * np.uint8(255))
        return Detections.build(image_id, category_id, score, boxes, mask_boxes, grids, source)

    def to_coco(self, sizes: Mapping[int, Sequence[int]]) -> list[dict[str, Any]]:
        """COCO results records, in row order. `sizes`: (height, width) by image id. `bbox` is x, y, width, height."""
        records = []
        for i in range(len(self)):
            x0, y0, x1, y1 = (float(v) for v in self.box[i])
            records.append(
                {
                    "image_id": int(self.image_id[i]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(self.score[i]),
                    "category_id": int(self.category_id[i]),
                    "segmentation": self.rle(i, sizes[int(self.image_id[i])]),
                }
            )
        return records

    # ------------------------------------------------ disk ------------------------------------------------------------

    def write(self, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write one Parquet file with one row group per image, under a temporary name until it is whole."""
        with DetectionsWriter(path, self.sources, list(self.extra), provenance) as writer:
            for _, table in self.images():
                writer.add(table)

    @staticmethod
    def read(path: str | Path) -> Detections:
        """Read a whole file. Raises ValueError when it is not a Detections file."""
        tables = list(read_images(path))
        if tables:
            return Detections.concatenate(tables)
        return Detections.empty(_metadata(_open(path), path)["sources"])


@njit(cache=True)
def _gather(pixels, start, offset):  # type: ignore[no-untyped-def]
    """The runs of `pixels` that begin at `start`, one after the other; `offset` (N + 1,) says where each of them goes."""
    out = np.empty(offset[-1], pixels.dtype)
    for i in range(start.size):
        out[offset[i] : offset[i + 1]] = pixels[start[i] : start[i] + offset[i + 1] - offset[i]]
    return out


def shrink(grid: np.ndarray) -> np.ndarray:
    """A soft mask sampled down to at most `GRID_CAP` a side (area average); smaller ones come back as they are."""
    rows, columns = min(grid.shape[0], GRID_CAP), min(grid.shape[1], GRID_CAP)
    if (rows, columns) == grid.shape:
        return grid
    import cv2

    return np.asarray(cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_AREA))


def stretch(grid: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `shrink`: bilinear, to (rows, columns)."""
    import cv2

    return np.asarray(cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


# ---------------------------------------------------------------- Parquet ---------------------------------------------

LARGEST_MASK = 1 << 28
"""Pixels of a mask's box; a file with a larger one is damaged."""

_BOX = ("x0", "y0", "x1", "y1")
_COLUMNS = (
    "image_id", "category_id", "score", *(f"box_{k}" for k in _BOX), *(f"mask_{k}" for k in _BOX), "rows", "columns",
    "mask", "source",
)  # fmt: skip


class DetectionsWriter:
    """Writes a Detections file image by image, so that a test set never sits in memory whole.

    One row group per added table. The file appears under its name when the ``with`` block ends without an error.
    """

    def __init__(
        self,
        path: str | Path,
        sources: Sequence[str],
        extra: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        import pyarrow as pa

        self._sources = list(sources)
        self._extra = list(extra)
        self._context = writing(path)
        metadata = {"maskfold": json.dumps({"sources": self._sources, "provenance": dict(provenance or {})})}
        self._schema = pa.schema(
            [("image_id", pa.int64()), ("category_id", pa.int32()), ("score", pa.float64())]
            + [(f"box_{k}", pa.float32()) for k in _BOX]
            + [(f"mask_{k}", pa.int32()) for k in _BOX]
            + [("rows", pa.int32()), ("columns", pa.int32()), ("mask", pa.large_binary()), ("source", pa.int16())]
            + [(f"extra_{k}", pa.float32()) for k in self._extra],
            metadata=metadata,
        )

    def __enter__(self) -> DetectionsWriter:
        import pyarrow.parquet as pq

        temporary = self._context.__enter__()
        try:
            self._writer = pq.ParquetWriter(temporary, self._schema, compression="zstd")
        except OSError as unwritten:
            self._context.__exit__(type(unwritten), unwritten, unwritten.__traceback__)
            raise
        return self

    def add(self, table: Detections) -> None:
        """Append the rows of one image (or of a few)."""
        import pyarrow as pa

        index = {name: i for i, name in enumerate(self._sources)}
        source = np.array([index[name] for name in table.sources], np.int16)[table.source]
        columns: list[Any] = [table.image_id, table.category_id, table.score]
        columns += [table.box[:, k] for k in range(4)] + [table.mask_box[:, k] for k in range(4)]
        columns += [table.shape[:, 0], table.shape[:, 1]]
        masks = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(table), [None, pa.py_buffer(table.offset), pa.py_buffer(table.pixels)]
        )
        columns += [masks, source.astype(np.int16)]
        columns += [table.extra.get(k, np.full(len(table), np.nan, np.float32)) for k in self._extra]
        self._writer.write_table(pa.table([pa.array(c) for c in columns], schema=self._schema))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._writer.close()
        except OSError as unwritten:  # the rest of the table did not fit on the disk
            if kind is None:
                self._context.__exit__(type(unwritten), unwritten, unwritten.__traceback__)
                raise
        self._context.__exit__(kind, error, trace)


def _open(path: str | Path) -> Any:
    import pyarrow.parquet as pq

    with _readable(path):
        return pq.ParquetFile(path)


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """What pyarrow raises over damaged bytes, be they of the head or of a page, as a ValueError that names the file."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a Parquet file of detections: {error}") from error


def _metadata(file: Any, path: str | Path) -> dict[str, Any]:
    with _readable(path):
        raw = (file.schema_arrow.metadata or {}).get(b"maskfold")
    if raw is None:
        raise ValueError(f"{path} was not written by maskfold: it has no list of sources")
    try:
        said = json.loads(raw)
        return {"sources": [str(name) for name in said["sources"]], "provenance": dict(said["provenance"])}
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: what it says of its sources is damaged: {error}") from error


def provenance(path: str | Path) -> dict[str, Any]:
    """What a Detections file says of its own making."""
    return dict(_metadata(_open(path), path)["provenance"])


def read_sources(path: str | Path) -> list[str]:
    """The names of the voters of a Detections file, those that found nothing included."""
    return list(_metadata(_open(path), path)["sources"])


def read_images(path: str | Path) -> Iterator[Detections]:
    """Stream a Detections file, one row group (one image, as `Detections.write` lays it out) at a time."""
    file = _open(path)
    sources = _metadata(file, path)["sources"]
    for group in range(file.num_row_groups):
        with _readable(path):
            table = file.read_row_group(group)
        if not table.num_rows:
            continue
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise ValueError(f"{path} is no Parquet file of detections: it has no column {', '.join(missing)}")
        column = {name: table.column(name) for name in table.column_names}
        if any(column[name].null_count for name in _COLUMNS):
            raise ValueError(f"{path} is a damaged file of detections: it has rows with missing values; make it again")

        def values(name: str, column: dict[str, Any] = column) -> np.ndarray:
            return np.asarray(column[name].to_numpy())

        masks = column["mask"].combine_chunks()
        masks = masks.chunk(0) if hasattr(masks, "chunk") else masks
        with _readable(path):
            masks.validate(full=True)
        _, offsets, data = masks.buffers()
        offset = np.frombuffer(offsets, np.int64)[masks.offset : masks.offset + len(masks) + 1]
        pixels = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        found = Detections(
            values("image_id"),
            values("category_id"),
            values("score"),
            np.stack([values(f"box_{k}") for k in _BOX], axis=1),
            np.stack([values(f"mask_{k}") for k in _BOX], axis=1),
            np.stack([values("rows"), values("columns")], axis=1),
            offset - offset[0],
            pixels[offset[0] : offset[-1]],
            values("source"),
            list(sources),
            {k.removeprefix("extra_"): values(k) for k in table.column_names if k.startswith("extra_")},
        )
        _check_rows(found, path)
        yield found


def _check_rows(found: Detections, path: str | Path) -> None:
    """Refuse rows that hold together in Parquet but not among themselves; what reads them later counts on it.

    Raises:
        ValueError: a mask does not have its rows and columns or its box is absurd, or a source is none of the file's.
    """
    pixels = found.shape.astype(np.int64).prod(axis=1)
    whole = (found.shape >= 0).all() and (np.diff(found.offset) == pixels).all()
    sides = found.mask_box[:, 2:].astype(np.int64) - found.mask_box[:, :2]
    covered = sides.prod(axis=1)
    fits = (sides >= 0).all() and (covered < LARGEST_MASK).all() and ((covered > 0) == (pixels > 0)).all()
    known = ((found.source >= 0) & (found.source < len(found.sources))).all()
    if not whole or not known or not fits:
        raise ValueError(f"{path} is a damaged file of detections: its columns contradict each other; make it again")
