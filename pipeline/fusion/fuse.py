"""One image's detections from all its voters as one ranked list of masks.

A test image has more voters than an out-of-fold image: the models of all K folds, and of the fold "all", against those
of the one fold that did not see it. Whatever is tuned or learned on out-of-fold data would be applied to other numbers
of votes than it was tuned on. So every fold's voters are fused by themselves first, exactly as out of fold (`vote`,
then `rescored`), which gives each fold's list a score that means the same on both parts; then the folds' lists are
clustered once more (`combine`) and a mask's score is the mean over the folds, 0 for a fold that does not have it. An
out-of-fold image has one fold, or one of each of several divisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.fusion import rescore
from pipeline.fusion.average import average
from pipeline.fusion.clusters import cluster
from pipeline.fusion.crops import Crops
from pipeline.fusion.post import clean, drop_duplicates
from pipeline.fusion.rescore import Features, Rescorer, features
from pipeline.fusion.settings import Fusion, Voter, voters_of
from pipeline.fusion.shape import certainty
from pipeline.per_class import by_category, of_rows
from pipeline.records import Detections, DetectionsWriter, read_images, read_sources

EXTRA = ("agreement", "inside")
"""Columns of fused detections beyond the usual: the fraction of the voters that could have voted and did (over several
folds their mean, absent folds counting 0), and the mean probability inside the mask."""


@dataclass(frozen=True)
class Ballot:
    """One fold's voters' fused masks of one image, scored by their clusters; `described` only where it was asked for."""

    detections: Detections
    described: Features | None


def vote(
    detections: Detections,
    settings: Fusion,
    voters: Sequence[str],
    size: tuple[int, int],
    describe: bool = False,
    absent: np.ndarray | None = None,
    crops: Crops | None = None,
) -> Ballot:
    """Fuse what the voters of one fold say of one image.

    Args:
        detections: of one image; rows of other sources than `voters` are passed over.
        voters: names of all sources that could have voted, whether they found something or not.
        size: (height, width) of the image.
        describe: also compute the learned rescorer's features.
        absent: (V,) what each voter is taken to give to a mask it does not have, see `cluster`.
        crops: of `detections`, where they are at hand.
    """
    index = {name: i for i, name in enumerate(voters)}
    source = np.array([index.get(name, -1) for name in detections.sources], np.int64)[detections.source]
    crops = Crops.of(detections) if crops is None else crops
    models = [Voter.parse(name).model for name in voters]
    weights = np.array([settings.weights.get(model, 1.0) for model in models])
    clusters = cluster(
        detections.box,
        detections.score,
        detections.category_id,
        source,
        weights,
        method=settings.method,
        iou=by_category(settings.iou, detections.category_id),
        skip=by_category(settings.skip, detections.category_id),
        confidence=settings.confidence,
        sigma=settings.sigma,
        floor=settings.floor,
        masks=crops if settings.overlap == "mask" else None,
        one_per_source=settings.one_per_source,
        absent=absent,
    )
    count = len(clusters)
    member = np.where(clusters.share > 0, clusters.member, -1)  # of what was suppressed no mask remains
    weight = clusters.vote if settings.member_weight == "score" else weights[source]
    fused = average(crops, member, weight * clusters.share, count)
    area, inside = certainty(fused)
    voting = clusters.member >= 0
    pairs = np.unique(clusters.member[voting] * len(voters) + source[voting])
    agreement = np.bincount(pairs // len(voters), minlength=count) / len(voters)
    seen = area > 0
    table = Detections(
        image_id=detections.image_id[clusters.founder],
        category_id=clusters.category.astype(np.int32),
        # unequal weights, and two members of the heavier voter: the mean of weighted votes then exceeds their whole weight
        score=np.minimum(clusters.score, 1.0),
        box=clusters.box.astype(np.float32),
        source=np.zeros(count, np.int16),
        sources=[Voter.parse(voters[0]).fold],
        extra={"agreement": agreement.astype(np.float32), "inside": inside.astype(np.float32)},
        **fused.columns(),
    )
    described = None
    if describe:
        described = features(clusters, detections.score, source, crops, fused, models, size).take(np.flatnonzero(seen))
    return Ballot(table if seen.all() else table.take(seen), described)


def rescored(ballot: Ballot, mode: str, rescorer: Rescorer | None) -> Detections:
    """A ballot's masks with the scores of one of the ways in rescore.py."""
    found = ballot.detections
    return replace(
        found,
        score=rescore.scores(mode, found.score, found.extra["inside"].astype(np.float64), ballot.described, rescorer),
    )


