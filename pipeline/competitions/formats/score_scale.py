"""Scores outside 0..1, brought into it: metrics look at their order alone, and that is kept."""

from __future__ import annotations

from collections.abc import Iterable


def scaled(scores: Iterable[float]) -> dict[float, float]:
    """What each finite score becomes, in the same order and with the same ties; nothing where all lie in 0..1."""
    given = set(scores)
    if not given or (min(given) >= 0 and max(given) <= 1):
        return {}
    low, high = min(min(given), 0), max(given)
    found = {score: (score - low) / (high - low) if high > low else 0.5 for score in given}
    order = sorted(found)
    if not all(0 <= found[a] < found[b] <= 1 for a, b in zip(order, order[1:], strict=False)):
        return {score: (k + 1) / len(order) for k, score in enumerate(order)}  # rounding would make ties
    return found
