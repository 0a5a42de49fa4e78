"""The report: one HTML page that holds everything it shows, made from whatever a run has left so far."""

from __future__ import annotations

import base64
import json
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import competitions
from pipeline.experiment import Experiment, Layout
from pipeline.files import commit
from pipeline.folds import read_csv
from pipeline.metrics import coco_ap
from pipeline.records import Dataset, Detections
from pipeline.report import data as data_facts
from pipeline.report import figures
from pipeline.report.gallery import Picture, final_picture, spread, verdict_picture
from pipeline.report.outlines import UnreadableImageError
from pipeline.report.scores import Scores, Step, precision_recall, read_ladder, read_scores
from pipeline.report.timings import read_benchmarks
from pipeline.report.training import Training, trainings
from pipeline.report.verdicts import best_threshold, choose, judge

TEST_IMAGES = 6
"""Test images shown."""

MOST_CURVES = 8
"""Classes with a chart of precision and recall of their own."""

EVERY = 1_000_000_000
"""More detections than an image can have: the page's own matching is not cut off."""

_PACKAGES = (
    "torch",
    "torchvision",
    "onedl-mmdetection",
    "onedl-mmcv",
    "onedl-mmengine",
    "detectron2",
    "albumentations",
    "numpy",
    "pycocotools",
    "snakemake",
)


@dataclass
class _Found:
    """What the out-of-fold detections show."""

    charts: list[str] = field(default_factory=list)
    threshold: float = 0.0
    gallery: list[tuple[str, list[Picture]]] = field(default_factory=list)


