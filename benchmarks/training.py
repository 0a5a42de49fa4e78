"""What our training loop costs on top of a framework's own: the same network, batches and optimizer steps, side by side.

    python -m benchmarks.training

Ours is `engine.run` on Samples. Theirs takes the same samples, made in the same way inside its loop: MMEngine's Runner with its
default hooks for MMDetection, SimpleTrainer for Detectron2. Rounds are interleaved and the fastest counts; the target is at most
3 %.
"""

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

STEPS, ROUNDS, CROP = 10, 2, 64
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


def main() -> None:
    for framework, config in CONFIGS.items():
        if not backends.installed(framework):
            print(f"{framework} is not installed")
            continue
        backends.get(framework)
        module = __import__(f"pipeline.backends.{framework}", fromlist=["build"])
        model = ModelSettings(framework=framework, config=str(PROJECT / "configs/models" / framework / config))
        best = {"ours": float("inf"), "theirs": float("inf")}
        for round_ in range(ROUNDS + 1):
            for who in best:
                with tempfile.TemporaryDirectory() as name:
                    settings = TrainSettings(iterations=STEPS, crop=CROP, ema=None, checkpoint_every=STEPS, warmup=0)
                    job = TrainJob(model, settings, drawn(Path(name)), Path(name), "m/0", 0)
                    torch.manual_seed(0)
                    network = module.build(model, 2)
                    began = time.perf_counter()
                    if who == "theirs":
                        theirs(framework, module, network, job)
                    elif framework == "mmdet":
                        network.init_weights = lambda: None
                        engine.run(network, module.collate, job, scope="mmdet")
                    else:
                        engine.run(module.Trained(network), module.collate, job)
                    if round_:  # the first round warms up
                        best[who] = min(best[who], (time.perf_counter() - began) / STEPS)
        ratio = best["ours"] / best["theirs"]
        print(
            f"{framework:10s} ours {best['ours']:.3f} s, theirs {best['theirs']:.3f} s an iteration: ratio {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
