"""Checkpoints are loaded without running code from them, whoever loads them and wherever they come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def without_code() -> Iterator[None]:
    """Inside, `torch.load` refuses whatever is not plain data, even where it is asked not to.

    The frameworks' loaders fall back to unrestricted unpickling when a file holds more than weights. What MMEngine itself
    keeps in a checkpoint (numbers, arrays, the history of a log) is allowed. Detectron2's ``.pkl`` model files are another
    format, which Detectron2 unpickles itself: take those from a source that you trust.
    """
    from mmengine.runner.checkpoint import get_torch_safe_globals

    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            yield
    finally:
        os.environ.pop(_ONLY_WEIGHTS, None)
        if before is not None:
            os.environ[_ONLY_WEIGHTS] = before
