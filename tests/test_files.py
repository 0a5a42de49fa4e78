"""A file is whole or absent, whatever happens while it is written."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import files
from pipeline.files import provenance, write_json, writing
from pipeline.records import Detections, DetectionsWriter


def test_the_name_appears_only_when_the_file_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with writing(target) as temporary:
        temporary.write_text("half")
        assert not target.exists() and temporary.parent == target.parent
        temporary.write_text("whole")
    assert target.read_text() == "whole" and os.listdir(target.parent) == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), writing(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_or_quota_is_said_with_the_file_and_the_way_out(tmp_path: Path, number: int) -> None:
    target = tmp_path / "file.txt"
    with pytest.raises(OSError, match=r"no space left.*file\.txt.*run the same command again"), writing(target):
        raise OSError(number, os.strerror(number))
    assert not os.listdir(tmp_path)


def test_a_table_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    table = Detections.build(
        1, 1, [0.5], [[0, 0, 2, 2]], [[0, 0, 2, 2]], [np.full((2, 2), 255, np.uint8)], "m/0/identity"
    )
    with pytest.raises(KeyboardInterrupt), DetectionsWriter(tmp_path / "t.parquet", table.sources) as writer:
        writer.add(table)
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_an_artifact_says_how_it_was_made(tmp_path: Path) -> None:
    write_json(tmp_path / "p.json", provenance(experiment="tiny", seed=3))
    facts = (tmp_path / "p.json").read_text()
    assert all(word in facts for word in ('"experiment": "tiny"', '"seed": 3', '"numpy"', '"command"', '"made"'))


def _full_disk(path: Path) -> None:
    """Let what is written for `path` go to a device that is always full."""
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_named_for_a_table_and_a_checkpoint(tmp_path: Path) -> None:
    from pipeline.experiment import Layout
    from pipeline.stages.train import _save

    table = Detections.build(
        1, 1, [0.5], [[0, 0, 2, 2]], [[0, 0, 2, 2]], [np.full((2, 2), 255, np.uint8)], "m/0/identity"
    )
    _full_disk(tmp_path / "t.parquet")
    with pytest.raises(OSError, match=r"no space left on the disk while writing .*t\.parquet; free some"):
        table.write(tmp_path / "t.parquet", {})
    layout = Layout("run", tmp_path)
    checkpoint = layout.checkpoint("m", "0")
    checkpoint.parent.mkdir(parents=True)
    _full_disk(checkpoint)
    with pytest.raises(OSError, match=r"no space left on the disk while writing .*checkpoint\.pth; free some"):
        _save(layout, "m", "0", {"weight": torch.zeros(100_000)})
    assert not list(tmp_path.rglob("*.parquet")) and not checkpoint.exists()


def test_artifacts_say_of_which_commit_they_are(tmp_path: Path) -> None:
    """The one at which the process began to ask, with a mark where code differs, and none in a folder that is no clone."""
    root = tmp_path / "project"
    (root / "pipeline").mkdir(parents=True)
    (root / "docs").mkdir()
    shutil.copy(files.__file__, root / "pipeline" / "files.py")
    (root / "docs" / "rows.jsonl").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def call(*words: str, inside: Path) -> str:
        return subprocess.run(words, cwd=inside, capture_output=True, text=True, check=True).stdout.strip()

    def git(*words: str) -> str:
        return call("git", *identity, *words, inside=root)

    def said(before: str = "pass", inside: Path = root / "pipeline") -> str:
        code = f"import files, subprocess; {before}; print(files.provenance().get('commit'))"
        return call(sys.executable, "-c", code, inside=inside)

    assert said() == "None"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    first = git("rev-parse", "--short", "HEAD")
    assert said() == first
    (root / "docs" / "rows.jsonl").write_text("a row\n")
    assert said() == first
    meanwhile = (
        f"files.commit(); subprocess.run({['git', *identity, 'commit', '-qam', 'two']}, stdout=subprocess.DEVNULL)"
    )
    assert said(meanwhile) == first != git("rev-parse", "--short", "HEAD")
    with (root / "pipeline" / "files.py").open("a") as code:
        code.write("# another\n")
    assert said() == git("rev-parse", "--short", "HEAD") + "-dirty"
    inner = root / "unpacked" / "pipeline"  # within somebody else's repository
    inner.mkdir(parents=True)
    shutil.copy(files.__file__, inner / "files.py")
    assert said(inside=inner) == "None"
