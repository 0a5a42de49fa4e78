"""Position attention (equation 3): one batched matrix product against the loop as it is written.

    python -m benchmarks.position_attention

64 channels on the grids of configs/models/mmdet/solo_r50_cpu.py and 256 on those of the paper. The paper calls the operation
"complicated and time-consuming" for its traversal of all pairs; the loop takes the pairs of cells one by one, each pair a dot
product of torch, and on the larger grids only a part of the pairs is timed, and multiplied. Also the whole attention branch,
with both resizings, against the rest of SOLO's head. Rounds are interleaved and the fastest counts.
"""

import time
from collections.abc import Callable

import torch

from pipeline.experiment import ModelSettings
from pipeline.models.position_attention import position_attention

ROUNDS, PAIRS = 5, 20_000
GRIDS = {64: (24, 20, 16, 12, 8), 256: (40, 36, 24, 16, 12)}


def literal(cells: torch.Tensor, most: int) -> tuple[torch.Tensor, int]:
    """Equation 3 for the first `most` pairs: the maps (S * S, S, S) and how many pairs were taken."""
    side = cells.shape[-1]
    maps, taken = torch.zeros(side * side, side, side), 0
    for c in range(side * side):
        for i in range(side):
            for j in range(side):
                maps[c, i, j] = torch.dot(cells[:, c // side, c % side], cells[:, i, j])
                taken += 1
                if taken == most:
                    return maps, taken
    return maps, taken


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def head_with_and_without() -> None:
    from pipeline.backends import mmdet

    torch.manual_seed(0)
    heads = {
        name: mmdet.build(ModelSettings(framework="mmdet", config=f"mmdet/{config}"), 4).mask_head.train()
        for name, config in (("without", "solo_r50_cpu"), ("with", "solo-attention_r50_cpu"))
    }
    features = tuple(torch.randn(2, 64, side, side) for side in (64, 32, 16, 8, 4))  # of two images of 256 x 256
    best = dict.fromkeys(heads, float("inf"))

    def step(head: torch.nn.Module) -> None:
        masks, classes = head(features)
        sum(part.square().mean() for part in (*masks, *classes)).backward()

    for _ in range(ROUNDS):
        for name, head in heads.items():
            best[name] = min(best[name], seconds(lambda head=head: step(head), 1))  # type: ignore[misc]
    print(f"slim head, forward and backward, with attention: {best['with'] / best['without']:.2f} x without")


def main() -> None:
    torch.manual_seed(0)
    for channels, sides in GRIDS.items():
        for side in sides:
            cells = torch.randn(channels, side, side)
            product = seconds(lambda cells=cells: position_attention(cells[None]))  # type: ignore[misc]
            began = time.perf_counter()
            maps, taken = literal(cells, PAIRS)
            loop = (time.perf_counter() - began) * side**4 / taken
            there = maps.flatten()[:taken]
            torch.testing.assert_close(position_attention(cells[None]).flatten()[:taken], there, rtol=1e-4, atol=1e-3)
            print(
                f"{channels:3d} channels, S {side:2d}: {product * 1e3:8.3f} ms, the loop {loop / product:9.0f} x that"
            )
    head_with_and_without()


if __name__ == "__main__":
    main()
