"""Locks that go with their process, and stages that go with their run, under kill -9."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import supervision
from pipeline.experiment import PROJECT
from tests.toy_project import ToyProject, processes_of


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test, whatever it does."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def python(started: list[subprocess.Popen[str]], code: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=PROJECT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    started.append(process)
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def gone(pid: int, seconds: float = 20) -> float:
    """Wait until a process has ended; how long that took."""
    start = time.monotonic()
    while running(pid):
        assert time.monotonic() - start < seconds, f"process {pid} lives on"
        time.sleep(0.02)
    return time.monotonic() - start


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


HOLD = """
    import sys, time
    from pathlib import Path
    from pipeline.supervision import exclusive
    with exclusive(Path(sys.argv[1] if len(sys.argv) > 1 else {path!r}), "training of a on fold 0"):
        print("held", flush=True)
        time.sleep(600)
"""


# ---------------------------------------------------------------- locks -----------------------------------------------


def test_a_held_lock_refuses_and_names_its_holder(started: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    holder = python(started, HOLD.format(path=str(path)))
    assert line(holder) == "held"
    expected = rf"the training of a on fold 0 is already going on: process {holder.pid} on .*, since \d{{4}}-\d\d-\d\d"
    with pytest.raises(BlockingIOError, match=expected), supervision.exclusive(path, "training of a on fold 0", 0.3):
        pytest.fail("two hold the lock")
    assert str(holder.pid) in path.read_text()  # the refused one did not write over it


def test_a_lock_goes_with_its_process_even_while_a_child_of_it_lives(
    started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    holder = python(
        started,
        f"""
        import os, time
        from pathlib import Path
        from pipeline.supervision import exclusive
        with exclusive(Path({str(path)!r}), "training"):
            child = os.fork()
            if not child:
                time.sleep(600)
            print(child, flush=True)
            time.sleep(600)
        """,
    )
    child = int(line(holder))
    try:
        holder.kill()
        with supervision.exclusive(path, "training", patience=5):
            assert running(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_is_free_after_its_block_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with supervision.exclusive(tmp_path / "lock", "run"):
            pass
    with pytest.raises(RuntimeError), supervision.exclusive(tmp_path / "lock", "run"):
        raise RuntimeError
    code = f"import fcntl; fcntl.lockf(open({str(tmp_path / 'lock')!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    probe = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
    )  # fmt: skip
    assert probe.returncode == 0


def test_a_lock_waits_for_a_holder_that_is_just_ending(started: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = python(started, HOLD.format(path=str(path)))
    assert line(holder) == "held"
    waiting = python(started, HOLD.format(path=str(path)))
    time.sleep(1)
    holder.kill()
    assert line(waiting) == "held"


# ---------------------------------------------------------------- dying with the run ----------------------------------

STAGE = """
    import subprocess, sys, time
    from pipeline.supervision import die_with_run
    die_with_run()
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(worker.pid, flush=True)
    time.sleep(600)
"""


def test_a_stage_and_its_children_die_within_a_second_of_their_run(started: list[subprocess.Popen[str]]) -> None:
    run = python(started, "import time; print('up', flush=True); time.sleep(600)")
    assert line(run) == "up"
    stage = python(started, STAGE, **{supervision.RUN: f"{run.pid}@{platform.node()}"})
    worker = int(line(stage))
    time.sleep(0.3)
    assert running(stage.pid) and running(worker)
    run.kill()
    run.wait()
    assert max(gone(stage.pid), gone(worker)) < 5  # milliseconds on a quiet machine
    assert stage.wait() == -signal.SIGKILL


def test_a_stage_of_a_run_that_is_gone_already_dies_at_once(started: list[subprocess.Popen[str]]) -> None:
    run = python(started, "")
    run.wait()
    code = "import time; from pipeline.supervision import die_with_run; die_with_run(); time.sleep(600)"
    stage = python(started, code, **{supervision.RUN: f"{run.pid}@{platform.node()}"})
    assert stage.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize("announced", ["", "1@another-machine"])
def test_outside_a_run_and_on_other_machines_nothing_is_watched(
    started: list[subprocess.Popen[str]], announced: str
) -> None:
    stage = python(started, STAGE, **{supervision.RUN: announced})
    worker = int(line(stage))
    time.sleep(0.5)
    assert running(stage.pid)
    os.kill(worker, signal.SIGKILL)


def test_without_pidfd_the_run_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    short = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    start = time.monotonic()
    threading.Thread(target=short.wait, daemon=True).start()  # else the ended process would stay, as a zombie
    supervision._wait_for_end(short.pid)
    assert time.monotonic() - start >= 0.3


# ---------------------------------------------------------------- whole runs ------------------------------------------


def until(condition: Callable[[], bool], seconds: float = 200) -> None:
    """Wait for a condition; fail, rather than wait for ever, where what should bring it about has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[ToyProject]:
    made = ToyProject.make(tmp_path / "project")
    made.edit("configs/experiments/toy.yaml", "iterations: 2", "iterations: 3000")  # a minute
    yield made
    for pid in processes_of(made.folder):
        os.kill(pid, signal.SIGKILL)