def combine(folds: Sequence[Detections], settings: Fusion) -> Detections:
    """The lists of several folds as one: a mask's score is its mean over the folds, 0 where a fold does not have it."""
    found = Detections.concatenate(folds)
    source = np.repeat(np.arange(len(folds)), [len(fold) for fold in folds])
    crops = Crops.of(found)
    clusters = cluster(
        found.box,
        found.score,
        found.category_id,
        source,
        np.ones(len(folds)),
        iou=by_category(settings.iou, found.category_id),
        masks=crops if settings.overlap == "mask" else None,
        one_per_source=True,
    )
    count = len(clusters)
    fused = average(crops, clusters.member, clusters.vote, count)
    area, inside = certainty(fused)
    voting = clusters.member >= 0
    agreement = np.bincount(clusters.member[voting], found.extra["agreement"][voting], count) / len(folds)
    table = Detections(
        image_id=found.image_id[clusters.founder],
        category_id=clusters.category.astype(np.int32),
        score=clusters.score,
        box=clusters.box.astype(np.float32),
        source=np.zeros(count, np.int16),
        sources=[""],
        extra={"agreement": agreement.astype(np.float32), "inside": inside.astype(np.float32)},
        **fused.columns(),
    )
    return table if (area > 0).all() else table.take(area > 0)


def finish(detections: Detections, settings: Fusion) -> Detections:
    """The least score, duplicates and post-processing, then best first; the rows' source is ``fused``, no single voter.

    What is left out goes first, so that it takes no pixel from what stays.
    """
    detections = detections.take(detections.score >= of_rows(settings.min_score, detections.category_id))
    if settings.duplicates is not None:
        detections = drop_duplicates(detections, settings.duplicates)
    detections = clean(detections, settings)
    ranked = detections.take(np.argsort(-detections.score, kind="stable"))
    return replace(ranked, source=np.zeros(len(ranked), np.int16), sources=["fused"])


def fuse_image(
    detections: Detections,
    settings: Fusion,
    voters: Sequence[str],
    size: tuple[int, int],
    rescorer: Rescorer | None = None,
) -> Detections:
    """Fuse all detections of one image.

    Args:
        detections: of one image, in any order.
        voters: names of all sources that could have voted on this image, whether they found something or not.
        size: (height, width) of the image.
        rescorer: needed where ``settings.rescore`` is ``learned``.

    Returns:
        Best first, with the extra columns `EXTRA`.

    Raises:
        ValueError: nobody may vote; no rescorer where one is needed.
    """
    voters = voters_of(settings, voters)
    if not voters:
        raise ValueError("nobody votes: the settings leave out every model or view")
    folds: dict[str, list[str]] = {}
    for name in voters:
        folds.setdefault(Voter.parse(name).fold, []).append(name)
    learned = settings.rescore == "learned"
    lists = []
    for names in folds.values():
        ballot = vote(detections, settings, names, size, describe=learned)
        lists.append(rescored(ballot, settings.rescore, rescorer))
    return finish(combine(lists, settings) if len(lists) > 1 else lists[0], settings)


# ---------------------------------------------------------------- files -----------------------------------------------


def by_image(paths: Sequence[Path]) -> Iterator[tuple[int, Detections]]:
    """Read several Detections files side by side, image by image, ascending by image id.

    A file whose images ascend is streamed; any other is read whole.

    Yields:
        image id, and its rows of all files.
    """
    streams = [_ascending(path) for path in paths]
    heads = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        image_id = min(int(head.image_id[0]) for head in heads if head is not None)
        tables = []
        for i, head in enumerate(heads):
            if head is not None and int(head.image_id[0]) == image_id:
                tables.append(head)
                heads[i] = next(streams[i], None)
        yield image_id, Detections.concatenate(tables)


def _ascending(path: Path) -> Iterator[Detections]:
    """One table for every image of a file, ascending by image id."""
    import pyarrow.parquet as pq

    ids = pq.read_table(path, columns=["image_id"]).column(0).to_numpy()
    if (np.diff(ids) < 0).any():
        for _, table in Detections.read(path).images():
            yield table
        return
    pending: Detections | None = None
    for group in read_images(path):  # a row group may hold several images, an image several row groups
        for image_id, table in group.images():
            if pending is not None and int(pending.image_id[0]) == image_id:
                pending = Detections.concatenate([pending, table])
                continue
            if pending is not None:
                yield pending
            pending = table
    if pending is not None:
        yield pending


def fuse_to(
    target: Path,
    paths: Sequence[Path],
    settings: Fusion,
    sizes: Mapping[int, tuple[int, int]],
    rescorer: Callable[[int], Rescorer] | None,
    *,
    folds_of: Mapping[int, Sequence[str]] | None = None,
    provenance: Mapping[str, Any],
) -> Iterator[tuple[int, int]]:
    """Fuse prediction files into one Detections file; one image is in memory at a time.

    Args:
        paths: prediction files, each with the voters of one model and fold.
        sizes: (height, width) by image id.
        rescorer: by image id.
        folds_of: by image id the folds whose voters could have voted on it (out of fold); None where all could (test).

    Yields:
        image id and the number of fused masks, as each is written.
    """
    voters = {path: read_sources(path) for path in paths}
    fold = {path: Voter.parse(names[0]).fold for path, names in voters.items()}
    with DetectionsWriter(target, ["fused"], EXTRA, provenance) as writer:
        for image_id, detections in by_image(paths):
            folds = fold.values() if folds_of is None else folds_of[image_id]
            names = [name for path in paths if fold[path] in folds for name in voters[path]]
            chosen = None if rescorer is None else rescorer(image_id)
            fused = fuse_image(detections, settings, names, sizes[image_id], chosen)
            writer.add(fused)
            yield image_id, len(fused)
