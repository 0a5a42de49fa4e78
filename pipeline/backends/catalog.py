"""The model configs in configs/models: what they are, where they come from, and what a change of them is.

Everything here reads the config files as text, so that no framework has to be installed, let alone imported.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipeline import codeversion
from pipeline.backends import FRAMEWORKS, how_to_install, installed
from pipeline.experiment import PROJECT, Experiment, ExperimentError, ModelSettings, place

CONFIGS = PROJECT / "configs" / "models"
EXPERIMENTS = PROJECT / "configs" / "experiments"

OWN = "its own file"
"""The origin of a config that builds on none."""

_WEIGHT_KEYS = {"load_from", "init_checkpoint", "checkpoint", "pretrained", "WEIGHTS"}
"""Under which names the frameworks' configs keep the address of pretrained weights."""

_ADDRESSES = {
    "torchvision://": "https://download.pytorch.org/models/",
    "open-mmlab://": "https://download.openmmlab.com/",
    "mmdet://": "https://download.openmmlab.com/",
    "detectron2://": "https://dl.fbaipublicfiles.com/detectron2/",
    "timm://": "https://huggingface.co/timm/",
}
"""Where the frameworks' short addresses lead; those that end in a folder of names are probed by their host."""


@dataclass(frozen=True)
class Entry:
    """One model config.

    Attributes:
        name: its path below configs/models without the ending, ``<framework>/<model>``.
        description: the file's docstring or first comment, one line.
        origin: what it builds on, and what that builds on, as they say so themselves.
        weights: the pretrained weights that it names, all of which it needs; empty for random ones.
    """

    name: str
    path: Path
    framework: str
    description: str
    origin: str
    weights: tuple[str, ...]


def entries(folder: Path = CONFIGS) -> list[Entry]:
    """Every model config, by name. Files that start with an underscore are parts of others."""
    found = []
    for path in sorted(p for ending in ("py", "yaml") for p in folder.rglob(f"*.{ending}")):
        framework = path.relative_to(folder).parts[0]
        if framework in FRAMEWORKS and not path.name.startswith("_"):
            name = path.relative_to(folder).with_suffix("").as_posix()
            found.append(Entry(name, path, framework, _description(path), _origin(path), _weights(path)))
    return found


def experiments_by_model(folder: Path = EXPERIMENTS) -> dict[str, list[str]]:
    """The experiments that use a model, by its name; those that are unfinished or wrong are passed over."""
    listed = {str(key): e.name for e in entries() for key in (e.name, e.path.resolve(), e.path.relative_to(PROJECT))}
    used: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            tree = _read_yaml(path)
        except ExperimentError:
            continue
        models = tree.get("models") if isinstance(tree, dict) else None
        configs = (
            {str(m.get("config")) for m in models.values() if isinstance(m, dict)} if isinstance(models, dict) else ()
        )
        for name in sorted({listed[config] for config in configs if config in listed}):
            used.setdefault(name, []).append(path.relative_to(folder).with_suffix("").as_posix())
    return used


# ---------------------------------------------------------------- which can be used -----------------------------------


def usable(experiment: Experiment) -> tuple[Experiment, list[str]]:
    """The experiment without the models whose framework is not installed, and a line about each of those.

    Raises:
        ExperimentError: no model is left.
    """
    missing = {name: model.framework for name, model in experiment.models.items() if not installed(model.framework)}
    lines = [
        f"{name} is left out: {framework} is not installed ({how_to_install(framework)})"
        for name, framework in missing.items()
    ]
    left = [name for name in experiment.models if name not in missing]
    if not left:
        raise ExperimentError(f"{experiment.name} has no model that can be used here: " + "; ".join(lines))
    return (experiment.only(left, None) if missing else experiment), lines


SUFFIXES = {".py": "mmdet", ".yaml": "detectron2", ".yml": "detectron2"}
"""Whose configs end so."""


USED_OF_MMDET = ("model", "load_from", "custom_imports")
"""What of an MMDetection config is used: schedules, loaders and evaluation are the experiment's matter."""


