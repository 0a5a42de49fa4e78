"""Instances handed out as one mask image each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.competitions import Problem
from pipeline.competitions.formats import png
from pipeline.masks import crop_to_rle
from pipeline.records import Instance


class Files(Protocol):
    """An `Archive` or a `Bundle`."""

    def read(self, name: str) -> bytes: ...


@dataclass
class Masks:
    """The objects of one image, in the order in which they came, and what was wrong with them.

    Attributes:
        boxes: (4,) int32 each, tight half-open x0, y0, x1, y1.
        rles: compressed COCO RLEs; `areas`: their pixels.
    """

    boxes: list[np.ndarray] = field(default_factory=list)
    rles: list[dict[str, Any]] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, box: np.ndarray, crop: np.ndarray, size: tuple[int, int]) -> None:
        """Append an object by its crop, uint8 of 0 and 1."""
        self.boxes.append(box)
        self.rles.append(crop_to_rle(crop, box.tolist(), size, threshold=1))
        self.areas.append(int(crop.sum()))

    def fault(self, severity: Literal["error", "warning"], place: str, text: str, kind: str) -> None:
        self.problems.append(Problem(severity, place, text, kind))

    def instances(self, first_id: int, image_id: int, category_id: int) -> list[Instance]:
        found = []
        for number, (box, rle, area) in enumerate(zip(self.boxes, self.rles, self.areas, strict=True), first_id):
            x0, y0, x1, y1 = (float(v) for v in box)
            found.append(Instance(number, image_id, category_id, rle, (x0, y0, x1 - x0, y1 - y0), float(area)))
        return found


def read_masks(files: Files, names: Iterable[str], size: tuple[int, int], image: str) -> Masks:
    """Read the mask images of one image.

    Damaged, empty and repeated ones are left out; that, odd values and shared pixels are reported.

    Args:
        names: of the mask images in `files`.
        size: ``(height, width)`` of the image.
        image: names the image's folder in reports.
    """
    masks = Masks()
    seen: dict[tuple[bytes, bytes], str] = {}
    count = np.zeros(size, np.uint8)
    for name in names:
        place = f"{image}/masks/{PurePosixPath(name).name}"
        try:
            mask = png.read_mask(files.read(name), *size)
        except ValueError as error:
            masks.fault("error", place, f"{error}; it is left out", "damaged mask")
            continue
        if not mask.crop.size:
            masks.fault("warning", place, "is empty; it is left out", "empty mask")
            continue
        if not mask.binary:
            text = (
                "holds values other than 0 and 255; 128 and more is taken as nucleus, or all but 0 where there are none"
            )
            masks.fault("warning", place, text, "values")
        key = (mask.box.tobytes(), mask.crop.tobytes())
        if key in seen:
            masks.fault("warning", place, f"is the same as {seen[key]}; it is left out", "duplicate mask")
            continue
        seen[key] = PurePosixPath(name).name
        x0, y0, x1, y1 = mask.box.tolist()
        part = count[y0:y1, x0:x1]
        np.add(part, mask.crop, out=part, where=part < 255)
        masks.add(mask.box, mask.crop, size)
    shared = int((count > 1).sum())
    if shared:
        share = 100 * shared / sum(masks.areas)
        text = f"{shared:,} pixels lie in more than one mask ({share:.1f} % of the nuclei)"
        masks.fault("warning", image, text, "overlapping masks")
    return masks
