"""The training loop: resuming changes nothing, and a dead training says that it is dead."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

from pipeline import backends
from pipeline.backends import CheckpointError, TrainingError, engine
from pipeline.experiment import ModelSettings, TrainSettings
from tests.backends.test_samples import drawn


class Brightness(BaseModel):
    """Learns the mean of its images; `broken` makes it fail in one of the ways that trainings fail."""

    def __init__(self, broken: str = "", stop_at: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.broken, self.stop_at, self.calls = broken, stop_at, 0

    def forward(self, images: torch.Tensor, mode: str = "loss") -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.stop_at and self.calls == self.stop_at:
            raise KeyboardInterrupt
        means = images.float().mean(dim=(1, 2)) / 255
        loss = (self.norm(self.layer(means)) - means).square().sum()
        if self.broken == "nan" and self.calls >= 3:
            loss = loss * float("nan")
        if self.broken == "zero":
            loss = loss * 0
        return {"loss_mean": loss}


def collate(samples: list) -> dict:
    return {"images": torch.from_numpy(np.stack([s.image for s in samples]))}


def job(folder: Path, **settings: object) -> backends.TrainJob:
    folder.mkdir(exist_ok=True)
    train = {"iterations": 20, "crop": 32, "checkpoint_every": 5, "log_every": 4, "warmup": 3, "ema": 0.01, **settings}
    model = ModelSettings(framework="mmdet", config="none")
    return backends.TrainJob(model, TrainSettings.model_validate(train), drawn(folder), folder, "test/0", 1)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = engine.run(Brightness(), collate, job(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        engine.run(Brightness(stop_at=14), collate, job(tmp_path / "cut"))
    model = Brightness()
    resumed = engine.run(model, collate, job(tmp_path / "cut"))
    assert model.calls == 10  # from iteration 10 on, not from the beginning
    assert equal(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == sorted({line["iteration"] for line in lines})
    assert (
        lines[-1]["iteration"] == 20
        and {"loss", "learning_rate", "seconds_per_iteration", "loss_mean"} <= lines[-1].keys()
    )


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole = engine.run(Brightness(), collate, job(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        engine.run(Brightness(stop_at=14), collate, job(tmp_path / "cut"))
    newest = next((tmp_path / "cut" / "work").rglob("iter_10.pth"))
    newest.write_bytes(newest.read_bytes()[:1000])
    model = Brightness()
    assert equal(whole, engine.run(model, collate, job(tmp_path / "cut")))
    assert model.calls == 15


def test_other_settings_do_not_resume_from_old_checkpoints(tmp_path: Path) -> None:
    engine.run(Brightness(), collate, job(tmp_path))
    model = Brightness()
    engine.run(model, collate, job(tmp_path, learning_rate=0.01))
    assert model.calls == 20


def test_another_version_of_model_or_code_does_not_resume(tmp_path: Path) -> None:
    first = job(tmp_path)
    engine.run(Brightness(), collate, first)
    model = Brightness()
    engine.run(model, collate, replace(first, version="edited"))
    assert model.calls == 20
    model = Brightness()
    engine.run(model, collate, replace(first, version="edited"))
    assert model.calls == 0  # finished already: nothing is left to train


def test_the_average_is_kept_where_there_is_one(tmp_path: Path) -> None:
    model = Brightness()
    state = engine.run(model, collate, job(tmp_path / "ema"))
    assert not torch.equal(state["layer.weight"], model.layer.weight)
    model = Brightness()
    state = engine.run(model, collate, job(tmp_path / "plain", ema=None))
    assert torch.equal(state["layer.weight"], model.layer.weight)


@pytest.mark.parametrize(("broken", "words"), [("nan", "learning_rate"), ("zero", "no instance reaches")])
def test_a_dead_training_stops_with_the_reason(tmp_path: Path, broken: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        engine.run(Brightness(broken), collate, job(tmp_path, iterations=40))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_the_learning_rate_follows_its_schedule(tmp_path: Path, optimizer: str) -> None:
    settings = {"optimizer": optimizer, "schedule": "multistep", "milestones": [12, 16], "learning_rate": 0.1}
    settings |= {"log_every": 1, "warmup": 6}
    engine.run(Brightness(), collate, job(tmp_path, **settings))
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates[0] < rates[2] < rates[8] == pytest.approx(0.1)
    assert rates[13] == pytest.approx(0.01) and rates[-1] == pytest.approx(0.001)


def test_each_milestone_has_its_own_factor_and_the_warm_up_its_start(tmp_path: Path) -> None:
    settings = {"schedule": "multistep", "milestones": [8, 14], "decay": [0.5, 0.2], "learning_rate": 0.1}
    engine.run(Brightness(), collate, job(tmp_path, log_every=1, warmup=4, warmup_start=0.001, **settings))
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates[0] == pytest.approx(0.1 * (0.001 + 0.999 / 3))  # of the second of four steps from a thousandth up
    assert [rates[k] for k in (6, 10, 16)] == pytest.approx([0.1, 0.05, 0.01])


@pytest.mark.parametrize("decays", [False, True])
def test_biases_decay_where_it_is_asked_for(decays: bool) -> None:
    """Without a gradient a step of SGD is the decay alone."""
    network = nn.Conv2d(1, 1, 1)
    nn.init.ones_(network.bias)
    wrapper = build_optim_wrapper(
        network, engine._optimizer(TrainSettings(optimizer="SGD", weight_decay=0.5, bias_decay=decays))
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    wrapper.optimizer.step()
    assert network.bias.item() == pytest.approx(1 - 0.001 * 0.5 * decays)


@pytest.mark.parametrize("decays", [False, True])
def test_norms_decay_where_it_is_asked_for(decays: bool) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    nn.init.ones_(network[0].weight)
    nn.init.ones_(network[1].bias)
    settings = TrainSettings(optimizer="SGD", weight_decay=0.5, norm_decay=decays)
    wrapper = build_optim_wrapper(network, engine._optimizer(settings))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    wrapper.optimizer.step()
    assert network[0].weight.item() == pytest.approx(1 - 0.001 * 0.5)
    for parameter in (network[1].weight, network[1].bias):
        assert parameter.item() == pytest.approx(1 - 0.001 * 0.5 * decays)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.pth"
    text.write_text("not weights")
    with pytest.raises(CheckpointError, match=r"notes\.pth"):
        engine.load_weights(Brightness(), text)
    other = tmp_path / "other.pth"
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, other)
    with pytest.raises(CheckpointError, match="another model"):
        engine.load_weights(Brightness(), other)


def test_other_views_do_not_throw_an_unfinished_training_away(tmp_path: Path) -> None:
    task = job(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        engine.run(Brightness(stop_at=14), collate, task)
    network = task.model.model_copy(update={"predict": {"views": ["hflip"]}, "train": {"log_every": 7}})
    again = Brightness()
    engine.run(again, collate, replace(task, model=network))
    assert again.calls == 10  # from the checkpoint of iteration 10


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError):
        engine.load_weights(Brightness(), tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()
