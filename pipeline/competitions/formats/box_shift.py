"""Boxes that lie one pixel beside their masks all over a file: one of the two counts pixels from 1, the other from 0."""

from __future__ import annotations

import numpy as np

FEWEST_TIGHT = 3
"""Records from which on boxes that are exactly their masks', but for a pixel, are no chance."""

MOST = 0.9
"""The share of such records: masks and boxes moved beyond the image's edge are cut off there."""

ROUNDING = 0.011
"""Boxes are written with two places behind the point."""

FEWEST_REGRESSED = 30
"""Records whose median tells a network's own bias from a pixel; a record's offset varies by 0.3 to 0.9 pixels."""

BEGINS_INSIDE = 0.125
"""Pixels that regressed boxes begin inside their masks, in the median over a file, from which on they are shifted.

In ten submissions of four kinds of networks, 600 records each, the median lies between -0.67 and -0.08, and with the boxes
moved by one between 0.33 and 0.92; in COCO's own annotations it is -0.07. The other way round, boxes one pixel too far left
and up, nothing parts the networks: some boxes are that much larger than their masks."""

ENDS_BEYOND = 0.5
"""Pixels that the boxes' middles must lie right of and below their masks': dilated masks begin before their boxes too, but
end behind them as well."""

_ALONG = {1: "right", -1: "left"}, {1: "down", -1: "up"}


def tight_shift(given: np.ndarray, mask: np.ndarray) -> tuple[int, int] | None:
    """The shift by one pixel (x, y) that makes nearly all boxes out of their masks' own; None where there is none.

    Args:
        given: boxes (N, 4) x, y, width, height.
        mask: the masks' tight boxes, likewise.
    """
    if len(given) < FEWEST_TIGHT:
        return None
    offset = given - mask
    same_size = (np.abs(offset[:, 2:]) <= ROUNDING).all(axis=1)
    steps = np.rint(offset[:, :2])
    exact = same_size & (np.abs(offset[:, :2] - steps) <= ROUNDING).all(axis=1)
    for dx, dy in ((1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1), (1, -1), (-1, 1)):
        if (exact & (steps == (dx, dy)).all(axis=1)).mean() >= MOST:
            return dx, dy
    return None


def direction(shift: tuple[int, int]) -> str:
    """A shift in words, such as "right and down"."""
    return " and ".join(words[step] for words, step in zip(_ALONG, shift, strict=True) if step)


def regressed_from_one(given: np.ndarray, mask: np.ndarray) -> bool:
    """Whether boxes that a network regressed lie one pixel right of and below where they belong; args as `tight_shift`."""
    if len(given) < FEWEST_REGRESSED:
        return False
    begin = given[:, :2] - mask[:, :2]
    middle = begin + (given[:, 2:] - mask[:, 2:]) / 2
    return bool(
        np.median(begin.mean(axis=1)) > BEGINS_INSIDE
        and np.median(middle.mean(axis=1)) > ENDS_BEYOND
        and (np.median(middle, axis=0) > 0).all()
    )
