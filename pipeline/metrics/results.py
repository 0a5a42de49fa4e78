"""COCO results records held as columns: some 100 bytes each, where a record of dictionaries and lists takes 1,000."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from pipeline.metrics.overlaps import Masks
from pipeline.records import Detections, compressed

_FAULTS = "`validate` lists every fault of a submission"


@dataclass(frozen=True, eq=False)
class Results(Sequence[dict[str, Any]]):
    """N records; each can be had as the dictionary that it came as.

    Attributes:
        image_id, category_id: (N,) int64.
        score: (N,) float64.
        box: (N, 4) float64 x, y, width, height; None where the first record has no box: pycocotools then looks at none.
        masks: the segmentations.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    score: np.ndarray
    box: np.ndarray | None
    masks: Masks

    def __len__(self) -> int:
        return len(self.image_id)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._record(i) for i in range(*index.indices(len(self)))]
        return self._record(range(len(self))[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._record, range(len(self)))

    def _record(self, i: int) -> dict[str, Any]:
        box = {} if self.box is None else {"bbox": self.box[i].tolist()}
        return {
            "image_id": int(self.image_id[i]), **box, "score": float(self.score[i]),
            "category_id": int(self.category_id[i]), "segmentation": self.masks.rle(i),
        }  # fmt: skip

    @property
    def areas(self) -> np.ndarray:
        """(N,) float64, what pycocotools takes for the detections' areas: their boxes', or without boxes their masks'.

        Raises:
            ValueError: a damaged mask.
        """
        if self.box is None:
            return self.masks.areas.astype(np.float64)
        return np.asarray(self.box[:, 2] * self.box[:, 3])

    @staticmethod
    def of(found: Detections | Iterable[Mapping[str, Any]], sizes: Mapping[Any, Sequence[int]]) -> Results:
        """Detections or records, read one after another.

        Args:
            sizes: (height, width) by image id, for detections and polygons.

        Raises:
            ValueError: a record lacks a key or holds something else than it should.
        """
        if isinstance(found, Results):
            return found
        if isinstance(found, Detections):
            return _of_detections(found, sizes)
        image_id, category_id, score, box = array("q"), array("q"), array("d"), array("d")
        text, offset, size = bytearray(), array("q", [0]), array("q")
        boxed, number = False, -1
        try:
            for number, record in enumerate(found):
                if number == 0:
                    boxed = bool(record.get("bbox"))
                image_id.append(_whole(record["image_id"]))
                category_id.append(_whole(record["category_id"]))
                score.append(record["score"])
                rle = record["segmentation"]
                if type(rle) is not dict or type(rle["counts"]) is not str:
                    rle = compressed(rle, sizes.get(record["image_id"], (1, 1)))
                text += rle["counts"].encode("ascii")
                offset.append(len(text))
                height, width = rle["size"]
                size.append(height)
                size.append(width)
                if boxed:
                    x, y, w, h = record.get("bbox") or (0, 0, 0, 0)
                    box.extend((x, y, w, h))
        except KeyError as error:
            raise ValueError(f"record {number} has no {error}; {_FAULTS}") from error
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"record {number} is malformed ({error}); {_FAULTS}") from error
        except ValueError as error:
            raise ValueError(f"record {number}: {error}; {_FAULTS}") from error
        masks = Masks(
            np.frombuffer(text, np.uint8), np.frombuffer(offset, np.int64), np.frombuffer(size, np.int64).reshape(-1, 2)
        )
        return Results(
            np.frombuffer(image_id, np.int64),
            np.frombuffer(category_id, np.int64),
            np.frombuffer(score, np.float64),
            np.frombuffer(box, np.float64).reshape(-1, 4) if boxed else None,
            masks,
        )


def _whole(value: Any) -> int:
    """An id. JSON tells 3.0 from 3, a dictionary of pycocotools does not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value  # type: ignore[no-any-return]  # what is no number the array refuses


def _of_detections(found: Detections, sizes: Mapping[Any, Sequence[int]]) -> Results:
    images = found.image_id.tolist()
    box = found.box.astype(np.float64)
    return Results(
        found.image_id.astype(np.int64),
        found.category_id.astype(np.int64),
        found.score,
        np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], axis=1),
        Masks.pack(found.rle(i, sizes.get(image, (1 << 15, 1 << 15))) for i, image in enumerate(images)),
    )
