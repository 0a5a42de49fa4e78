"""What our training loop costs on top of a framework's own: the same network, batches and optimizer steps, side by side.

    python -m benchmarks.training

Ours is `engine.run` on Samples. Theirs takes the same samples, made in the same way inside its loop: MMEngine's Runner with its
default hooks for MMDetection, SimpleTrainer for Detectron2. What is timed is an iteration from one entry of the network to the
next, whoever trains it, so that setting up and the last checkpoint count for neither. Processor time on one thread; rounds
are interleaved, of each the median iteration counts, of these the least. The target is at most 3 % more.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline import backends
from pipeline.backends import TrainJob, engine
from pipeline.backends.samples import Samples
from pipeline.experiment import PROJECT, ModelSettings, TrainSettings
from tests.backends.test_samples import drawn

STEPS, ROUNDS, CROP, TARGET = 16, 3, 256, 1.03
CONFIGS = {"mmdet": "mask-rcnn_r18w32_slim.py", "detectron2": "mask-rcnn_r18_slim_small.yaml"}


def theirs(framework: str, module: Any, network: torch.nn.Module, job: TrainJob) -> None:
    settings = job.settings
    samples: Any = Samples(job.images, settings, job.seed, settings.iterations * settings.batch)
    loader: Any = DataLoader(samples, batch_size=settings.batch, collate_fn=module.collate)
    if framework == "mmdet":
        from mmengine.runner import Runner

        network.init_weights = lambda: None  # type: ignore[assignment]
        optimizer = {"type": "AdamW", "lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        Runner(
            model=network, work_dir=str(job.folder), train_dataloader=loader, default_scope="mmdet", log_level="ERROR",
            train_cfg={"by_epoch": False, "max_iters": STEPS, "val_interval": STEPS + 1},
            optim_wrapper={"optimizer": optimizer, "clip_grad": {"max_norm": settings.clip}},
            experiment_name=f"theirs-{time.time_ns()}",
        ).train()  # fmt: skip
        return
    from detectron2.engine import SimpleTrainer

    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    SimpleTrainer(network, (batch["batched_inputs"] for batch in loader), optimizer).train(0, STEPS)


def iteration_seconds(network: torch.nn.Module) -> list[float]:
    """A list that grows by the processor time of each iteration that the network is trained for from now on."""
    took: list[float] = []
    entered: list[float] = []

    def enter(*_: Any) -> None:
        now = time.process_time()
        if entered:
            took.append(now - entered.pop())
        entered.append(now)

    network.register_forward_pre_hook(enter)
    return took


def round_of(who: str, framework: str, module: Any, model: ModelSettings) -> float:
    with tempfile.TemporaryDirectory() as name:
        settings = TrainSettings(iterations=STEPS, crop=CROP, ema=None, checkpoint_every=STEPS, warmup=0)
        job = TrainJob(model, settings, drawn(Path(name)), Path(name), "m/0", 0)
        torch.manual_seed(0)
        network = module.build(model, 2)
        took = iteration_seconds(network)
        if who == "theirs":
            theirs(framework, module, network, job)
        elif framework == "mmdet":
            network.init_weights = lambda: None
            engine.run(network, module.collate, job, scope="mmdet")
        else:
            engine.run(module.Trained(network), module.collate, job)
        assert len(took) == STEPS - 1
        return statistics.median(took[2:])  # the first ones fill caches


def main() -> None:
    torch.set_num_threads(1)
    for framework, config in CONFIGS.items():
        if not backends.installed(framework):
            print(f"{framework} is not installed")
            continue
        backends.get(framework)
        module = __import__(f"pipeline.backends.{framework}", fromlist=["build"])
        model = ModelSettings(framework=framework, config=str(PROJECT / "configs/models" / framework / config))
        best = {"ours": float("inf"), "theirs": float("inf")}
        for _ in range(ROUNDS):
            for who in best:
                best[who] = min(best[who], round_of(who, framework, module, model))
        ratio = best["ours"] / best["theirs"]
        verdict = "holds" if ratio <= TARGET else "MISSED"
        print(
            f"{framework:10s} ours {best['ours']:.3f} s, theirs {best['theirs']:.3f} s an iteration: ratio {ratio:.3f} "
            f"(at most {TARGET}: {verdict})"
        )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
