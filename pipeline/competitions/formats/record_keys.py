"""The keys of COCO results, and what is written in their place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

KEYS = ("image_id", "bbox", "score", "category_id", "segmentation")
"""Of a record, in the order in which they are written."""

OTHER_NAMES = {
    "image_id": ("image", "img"),
    "bbox": ("bounding_box",),
    "score": ("confidence", "conf", "probability", "prob"),
    "category_id": ("label", "class", "class_id", "cls"),
    "segmentation": ("segm", "mask", "masks", "rle"),
}
"""What frameworks call the same things; no spelling is near the right one."""


def misspelt(record: Mapping[str, Any]) -> dict[str, str]:
    """A record's keys that stand for one of `KEYS` which it lacks, by another name or nearly spelt so, and those."""
    missing = [key for key in KEYS if key not in record]
    found: dict[str, str] = {}
    for key in record:
        if key in KEYS:
            continue
        near = [right for right in missing if str(key).lower() in OTHER_NAMES[right]]
        near = near or difflib.get_close_matches(str(key).lower(), missing, n=1, cutoff=0.6)
        if near:
            found[key] = near[0]
            missing.remove(near[0])
    return found
