"""The two frameworks behind one protocol: train(…) and predict(…) → Detections."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.experiment import ExperimentError, ModelSettings, PredictSettings, TrainSettings

if TYPE_CHECKING:  # the catalogue of models asks this module what is installed, and needs no arrays for that
    from pipeline.records import Dataset, Detections, Image

FRAMEWORKS = {"mmdet": "mmdet", "detectron2": "detectron2"}
"""Framework name in an experiment file → the package whose presence makes it usable."""


CHATTER = (
    "pkg_resources is deprecated",
    "torch.meshgrid: in an upcoming release",
    "The current default scope",
)
"""What the frameworks say about themselves at every start, of no use to whoever trains."""


class TrainingError(RuntimeError):
    """The training cannot go on: the loss is not a number, or it is exactly zero."""


class CheckpointError(ValueError):
    """A file is not a checkpoint of the model it was given for."""


@dataclass(frozen=True)
class TrainJob:
    """One training.

    Attributes:
        folder: keeps the framework's own checkpoints and logs (``work/``); a second call resumes from there.
        images: the training images only.
        title: what the progress lines and the sources of its detections are called, ``<model>/<fold>``.
        version: of everything else that the result depends on; a training only resumes from its own version.
    """

    model: ModelSettings
    settings: TrainSettings
    images: Dataset
    folder: Path
    title: str
    seed: int
    version: str = ""


@dataclass(frozen=True)
class PredictJob:
    """Inference of one checkpoint over images and views; sources are named ``<title>/<view>``."""

    model: ModelSettings
    settings: PredictSettings
    views: list[str]
    checkpoint: Path
    images: Dataset
    title: str


def not_loadable(source: object, error: Exception) -> CheckpointError:
    """What to say when pretrained weights, by address or path, cannot be loaded."""
    return CheckpointError(
        f"the pretrained weights {source} cannot be loaded ({type(error).__name__}: {error}); download them where there is "
        f"network and give the path as the model's `weights`, or set it to null for random weights"
    )


class Backend(Protocol):
    def train(self, job: TrainJob) -> dict[str, Any]:
        """Train and return the plain state dict (name → tensor) to keep: averaged weights where there is an average."""

    def predict(self, job: PredictJob) -> Iterable[tuple[Image, Detections]]:
        """Yield every image with all its views' Detections in original pixels and category ids."""


def installed(framework: str) -> bool:
    return importlib.util.find_spec(FRAMEWORKS[framework]) is not None


def uses_gpu(framework: str) -> bool:
    """Whether a framework's compiled operators are made for GPUs, without importing them.

    MMDetection's fail with CUDA tensors where mmcv was compiled for the CPU; those of Detectron2 are not needed on the way
    that its models here take. One that is compiled for CUDA is linked against CUDA's runtime, by which it is known
    however it was installed.
    """
    spec = importlib.util.find_spec("mmcv") if framework == "mmdet" else None
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in Path(folder).glob("_ext*.so"):
            return any(name in path.read_bytes() for name in (b"libcudart", b"libtorch_cuda", b"libc10_cuda"))
    return True


def get(framework: str) -> Backend:
    """The backend of a framework.

    Raises:
        ExperimentError: the framework is not installed; the message says how to add it.
    """
    if not installed(framework):
        raise ExperimentError(f"{framework} is not installed, and this model needs it; {how_to_install(framework)}")
    for message in CHATTER:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    backend: Backend = importlib.import_module(f"pipeline.backends.{framework}").BACKEND
    return backend


def how_to_install(framework: str) -> str:
    if framework == "detectron2":
        return f"add it with: {sys.executable} -m pip install --no-build-isolation -r requirements-detectron2.txt"
    return "make the environment with: bash pipeline/environment.sh"
