"""The experiment file: one YAML, typed and checked on load, and the names of every artifact that a run makes."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline import per_class

PROJECT = Path(__file__).resolve().parent.parent
"""The folder that holds run_all.sh, configs/, folds/, artifacts/ and submissions/."""

ALL = "all"
"""The name of the fold that trains on every image; it has no out-of-fold predictions."""


class ExperimentError(ValueError):
    """The experiment file is wrong. The message names the file, the setting and the way out."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataSettings(Settings):
    """Where the competition's files are."""

    path: list[str] = []
    """One path or a list, of which the first that exists is used. Relative ones start at the project's folder."""
    options: dict[str, Any] = {}
    """The competition's own, by name; each competition's stand below."""

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class FoldSettings(Settings):
    """How the training images are divided."""

    count: int = Field(5, ge=2)
    """Parts, each of which is held out once."""
    repeats: int = Field(1, ge=1)
    """So many divisions, each into `count` folds, numbered on: every image then has as many models that never saw it, and
    what more models gain is measured out of fold."""
    file: str | None = None
    """A CSV with the columns image and fold (and fold_2, …) that divides the images instead, e.g. a paper's own division. Images
    are called as folds/<run>.csv has them, which a run without this setting writes, e.g. ``images/train/a.png``. A relative path
    starts at the current folder or, where it is not there, at the project's."""
    use: list[int] | None = None
    """The folds to train, from 0; null for all."""
    final: bool = False
    """Also train every model on all images, for the test images only."""

    @property
    def total(self) -> int:
        return self.count * self.repeats


class Augmentation(Settings):
    """One albumentations transform by its class name, e.g. ``{name: HEStain, p: 0.5, args: {...}}``."""

    name: str
    """Of the class in albumentations."""
    p: float = Field(0.5, ge=0, le=1)
    """How often it is applied, of 1."""
    args: dict[str, Any] = {}
    """The class's own arguments."""