def build(experiment: Experiment, layout: Layout) -> str:
    """The page's HTML. Parts whose artifacts are not there yet are left out, and what could not be shown is named."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    notes: list[str] = []
    train = Dataset.read(layout.train_json) if layout.train_json.exists() else None
    test = Dataset.read(layout.test_json) if layout.test_json.exists() else None
    scores = read_scores(layout.scores, train.categories if train else {}) if layout.scores.exists() else None
    done = trainings(experiment, layout)
    jobs = read_benchmarks(layout.artifacts / "benchmarks")
    ladder_file = layout.artifacts / "fusion" / "ladder.json"
    ladder = read_ladder(ladder_file) if ladder_file.exists() else []
    found = _found(experiment, layout, train, notes)
    finals = _finals(experiment, layout, test, notes)
    tuned = yaml.safe_load(layout.fusion.read_text()) if layout.fusion.exists() else {}
    fusion = tuned.get("settings")
    settings = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    seconds = sum(j.seconds for j in jobs) or sum(t.seconds or 0.0 for t in done)
    data = _data(layout, train, test)
    sections = [
        ("data", "Data and folds", data),
        ("scores", "Scores", scores),
        ("fusion", "Fusion", ladder or fusion),
        ("training", "Training", done),
        ("gallery", "Found, missed and false", found.gallery),
        ("test", "Test images", finals),
        ("timings", "Timings", jobs),
        ("settings", "Settings and versions", True),
    ]
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, bytes=bytes_, thousands=thousands, measure=measure)
    return environment.get_template("template.html.j2").render(
        run=layout.run,
        description=experiment.description.strip(),
        competition=experiment.competition,
        metric=scores.metric if scores else "",
        scores=scores,
        submission=_submission(experiment, layout),
        seconds=seconds,
        trainings=done,
        jobs=jobs,
        notes=notes,
        sections=[(anchor, title) for anchor, title, content in sections if content],
        data=data and {**data, "charts": [Markup(chart) for chart in data["charts"]]},
        curves=[Markup(chart) for chart in _score_curves(scores)],
        charts=[Markup(chart) for chart in found.charts],
        threshold=found.threshold,
        gallery=found.gallery,
        ladder=ladder,
        ladder_chart=Markup(_ladder_chart(ladder)),
        estimate=tuned.get("estimate"),
        fusion=yaml.safe_dump(fusion, sort_keys=False) if fusion else "",
        learning=[Markup(chart) for chart in _learning_curves(done)],
        finals=finals,
        class_keys=list(test.categories.values()) if test else [],
        settings=settings,
        settings_uri="data:text/yaml;base64," + base64.b64encode(settings.encode()).decode("ascii"),
        versions=_versions(done),
        style=Markup((folder / "style.css").read_text()),
        written=time.strftime("%Y-%m-%d %H:%M"),
    )


# ---------------------------------------------------------------- sections --------------------------------------------


def _data(layout: Layout, train: Dataset | None, test: Dataset | None) -> dict[str, Any] | None:
    if train is None:
        return None
    sizes = {name: data_facts.object_sizes(train, category_id) for category_id, name in train.categories.items()}
    per_image = np.array([len(train.by_image[image.id]) for image in train.images])
    charts = []
    if train.instances:
        charts.append(figures.size_histogram(sizes, "Sizes of the instances"))
        charts.append(figures.histogram(per_image, "Instances per image", "instances", "images"))
    folds = data_facts.folds(train, read_csv(layout.folds)) if layout.folds.exists() else []
    return {
        "images": len(train.images),
        "instances": len(train.instances),
        "test_images": len(test.images) if test is not None else None,
        "sizes": data_facts.image_sizes(train),
        "classes": data_facts.classes(train),
        "charts": charts,
        "folds": folds,
        "problems": data_facts.problems(layout.integrity) if layout.integrity.exists() else None,
    }


def _found(experiment: Experiment, layout: Layout, train: Dataset | None, notes: list[str]) -> _Found:
    if train is None or not layout.fused("oof").exists():
        return _Found()
    if layout.folds.exists():  # images of folds that are not trained have no out-of-fold detections
        used = {row.image for row in read_csv(layout.folds) if set(row.folds) & set(experiment.validation_folds())}
        train = train.subset(image.id for image in train.images if image.file_name in used)
    detections = Detections.read(layout.fused("oof"))
    detections = detections.take(np.isin(detections.image_id, list(train.image)))
    match = coco_ap.match(train, detections)
    truths = sum(not i.crowd for i in train.instances)
    threshold = best_threshold(detections, match, truths)
    gallery = []
    for title, verdicts in choose(judge(train, detections, match, threshold)):
        pictures = []
        for verdict in verdicts:
            try:
                pictures.append(verdict_picture(train, verdict, detections, match))
            except UnreadableImageError as error:
                notes.append(str(error))
        gallery.append((title, pictures))
    return _Found(_all_curves(train, detections, threshold), threshold, gallery)


def _score_curves(scores: Scores | None) -> list[str]:
    """One chart per class: the ensemble and every model, as the metric counts their detections."""
    charts = []
    for name in scores.columns("curves")[:MOST_CURVES] if scores else []:
        curves = []
        for k, standing in enumerate(scores.all if scores else []):
            recall, precision = standing.curves.get(name, (np.zeros(0), np.zeros(0)))
            reached = np.flatnonzero(precision)
            if reached.size:
                shown = slice(0, reached[-1] + 1)
                curves.append(figures.Line(standing.name, recall[shown], precision[shown], k, dashed=k > 0))
        if curves:
            charts.append(figures.lines(curves, name, "recall", "precision", unit_square=True))
    return charts


def _all_curves(train: Dataset, detections: Detections, threshold: float) -> list[str]:
    charts = []
    evaluation = coco_ap.evaluate(train, detections, [0.5, 0.75], max_detections=EVERY)
    for row, iou in enumerate(evaluation.thresholds):
        curves = []
        for k, (category_id, name) in enumerate(train.categories.items()):
            ranking = evaluation.rankings[category_id]
            recall, precision = precision_recall(ranking, row)
            if not recall.size:
                continue
            kept = int((ranking.score[~ranking.ignored[row]] >= threshold).sum())
            dot = (float(recall[kept - 1]), float(precision[kept - 1])) if kept else None
            curves.append(figures.Line(name, recall, precision, k, dot=dot))
        if curves:
            title = f"The ensemble at IoU {iou:g}"
            charts.append(figures.lines(curves, title, "recall", "precision", unit_square=True))
    return charts


def _finals(experiment: Experiment, layout: Layout, test: Dataset | None, notes: list[str]) -> list[Picture]:
    if test is None or not test.images:
        return []
    competition = competitions.get(experiment.competition)
    handed_in = layout.submission(competition.suffix)
    if handed_in.exists():
        detections = Detections.from_coco(competition.read_submission(handed_in, test))
    elif layout.fused("test").exists():
        detections = Detections.read(layout.fused("test")).top(experiment.submission.max_per_image)
    else:
        return []
    pictures = []
    for image in spread(test.images, TEST_IMAGES):
        try:
            pictures.append(final_picture(test, image, detections.take(detections.image_id == image.id)))
        except UnreadableImageError as error:
            notes.append(str(error))
    return pictures


def _learning_curves(done: list[Training]) -> list[str]:
    """Two charts per model: the loss of every fold, and its parts, averaged over the folds."""
    charts = []
    for model in dict.fromkeys(t.model for t in done):
        runs = [t for t in done if t.model == model and t.iteration.size]
        if not runs:
            continue
        curves = [figures.Line(f"fold {t.fold}", t.iteration, t.loss, k) for k, t in enumerate(runs)]
        title = f"{model}: loss" if len(runs) > 1 else f"{model}, fold {runs[0].fold}: loss"
        charts.append(figures.lines(curves, title, "iteration", "loss", log_y=_positive(curves)))
        parts = []
        for k, name in enumerate(dict.fromkeys(name for t in runs for name in t.parts)):
            steps = np.unique(np.concatenate([t.iteration for t in runs if name in t.parts]))
            values = np.full((len(runs), len(steps)), np.nan)
            for row, t in enumerate(runs):
                if name in t.parts:
                    values[row, np.searchsorted(steps, t.iteration)] = t.parts[name]
            known = ~np.isnan(values).all(axis=0)
            mean = np.nanmean(values[:, known], axis=0)
            parts.append(figures.Line(name, steps[known], mean, k, dashed=k >= figures.SERIES))
        if len(parts) > 1:
            charts.append(figures.lines(parts, f"{model}: parts of the loss", "iteration", "loss", _positive(parts)))
    return charts


def _positive(curves: list[figures.Line]) -> bool:
    return all(bool((c.y > 0).all()) for c in curves)


def _ladder_chart(ladder: list[Step]) -> str:
    rows = [
        (step.name, step.gain, step.low, step.high, step.adopted)
        for step in ladder
        if step.gain is not None and step.low is not None and step.high is not None
    ]
    return figures.intervals(rows, "Gain of each step, with its interval", "gain") if rows else ""


@dataclass(frozen=True)
class _Submission:
    name: str
    size: int
    written: str
    checked: str


def _submission(experiment: Experiment, layout: Layout) -> _Submission | None:
    path = layout.submission(competitions.get(experiment.competition).suffix)
    if not path.exists():
        return None
    facts = path.stat()
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.st_mtime))
    checked = ""
    validation = layout.artifacts / "validation.json"
    if validation.exists():
        problems = json.loads(validation.read_text())["problems"]
        checked = f"valid, with {len(problems)} remarks" if problems else "valid"
    return _Submission(str(path.relative_to(layout.root)), facts.st_size, written, checked)


def _versions(done: list[Training]) -> list[tuple[str, str]]:
    rows = [
        ("Python", sys.version.split()[0]),
        ("machine", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]
    if commit():
        rows.append(("code", commit()))
    for package in _PACKAGES:
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    elsewhere = {json.dumps(t.provenance["versions"], sort_keys=True) for t in done if t.provenance.get("versions")}
    for versions in sorted(elsewhere):
        rows.append(("trained with", ", ".join(f"{k} {v}" for k, v in json.loads(versions).items())))
    return rows


# ---------------------------------------------------------------- wording ---------------------------------------------


def duration(seconds: float) -> str:
    """Seconds in words: 3.2 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_(count: float) -> str:
    """Bytes in words: 12 kB, 3.4 MB, 1.2 GB."""
    if count < 1e6:
        return f"{max(count / 1e3, 0.1):.{0 if count >= 1e4 else 1}f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def thousands(value: int) -> str:
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def measure(value: float) -> str:
    """A measure of unknown kind: counts as they are, anything else to four places."""
    return thousands(int(value)) if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"
