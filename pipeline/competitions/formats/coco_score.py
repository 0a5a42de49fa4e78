"""COCO's summary as a competition's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.metrics.coco_summary import LIMITS, summarize
from pipeline.records import Dataset


def score(
    name: str, truth: Dataset, records: Sequence[Mapping[str, Any]], limits: Sequence[int] = LIMITS
) -> dict[str, Any]:
    """What `Competition.score` gives where the metric is COCO's AP, with the other numbers of its summary.

    Args:
        limits: on detections of an image and class. AP looks at the largest.
    """
    summary = summarize(truth, records, limits)
    whole, numbers = summary.evaluations[""], summary.numbers()
    return {
        "competition": name,
        "metric": metric(summary.limits[-1]),
        "score": numbers["AP"],
        "images": len(truth.images),
        "truths": sum(sum(r.truths.values()) for r in whole.rankings.values()),
        "detections": len(records),
        **numbers,
        "classes": {
            truth.categories.get(c, str(c)): whole.ap(category_id=c) if ranking.truths else None
            for c, ranking in whole.rankings.items()
        },
    }


def metric(limit: int = LIMITS[-1]) -> str:
    """The metric in words."""
    return f"segm AP (IoU 0.50:0.95, mean over classes) maxDets={limit}"
