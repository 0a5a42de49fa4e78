"""What this machine has, what each missing piece stops you from doing, and the command that mends it."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.experiment import PROJECT

T = TypeVar("T")

PYTHONS = ((3, 11), (3, 12))
"""Oldest and newest Python that every pinned package has a build for."""

DRIVERS = {13: 580, 12: 525, 11: 450}
"""The oldest NVIDIA driver that runs programs of a CUDA major version (NVIDIA, "CUDA Compatibility")."""

DISK = (3e9, 15e9)
"""Free bytes without which nothing works, and those that a large experiment may take."""

MEMORY = (4e9, 8e9)
"""Bytes of memory without which the quickstart does not fit, and those that the CPU experiments may take."""

ENVIRONMENT = "bash pipeline/environment.sh"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: ``good``; ``note``: something is slower or left out; ``bad``: the quickstart cannot run.
        text: what is there.
        stops: what its absence stops you from doing.
        mend: the command, or what to do, that mends it.
    """

    name: str
    state: Literal["good", "note", "bad"]
    text: str
    stops: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card: compute capability as ``(major, minor)``, memory in bytes, driver version as text."""

    name: str
    capability: tuple[int, int]
    memory: float
    driver: str


@dataclass(frozen=True)
class Torch:
    """An installed torch.

    Attributes:
        cuda: the CUDA version that it is built for; None for the CPU only.
        architectures: what it has kernels for, ``sm_75`` or ``compute_90``.
        sees_gpu: whether it can use a GPU on this machine.
    """

    version: str
    cuda: str | None
    architectures: list[str]
    sees_gpu: bool


# ---------------------------------------------------------------- looking ---------------------------------------------


def find_torch() -> Torch:
    import torch

    return Torch(torch.__version__, torch.version.cuda, torch.cuda.get_arch_list(), torch.cuda.is_available())


def find_gpus() -> list[Gpu]:
    """The cards that nvidia-smi lists; none where there is no nvidia-smi, or no driver for it to ask."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in text.strip().splitlines():
        name, capability, memory, driver = (part.strip() for part in line.rsplit(",", 3))
        major, _, minor = capability.partition(".")
        gpus.append(Gpu(name, (int(major), int(minor or 0)), float(memory) * 2**20, driver))
    return gpus


def find_mmcv_operators() -> bool:
    """Run one of mmcv's compiled operators on the CPU; True when they are compiled for CUDA as well."""
    from mmcv.ops import get_compiling_cuda_version

    _suppress_one_of_two("cpu")
    return bool(get_compiling_cuda_version() != "not available")


def run_mmcv_on_gpus() -> None:
    """Run the same operator on every GPU that torch sees; raises where one cannot."""
    import torch

    for index in range(torch.cuda.device_count()):
        _suppress_one_of_two(f"cuda:{index}")


def _suppress_one_of_two(device: str) -> None:
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0]], device=device)
    kept = nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5)[1]
    if kept.tolist() != [0]:
        raise RuntimeError(f"mmcv's nms gives {kept.tolist()} on {device} where [0] is right")


def find_module(name: str) -> str:
    """Import a module and return its version."""
    return str(getattr(importlib.import_module(name), "__version__", ""))


def find_detectron2() -> str:
    importlib.import_module("detectron2._C")  # the compiled part, where a build for another torch fails
    return find_module("detectron2")


def find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or its container's where that is less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def find_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Probes:
    """The functions that look at the machine. Any of them may raise: what it looked for is then not usable."""

    python: Callable[[], tuple[int, ...]] = lambda: sys.version_info[:3]
    torch: Callable[[], Torch] = find_torch
    gpus: Callable[[], list[Gpu]] = find_gpus
    mmcv_operators: Callable[[], bool] = find_mmcv_operators
    mmcv_on_gpus: Callable[[], None] = run_mmcv_on_gpus
    mmdet: Callable[[], str] = lambda: find_module("mmdet")
    detectron2: Callable[[], str] = find_detectron2
    version: Callable[[str], str | None] = find_version
    free_disk: Callable[[Path], float] = lambda folder: float(shutil.disk_usage(folder).free)
    memory: Callable[[], float] = find_memory
    cores: Callable[[], int] = find_cores
    command: Callable[[str], str | None] = shutil.which
    setting: Callable[[str], str | None] = os.environ.get


