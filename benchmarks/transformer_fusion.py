"""The transformer-assisted fusion in its cheapest order against the formula as it is written, at the levels of a 1333x800 image.

    python -m benchmarks.transformer_fusion

Beside both stands torch's fused attention on the folded tokens, which never has the weights.

Five levels at strides 4 to 64 of one image padded to 1344x800, ViT-B/16's 197 tokens of width 768, float32, forward and
backward. The same numbers come out of all; what differs from the formula is that Wq Wk^T meets the tokens and not the pixels,
and that no map of 768 channels is turned round. Each measurement is a process of its own: its peak is that of its resident
memory above what its inputs take. Rounds are interleaved and the fastest counts.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

import torch
from torch.nn import functional

from pipeline.models.transformer_assisted import TokenProjection

WIDTH, LENGTH, ROUNDS = 768, 197, 2
LEVELS = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
KINDS = ("literal", "folded", "attention")
PASSES = ("forward", "backward")


def literal(projection: TokenProjection, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    pixels = features.flatten(2).transpose(1, 2)
    weights = ((pixels @ projection.query) @ (tokens @ projection.key).transpose(1, 2)).softmax(dim=-1)
    return (pixels + weights @ tokens).transpose(1, 2).reshape(features.shape)


def attention(projection: TokenProjection, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    pixels = features.flatten(2).transpose(1, 2)
    keys = tokens @ projection.key @ projection.query.T
    found = functional.scaled_dot_product_attention(pixels[:, None], keys[:, None], tokens[:, None], scale=1.0)[:, 0]
    return (pixels + found).transpose(1, 2).reshape(features.shape)


def peak() -> float:
    """GB of this process, at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measure(kind: str, passes: str) -> dict[str, float]:
    torch.manual_seed(0)
    projection = TokenProjection(WIDTH)
    fuse = projection if kind == "folded" else partial({"literal": literal, "attention": attention}[kind], projection)
    tokens = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    levels = [torch.randn(1, WIDTH, *size, requires_grad=True) for size in LEVELS]
    fuse(levels[-1], tokens).sum().backward()  # warms up
    before, began = peak(), time.perf_counter()
    with torch.set_grad_enabled(passes == "backward"):
        merged = [fuse(level, tokens) for level in levels]
        if passes == "backward":
            torch.stack([level.sum() for level in merged]).sum().backward()
    return {"seconds": time.perf_counter() - began, "memory": peak() - before, "sum": float(merged[0].abs().mean())}


def main() -> None:
    for passes in PASSES:
        best: dict[str, dict[str, float]] = {}
        for _ in range(ROUNDS):
            for kind in KINDS:
                command = [sys.executable, "-m", "benchmarks.transformer_fusion", kind, passes]
                now = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
                best[kind] = {k: min(v, best.get(kind, now)[k]) for k, v in now.items()}
        ours = best["folded"]
        for kind in KINDS:
            other = best[kind]
            assert abs(other["sum"] - ours["sum"]) < 2e-4 * ours["sum"]
            print(
                f"{passes:8s} {kind:9s} {other['seconds']:6.2f} s, {other['memory']:5.2f} GB: folded is "
                f"{other['seconds'] / ours['seconds']:.2f} times as fast, in {ours['memory'] / other['memory']:.2f} of the memory"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(*options.part)))
    else:
        main()
