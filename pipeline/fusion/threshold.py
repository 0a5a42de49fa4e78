"""The score below which masks are better left out, for metrics that have no confidences.

Such a metric counts every mask alike, so a mask is worth submitting only if it is likelier to find something than to be
false. Where that is depends on how sure the scores are, which out-of-fold data shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COARSE, FINE = 24, 8
"""How many scores are tried first, and then between the neighbours of the best."""


def best_threshold(scores: np.ndarray, judge: Callable[[float], float]) -> float:
    """The threshold in 0..1 at which `judge` is highest; of equal ones the lowest.

    Thresholds are tried where the scores are: at their quantiles, and then more closely around the best.

    Args:
        scores: (N,) of the detections that there are to choose from.
        judge: the metric when detections scored below its argument are left out.
    """
    if not len(scores):
        return 0.0
    judged: dict[float, float] = {}

    def best_of(quantiles: np.ndarray) -> int:
        """The index of the best of these quantiles of the scores."""
        levels = [float(np.floor(v * 1e4) / 1e4) for v in np.quantile(scores, quantiles)]
        for level in levels:
            if level not in judged:
                judged[level] = judge(level)
        return int(np.argmax([judged[level] for level in levels]))

    coarse = np.linspace(0, 1, COARSE + 1)
    k = best_of(coarse)
    best_of(np.linspace(coarse[max(k - 1, 0)], coarse[min(k + 1, COARSE)], FINE + 1))
    return max(sorted(judged), key=lambda level: judged[level])