# ---------------------------------------------------------------- judging ---------------------------------------------


def diagnose(probes: Probes | None = None) -> list[Finding]:
    """Look at everything; nothing that is missing or broken raises."""
    probes = probes or Probes()
    gpus = _try(probes.gpus) or []
    if isinstance(gpus, Exception):
        gpus = []
    torch = _try(probes.torch)
    return [
        _python(probes),
        _pins(probes),
        _torch(torch),
        *_gpus(gpus, torch, probes),
        _mmcv(torch, probes),
        _mmdet(probes),
        _detectron2(probes),
        _disk(probes),
        _memory(probes),
        _cores(probes),
        *_tools(bool(gpus), probes),
    ]


def has_kernels(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a torch built for these architectures runs on a card of this compute capability.

    Machine code (``sm_75``) runs on cards of the same major and at least the same minor number, code with a letter
    (``sm_90a``) on exactly that card; intermediate code (``compute_90``) on every card from there on (NVIDIA, "CUDA C++
    Programming Guide", binary and PTX compatibility).
    """
    for architecture in architectures:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if not parts:
            continue
        built = (int(parts[2]), int(parts[3]))
        if parts[4]:
            if built == capability:
                return True
        elif parts[1] == "compute":
            if built <= capability:
                return True
        elif built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


def _python(probes: Probes) -> Finding:
    version = probes.python()
    text = ".".join(map(str, version)) + f" on {platform.system()}, {platform.machine()}"
    if PYTHONS[0] <= tuple(version[:2]) <= PYTHONS[1]:
        return Finding("Python", "good", text)
    known = " to ".join(".".join(map(str, v)) for v in PYTHONS)
    return Finding(
        "Python", "bad", f"{text}; the pinned packages are made for {known}", "everything",
        f"PYTHON=/path/to/python3.11 {ENVIRONMENT}",
    )  # fmt: skip


def _pins(probes: Probes) -> Finding:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (PROJECT / "requirements.txt").read_text(), flags=re.M))
    found = {name: probes.version(name) or "" for name in pins}
    missing = [name for name in pins if not found[name]]
    other = [
        f"{name} {version} (not {pins[name]})"
        for name, version in found.items()
        if version and version.split("+")[0] != pins[name]
    ]
    if missing:
        text = f"{len(missing)} of {len(pins)} are missing: {', '.join(missing)}"
        return Finding("packages", "bad", text, "whatever uses them", ENVIRONMENT)
    if other:
        text = f"{len(other)} of {len(pins)} have another version: {', '.join(other)}"
        return Finding("packages", "note", text, "getting the documented numbers", ENVIRONMENT)
    return Finding("packages", "good", f"all {len(pins)} of requirements.txt, at their versions")


def _torch(torch: Torch | Exception) -> Finding:
    if isinstance(torch, Exception):
        return Finding("torch", "bad", _told(torch), "training and predicting", ENVIRONMENT)
    return Finding("torch", "good", f"{torch.version}, built for {'CUDA ' + torch.cuda if torch.cuda else 'the CPU'}")


def _gpus(gpus: Sequence[Gpu], torch: Torch | Exception, probes: Probes) -> list[Finding]:
    if not gpus:
        if isinstance(torch, Torch) and torch.sees_gpu:
            return [Finding("GPU", "good", "one that nvidia-smi does not list")]
        slow = (
            "training at full size: the experiments made for the CPU (quickstart, *-cpu, most of papers/) run, the others "
            "take days"
        )
        return [Finding("GPU", "note", "no NVIDIA GPU", slow, "a machine with one, or Colab (notebooks/run_all.ipynb)")]
    return [_gpu(gpu, torch, probes) for gpu in gpus]


def _gpu(gpu: Gpu, torch: Torch | Exception, probes: Probes) -> Finding:
    capability = ".".join(map(str, gpu.capability))
    text = f"{gpu.name}, {gpu.memory / 2**30:.0f} GB, compute capability {capability}, driver {gpu.driver}"
    anew = f"{_anew()}   # picks the build that this GPU and driver need"
    unused = "using this GPU: everything runs on the CPU"
    if isinstance(torch, Exception):
        return Finding("GPU", "note", text, unused, ENVIRONMENT)
    if torch.cuda is None:
        return Finding("GPU", "note", f"{text}; this torch is built for the CPU", unused, anew)
    driver = int(re.match(r"\d*", gpu.driver)[0] or 0)  # type: ignore[index]
    needed = DRIVERS.get(int(torch.cuda.split(".")[0]), 0)
    if driver < needed:
        mend = anew if driver >= DRIVERS[12] else f"update the NVIDIA driver to {needed} or newer"
        return Finding("GPU", "note", f"{text}; CUDA {torch.cuda} needs driver {needed} or newer", unused, mend)
    if not has_kernels(gpu.capability, torch.architectures):
        kernels = f"this torch has no kernels for it (sm_{gpu.capability[0]}{gpu.capability[1]}), only for "
        return Finding(
            "GPU", "bad", f"{text}; {kernels}{', '.join(torch.architectures)}",
            "training and predicting, unless the GPU is hidden (CUDA_VISIBLE_DEVICES= bash run_all.sh)", anew,
        )  # fmt: skip
    if not torch.sees_gpu:
        hidden = probes.setting("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return Finding(
                "GPU",
                "note",
                f"{text}; hidden by CUDA_VISIBLE_DEVICES={hidden!r}",
                unused,
                "unset CUDA_VISIBLE_DEVICES",
            )
        return Finding(
            "GPU",
            "note",
            f"{text}; torch does not see it",
            unused,
            "python -c 'import torch; torch.cuda.init()'  # says why",
        )
    return Finding("GPU", "good", f"{text}; this torch has kernels for it")


def _mmcv(torch: Torch | Exception, probes: Probes) -> Finding:
    for_cuda = _try(probes.mmcv_operators)
    if isinstance(for_cuda, Exception):
        return Finding(
            "mmcv", "bad", f"its operators do not work: {_told(for_cuda)}", "every MMDetection model", ENVIRONMENT
        )
    gpu = isinstance(torch, Torch) and torch.sees_gpu
    if not for_cuda and not gpu:
        return Finding("mmcv", "good", "operators for the CPU")
    if not for_cuda:
        compiler = "" if _nvcc(probes) else "install the CUDA toolkit (nvcc) of torch's CUDA version, then: "
        return Finding(
            "mmcv", "note", "operators for the CPU only, but torch sees a GPU",
            "using the GPU for MMDetection models: they train and predict on the CPU",
            f"{compiler}{_anew()}",
        )  # fmt: skip
    if not gpu:
        return Finding("mmcv", "good", "operators for CPU and CUDA")
    failed = _try(probes.mmcv_on_gpus)
    if failed:
        return Finding(
            "mmcv", "bad", f"its operators do not run on the GPU, for which they were not compiled: {_first_line(failed)}",
            "every MMDetection model, unless the GPU is hidden (CUDA_VISIBLE_DEVICES= bash run_all.sh)",
            f"{_anew()}   # compiles for the GPUs here",
        )  # fmt: skip
    return Finding("mmcv", "good", "operators for CPU and CUDA; they run on the GPU")


def _mmdet(probes: Probes) -> Finding:
    version = _try(probes.mmdet)
    if isinstance(version, Exception):
        return Finding("MMDetection", "bad", _told(version), "every MMDetection model", ENVIRONMENT)
    return Finding("MMDetection", "good", version)


def _detectron2(probes: Probes) -> Finding:
    version = _try(probes.detectron2)
    if isinstance(version, Exception):
        install = f"{_here(sys.executable)} -m pip install --no-build-isolation -r requirements-detectron2.txt"
        return Finding(
            "Detectron2", "note", _told(version), "Detectron2 models: they are skipped, the rest runs", install
        )
    return Finding("Detectron2", "good", version)


def _disk(probes: Probes) -> Finding:
    folder = Path(probes.setting("MASKFOLD_ROOT") or PROJECT)
    free = probes.free_disk(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
    text = f"{free / 1e9:.0f} GB free in {folder}"
    elsewhere = "free some, or keep the artifacts elsewhere: MASKFOLD_ROOT=/large/disk bash run_all.sh"
    if free < DISK[0]:
        return Finding("disk", "bad", text, "everything: a run writes checkpoints and images", elsewhere)
    if free < DISK[1]:
        return Finding(
            "disk", "note", text, "large experiments: several models on many folds take 15 GB and more", elsewhere
        )
    return Finding("disk", "good", text)


def _memory(probes: Probes) -> Finding:
    total = probes.memory()
    text = f"{total / 1e9:.0f} GB"
    if total < MEMORY[0]:
        return Finding("memory", "bad", text, "training: it takes 2 to 4 GB", "a machine with more memory")
    if total < MEMORY[1]:
        less = "bash run_all.sh --cores 1 runs one training at a time"
        return Finding("memory", "note", text, "trainings side by side, dense images at full size", less)
    return Finding("memory", "good", text)


def _cores(probes: Probes) -> Finding:
    cores = probes.cores()
    if cores < 2:
        return Finding(
            "cores", "note", "1", "the documented times: everything takes twice as long", "a machine with more cores"
        )
    return Finding("cores", "good", str(cores))


def _tools(gpu: bool, probes: Probes) -> list[Finding]:
    git, nvcc = probes.command("git"), _nvcc(probes)
    findings = [Finding("git", "note", "not installed", "installing Detectron2", "apt-get install git")]
    if git:
        findings = [Finding("git", "good", git)]
    if nvcc:
        findings.append(Finding("nvcc", "good", nvcc))
    elif gpu:
        findings.append(
            Finding("nvcc", "note", "not installed", "compiling mmcv for the GPU", "install the CUDA toolkit")
        )
    else:
        findings.append(Finding("nvcc", "good", "not installed, and not needed without a GPU"))
    return findings


def _nvcc(probes: Probes) -> str | None:
    """The compiler that torch would use (torch.utils.cpp_extension)."""
    toolkit = probes.setting("CUDA_HOME") or probes.setting("CUDA_PATH")
    if toolkit:
        return probes.command(f"{toolkit}/bin/nvcc")
    return probes.command("nvcc") or probes.command("/usr/local/cuda/bin/nvcc")


def _try(probe: Callable[[], T]) -> T | Exception:
    try:
        return probe()
    except Exception as error:  # a broken installation raises anything: ImportError, OSError, AttributeError
        return error


def _told(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "not installed" if error.name is None else f"not installed (no module {error.name})"
    return f"does not load: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _anew() -> str:
    """The command that makes the environment again, without what the last one left."""
    return f"rm -rf {_here(sys.prefix)} && {ENVIRONMENT}"


def _here(path: str) -> str:
    """A path as one would type it in the project's folder."""
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else path


# ---------------------------------------------------------------- telling ---------------------------------------------


def ready(findings: Iterable[Finding]) -> bool:
    """Whether the quickstart can run."""
    return all(finding.state != "bad" for finding in findings)


def describe(findings: Sequence[Finding]) -> str:
    """The findings as text, a line each, and below it what is stopped and what mends it."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:4}  {finding.name:{width}}  {finding.text}")
        for title, text in (("stops", finding.stops), ("mend", finding.mend)):
            if text:
                lines.append(f"{'':4}  {'':{width}}    {title}: {text}")
    lines.append("")
    lines.append("The quickstart can run: bash run_all.sh" if ready(findings) else "The quickstart cannot run yet.")
    return "\n".join(lines)


def run() -> int:
    """Print the findings; the exit status: 0 when the quickstart can run, else 1."""
    findings = diagnose()
    print(describe(findings))
    return 0 if ready(findings) else 1