def test_kill_9_of_a_run_ends_its_stages_and_the_same_command_resumes(project: ToyProject) -> None:
    run = project.start("run", "toy", "--until", "train")
    project.wait_for("train a 0 from 0", 200)
    place = project.layout.training("a", "0") / "work" / "iteration"
    until(lambda: place.exists() and int(place.read_text() or 0) >= 10)
    assert processes_of(project.folder)
    run.kill()
    run.communicate()
    for pid in processes_of(project.folder):
        gone(pid)
    assert not project.layout.checkpoint("a", "0").exists()
    assert not list(project.folder.rglob("*.tmp"))
    reached = int(place.read_text())
    assert 10 <= reached < 3000

    project.edit("configs/experiments/toy.yaml", "iterations: 3000", f"iterations: {reached + 30}")
    assert project.run("--until", "train")["train"] == 2
    assert any(re.fullmatch(rf"train a 0 from {reached}", entry) for entry in project.trace()), project.trace()
    assert project.layout.checkpoint("a", "0").exists()
    assert not project.run("--until", "train")


def test_kill_9_of_one_stage_fails_the_run_and_the_same_command_resumes(project: ToyProject) -> None:
    run = project.start("run", "toy", "--until", "train", "--model", "a")
    project.wait_for("train a 0 from 0", 200)
    place = project.layout.training("a", "0") / "work" / "iteration"
    until(place.exists)
    stages = [
        pid
        for pid in processes_of(project.folder)
        if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]
    os.kill(stages[0] if stages[0] != run.pid else stages[1], signal.SIGKILL)
    _, said = run.communicate(timeout=200)
    assert run.returncode == 1 and "train a fold 0 failed, see" in said

    project.edit("configs/experiments/toy.yaml", "iterations: 3000", "iterations: 30")
    assert project.run("--until", "train", "--model", "a") == {"train": 1}


def test_a_second_run_and_a_second_trainer_are_refused(project: ToyProject) -> None:
    run = project.start("run", "toy", "--until", "train", "--model", "a")
    project.wait_for("train a 0 from 0", 200)
    second = project.call("run", "toy")
    assert second.returncode == 1 and "Traceback" not in second.stderr
    assert re.search(rf"run toy is already going on: process {run.pid} on .*, since 20\d\d-", second.stderr)
    assert project.planned()  # looking is allowed
    trainer = project.call("train", "toy", "--model", "a", "--fold", "0")
    assert trainer.returncode == 1 and "training of a on fold 0 is already going on" in trainer.stderr
    assert sum(entry.startswith("train a") for entry in project.trace()) == 1
    run.kill()
    run.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_stops_at_once(project: ToyProject, how: signal.Signals) -> None:
    run = project.start("run", "toy", "--until", "train", "--model", "a")
    project.wait_for("train a 0 from 0", 200)
    run.send_signal(how)
    _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    if how == signal.SIGINT:
        assert "the same command goes on from here" in said and "Traceback" not in said
    for pid in processes_of(project.folder):
        gone(pid)


# ---------------------------------------------------------------- GPUs ------------------------------------------------


@pytest.mark.parametrize(("visible", "names"), [("0,1", ["0", "1"]), ("", []), ("-1", []), ("GPU-abc", ["GPU-abc"])])
def test_gpus_are_those_that_the_process_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert supervision.gpus() == names


def test_two_trainings_take_different_gpus(started: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    code = f"""
        import os, time
        from pathlib import Path
        from pipeline import supervision
        supervision.claim_gpu(Path({str(tmp_path)!r}))
        print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
        time.sleep(600)
    """
    taken = [line(python(started, code, CUDA_VISIBLE_DEVICES="4,7")) for _ in range(3)]
    assert taken == ["4", "7", "4,7"]
    started[0].kill()
    started[0].wait()
    assert line(python(started, code, CUDA_VISIBLE_DEVICES="4,7")) == "4"


def test_one_gpu_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    supervision.claim_gpu(tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3" and not list(tmp_path.iterdir())
