"""One run at a time, one trainer a folder, one training a GPU, and no stage that outlives its run.

Locks are the kernel's record locks: they go when their process goes, however it ends, so nothing is ever unlocked by
hand; and a child does not inherit them, so a data-loading worker that outlives a killed trainer does not keep its
folder locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

RUN = "MASKFOLD_RUN_PID"
"""Environment variable by which the stages of a run know it: its process number, ``@``, its machine."""


# ---------------------------------------------------------------- locks -----------------------------------------------


@contextmanager
def exclusive(path: Path, title: str, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock `path` for the length of a block.

    Args:
        path: made where it does not exist, and never removed.
        title: what is being done, for the message, e.g. ``the run quickstart``.
        patience: seconds to wait for a holder that is just ending.

    Raises:
        BlockingIOError: another process holds it; the message names that process and since when.
    """
    handle = _acquire(path, title, patience)
    try:
        yield
    finally:
        handle.close()


def _acquire(path: Path, title: str, patience: float) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115  the lock lives as long as the file is open
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                handle.close()
                raise OSError(
                    error.errno, f"{path} cannot be locked ({error.strerror}); keep the run on a disk that has locks"
                ) from error
            if time.monotonic() > deadline:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                handle.close()
                raise BlockingIOError(
                    f"the {title} is already going on: {holder}. Wait until it is done, or end that process; "
                    f"the same command then goes on from where it stopped"
                ) from None
            time.sleep(0.1)
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    handle.flush()
    return handle


# ---------------------------------------------------------------- dying with the run ----------------------------------


def announce_run() -> None:
    """Make this process the run that the stages it starts belong to."""
    os.environ[RUN] = f"{os.getpid()}@{platform.node()}"


def in_run() -> bool:
    """Whether this process is a stage that a run has started."""
    return bool(os.environ.get(RUN))


def die_with_run() -> None:
    """From now on, kill this process and all its children as soon as its run is gone.

    Does nothing outside a run, or on another machine than the run's (a cluster ends its jobs by itself).
    """
    pid, _, machine = os.environ.get(RUN, "").partition("@")
    if pid and machine == platform.node():
        threading.Thread(target=_outlive_nothing, args=(int(pid),), name="die-with-run", daemon=True).start()


def _outlive_nothing(run: int) -> None:
    _wait_for_end(run)
    while children := _descendants(os.getpid()):  # until no thread of ours starts another
        for child in children:
            _kill(child)
        time.sleep(0.001)
    _kill(os.getpid())


def _wait_for_end(pid: int) -> None:
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # an old kernel, or a sandbox without it
        while _exists(pid):
            time.sleep(0.5)
        return
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    poll.poll()
    os.close(watch)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _kill(pid: int) -> None:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The living processes below a process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name in parentheses may hold anything; behind it come the state (Z: ended) and the parent
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


# ---------------------------------------------------------------- GPUs ------------------------------------------------


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if not count:
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return []
        count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(i) for i in range(count)]


def hide_gpus() -> None:
    """From now on this process and its children see no GPU. Has to be called before torch looks for one."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


_claimed: list[IO[str]] = []


def claim_gpu(folder: Path) -> None:
    """Where there are several GPUs, take one that no other stage of the run has; it is this process's until it ends.

    Has to be called before torch is imported. With one GPU or none, or when all are taken, nothing changes.
    """
    names = gpus()
    for name in names if len(names) > 1 else []:
        try:
            _claimed.append(_acquire(folder / f".gpu-{name}.lock", f"GPU {name}", patience=0))
        except BlockingIOError:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return