class TrainSettings(Settings):
    """One training. Lengths are in iterations, sizes in pixels of the network's input."""

    iterations: int = Field(1000, ge=1)
    """Steps of the optimizer."""
    batch: int = Field(2, ge=1)
    """Crops a step."""
    crop: int | float | list[float] = 256
    """What the network is shown of an image in training: a square of this side, 32 or more, of the resized image; or this part of
    each side, above 0 up to 1; or a part of each side drawn from [smallest, largest]. A part is cut out before it is resized. In
    a batch of unequal sizes the smaller ones are padded below and at the right, as both frameworks do; networks that spread what
    they find over the whole frame, as SOLO and Seq2Seg, should have equal ones."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Images are resized by a factor drawn (log-uniformly) from this range, smallest first, before the crop is cut."""
    scales: list[Annotated[float, Field(gt=0)]] = []
    """Factors above 0 of which one is drawn instead, each as often."""
    shortest_edge: list[Annotated[int, Field(ge=8)]] = []
    """Lengths of which one is drawn instead, each as often, for the shorter side of what is shown: of the image or, where `crop`
    is a part of it, of that part, so that objects come out larger than at the same length of a view."""
    longest_edge: int | None = Field(None, ge=8)
    """With shortest_edge, the longer side comes out no longer than this, and the shorter one in proportion; null for no limit."""
    augment: list[Augmentation] = []
    """Applied to the crops in this order, by both frameworks."""
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    """SGD has a momentum of 0.9."""
    learning_rate: float = Field(1e-3, gt=0)
    """The highest, after the warm-up."""
    weight_decay: float = Field(0.05, ge=0)
    """Of weights. AdamW's is decoupled, so that with 0 it is Adam."""
    bias_decay: bool = False
    """Biases decay as weights do, but those of normalisation layers."""
    norm_decay: bool = False
    """Scales and shifts of normalisation layers decay as weights do."""
    warmup: int = Field(50, ge=0)
    """Iterations in which the rate rises, half of all at most."""
    warmup_start: float = Field(0.01, gt=0, le=1)
    """What it rises from, as a part of the highest."""
    schedule: Literal["cosine", "multistep"] = "cosine"
    """How the rate falls after that: along half a cosine to a hundredth, or in steps."""
    milestones: list[Annotated[int, Field(ge=1)]] = []
    """The iterations at which the rate falls; multistep needs them."""
    decay: float | list[float] = 0.1
    """What it is multiplied by at a milestone, above 0 and below 1: one number, or one for each milestone."""
    clip: float | None = Field(10.0, gt=0)
    """Largest gradient norm; null for no limit."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Momentum of the exponential moving average of the weights, e.g. 0.002; null for none."""
    amp: bool = True
    """Mixed precision, on a GPU only."""
    checkpoint_every: int = Field(200, ge=1)
    """Iterations between checkpoints: as much is lost when a run is killed, twice that if it was while writing one."""
    log_every: int = Field(20, ge=1)
    """Iterations between lines of the log."""
    workers: int = Field(0, ge=0)
    """Processes that prepare crops; 0 prepares them between the steps."""

    @model_validator(mode="after")
    def _fit_together(self) -> TrainSettings:
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule multistep needs milestones, the iterations at which the rate falls")
        said = [key for key in WAYS if getattr(self, key) != TrainSettings.model_fields[key].default]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} both say how large an image is shown; give one of them")
        if self.longest_edge is not None and self.longest_edge < max(self.shortest_edge, default=self.longest_edge + 1):
            what = "is below a shortest_edge" if self.shortest_edge else "would do nothing without shortest_edge"
            raise ValueError(f"longest_edge, {self.longest_edge}, {what}")
        if isinstance(self.decay, list) and len(self.decay) != len(self.milestones):
            raise ValueError(f"decay has {len(self.decay)} numbers for {len(self.milestones)} milestones")
        return self

    @field_validator("decay", mode="before")
    @classmethod
    def _are_factors(cls, value: Any) -> Any:
        for factor in value if isinstance(value, list) else [value]:
            if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < 1:
                raise ValueError("a number above 0 and below 1, or a list of such")
        return value

    @field_validator("crop", mode="before")
    @classmethod
    def _is_a_side_or_a_part(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
            if 0 < numbers[0] <= numbers[-1] <= 1:
                return [float(n) for n in numbers] if len(numbers) == 2 else float(value)
            if len(numbers) == 1 and 32 <= value < math.inf and value == int(value):
                return int(value)
        raise ValueError(
            "a side of 32 or more pixels, a part of each side, above 0 up to 1, or [smallest, largest] part"
        )

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("scale is [smallest, largest], both above 0")
        return value


WAYS = ("scale", "scales", "shortest_edge")
"""Settings of a training each of which says, in its way, how large an image is shown."""


NOT_IN_THE_RESULT = ("checkpoint_every", "log_every", "workers")
"""Settings of a training that change how it is watched, not what it learns."""


class TileSettings(Settings):
    """Windows that an image is cut into before the network sees it, in pixels of the original; see pipeline/tiles.py.

    The overlap should exceed the size of most objects: a larger one is put together from its parts.
    """

    size: int = Field(ge=64)
    """Side of a window."""
    overlap: int = Field(128, ge=8)
    """At least so many pixels are shared by neighbouring windows; half of the size at most."""

    @model_validator(mode="after")
    def _tiles_advance(self) -> TileSettings:
        if 2 * self.overlap > self.size:
            raise ValueError(f"an overlap of {self.overlap} is more than half of the size, {self.size}")
        return self


class PredictSettings(Settings):
    """Inference."""

    views: list[str] = Field(["identity"], min_length=1)
    """Turns and sizes under which an image is shown: ``hflip``; ``hflip@2.0``, of twice the size; ``hflip@800px``, the shorter
    side of 800 pixels; ``hflip@800-1333px``, the longer one of 1,333 at most. See pipeline/views.py."""
    oof_views: list[str] | None = None
    """Views for the out-of-fold images where they should be fewer than for the test images."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """What a network scores below this is not kept."""
    max_detections: int = Field(1000, ge=1)
    """What a network may find in one view of an image or, where there are tiles, of one tile."""
    tile: TileSettings | None = None
    """For images too large for the memory; null shows every image whole."""
    batch: int = Field(1, ge=1)
    """How many views and tiles of one size go through the network at a time, at most."""

    @field_validator("views", "oof_views")
    @classmethod
    def _views_are_known(cls, names: list[str] | None) -> list[str] | None:
        from pipeline.views import parse

        if names is None:
            return None
        named = [str(parse(name)) for name in names]  # hflip@2 is hflip@2.0
        for name in named:
            if named.count(name) > 1:
                raise ValueError(f"{name} is there more than once")
        return named

    @model_validator(mode="after")
    def _tiles_have_a_scale(self) -> PredictSettings:
        if self.tile is None:
            return self
        from pipeline.views import parse

        lengths = [name for name in [*self.views, *(self.oof_views or [])] if parse(name).shortest is not None]
        if lengths:
            raise ValueError(
                f"the view {lengths[0]} says how long a side of the image is, and a tile is a part of an image; where there are "
                "tiles, views have factors, e.g. hflip@1.5"
            )
        return self


class FusionSettings(Settings):
    """How the voters' detections become one list.

    ``tune`` replaces the defaults by what out-of-fold data supports; what an experiment names itself stays as it is, but for
    weights other than 0.
    """

    method: Literal["wbf", "nmw", "nms", "soft-nms-linear", "soft-nms-gaussian", "concatenate"] = "wbf"
    """See fusion/clusters.py."""
    iou: per_class.Overlap = 0.5
    """Overlap above which two detections are the same object, above 0 and below 1. One number, or one for each category by
    its name or id."""
    overlap: Literal["box", "mask"] = "box"
    """What the overlap is measured on."""
    skip: per_class.Score = 0.05
    """Detections scored below this, from 0 to 1, do not vote. One number, or one for each category."""
    confidence: Literal["avg", "max", "box_and_model_avg", "absent_model_aware_avg"] = "avg"
    """Of a cluster of weighted boxes fusion, see fusion/clusters.py."""
    views: list[str] | None = None
    """The views that vote; null for all."""
    one_per_source: bool = False
    """At most one detection of a voter in a cluster."""
    member_weight: Literal["score", "voter"] = "score"
    """What weighs a member's mask in the average: its score x its voter's weight, or the voter's weight alone."""
    sigma: float = Field(0.5, gt=0)
    """soft-nms-gaussian: an overlap o leaves exp(-o o / sigma) of a score."""
    floor: float = Field(0.001, ge=0, lt=1)
    """Soft-NMS drops what has decayed to this score or below."""
    weights: dict[str, float] = {}
    """0 or more per model; 1 where none is given. ``tune`` begins from these; a model of weight 0 stays out."""
    rescore: Literal["none", "mask", "learned"] = "mask"
    """none: the cluster's score. mask: times the mean probability inside the mask. learned: see fusion/rescore.py."""
    fill_holes: bool = True
    """Of a fused mask."""
    largest_part: bool = False
    """Keep the largest connected part of a fused mask alone."""
    min_area: per_class.Area = 0
    """Masks of fewer pixels are dropped; 0 or more. One number, or one for each category."""
    overlap_removal: Literal["none", "score", "probability"] = "none"
    """Who keeps a pixel that several masks claim: all; the best-scored; the one with the larger probability there."""
    duplicates: float | None = Field(None, gt=0, le=1)
    """Drop a fused mask that shares at least this fraction of the smaller one with a better-ranked one of its category; null
    to keep all."""
    tune: bool = True
    """Choose what the experiment does not name on out-of-fold predictions."""
    nested: bool = True
    """Also estimate what tuned settings are worth on images that they were not chosen on; takes as long as tuning itself
    two or three times more."""


class SubmissionSettings(Settings):
    """What of the fused detections is handed in."""

    max_per_image: int = Field(300, ge=1)
    """Best-ranked masks kept per image."""
    min_score: float | None = Field(None, ge=0, le=1)
    """Masks scored below this are left out. Null: `tune` chooses it where the metric has no confidences, and so counts
    every mask alike; where the metric ranks masks by score, none is left out."""
    counted: int | None = Field(None, ge=1)
    """How many detections of an image and class the metric counts, for competitions that do not say; null: their default."""


class ModelSettings(Settings):
    """One model: its framework, its config file, and what it does differently from the others."""

    framework: Literal["mmdet", "detectron2"]
    """Whose model it is."""
    config: str
    """A name that ``python -m pipeline models`` lists, or a file; a relative path starts at the current folder or, where it is
    not there, at the project's."""
    options: dict[str, Any] = {}
    """Overrides in the framework's own config language, dotted keys."""
    weights: str | None = None
    """Pretrained weights, a path (relative as for config), a URL or ``timm://<model>.<tag>``; null for random weights; the
    config's own where this is ``config``. What does not fit, as a head for other classes, begins at random, and is told."""
    stain: Literal["macenko"] | None = None
    """Show this model every image, in training and prediction, as if stained as one reference is: see backends/stain.py."""
    seed: int = 0
    """Another number, other first weights and samples: one model under two names and two seeds shows how far luck alone
    carries."""
    train: dict[str, Any] = {}
    """What differs from the experiment's ``train``, the same keys; a list is replaced whole. One of ``scale``, ``scales`` and
    ``shortest_edge`` stands in the place of whichever the experiment has; ``longest_edge`` stays with a ``shortest_edge``."""
    predict: dict[str, Any] = {}
    """What differs from the experiment's ``predict``, the same keys; ``tile`` is replaced whole."""


class Experiment(Settings):
    """A whole run. It is called as its file is, unless a ``name`` in it says otherwise."""

    name: str
    description: str = ""
    """For people; the report shows it."""
    competition: str
    """A name that ``python -m pipeline datasets`` lists; ``coco`` for data of your own in COCO's format."""
    data: DataSettings = DataSettings()
    seed: int = 0
    """Of the folds, of every training (its first weights and its samples), of `tune`, and of data that the project draws."""
    folds: FoldSettings = FoldSettings()
    models: dict[str, ModelSettings] = Field(min_length=1)
    """By names of your own; see the group below."""
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    fusion: FusionSettings = FusionSettings()
    submission: SubmissionSettings = SubmissionSettings()
    threads: int = Field(1, ge=1)
    """CPU cores of one training or prediction; with more cores, independent ones run side by side."""

    @model_validator(mode="after")
    def _models_are_whole(self) -> Experiment:
        for name in self.models:
            for group, settings in (("train", self.train_settings), ("predict", self.predict_settings)):
                try:
                    settings(name)
                except ValidationError as error:
                    # pydantic would pass this one on without saying which model it is about
                    lines = explain(error, type(getattr(self, group)), ("models", name, group))
                    raise ValueError("\n  ".join(lines)) from error
        unknown = set(self.fusion.weights) - set(self.models)
        if unknown:
            raise ValueError(
                f"fusion.weights names {sorted(unknown)}, which are not among the models {sorted(self.models)}"
            )
        predicted = list(dict.fromkeys(view for name in self.models for view in self.predict_settings(name).views))
        absent = [view for view in self.fusion.views or [] if view not in predicted]
        if absent:
            raise ValueError(
                f"fusion.views: no model predicts {absent[0]!r}{nearest(absent[0], predicted)}; predicted are {predicted}"
            )
        if any(w < 0 for w in self.fusion.weights.values()):
            raise ValueError(f"fusion.weights are 0 or more, not {self.fusion.weights}")
        if not self.fold_names():
            raise ValueError("folds.use is empty and folds.final is false, so nothing would be trained")
        if self.folds.use is not None and not set(self.folds.use) <= set(range(self.folds.total)):
            raise ValueError(f"folds.use {self.folds.use} leaves 0..{self.folds.total - 1}")
        return self

    def held(self) -> list[str]:
        """The fusion settings that the experiment itself names, so that `tune` does not choose them."""
        return sorted(self.fusion.model_fields_set - {"weights", "tune", "nested"})

    def train_settings(self, model: str) -> TrainSettings:
        """The experiment's `train` with the model's own changes; where these say how large an image is shown, in whichever way,
        what the experiment says of that does not count."""
        own = self.models[model].train
        others = self.train.model_dump()
        if any(key in own for key in WAYS):
            others = {key: value for key, value in others.items() if key not in WAYS}
            if not own.get("shortest_edge"):
                del others["longest_edge"]
        return TrainSettings.model_validate({**others, **own})

    def predict_settings(self, model: str) -> PredictSettings:
        return PredictSettings.model_validate({**self.predict.model_dump(), **self.models[model].predict})

    def views(self, model: str, part: str) -> list[str]:
        """The views of a model on a part of the data, ``oof`` or ``test``."""
        settings = self.predict_settings(model)
        return settings.oof_views if part == "oof" and settings.oof_views is not None else settings.views

    def validation_folds(self) -> list[int]:
        """The folds that are trained and have out-of-fold predictions."""
        return list(range(self.folds.total)) if self.folds.use is None else list(self.folds.use)

    def fold_names(self) -> list[str]:
        """Every training of a model: the folds by number, then ``all`` when a final model is wanted."""
        return [str(k) for k in self.validation_folds()] + ([ALL] if self.folds.final else [])

    def only(self, models: list[str] | None, folds: list[str] | None) -> Experiment:
        """The same run cut down to some models and folds.

        Raises:
            ExperimentError: a model or fold that the experiment does not have.
        """
        data = self.model_dump()
        data["fusion"] = self.fusion.model_dump(exclude_unset=True)
        for wanted, known, what in ((models, list(self.models), "model"), (folds, self.fold_names(), "fold")):
            for item in wanted or []:
                if item not in known:
                    raise ExperimentError(
                        f"{self.name} has no {what} {item!r}{nearest(item, known)}; it has {', '.join(known)}"
                    )
        if models:
            data["models"] = {k: v for k, v in data["models"].items() if k in models}
            data["fusion"]["weights"] = {k: v for k, v in self.fusion.weights.items() if k in models}
        if folds:
            data["folds"]["use"] = [int(f) for f in folds if f != ALL]
            data["folds"]["final"] = ALL in folds
        views = data["fusion"].get("views")
        if models and views:
            predicted = {view for name in models for view in self.predict_settings(name).views}
            data["fusion"]["views"] = [view for view in views if view in predicted]
            if not data["fusion"]["views"]:
                raise ExperimentError(
                    f"{self.name}: {', '.join(models)} predict none of fusion.views, {', '.join(views)}"
                )
        return Experiment.model_validate(data)

    def folds_file(self) -> Path | None:
        """The CSV that `folds.file` names.

        Raises:
            ExperimentError: it is not there.
        """
        if self.folds.file is None:
            return None
        path = place(self.folds.file)
        if not path.is_file():
            raise ExperimentError(f"folds.file: there is no file {self.folds.file}, neither here nor as {path}")
        return path

    def data_path(self) -> Path | None:
        """The first of `data.path` that exists; None for a competition that needs no files.

        Raises:
            ExperimentError: none of them exists.
        """
        if not self.data.path:
            return None
        candidates = [Path(p).expanduser() for p in self.data.path]
        candidates = [p if p.is_absolute() else PROJECT / p for p in candidates]
        for candidate in candidates:
            if candidate.exists():
                return candidate
        raise ExperimentError(
            f"{self.name}: no data at {' or '.join(str(c) for c in candidates)}; "
            f"set data.path in the experiment file or pass --data PATH; where to get them: python -m pipeline datasets"
        )


def place(name: str) -> Path:
    """A file that an experiment names: as given, or below the project's folder."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or path.exists() else PROJECT / path


def digest(*values: Any) -> str:
    """A short hash of plain settings, independent of key order."""
    text = json.dumps([v.model_dump() if isinstance(v, BaseModel) else v for v in values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- loading ---------------------------------------------


def find(name: str) -> Path:
    """The file of an experiment given by name (in configs/experiments) or by path.

    Raises:
        ExperimentError: there is none; the message names the nearest and lists the known ones.
    """
    direct = Path(name)
    if direct.suffix in (".yaml", ".yml"):
        if direct.exists():
            return direct
        raise ExperimentError(f"there is no experiment file {direct}")
    folder = PROJECT / "configs" / "experiments"
    path = folder / f"{name}.yaml"
    if path.exists():
        return path
    known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    raise ExperimentError(f"there is no experiment {name!r}{nearest(name, known)}; known: {', '.join(known)}")


def load(name: str, overrides: dict[str, Any] | None = None) -> Experiment:
    """Load and check an experiment by name or path.

    Args:
        name: ``quickstart``, or the path of a YAML file.
        overrides: dotted keys and their values, e.g. ``{"train.iterations": 100}``.

    Raises:
        ExperimentError: no such file, not YAML, an unknown key (the nearest is named), a value of the wrong kind.
    """
    path = find(name)
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ExperimentError(f"{path} holds no settings")
    for dotted, value in (overrides or {}).items():
        group, _, rest = dotted.partition(".")
        known, (name, dot, _) = list(raw.get("models") or {}), rest.partition(".")
        if group == "models" and dot and name not in known:
            raise ExperimentError(
                f"{dotted}: there is no model {name!r}{nearest(name, known)}; there are {', '.join(known)}"
            )
        _assign(raw, dotted.split("."), value)
    try:
        return Experiment.model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        given = f", with {', '.join(overrides)} from the command line" if overrides else ""
        lines = "\n".join(f"  {line}" for line in explain(error, Experiment))
        raise ExperimentError(f"{path}{given}:\n{lines}") from error


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for i, key in enumerate(keys[:-1]):
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise ExperimentError(f"{'.'.join(keys[: i + 1])} is a value, not a group of settings")
        tree = child
    tree[keys[-1]] = value


def explain(error: ValidationError, inside: type[BaseModel], above: tuple[str, ...] = ()) -> list[str]:
    """A line for each problem of settings that are wrong.

    Args:
        inside: whose settings they are.
        above: where in the experiment they stand.
    """
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        where = ".".join([*above, *location])
        if problem["type"] == "extra_forbidden":
            known = list(_settings_at(location[:-1], inside).model_fields)
            has = f"known here: {', '.join(known)}" if known else "there is none here"
            lines.append(f"unknown setting {where}{nearest(location[-1], known)}; {has}")
        elif problem["type"] == "missing":
            lines.append(f"{where} is missing")
        elif not location or isinstance(problem["input"], dict) and problem["type"] == "value_error":
            # of a group as a whole, which is too long to be shown
            lines.append((f"{where}: " if where else "") + problem["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')} (it is {problem['input']!r})"[:600])
    return lines


def _settings_at(location: list[str], inside: type[BaseModel]) -> type[BaseModel]:
    """The settings class that holds the keys at a place below another."""
    steps = iter(location)
    for key in steps:
        found = groups_in(inside.model_fields[key].annotation) if key in inside.model_fields else []
        if found:
            inside, suffix = found[0]
            if suffix:
                next(steps, None)  # a name of the user's own, or a place in a list
    return inside


def groups_in(annotation: Any) -> list[tuple[type[BaseModel], str]]:
    """The settings classes inside an annotation, each with what its dotted name gets: .NAME in a mapping, [] in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    suffix = {dict: ".NAME", list: "[]"}.get(get_origin(annotation), "")
    return [(cls, suffix + rest) for inner in get_args(annotation) for cls, rest in groups_in(inner)]


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean …?)`` with the known word that is most like this one; empty where none is."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


