"""A copy of the project in which every stage only leaves its mark: the real graph, commands and locks, without the
work.

Each stage appends a line to trace.txt and writes its artifacts from what it read. The training takes as many steps of
0.02 seconds as it has iterations and keeps its place in work/, as real ones do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.experiment import PROJECT, Layout

_COMMON = '''
"""Marks."""
from pipeline.files import writing

def mark(layout, *words):
    with open(layout.root / "trace.txt", "a") as handle:
        handle.write(" ".join(map(str, words)) + "\\n")

def put(path, *content):
    with writing(path) as temporary:
        temporary.write_text(" ".join(map(str, content)))
'''

_HELPERS = """
def of_training(value):
    return value + 1

def of_fusing(value):
    return value + 1

def of_both(value):
    return value + 1

def of_nobody(value):
    return value + 1
"""

_STAGES = {
    "prepare": """
import json
from pipeline import competitions, toy
def run(experiment, layout):
    toy.mark(layout, "prepare")
    images = [{"file_name": "images/one.png"}]
    toy.put(layout.train_json.parent / "images" / "one.png", "pixels")
    source = experiment.data_path()
    read = source.read_text() if source else experiment.data.options
    toy.put(layout.train_json, json.dumps({"images": images, "read": read, "categories": [{"id": 1, "name": "cell"}]}))
    toy.put(layout.test_json, json.dumps({"images": images}))
    toy.put(layout.integrity, "fine")
""",
    "split": """
from pipeline import competitions, folds, toy
def run(experiment, layout):
    toy.mark(layout, "split")
    if not layout.folds.exists():
        toy.put(layout.folds, experiment.folds.count)
    folds.remember(layout.folds, layout.folds_record, by_hand=False)
""",
    "train": """
import time
from pipeline import toy, toy_helpers
from pipeline.supervision import exclusive
def run(experiment, layout, model, fold, version=""):
    folder = layout.training(model, fold)
    place = folder / "work" / "iteration"
    place.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock", f"training of {model} on fold {fold}"):
        begin = int(place.read_text()) if place.exists() else 0
        toy.mark(layout, "train", model, fold, "from", begin)
        if experiment.train_settings(model).learning_rate > 1:
            raise ValueError("the loss became nan; lower train.learning_rate")
        for iteration in range(begin, experiment.train_settings(model).iterations):
            time.sleep(0.02)
            place.with_suffix(".part").write_text(str(iteration + 1))
            place.with_suffix(".part").replace(place)
        place.unlink(missing_ok=True)
        toy.put(layout.checkpoint(model, fold), model, fold, toy_helpers.of_training(1), toy_helpers.of_both(1))
""",
    "predict": """
from pipeline import toy
def run(experiment, layout, model, fold, part):
    toy.mark(layout, "predict", model, fold, part)
    content = layout.checkpoint(model, fold).read_text(), experiment.views(model, part)
    toy.put(layout.predictions(model, fold, part), *content)
""",
    "tune": """
from pipeline import toy
def run(experiment, layout):
    toy.mark(layout, "tune")
    for path in ("fusion.yaml", "fusion/training.parquet", "fusion/ladder.json"):
        toy.put(layout.artifacts / path, experiment.fusion.iou)
""",
    "fuse": """
from pipeline import toy
from pipeline.toy_helpers import of_both, of_fusing
def run(experiment, layout, part):
    toy.mark(layout, "fuse", part)
    toy.put(layout.fused(part), layout.fusion.read_text(), of_fusing(1), of_both(1))
""",
    "score": """
import json
from pipeline import toy
def run(experiment, layout):
    toy.mark(layout, "score")
    toy.put(layout.scores, json.dumps({"metric": "marks", "ensemble": {"score": 0.5}}))
""",
    "encode": """
from pipeline import toy
def run(experiment, layout):
    toy.mark(layout, "encode")
    toy.put(layout.submission(".zip"), layout.fused("test").read_text())
    return layout.submission(".zip")
""",
    "validate": """
from pipeline import toy
def run(experiment, layout):
    toy.mark(layout, "validate")
    toy.put(layout.artifacts / "validation.json", "{}")
""",
    "report": """
from pipeline import toy
def run(experiment, layout):
    toy.mark(layout, "report")
    toy.put(layout.report, "page")
    return layout.report
""",
}

_COMPETITION = """
from pydantic import Field
from pipeline.competitions import Options

