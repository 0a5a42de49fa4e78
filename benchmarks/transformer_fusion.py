"""The transformer-assisted fusion in its cheapest order against the formula as it is written, at the levels of a 1333x800 image.

    python -m benchmarks.transformer_fusion

Five levels at strides 4 to 64 of one image padded to 1344x800, ViT-B/16's 197 tokens of width 768, float32, forward and
backward. The same numbers come out of both; what differs is that Wq Wk^T meets the tokens and not the pixels, and that no map of
768 channels is turned round. Each measurement is a process of its own: its peak is that of its resident
memory above what its inputs take. Rounds are interleaved and the fastest counts.
"""

import json
import resource
import subprocess
import sys
import time

import torch

from pipeline.models.transformer_assisted import TokenProjection

WIDTH, LENGTH, ROUNDS = 768, 197, 2
LEVELS = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
KINDS = ("literal", "folded")
PASSES = ("forward", "backward")


def literal(projection: TokenProjection, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    pixels = features.flatten(2).transpose(1, 2)
    weights = ((pixels @ projection.query) @ (tokens @ projection.key).transpose(1, 2)).softmax(dim=-1)
    return (pixels + weights @ tokens).transpose(1, 2).reshape(features.shape)


def peak() -> float:
    """GB of this process, at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measure(kind: str, passes: str) -> dict[str, float]:
    torch.manual_seed(0)
    projection = TokenProjection(WIDTH)
    fuse = projection if kind == "folded" else lambda *given: literal(projection, *given)
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
        a, b = (best[kind] for kind in KINDS)
        assert abs(a["sum"] - b["sum"]) < 2e-4 * a["sum"]
        print(
            f"{passes:8s} literal {a['seconds']:6.2f} s, {a['memory']:5.2f} GB; folded {b['seconds']:6.2f} s, "
            f"{b['memory']:5.2f} GB: {a['seconds'] / b['seconds']:.2f} times as fast, "
            f"{b['memory'] / a['memory']:.2f} of the memory"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
    else:
        main()