# ---------------------------------------------------------------- where things are ------------------------------------


@dataclass(frozen=True)
class Layout:
    """The names of a run's artifacts. `root` holds artifacts/, folds/ and submissions/ (the project by default)."""

    run: str
    root: Path = PROJECT

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts" / self.run

    @property
    def train_json(self) -> Path:
        return self.artifacts / "data" / "train.json"

    @property
    def test_json(self) -> Path:
        return self.artifacts / "data" / "test.json"

    @property
    def integrity(self) -> Path:
        return self.artifacts / "data" / "integrity.json"

    @property
    def folds(self) -> Path:
        return self.root / "folds" / f"{self.run}.csv"

    @property
    def folds_record(self) -> Path:
        """What `split` remembers of the CSV as it last left or checked it."""
        return self.artifacts / "folds.json"

    def training(self, model: str, fold: str) -> Path:
        """Folder of one training; its framework checkpoints and logs are in ``work/`` below it."""
        return self.artifacts / "models" / model / f"fold-{fold}"

    def checkpoint(self, model: str, fold: str) -> Path:
        return self.training(model, fold) / "checkpoint.pth"

    def predictions(self, model: str, fold: str, part: str) -> Path:
        """`part` is ``oof`` (the fold's own validation images) or ``test``."""
        return self.artifacts / "predictions" / model / f"fold-{fold}-{part}.parquet"

    @property
    def fusion(self) -> Path:
        return self.artifacts / "fusion.yaml"

    def fused(self, part: str) -> Path:
        return self.artifacts / "fused" / f"{part}.parquet"

    @property
    def scores(self) -> Path:
        return self.artifacts / "scores.json"

    @property
    def report(self) -> Path:
        return self.artifacts / "report.html"

    def submission(self, suffix: str = ".zip") -> Path:
        return self.root / "submissions" / f"{self.run}{suffix}"
