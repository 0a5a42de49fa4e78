"""What competitions have in common that take sets of masks in a CSV and score them by the DSB rule."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats import coco_results, rle_check, rle_csv
from pipeline.masks import FOREGROUND, crop_to_rle, tight_box
from pipeline.metrics import dsb
from pipeline.metrics.coco_ap import IOUS
from pipeline.records import Dataset, Detections, Image

log = logging.getLogger("pipeline.competitions")

LEAST_LEFT = 0.5
"""A mask that loses more of its pixels than this leaves to better-scored ones is dropped: what is left of it has an IoU
of at most one half with what it was, so it cannot be paired with the object that it was drawn for."""


class RleCompetition:
    """Base of such a competition.

    Attributes:
        name: the competition's module.
        form: how the CSV is written.
        categories: names by category id; the CSV knows none, so masks read from it are of the first.
        least_area: smaller masks, in pixels, are not submitted.
    """

    name: str
    form: rle_csv.RleCsv
    categories: Mapping[int, str]
    least_area: int
    metric = "mean precision over IoU > 0.50:0.05:0.95"
    suffix = ".csv"
    max_detections: int | None = None
    ranked = False
    ious: Sequence[float] = IOUS

    def stratum(self, image: Image) -> str:
        return ""

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The DSB rule, see `pipeline.metrics.dsb`; records' scores and categories are not looked at."""
        return {"competition": self.name, "metric": self.metric, **dsb.summary(truth, records)}

    def records(self, detections: Detections, images: Dataset) -> list[dict[str, Any]]:
        """The masks that a submission would hold: no pixel in two of them, none empty.

        Better-scored masks keep shared pixels, across categories. Then masks that are left with fewer than `least_area`
        pixels, or with half of theirs or less, are dropped; the pixels they would have claimed go to the next.
        """
        return disjoint(detections, images, self.least_area)

    def write(self, detections: Detections, test: Dataset, path: Path) -> None:
        rle_csv.write_records(self.records(detections, test), test, path, self.form)

    def read_submission(self, path: Path, images: Dataset | None = None) -> list[dict[str, Any]]:
        if images is None:
            raise CompetitionError(
                f"{path}: a CSV of {self.name} does not say how large its images are; give them too (--ids), as a "
                "solution with sizes or a COCO json (data/test.json of a run)"
            )
        if _is_parquet(path):
            try:
                return self.records(Detections.read(path), images)
            except (KeyError, ValueError) as error:
                raise CompetitionError(f"{path}: {error}") from error
        return rle_csv.read_records(path, self.form, images, min(self.categories))

    def read_truth(self, path: Path) -> Dataset:
        if not _is_json(path):
            return rle_csv.read_truth(path, self.form, self.categories)
        try:
            return Dataset.read(path)
        except (OSError, ValueError) as error:
            raise CompetitionError(str(error)) from error

    def read_ids(self, path: Path) -> Dataset:
        if _is_json(path):
            return coco_results.read_ids(path, self.categories)
        return rle_csv.read_ids(path, self.form, self.categories)

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        return rle_check.check(path, self.form, ids)

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        return rle_check.fix(path, self.form, ids, target)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as handle:
            return handle.read(64)
    except FileNotFoundError as error:
        raise CompetitionError(f"there is no file {path}") from error
    except OSError as error:
        raise CompetitionError(f"{path} cannot be read: {error.strerror}") from error


def _is_json(path: Path) -> bool:
    return _head(path).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


def _is_parquet(path: Path) -> bool:
    return _head(path)[:4] == b"PAR1"


def disjoint(detections: Detections, images: Dataset, least_area: int) -> list[dict[str, Any]]:
    """Detections as records of masks that share no pixels, image by image as in `images`, best first.

    Args:
        least_area: in pixels; at least 1.

    Raises:
        CompetitionError: a detection on an image that `images` does not have.
    """
    strange = sorted(set(detections.image_id.tolist()) - set(images.image))
    if strange:
        raise CompetitionError(f"there are detections on images that are not to be submitted: {strange[:10]}")
    position = {image.id: k for k, image in enumerate(images.images)}
    places = np.array([position[i] for i in detections.image_id.tolist()], np.int64)
    records = []
    for place in np.unique(places).tolist():
        image = images.images[place]
        taken = np.zeros((image.height, image.width), bool)
        mine = np.flatnonzero(places == place)
        for i in mine[np.argsort(-detections.score[mine], kind="stable")].tolist():
            record = _claim(detections, i, taken, least_area)
            if record is not None:
                records.append({"image_id": image.id, **record})
    return records


def _claim(detections: Detections, i: int, taken: np.ndarray, least_area: int) -> dict[str, Any] | None:
    """Row i's mask less what is taken, which it takes then; None where too little is left."""
    x0, y0, x1, y1 = (int(v) for v in detections.mask_box[i])
    whole = detections.crop(i) >= FOREGROUND
    window = taken[y0:y1, x0:x1]
    left = whole & ~window
    area, remains = int(whole.sum()), int(left.sum())
    if remains < max(least_area, 1) or (remains < area and remains <= LEAST_LEFT * area):
        return None
    window |= left
    u0, v0, u1, v1 = tight_box(left)
    box = (x0 + u0, y0 + v0, x0 + u1, y0 + v1)
    return {
        "bbox": [float(box[0]), float(box[1]), float(u1 - u0), float(v1 - v0)],
        "score": float(detections.score[i]),
        "category_id": int(detections.category_id[i]),
        "segmentation": crop_to_rle(left[v0:v1, u0:u1], box, taken.shape, threshold=1),
    }