def check(experiment: Experiment) -> None:
    """See that every model's config is there, can be read, and is its framework's, that its options can have an effect, and that
    weights in a file are there.

    Raises:
        ExperimentError: the message names the model.
    """
    for name, model in experiment.models.items():
        try:
            fingerprint(model.config)
        except ExperimentError as error:
            raise ExperimentError(f"models.{name}.config: {error}") from error
        other = SUFFIXES.get(locate(model.config).suffix, model.framework)
        if other != model.framework:
            raise ExperimentError(
                f"models.{name}: {model.config} is a config of {other}, and its framework is {model.framework}; "
                f"write framework: {other}"
            )
        for key in model.options if model.framework == "mmdet" else ():
            if key.split(".")[0] not in USED_OF_MMDET:
                raise ExperimentError(
                    f"models.{name}.options: {key} would do nothing, since only {', '.join(USED_OF_MMDET)} of an MMDetection "
                    f"config are used here; is model.{key} meant?"
                )
        if (
            model.weights not in (None, "config")
            and not is_address(model.weights)
            and not place(model.weights).is_file()
        ):
            raise ExperimentError(
                f"models.{name}.weights: there is no file {place(model.weights)}; it takes a path, a URL, `config` for those "
                f"that {model.config} names, or null for random ones"
            )


def addresses(model: ModelSettings) -> tuple[str, ...]:
    """From where a training of the model fetches its first weights; nothing where it begins from random ones or a file."""
    if model.weights == "config":
        return tuple(source for source in _weights(locate(model.config)) if is_address(source))
    return (model.weights,) if model.weights is not None and is_address(model.weights) else ()


def first_weights(model: ModelSettings) -> str:
    """What a training begins from, in words."""
    named = _weights(locate(model.config))
    if model.weights == "config":
        return f"from {', '.join(named)}" if named else "from random weights: its config names none to load"
    if model.weights is not None:
        return f"from {model.weights}"
    return "from random weights" + ("; `weights: config` would begin with those its config names" if named else "")


# ---------------------------------------------------------------- what a change is ------------------------------------


def is_address(weights: str) -> bool:
    """Whether weights are a URL or another address (``timm://``, ``torchvision://``), and no path."""
    return "://" in weights


def weights_source(weights: str) -> str:
    """What a framework's loader is to be given for `ModelSettings.weights`: an address as it is, a path found by `place`."""
    return weights if is_address(weights) else str(place(weights))


