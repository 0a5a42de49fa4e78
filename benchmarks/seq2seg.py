"""Seq2Seg against U-Net at the paper's settings: parameters, and the time of a training step.

    python -m benchmarks.seq2seg [--batch 8] [--rounds 3] [--classes 34]

Image Segmentation with Transformers, table 1: 50.8M and 7.8M, 0.2 s and 0.3 s a step at batch 24 on a GPU. A step is forward,
binary cross-entropy, backward and Adam on 128x256 pixels, on a GPU where there is one; rounds are interleaved, of each network
the least counts. On CPU cores it takes minutes; with a smaller batch Adam, which works on weights and not on images, weighs more.
"""

import argparse
import time

import torch
from torch import nn

from pipeline.models.seq2seg import Seq2Seg
from pipeline.models.unet import UNet


def step_seconds(network: nn.Module, optimizer: torch.optim.Optimizer, batch: int, classes: int) -> float:
    device = next(network.parameters()).device
    images = torch.randn(batch, 3, 128, 256, device=device)
    maps = (torch.rand(batch, classes, 128, 256, device=device) > 0.9).float()
    began = time.perf_counter()
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(network(images), maps).backward()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--classes", type=int, default=34, help="Cityscapes' labels, with which the paper's numbers agree"
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = {
        "U-Net": UNet(args.classes),
        "Seq2Seg": Seq2Seg(args.classes),
        "Seq2Seg, no skip": Seq2Seg(args.classes, skip=False),
    }
    optimizers = {}
    for name, network in networks.items():
        network.to(device).train()
        optimizers[name] = torch.optim.Adam(network.parameters(), 1e-4)
        step_seconds(network, optimizers[name], args.batch, args.classes)  # fills caches
    best = dict.fromkeys(networks, float("inf"))
    for _ in range(args.rounds):
        for name, network in networks.items():
            best[name] = min(best[name], step_seconds(network, optimizers[name], args.batch, args.classes))
    weights = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    print(f"batch {args.batch}, {args.classes} classes, {device}, {torch.get_num_threads()} threads")
    for name in networks:
        print(
            f"{name:16s} {weights[name] / 1e6:5.1f}M weights ({weights[name] / weights['U-Net']:.2f} of U-Net's), "
            f"{best[name]:.3f} s a step ({best[name] / best['U-Net']:.2f} of U-Net's)"
        )
    print("the paper: 7.8M, 50.8M (6.51), 50.8M; 0.3 s, 0.2 s (0.67), 0.2 s at batch 24")


if __name__ == "__main__":
    main()
