"""What tuned settings are worth on images that they were not chosen on: nested cross-validation.

Settings that are chosen on some images look better on these than they are. So the whole choice is repeated without each
part of the images in turn, and what comes of it is measured on that part. The difference to the value that the final
settings have on the same part is the optimism of the ladder's last value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.fusion.ladder import Ladder
from pipeline.fusion.rescore import Rescorer, group_of
from pipeline.fusion.ruler import Ruler, Sheet
from pipeline.fusion.settings import Fusion
from pipeline.fusion.study import Case, Study
from pipeline.records import Detections

log = logging.getLogger("pipeline.fusion")

PARTS = 3
"""The images are taken in so many parts at most: each costs another tuning."""


@dataclass(frozen=True)
class Estimate:
    """Values of the ruler, each the mean over the parts, weighted by their images.

    Attributes:
        parts: number of parts.
        single: the single model that was best on the other parts.
        honest: settings that were chosen on the other parts.
        optimistic: the settings that were chosen on all images.
        gain: of `honest` over `single`; 90 % of the bootstrapped sets of images, drawn within the parts, gain between `low`
            and `high`.
    """

    parts: int
    single: float
    honest: float
    optimistic: float
    gain: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    cases: Sequence[Case],
    ruler: Ruler,
    climb: Callable[[Sequence[Case]], Ladder],
    fused: Sequence[Detections],
) -> Estimate | None:
    """Repeat a tuning without each part of the images.

    Args:
        climb: the whole tuning.
        fused: every case under the settings chosen on all of them.

    Returns:
        None where all images are of one part.
    """
    homes = {case.home for case in cases}
    group = [group_of(case.home, case.image_id, homes) for case in cases]
    groups = sorted(set(group))
    if len(groups) < 2:
        return None
    parts = min(PARTS, len(groups))
    part = np.array([groups.index(name) % parts for name in group])
    sheets: dict[str, list[Sheet]] = {"single": [], "honest": [], "optimistic": []}
    for k in range(parts):
        inside, outside = np.flatnonzero(part == k), np.flatnonzero(part != k)
        log.info("the same without part %d of %d (%d images):", k + 1, parts, len(inside))
        ladder = climb([cases[i] for i in outside])
        own = [cases[i] for i in inside]
        truth = [case.truth for case in own]
        honest = Study(own, ruler, partial(_unseen, ladder.study)).fused(ladder.settings)
        alone = Study([case.at_home() for case in own], ruler).fused(ladder.first)
        for name, lists in (
            ("single", alone),
            ("honest", honest),
            ("optimistic", [fused[i] for i in inside]),
        ):
            sheets[name].append(ruler.sheet(lists, truth))
    sizes = np.bincount(part)
    value = {name: _mean([ruler.value(sheet) for sheet in found], sizes) for name, found in sheets.items()}
    draws = {name: _drawn(ruler, sheets[name], sizes) for name in ("honest", "single")}
    low, high = np.nanpercentile(draws["honest"] - draws["single"], [5, 95])
    return Estimate(
        parts,
        value["single"],
        value["honest"],
        value["optimistic"],
        value["honest"] - value["single"],
        float(low),
        float(high),
    )


def _unseen(study: Study, settings: Fusion) -> Rescorer:
    """The rescorer for images that are not in the study: it saw all that are."""
    return study.rescorer(settings)("")


def _mean(values: Sequence[Any], sizes: np.ndarray) -> Any:
    return sum(value * size for value, size in zip(values, sizes.tolist(), strict=True)) / int(sizes.sum())


def _drawn(ruler: Ruler, sheets: Sequence[Sheet], sizes: np.ndarray) -> np.ndarray:
    """(draws,) the mean over the parts for bootstrapped sets of each part's images."""
    each = []
    for k, (sheet, size) in enumerate(zip(sheets, sizes.tolist(), strict=True)):
        values = ruler.values(sheet, ruler.drawn(size, k))
        each.append(np.nanmean(values, axis=0) if len(values) else np.zeros(ruler.draws))
    return np.asarray(_mean(each, sizes))