def locate(config: str) -> Path:
    """The file of `ModelSettings.config`: a path, or a name as `models` lists it.

    Raises:
        ExperimentError: it is not there.
    """
    path = place(config)
    if path.is_file():
        return path
    listed = {entry.name: entry.path for entry in entries()}
    if config in listed:
        return listed[config]
    near = difflib.get_close_matches(config, [*listed, *(str(p.relative_to(PROJECT)) for p in listed.values())], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ExperimentError(f"there is no model config {config}{hint}; `python -m pipeline models` lists those there are")


def fingerprint(config: str) -> str:
    """A hash of a model config and the project's configs it builds on; comments and formatting do not count.

    Raises:
        ExperimentError: there is no such file, or it is not readable as what it claims to be.
    """
    parts = [_content_hash(path, path.stat().st_mtime_ns) for path in _family(locate(config))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def own_modules(config: str) -> list[str]:
    """The modules of this package that a model config imports or names, as roots for `codeversion`."""
    named = {text for path in _family(locate(config)) for text in _texts(path) if text.startswith("pipeline.")}
    places = {name: PROJECT.joinpath(*name.split(".")) for name in named if name.replace(".", "_").isidentifier()}
    return sorted(
        name
        for name, place in places.items()
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
    )


def _texts(path: Path) -> Iterator[str]:
    """Every text that stands in a config as a value, and the modules that it imports."""
    if path.suffix != ".py":
        for _, value in _pairs(_read_yaml(path)):
            yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
        return
    for node in ast.walk(_read_python(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _family(path: Path) -> list[Path]:
    """A config and, depth first, the files it builds on that are on this disk by a plain path."""
    found = [path]
    for each in found:
        for base in bases_of(each):
            other = (each.parent / base).resolve()
            if "::" not in base and other.is_file() and other not in found:
                found.append(other)
    return found


@lru_cache(maxsize=256)
def _content_hash(path: Path, modified: int) -> str:
    if path.suffix == ".py":
        return codeversion.text_hash(path.read_text())
    return hashlib.sha256(json.dumps(_read_yaml(path), sort_keys=True, default=str).encode()).hexdigest()


# ---------------------------------------------------------------- reading configs as text -----------------------------


def bases_of(path: Path) -> list[str]:
    """What a config says it builds on: ``_base_`` or ``_BASE_``, as written there."""
    values = [value for key, value in _assignments(path) if key in ("_base_", "_BASE_")]
    return [
        base for value in values for base in ([value] if isinstance(value, str) else value) if isinstance(base, str)
    ]


def _origin(path: Path) -> str:
    """What a config builds on, down to what is not the project's: ``mmdet/child < mmdet::base.py``."""
    found = []
    for base in bases_of(path):
        other = (path.parent / base).resolve()
        if "::" in base or not other.is_file():
            found.append(base)
        elif other.name.startswith("_"):
            found.append(_origin(other))
        else:
            further = _origin(other)
            found.append(f"{path.parent.name}/{other.stem}" + ("" if further == OWN else f" < {further}"))
    return ", ".join(found) or OWN


def _weights(path: Path) -> tuple[str, ...]:
    found: dict[str, str] = {}
    cleared = False
    for each in _family(path):
        for key, value in _assignments(each):
            if key not in _WEIGHT_KEYS:
                continue
            if isinstance(value, str) and value:
                found.setdefault(value, key)
            else:  # a slim variant of a config that has some
                cleared = True
        if cleared:
            break
    if "load_from" in found.values():  # of the whole network; what a part of it would have started from is not fetched
        first = next(value for value, key in found.items() if key == "load_from")
        found = {v: k for v, k in found.items() if v == first or v.startswith("timm://")}
    return tuple(found)


def _assignments(path: Path) -> Iterator[tuple[str, Any]]:
    """Names, keywords and dictionary keys with their constant values, wherever they stand in a config."""
    if path.suffix != ".py":
        yield from _pairs(_read_yaml(path))
        return
    for node in ast.walk(_read_python(path)):
        if isinstance(node, ast.Assign):
            names = [_last_name(target) for target in node.targets]
            yield from ((name, value) for name in names for value in _constant(node.value))
        elif isinstance(node, ast.keyword) and node.arg:
            yield from ((node.arg, value) for value in _constant(node.value))
        elif isinstance(node, ast.Dict):
            for key, inner in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield from ((str(key.value), value) for value in _constant(inner))


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _constant(node: ast.expr) -> list[Any]:
    try:
        return [ast.literal_eval(node)]
    except ValueError:
        return []


def _pairs(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield str(key), value
            yield from _pairs(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _pairs(value)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path} is not YAML: {error}") from error


def _read_python(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(), str(path))
    except SyntaxError as error:
        raise ExperimentError(f"{path} is not Python: line {error.lineno}: {error.msg}") from error


def _description(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".py":
        lines = (ast.get_docstring(_read_python(path)) or "").split("\n\n")[0].splitlines()
        if lines:
            return " ".join(line.strip() for line in lines)
    comment: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").strip())
    return " ".join(comment)


# ---------------------------------------------------------------- are weights within reach ----------------------------


def reach(weights: list[str], timeout: float = 5.0) -> dict[str, str]:
    """For each address of weights: ``here`` (on this disk), ``reachable``, or ``not reachable`` with the reason."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(weights, pool.map(lambda source: _reach(source, timeout), weights), strict=True))


def _reach(source: str, timeout: float) -> str:
    if not is_address(source):
        return "here" if place(source).is_file() else f"not reachable: there is no file {place(source)}"
    cached = Path.home() / ".cache" / "torch" / "hub" / "checkpoints" / source.rpartition("/")[2]
    if cached.is_file():
        return "here"
    url = source
    for prefix, address in _ADDRESSES.items():
        if source.startswith(prefix):
            named_only = not source.endswith((".pth", ".pkl", ".pt"))
            url = address if named_only else address + source.removeprefix(prefix)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
            return "reachable"
    except urllib.error.HTTPError as error:
        # a host that answers for a folder at all is there
        return "reachable" if url.endswith("/") else f"not reachable: {url} answers {error.code}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"not reachable: {reason}"
