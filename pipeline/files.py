"""Files that are either whole or absent: everything is written under a temporary name and renamed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, or a quota, or a file as large as it may be: clusters have quotas."""


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it onto `path` when the block succeeds, else remove it.

    Raises:
        OSError: with the target's name and the way out, when the disk or a quota is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                error.errno, f"no space left on the disk while writing {path}; free some and run the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def provenance(**facts: Any) -> dict[str, Any]:
    """What an artifact says of its making: the given facts (experiment, settings, seed) and commit, versions, command, time.

    The commit is the project's as `commit` has it; without git there is none.
    """
    versions: Mapping[str, str | None] = {
        name: _version(name) for name in ("torch", "onedl-mmdetection", "detectron2", "numpy")
    }
    return {
        **facts,
        **({"commit": commit()} if commit() else {}),
        "versions": {k: v for k, v in versions.items() if v},
        "python": sys.version.split()[0],
        "command": " ".join(sys.argv),
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


CODE = ("pipeline", "configs", "run_all.sh", "requirements.txt")
"""What of the project a result depends on, and so what makes its commit another: rows and pages that were added do not."""


@cache
def commit() -> str:
    """The commit of the project when this process first asks, short, ``-dirty`` behind it where tracked code or configs differ;
    empty where the project is no clone."""
    root = Path(__file__).resolve().parent.parent
    try:
        top, short = _git(root, "rev-parse", "--show-toplevel", "--short", "HEAD").split("\n")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return ""
    if Path(top).resolve() != root:  # unpacked within somebody's own repository
        return ""
    return f"{short}-dirty" if changed else short


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
