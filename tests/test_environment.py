"""pipeline/environment.sh on machines that are only pretended: nvidia-smi, nvcc and Python are small programs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.experiment import PROJECT

PYTHON = r"""#!/usr/bin/env bash
# makes environments whose Python is itself, and notes with which settings it is asked to compile
case "$*" in
  *"-m venv"*)
    mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; touch "${@: -1}/pyvenv.cfg" ;;
  *" wheel -v "*)
    echo "$TORCH_CUDA_ARCH_LIST|${FORCE_CUDA-unset}|${CUDA_VISIBLE_DEVICES-unset}" >>"$COMPILED"
    [ -z "$BROKEN" ] || exit 1
    while [ "$1" != --wheel-dir ]; do shift; done
    touch "$2/onedl_mmcv-0-py3-none-any.whl" ;;
  *--force-reinstall*requirements-detectron2.txt*) echo detectron2 >>"$COMPILED"; touch "$COMPILED.detectron2" ;;
  *"import _C"*) [ -e "$COMPILED.detectron2" ] ;;
  *torch.version.cuda*) echo 12.6 ;;
  *torch.__version__*) echo 2.11.0-py311 ;;
esac
"""


@dataclass
class Machine:
    """A machine with these cards (``driver, capability``) and this nvcc, and what its environment was made with."""

    folder: Path
    cards: list[str] = field(default_factory=list)
    nvcc: str = ""

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    def make(self, **settings: str) -> subprocess.CompletedProcess[str]:
        programs = self.folder / "bin"
        rows = "".join(f"{row}\\n" for row in self.cards)
        self._program(programs / "nvidia-smi", f"printf '{rows}'; [ -n '{rows}' ]")
        self._program(programs / "sleep", "exec /bin/sleep 0.02")
        self._program(programs / "python", PYTHON)
        (self.folder / "cuda" / "bin" / "nvcc").unlink(missing_ok=True)
        if self.nvcc:
            told = f"echo 'Cuda compilation tools, release {self.nvcc}, V{self.nvcc}.1'"
            self._program(self.folder / "cuda" / "bin" / "nvcc", told)
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MASKFOLD_", "CUDA_", "FORCE_", "TORCH_"))
        }
        return subprocess.run(
            ["bash", str(PROJECT / "pipeline" / "environment.sh")],
            env={
                **plain,
                "PATH": f"{programs}:{plain['PATH']}",
                "PYTHON": str(programs / "python"),
                "CUDA_HOME": str(self.folder / "cuda"),
                "COMPILED": str(self.folder / "compiled"),
                "BROKEN": "",
                "MASKFOLD_VENV": str(self.venv),
                "MASKFOLD_WHEELS": str(self.folder / "wheels"),
                **settings,
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def made(self, **settings: str) -> str:
        """Make the environment; its fingerprint without the hash."""
        done = self.make(**settings)
        assert done.returncode == 0, done.stderr
        return (self.venv / ".maskfold").read_text().strip().partition("-")[2]

    def compiled(self) -> list[str]:
        """``architectures|FORCE_CUDA|CUDA_VISIBLE_DEVICES`` of each compilation of mmcv; ``detectron2`` for each of
        that."""
        path = self.folder / "compiled"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


T4, P100, BLACKWELL = "580.65.06, 7.5", "580.65.06, 6.0", "580.65.06, 12.0"
ALL_OF_CUDA13 = "7.5;8.0;8.6;9.0;10.0;12.0+PTX"


@pytest.mark.parametrize(
    ("cards", "nvcc", "made", "compiled"),
    [
        ([], "", "pypi-cpu", "|unset|"),
        ([], "13.0", "pypi-cpu", "|unset|"),
        ([T4], "13.0", "pypi-cuda-7.5+PTX", "7.5+PTX|1|unset"),
        ([T4], "12.6", "cu126-cuda-7.5+PTX", "7.5+PTX|1|unset"),  # the toolkit decides, not the driver alone
        ([BLACKWELL], "12.8", "cu128-cuda-12.0+PTX", "12.0+PTX|1|unset"),
        ([P100], "12.6", "cu126-cuda-6.0+PTX", "6.0+PTX|1|unset"),
        (["550.54, 8.9"], "12.4", "cu126-cuda-8.6+PTX", "8.6+PTX|1|unset"),  # torch has no code for 8.9 of its own
        (["580.1, 12.1"], "13.0", "pypi-cuda-12.0+PTX", "12.0+PTX|1|unset"),
        (["580.1, 9.0", T4, T4], "13.0", "pypi-cuda-7.5_9.0+PTX", "7.5;9.0+PTX|1|unset"),
        # torch sees the GPU, and mmcv's set-up would look for nvcc
        ([T4], "", "pypi-cpu", "|unset|"),
        (["470.82, 7.5"], "11.4", "pypi-cpu", "|unset|"),  # a driver that torch cannot use
    ],
)
def test_the_build_and_the_architectures(
    machine: Machine, cards: list[str], nvcc: str, made: str, compiled: str
) -> None:
    machine.cards, machine.nvcc = cards, nvcc
    assert machine.made() == made
    assert machine.compiled() == [compiled, "detectron2"]
    assert [path.name.rpartition("-py311-")[2] for path in (machine.folder / "wheels").iterdir()] == [
        made.partition("-")[2]
    ]


def test_another_card_compiles_anew_and_the_first_ones_wheel_is_kept(machine: Machine) -> None:
    machine.cards, machine.nvcc = [T4], "12.6"
    machine.made()
    machine.compiled()
    machine.cards = [P100]
    assert machine.made() == "cu126-cuda-6.0+PTX"
    assert machine.compiled() == ["6.0+PTX|1|unset", "detectron2"]
    machine.cards = [T4]
    assert machine.made() == "cu126-cuda-7.5+PTX"
    assert machine.compiled() == ["detectron2"]


def test_without_a_gpu_force_cuda_compiles_for_all_of_them(machine: Machine) -> None:
    machine.nvcc = "13.0"
    assert machine.made(FORCE_CUDA="1") == "pypi-cuda-7.5_8.0_8.6_9.0_10.0_12.0+PTX"
    assert machine.compiled() == [f"{ALL_OF_CUDA13}|1|unset", "detectron2"]


def test_force_cuda_follows_the_toolkit(machine: Machine) -> None:
    machine.nvcc = "12.6"
    assert machine.made(FORCE_CUDA="1") == "cu126-cuda-6.0_7.0_7.5_8.0_8.6_9.0+PTX"


def test_force_cuda_without_a_toolkit_is_refused(machine: Machine) -> None:
    done = machine.make(FORCE_CUDA="1")
    assert done.returncode == 1
    assert "FORCE_CUDA=1 needs nvcc" in done.stderr
    assert not machine.venv.exists()


def test_a_list_of_the_user_is_respected_and_told_apart(machine: Machine) -> None:
    machine.cards, machine.nvcc = [T4], "12.6"
    assert machine.made(TORCH_CUDA_ARCH_LIST="6.0;7.5") == "cu126-cuda-6.0_7.5"
    assert machine.compiled()[0] == "6.0;7.5|1|unset"
    assert machine.made(TORCH_CUDA_ARCH_LIST="7.5 8.0") == "cu126-cuda-7.5_8.0"
    assert machine.compiled()[0] == "7.5 8.0|1|unset"


def test_an_environment_that_does_more_is_left_as_it_is(machine: Machine) -> None:
    """A home that a login node, which made the environment, shares with nodes of several GPUs, some without nvcc."""
    machine.nvcc = "12.6"
    whole = machine.made(FORCE_CUDA="1")
    machine.compiled()
    for cards, nvcc in (([], ""), ([], "12.6"), ([T4], ""), ([T4], "12.6"), ([P100], "13.0"), (["550.1, 8.9"], "")):
        machine.cards, machine.nvcc = cards, nvcc
        assert machine.made() == whole
    machine.cards = [T4]
    assert machine.made(FORCE_CUDA="1") == whole
    assert machine.compiled() == []
    machine.cards, machine.nvcc = [BLACKWELL], "12.8"
    assert machine.made() == "cu128-cuda-12.0+PTX"


def test_one_for_another_card_or_driver_is_not(machine: Machine) -> None:
    machine.cards, machine.nvcc = [T4], "13.0"
    machine.made()
    machine.cards = ["550.1, 7.5"]
    machine.nvcc = ""
    assert machine.made() == "cu126-cpu"


def test_a_toolkit_of_another_cuda_is_named_before_anything_is_installed(machine: Machine) -> None:
    machine.cards, machine.nvcc = ["550.54, 7.5"], "13.0"
    done = machine.make()
    assert done.returncode == 1
    assert "is of CUDA 13.0, but the torch build cu126 is of CUDA 12" in done.stderr
    assert not machine.venv.exists()


def test_a_failed_compilation_names_both_versions(machine: Machine) -> None:
    machine.cards, machine.nvcc = [T4], "12.4"
    done = machine.make(BROKEN="1")
    assert done.returncode == 1
    assert "is of CUDA 12.4, torch of CUDA 12.6" in done.stderr and "7.5+PTX" in done.stderr
    machine.cards = []
    done = machine.make(BROKEN="1")
    assert done.returncode == 1
    assert "C++ compiler" in done.stderr and "CUDA" not in done.stderr.splitlines()[-1]


def test_a_gpu_without_nvcc_says_what_follows(machine: Machine) -> None:
    machine.cards = [T4]
    assert "no nvcc: mmcv's operators are compiled for the CPU only" in machine.make().stderr


def test_a_folder_that_is_no_environment_is_never_emptied(machine: Machine) -> None:
    kept = machine.venv / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("years of work")
    done = machine.make()
    assert done.returncode == 1
    assert "is not empty and is no Python environment" in done.stderr
    assert kept.read_text() == "years of work"
    kept.unlink()
    assert machine.made() == "pypi-cpu"
