"""Finished lists, such as submission files, as voters.

A list that ends where its file allows no more is silent about everything below its end: an object that is not in it may
well have been found and had no room. Counting that silence as a vote against it (score 0) puts the objects that every
list had room for first, and the images whose objects are many and easy, where each list holds another hundred of them,
last. AP pools all images, so this costs: ten lists of the best 100 masks of an image, fused so, ended below the best of
them. So a full list is taken to have given an absent object a little less than its lowest listed score on that image. A
list that is not full has said that there is nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.fusion.crops import Crops
from pipeline.fusion.fuse import finish, vote
from pipeline.fusion.settings import Fusion
from pipeline.records import Detections

BELOW = 0.75
"""What a full list is taken to give to an object that it does not hold, as a fraction of its lowest score on the image.
Chosen on out-of-fold nuclei cut to 100 an image; on average anything from 0.25 to 0.9 did better than 0."""

DEFAULT = Fusion(
    overlap="mask",
    iou=0.5,
    skip=0.0,
    rescore="none",
    one_per_source=True,
    member_weight="voter",
    duplicates=0.8,
    tune=False,
)
"""Settings for lists that there is no truth to tune on: their masks are binary and their scores are not comparable."""

MAJORITY = Fusion.model_validate({**DEFAULT.model_dump(), "min_score": 0.5})
"""Settings for lists whose masks all score 1, for a metric that has no confidences: a fused mask's score is the share of
the lists that have it, and it stays when that is half of them."""


def fuse_lists(
    found: Detections, sizes: dict[int, tuple[int, int]], settings: Fusion = DEFAULT, silence: bool = True
) -> Detections:
    """Fuse finished lists on any number of images.

    Args:
        found: all rows of all lists; a list is a source.
        sizes: (height, width) by image id.
        silence: whether a list that seems to end at its limit may be silent for want of room; see above.

    Returns:
        Images ascending, best first in each; the boxes are the masks' own.
    """
    full = _fullness(found)
    fused = []
    for image_id, detections in found.images():
        lowest = np.full(len(found.sources), np.inf)
        np.minimum.at(lowest, detections.source, detections.score)
        absent = BELOW * np.where(full[image_id] & silence, lowest, 0.0)
        ballot = vote(detections, settings, found.sources, sizes[image_id], absent=absent)
        done = finish(ballot.detections, settings)
        fused.append(replace(done, box=Crops.of(done).foregrounds[0].astype(np.float32)))
    return Detections.concatenate(fused)


def _fullness(found: Detections) -> dict[int, np.ndarray]:
    """By image id, (S,) bool: whether each list holds as many detections as it can.

    A list's limit shows in that several images reach the same largest number; a number reached once is no limit.
    """
    images = np.unique(found.image_id)
    held = np.zeros((len(images), len(found.sources)), np.int64)
    np.add.at(held, (np.searchsorted(images, found.image_id), found.source), 1)
    most = held.max(axis=0) if len(images) else np.zeros(len(found.sources), np.int64)
    limited = (held == most).sum(axis=0) > 1
    full = (held == most) & limited & (most > 0)
    return {int(i): full[k] for k, i in enumerate(images)}


def as_lists(tables: Sequence[Detections], names: Sequence[str]) -> Detections:
    """Tables of several files as one, each voter named by its file.

    A file with one source is one voter; one with several (a run's predictions) is as many voters of one model. Names
    that repeat are numbered.
    """
    taken: dict[str, int] = {}
    renamed = []
    for table, name in zip(tables, names, strict=True):
        taken[name] = taken.get(name, 0) + 1
        model = (name if taken[name] == 1 else f"{name} {taken[name]}").replace("/", "_")
        sources = [model] if len(table.sources) == 1 else [f"{model}//{k}" for k in range(len(table.sources))]
        renamed.append(replace(table, sources=sources, extra={}))
    return Detections.concatenate(renamed)
