"""Weighted boxes fusion with membership against ensemble_boxes, side by side; with the soft masks as well.

    python -m benchmarks.wbf

1,000 objects seen by 20 sources, 20,000 boxes; and 10 objects seen by 10, where what a call costs by itself counts. The
reference gives boxes only. With masks, the same 20,000 boxes come with their soft masks, 12,000,000 pixels in all: they are
clustered by box, or by the masks' own overlap, and every cluster's masks are averaged. Times are processor time, so that
a busy machine does not count, and the least of several runs.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
from ensemble_boxes import weighted_boxes_fusion

from pipeline.fusion.average import average
from pipeline.fusion.clusters import Clusters, cluster
from pipeline.fusion.crops import Crops

SIDE = 1000
FASTER, AT_ALL = 10, 1
"""The targets: how many times faster than the reference with many boxes, and with few or with masks besides."""


def sightings(objects: int, sources: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Normalised boxes (N, 4), scores and labels of each source; every source sees every object."""
    rng = np.random.default_rng(0)
    centre, sides = rng.uniform(0.03, 0.97, (objects, 2)), rng.uniform(0.015, 0.03, (objects, 2))
    boxes, scores = [], []
    for _ in range(sources):
        middle = centre + rng.normal(0, 0.0015, (objects, 2))
        half = sides * rng.uniform(0.9, 1.1, (objects, 2)) / 2
        boxes.append(np.concatenate([middle - half, middle + half], axis=1))
        scores.append(rng.random(objects))
    return boxes, scores, [np.ones(objects, np.int64)] * sources


def masks_of(box: np.ndarray) -> Crops:
    """A soft ellipse in each box (N, 4), in pixels, with a margin of two."""
    whole = np.concatenate([np.floor(box[:, :2]) - 2, np.ceil(box[:, 2:]) + 2], axis=1).astype(np.int64)
    grids = []
    for (x0, y0, x1, y1), (left, top, right, bottom) in zip(whole, box, strict=True):
        y, x = np.ogrid[y0:y1, x0:x1]
        ry, rx = (bottom - top) / 2, (right - left) / 2
        distance = np.hypot((y + 0.5 - top - ry) / ry, (x + 0.5 - left - rx) / rx)
        grids.append(np.clip(128 + 255 * (1 - distance) * min(ry, rx) / 3, 0, 255).astype(np.uint8).ravel())
    return Crops(whole, np.concatenate([[0], np.cumsum([len(g) for g in grids])]), np.concatenate(grids))


def least(call: Callable[[], object], runs: int, calls: int = 1) -> float:
    """Seconds of processor time of one call: the least of so many runs of so many calls."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        for _ in range(calls):
            call()
        times.append((time.process_time() - began) / calls)
    return min(times)


def compared(what: str, ours: float, theirs: float, target: float) -> None:
    ratio = theirs / ours
    print(
        f"{what:<44}{1e3 * ours:10.2f} ms{1e3 * theirs:12.2f} ms{ratio:9.1f} x   target {target:g} x: "
        f"{'holds' if ratio >= target else 'FAILS'}"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    print(f"{'':<44}{'maskfold':>13}{'ensemble_boxes':>15}")
    for objects, sources, target, runs, calls in ((1000, 20, FASTER, 3, 1), (10, 10, AT_ALL, 7, 50)):
        boxes, scores, labels = sightings(objects, sources)
        box, score, label = np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)
        source, weights = np.repeat(np.arange(sources), objects), np.ones(sources)

        def ours(  # type: ignore[no-untyped-def]
            box=box, score=score, label=label, source=source, weights=weights, masks=None
        ) -> Clusters:
            return cluster(box, score, label, source, weights, iou=0.55, masks=masks)

        def theirs(boxes=boxes, scores=scores, labels=labels) -> object:  # type: ignore[no-untyped-def]
            return weighted_boxes_fusion(boxes, scores, labels, iou_thr=0.55)

        found, reference = ours(), theirs()  # compiles
        assert len(found) == len(reference[1])  # type: ignore[index]
        np.testing.assert_allclose(found.score, np.sort(reference[1])[::-1], atol=1e-5)  # type: ignore[index]
        slow = least(theirs, runs, calls)
        compared(f"{len(box):,} boxes", least(ours, 7, 3 * calls), slow, target)
        if target != FASTER:
            continue
        pixels = box * SIDE
        masks = masks_of(pixels)
        for by, given in (("box", None), ("mask", masks)):

            def both(given=given, pixels=pixels, masks=masks) -> Crops:  # type: ignore[no-untyped-def]
                fresh = None if given is None else Crops(masks.box, masks.offset, masks.pixels)  # nothing remembered
                found = ours(pixels, masks=fresh)
                return average(masks, found.member, found.vote, len(found))

            both()
            compared(f"… and masks averaged, by {by} (boxes alone there)", least(both, 5), slow, AT_ALL)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