class Sizes(Options):
    size: int = Field(256, ge=64)

class Marks:
    options = Sizes
    name, metric, suffix, max_detections = "marks", "marks", ".zip", None
    def read(self, path, options, seed, target): return 1
    def stratum(self, image): return ""
    def score(self, truth, records): return 2
    def write(self, detections, test, path): return 3
    def read_submission(self, path, images=None): return 4
    def read_ids(self, path): return 5
    def validate(self, path, ids): return 6

COMPETITION = Marks()
"""

EXPERIMENT = {
    "competition": "marks",
    "folds": {"count": 2, "use": [0]},
    "models": {
        "a": {"framework": "mmdet", "config": "configs/models/mmdet/plain.py"},
        "b": {"framework": "mmdet", "config": "configs/models/mmdet/derived.py"},
    },
    "train": {"iterations": 2},
}

JOBS = {
    "prepare": 1, "split": 1, "train": 2, "predict": 4, "tune": 1, "fuse": 2, "score": 1, "encode": 1, "validate": 1,
    "report": 1,
}  # fmt: skip
"""How often each stage runs when nothing is made yet."""


@dataclass
class ToyProject:
    folder: Path

    @staticmethod
    def make(folder: Path) -> ToyProject:
        package = folder / "pipeline"
        shutil.copytree(
            PROJECT / "pipeline", package, ignore=shutil.ignore_patterns("__pycache__", "models", "report", "doctor.py")
        )
        for path in (package / "stages").glob("*.py"):
            if path.name != "__init__.py":
                path.unlink()
        shutil.rmtree(package / "competitions" / "formats", ignore_errors=True)
        for path in (package / "competitions").glob("*.py"):
            if path.name != "__init__.py":
                path.unlink()
        files = {
            "pipeline/toy.py": _COMMON,
            "pipeline/toy_helpers.py": _HELPERS,
            "pipeline/backends/mmdet.py": "BACKEND = None\n",
            "pipeline/competitions/marks.py": _COMPETITION,
            "configs/models/mmdet/plain.py": '"""Plain."""\n_base_ = "mmdet::x.py"\nmodel = dict(depth=18)\n',
            "configs/models/mmdet/derived.py": '_base_ = "./plain.py"\nmodel = dict(depth=34)\n',
            "configs/experiments/toy.yaml": yaml.safe_dump(EXPERIMENT),
            **{f"pipeline/stages/{name}.py": text for name, text in _STAGES.items()},
        }
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return ToyProject(folder)

    def copy(self, folder: Path) -> ToyProject:
        """The project with everything it has made, elsewhere; files keep their times."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return ToyProject(folder)

    @property
    def layout(self) -> Layout:
        return Layout("toy", self.folder)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipeline", *words]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MASKFOLD")}
        return {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def call(self, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Call the project's command line, from another folder where one is given."""
        return subprocess.run(
            self.command(*words),
            cwd=folder or self.folder,
            env={**self.environment(), "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words), cwd=self.folder, env=self.environment(), stderr=subprocess.PIPE, text=True
        )

    def run(self, *options: str) -> Counter[str]:
        """Run the graph, check that it succeeded, and say how often each stage ran."""
        before = len(self.trace())
        done = self.call("run", "toy", *options)
        assert done.returncode == 0, done.stderr
        return Counter(line.split()[0] for line in self.trace()[before:])

    def planned(self, *options: str) -> Counter[str]:
        """How often each stage would run."""
        done = self.call("run", "toy", "--dry-run", *options)
        assert done.returncode == 0, done.stderr
        return Counter(line.split()[1].rstrip(":") for line in done.stderr.splitlines() if "would run" in line)

    def trace(self) -> list[str]:
        path = self.folder / "trace.txt"
        return path.read_text().splitlines() if path.exists() else []

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, (file, old)
        path.write_text(text.replace(old, new))

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Wait until the trace holds a line that begins so."""
        deadline = time.monotonic() + seconds
        while not any(line.startswith(text) for line in self.trace()):
            assert time.monotonic() < deadline, f"no {text!r} in {self.trace()}"
            time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """The processes that run the stages of the toy project in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(path / "cwd") == str(folder)
        except OSError:
            continue
        if here and b"pipeline" in words:
            found.append(int(path.name))
    return found


def merged(*counts: Sequence[str]) -> Counter[str]:
    return Counter(name for names in counts for name in names)
