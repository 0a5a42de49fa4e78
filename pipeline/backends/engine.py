"""The training loop of both frameworks: MMEngine's Runner around any module that returns a dictionary of losses.

What each framework adds is its network and how a batch is laid out; schedule, mixed precision, clipping, averaging,
checkpoints, logs and resuming are here, once.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from pipeline.backends import CheckpointError, TrainingError, TrainJob
from pipeline.backends.augmentation import augmentation
from pipeline.backends.checkpoints import without_code
from pipeline.backends.samples import Sample, Samples
from pipeline.experiment import NOT_IN_THE_RESULT, TrainSettings, digest

log = logging.getLogger("pipeline.train")

_FULL = 1 << 20
"""Bytes left on a disk below which a failure to write is put down to that."""

ZERO_LOSS_PATIENCE = 20
"""A loss that is exactly zero this often in a row means that no instance reaches the network."""


class Watch(Hook):
    """Progress on the terminal, curves for TensorBoard and the report, and the two ways in which a training is dead."""

    priority = "LOW"

    def __init__(self, title: str, folder: Path, settings: TrainSettings) -> None:
        self.title, self.folder, self.settings = title, folder, settings
        self.sums: dict[str, float] = {}
        self.count = 0
        self.zeros = 0

    def before_train(self, runner: Runner) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=runner.iter)
        self.lines = self.folder / "log.jsonl"
        kept = []
        if self.lines.exists():  # a resumed training repeats the iterations since its checkpoint
            for line in self.lines.read_text().splitlines():
                try:
                    if json.loads(line)["iteration"] <= runner.iter:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError):
                    continue
        self.lines.write_text("".join(line + "\n" for line in kept))
        self.began, self.first = time.perf_counter(), runner.iter
        self.last = self.began
        if runner.iter:
            log.info("%s: resumed at iteration %d of %d", self.title, runner.iter, self.settings.iterations)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        values = {k: float(v.detach()) for k, v in (outputs or {}).items() if "loss" in k or k.startswith("acc")}
        loss = values.get("loss", math.nan)
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.title}: the loss became {loss} at iteration {runner.iter + 1} ({_listed(values)}); "
                f"lower train.learning_rate (it is {self.settings.learning_rate}) or lengthen train.warmup"
            )
        self.zeros = self.zeros + 1 if loss == 0 else 0
        if self.zeros >= ZERO_LOSS_PATIENCE:
            raise TrainingError(
                f"{self.title}: the loss has been exactly 0 for {self.zeros} iterations, so no instance reaches the network; "
                f"check that the training images have instances of the experiment's categories"
            )
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        done = runner.iter + 1
        if done % self.settings.log_every == 0 or done == self.settings.iterations:
            self._report(runner, done)

    def _report(self, runner: Runner, done: int) -> None:
        now = time.perf_counter()
        means = {k: v / self.count for k, v in self.sums.items()}
        pace = (now - self.last) / self.count
        rate = runner.optim_wrapper.get_lr()["lr"][0]
        line = {"iteration": done, "loss": means["loss"], "learning_rate": rate, "seconds_per_iteration": pace, **means}
        with open(self.lines, "a") as handle:
            handle.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")
        for name, value in {**means, "learning_rate": rate, "seconds_per_iteration": pace}.items():
            self.board.add_scalar(name, value, done)
        self.board.flush()
        left = (self.settings.iterations - done) * (now - self.began) / max(done - self.first, 1)
        log.info(
            "%s: %d/%d  loss %.3f  %.2f s/it  ETA %d:%02d",
            self.title, done, self.settings.iterations, means["loss"], pace, left // 60, left % 60,
        )  # fmt: skip
        self.sums, self.count, self.last = {}, 0, now

    def after_train(self, runner: Runner) -> None:
        self.board.close()


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.3g}" for k, v in values.items() if k != "loss")


def run(
    model: nn.Module, collate: Callable[[list[Sample]], Any], job: TrainJob, scope: str = "mmengine"
) -> dict[str, torch.Tensor]:
    """Train `model` in place and return the weights to keep (the moving average where there is one).

    Args:
        model: an MMEngine BaseModel: ``forward(**batch, mode="loss")`` gives a dictionary of losses.
        collate: lays samples out as the model's batch.

    Raises:
        TrainingError: the loss is not a number, or stays exactly zero.
    """
    settings = job.settings
    augmentation(settings.augment, job.seed)  # what it does not know is told before anything is thrown away
    work = _work_folder(job)
    samples = Samples(job.images, settings, job.seed, settings.iterations * settings.batch, job.model.stain)
    hooks: list[Any] = [Watch(job.title, job.folder, settings)]
    if settings.ema is not None:
        # a weight of 10 / (10 + step) until it falls to the setting: the average spans about the last tenth of the steps
        hooks.append(EMAHook("MomentumAnnealingEMA", momentum=settings.ema, gamma=10, update_buffers=True))
    resume = _latest(work)
    done = int(resume.stem.split("_")[1]) if resume else 0
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]
        sampler=range(done * settings.batch, len(samples)),  # a sample follows from its number: none is replayed
        batch_size=settings.batch,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        collate_fn=collate,
    )
    runner = Runner(
        model=model,
        work_dir=str(work),
        train_dataloader=loader,
        train_cfg={
            "by_epoch": False,
            "max_iters": settings.iterations,
            "val_interval": settings.iterations + 1,
            "fast_forward_on_resume": True,
        },  # fmt: skip
        optim_wrapper=_optimizer(settings),
        param_scheduler=_schedule(settings),
        default_hooks={
            "logger": None,
            "checkpoint": {
                "type": "CheckpointHook",
                "interval": settings.checkpoint_every,
                "by_epoch": False,
                "max_keep_ckpts": 2,
            },
        },  # fmt: skip
        custom_hooks=hooks,
        default_scope=scope,
        randomness={"seed": job.seed},
        log_level="ERROR",
        load_from=str(resume) if resume else None,
        resume=resume is not None,
        experiment_name=f"{job.title}-{digest(str(work), time.time_ns())}".replace("/", "-"),
    )
    try:
        with without_code():
            runner.train()
    except (OSError, RuntimeError) as error:  # what torch says of a full disk does not
        if shutil.disk_usage(work).free < _FULL:
            raise OSError(
                errno.ENOSPC,
                f"no space left on the disk while training in {work}; free some and run the same command again",
            ) from error
        raise
    finally:
        for handler in list(
            runner.logger.handlers
        ):  # MMEngine's logger outlives the runner and would hold its files open
            runner.logger.removeHandler(handler)
            handler.close()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            return dict(hook.ema_model.module.state_dict())
    return dict(runner.model.state_dict())


def _optimizer(settings: TrainSettings) -> dict[str, Any]:
    optimizer: dict[str, Any] = {
        "type": settings.optimizer, "lr": settings.learning_rate, "weight_decay": settings.weight_decay,
    }  # fmt: skip
    if settings.optimizer == "SGD":
        optimizer["momentum"] = 0.9
    wrapper: dict[str, Any] = {
        "type": "AmpOptimWrapper" if settings.amp and torch.cuda.is_available() else "OptimWrapper",
        "optimizer": optimizer,
        "paramwise_cfg": {"norm_decay_mult": float(settings.norm_decay), "bias_decay_mult": float(settings.bias_decay)},
    }
    if settings.clip is not None:
        wrapper["clip_grad"] = {"max_norm": settings.clip}
    return wrapper


def _schedule(settings: TrainSettings) -> list[dict[str, Any]]:
    warmup = min(settings.warmup, settings.iterations // 2)
    steps: list[dict[str, Any]] = []
    if warmup:
        start = settings.warmup_start
        steps.append({"type": "LinearLR", "start_factor": start, "by_epoch": False, "begin": 0, "end": warmup})
    if settings.schedule == "cosine":
        steps.append(
            {
                "type": "CosineAnnealingLR", "T_max": settings.iterations - warmup, "eta_min_ratio": 0.01,
                "by_epoch": False, "begin": warmup, "end": settings.iterations,
            }
        )  # fmt: skip
    else:
        factors = settings.decay if isinstance(settings.decay, list) else [settings.decay] * len(settings.milestones)
        for milestone, factor in zip(settings.milestones, factors, strict=True):
            steps.append({"type": "MultiStepLR", "milestones": [milestone], "gamma": factor, "by_epoch": False})
    return steps


def _work_folder(job: TrainJob) -> Path:
    """Where this very training keeps its checkpoints; those of other settings or other images are thrown away."""
    images = [(image.id, image.file_name, image.sha256) for image in job.images.images]
    truth = [(a.image_id, a.category_id, a.crowd, a.rle["counts"]) for a in job.images.instances]
    learns = job.settings.model_dump(exclude=set(NOT_IN_THE_RESULT))
    network = job.model.model_dump(exclude={"train", "predict"})  # `learns` has what of these matters here
    key = digest(network, learns, job.seed, job.version, images, truth)
    parent = job.folder / "work"
    for other in parent.glob("*"):
        if other.name != key:
            shutil.rmtree(other, ignore_errors=True)
            (job.folder / "log.jsonl").unlink(missing_ok=True)
    folder = parent / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _latest(work: Path) -> Path | None:
    """The newest checkpoint that can be read; a file that a kill cut short is removed."""
    for path in sorted(work.glob("iter_*.pth"), key=lambda p: int(p.stem.split("_")[1]), reverse=True):
        try:
            with without_code():
                torch.load(path, map_location="cpu", mmap=True)
            return path
        except Exception as error:  # noqa: BLE001  torch raises many kinds for a torn file
            log.warning("%s cannot be read (%s); going back to the checkpoint before it", path, type(error).__name__)
            path.unlink()
    return None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint that `train` wrote, without running code from it.

    Raises:
        CheckpointError: the file is no checkpoint, or of another model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state_dict"]
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001  torch raises many kinds here
        raise CheckpointError(
            f"{path} is not a checkpoint of this pipeline ({type(error).__name__}); delete it and run the same command again"
        ) from error
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        names = ", ".join([*missing[:3], *unexpected[:3]])
        raise CheckpointError(
            f"{path} belongs to another model: {len(missing)} weights are missing, {len(unexpected)} unknown ({names}, …)"
        )
