"""COCO's summary: the twelve numbers that pycocotools' `summarize` prints for masks, for any limits on detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.metrics.coco_ap import ALL_AREAS, Evaluation, Found, evaluate_areas
from pipeline.records import Dataset

AREAS = {"": ALL_AREAS, "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""COCO's ranges of area in pixels, both ends included, by the letter that their numbers carry: small, medium, large."""

LIMITS = (1, 10, 100)
"""Detections of an image and class that are looked at."""


@dataclass(frozen=True)
class Summary:
    """The evaluation by range of area (keys of `AREAS`), and the limits that recall is told for, ascending."""

    evaluations: dict[str, Evaluation]
    limits: tuple[int, ...]

    def numbers(self) -> dict[str, float]:
        """``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR<limit>`` for each, ``ARs``, ``ARm``, ``ARl``.

        All but ``AR<limit>`` look at the largest limit. -1 stands where no truth is of that area. pycocotools says -1 for
        AP where 100 is not among its three limits; this is what it would be.
        """
        whole = self.evaluations[""]
        sized = [letter for letter in AREAS if letter]
        return {
            "AP": whole.ap(),
            "AP50": whole.ap(0.5),
            "AP75": whole.ap(0.75),
            **{f"AP{letter}": self.evaluations[letter].ap() for letter in sized},
            **{f"AR{limit}": whole.recall(limit) for limit in self.limits},
            **{f"AR{letter}": self.evaluations[letter].recall() for letter in sized},
        }


def summarize(truth: Dataset, found: Found, limits: Sequence[int] = LIMITS) -> Summary:
    """Hold detections against the truth in every range of area.

    Args:
        limits: one or more numbers of detections, per image and class.

    Raises:
        ValueError: no limits; an image id that the truth does not have; a damaged mask.
    """
    if not limits or min(limits) < 1:
        raise ValueError(f"the limits on detections must be one or more numbers from 1, not {list(limits)}")
    ascending = tuple(sorted(set(limits)))
    found_in = evaluate_areas(truth, found, list(AREAS.values()), max_detections=ascending[-1])
    return Summary(dict(zip(AREAS, found_in, strict=True)), ascending)
