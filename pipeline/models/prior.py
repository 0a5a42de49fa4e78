"""Where maps of rare classes begin.

A class covers a few pixels in a hundred. A network that begins at one half everywhere spends its first iterations on saying
no: Adam moves a bias by about the learning rate a step, and until it is down nothing is learnt of what tells the
classes apart. Source: T.-Y. Lin et al., Focal Loss for Dense Object Detection (2017), section 4.1, which begins at 0.01.
"""

from __future__ import annotations

import math

from torch import nn


def start_at(layer: nn.Conv2d | nn.ConvTranspose2d, prior: float | None) -> None:
    """Set the bias of the layer that gives the logits, so that its sigmoid is `prior`, in (0, 1), and what the layer gives begins
    around that; None changes nothing."""
    if prior is not None:
        assert layer.bias is not None
        nn.init.constant_(layer.bias, math.log(prior / (1 - prior)))
