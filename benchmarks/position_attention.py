"""Position attention (equation 3): one batched matrix product against the loop as it is written.

    python -m benchmarks.position_attention

64 channels on the grids of configs/models/mmdet/solo_r50_cpu.py and 256 on those of the paper. The paper calls the operation
"complicated and time-consuming" for its traversal of all pairs; the loop takes the pairs of cells one by one, each pair a dot
product of torch, and on the larger grids only a part of the pairs is timed, and multiplied. Also the whole attention branch,
with both resizings, within SOLO's head alone, and within a whole step of training, which says how many iterations without it
take as long. Rounds are interleaved and the fastest counts.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.backends.samples import Samples
from pipeline.experiment import ModelSettings, TrainSettings
from pipeline.models.position_attention import position_attention
from tests.backends.test_samples import drawn

ROUNDS, PAIRS = 5, 20_000
CONFIGS = {"without": "mmdet/solo_r50_cpu", "with": "mmdet/solo-attention_r50_cpu"}
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
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def head_with_and_without() -> None:
    from pipeline.backends import mmdet

    torch.manual_seed(0)
    heads = {
        name: mmdet.build(ModelSettings(framework="mmdet", config=config), 4).mask_head.train()
        for name, config in CONFIGS.items()
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


def step_with_and_without(side: int) -> None:
    """A step of the slim networks on two images, as the experiments train them."""
    from pipeline.backends import mmdet

    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(drawn(Path(folder), 2 * side, 2 * side), TrainSettings(crop=side), 0, 2)
        batch = mmdet.collate([samples[0], samples[1]])
    torch.manual_seed(0)
    steps = {}
    for name, config in CONFIGS.items():
        network = mmdet.build(ModelSettings(framework="mmdet", config=config), 2).train()
        optimizer = torch.optim.AdamW(network.parameters())

        def step(network: Any = network, optimizer: torch.optim.Optimizer = optimizer) -> None:
            losses = network(**network.data_preprocessor(copy.deepcopy(batch), training=True), mode="loss")
            optimizer.zero_grad()
            network.parse_losses(losses)[0].backward()
            optimizer.step()

        steps[name] = step
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(2 * ROUNDS):
        for name, step in steps.items():
            best[name] = min(best[name], seconds(step, 1))
    print(f"a step of two images of {side} x {side}, with attention: {best['with'] / best['without']:.2f} x without")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for channels, sides in GRIDS.items():
        for side in sides:
            cells = torch.randn(channels, side, side)
            product = seconds(lambda cells=cells: position_attention(cells[None]))  # type: ignore[misc]
            began = time.process_time()
            maps, taken = literal(cells, PAIRS)
            loop = (time.process_time() - began) * side**4 / taken
            there = maps.flatten()[:taken]
            torch.testing.assert_close(position_attention(cells[None]).flatten()[:taken], there, rtol=1e-4, atol=1e-3)
            print(
                f"{channels:3d} channels, S {side:2d}: {product * 1e3:8.3f} ms, the loop {loop / product:9.0f} x that"
            )
    head_with_and_without()
    for side in (192, 256):
        step_with_and_without(side)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
