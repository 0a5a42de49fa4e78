"""A setting that is one number for all categories, or one number for each.

In a settings file:

    iou: 0.5
    iou: {nucleus: 0.6, 7: 0.4, default: 0.5}

Categories stand by their id or their name (one that is some category's id is read as the id); `default` is for those that
are not named, and needed unless all are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator

DEFAULT = "default"


def _checked(fits: Callable[[float], bool], what: str, whole: bool = False) -> Callable[[Any], Any]:
    """A validator: the numbers are of the kind, and a mapping's keys are text, so that settings have one order."""

    def number(value: Any) -> float | int:
        right = isinstance(value, int | float) and not isinstance(value, bool) and fits(value)
        if not right or (whole and value != int(value)):
            raise ValueError(f"it is {what}, or one such number for each category by its name or id")
        return int(value) if whole else float(value)

    def setting(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return number(value)
        if not value:
            raise ValueError("there is no category in it")
        return {str(k): number(v) for k, v in value.items()}

    return setting


Overlap = Annotated[float | dict[str, float], PlainValidator(_checked(lambda v: 0 < v < 1, "a number between 0 and 1"))]
Score = Annotated[float | dict[str, float], PlainValidator(_checked(lambda v: 0 <= v <= 1, "a number from 0 to 1"))]
Area = Annotated[
    int | dict[str, int],
    PlainValidator(_checked(lambda v: 0 <= v < float("inf"), "a whole number of pixels, 0 or more", whole=True)),
]


def by_id(setting: Any, categories: Mapping[int, str]) -> Any:
    """The setting with its categories named by id.

    Args:
        categories: names by id.

    Raises:
        ValueError: a category that there is none of (the nearest is named), or one named twice, or not every category
            has a number.
    """
    if not isinstance(setting, Mapping):
        return setting
    ids = {name: str(k) for k, name in categories.items()}
    known = {str(k) for k in categories}
    out: dict[str, Any] = {}
    for key, value in setting.items():
        name = key if key == DEFAULT or key in known else ids.get(key, key)
        if name != DEFAULT and name not in known:
            near = difflib.get_close_matches(key, [*ids, *known], n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"there is no category {key!r}{hint}; there are {', '.join(ids)}")
        if name in out:
            raise ValueError(f"the category {key!r} is named twice, by name and by id")
        out[name] = value
    missing = [name for name, k in ids.items() if k not in out]
    if missing and DEFAULT not in out:
        raise ValueError(
            f"there is no number for {', '.join(missing)}; add it, or `default` for all that are not named"
        )
    return out


def by_name(setting: Any, categories: Mapping[int, str]) -> Any:
    """The setting with its categories named by name, where that says which: names that repeat, or are ids, stay ids."""
    if not isinstance(setting, Mapping):
        return setting
    names = list(categories.values())
    plain = {str(k): n for k, n in categories.items() if names.count(n) == 1 and n not in map(str, categories)}
    return {plain.get(key, key): value for key, value in setting.items()}


def by_category(setting: Any, category: np.ndarray) -> Any:
    """The setting as fusion takes it: the number, or a number by id for each of the categories (N,) that occur.

    Raises:
        ValueError: one of them has no number.
    """
    if not isinstance(setting, Mapping):
        return setting
    out = {}
    for k in np.unique(category).tolist():
        value = setting.get(str(k), setting.get(DEFAULT))
        if value is None:
            raise ValueError(f"the category {k} has no number among {dict(setting)}, which has no `default` either")
        out[k] = value
    return out


def of_rows(setting: Any, category: np.ndarray) -> Any:
    """The setting of each row: the number, or (N,) numbers by the rows' categories (N,).

    Raises:
        ValueError: as `by_category`.
    """
    if not isinstance(setting, Mapping):
        return setting
    found = by_category(setting, category)
    kinds, index = np.unique(category, return_inverse=True)
    return np.array([found[k] for k in kinds.tolist()] or [0])[index]
