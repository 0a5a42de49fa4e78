"""Score the out-of-fold detections of every model and of their ensemble; or any submission against any truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import competitions
from pipeline.competitions import Competition
from pipeline.competitions.formats import coco_results
from pipeline.experiment import Experiment, Layout, SubmissionSettings
from pipeline.files import provenance, write_json
from pipeline.folds import read_folds, used_folds
from pipeline.metrics import coco_ap, coco_summary
from pipeline.metrics.best_iou import best_iou
from pipeline.records import Dataset, Detections, read_images
from pipeline.submission import judged, submitted

log = logging.getLogger("pipeline.score")

CURVE_IOU = 0.5


def run(experiment: Experiment, layout: Layout) -> dict[str, Any]:
    """Write scores.json, all out of fold: no detection is of a model that has trained on its image.

    ``{"competition", "metric", "images", "ensemble": {…}, "models": {name: {…}}, "provenance"}`` where each ``{…}`` is
    what the competition's metric gives (``score``, ``classes``, …) with ``folds``: {fold: score}, and ``curves``:
    {class: {"recall": (101,), "precision": (101,)}} at IoU 0.5. Beside it, whatever the metric, stand COCO's ``AP``,
    ``AP50``, ``AP75`` and, of small, medium and large objects, ``APs``, ``APm`` and ``APl`` (null where there are none), and
    ``best_iou`` (see `metrics.best_iou`). A
    model stands there as it predicts, under its first view alone, each image by one training; all are cut to what would
    be submitted. Where that hangs on a least score, the ensemble has the one that `tune` chose, and each model the one that
    is best for itself (``min_score``).

    Raises:
        FileNotFoundError: a stage before this one has not run; the message names its command.
    """
    competition = competitions.get(experiment.competition, experiment.submission.counted)
    truth = Dataset.read(layout.train_json)
    used = used_folds(read_folds(layout.folds, truth), experiment.validation_folds())
    fold_of = {image_id: folds[0] for image_id, folds in used.items()}
    truth = truth.subset(fold_of)
    models = {}
    for name in experiment.models:
        alone = _alone(experiment, layout, name, fold_of)
        models[name] = _standing(competition, truth, alone, experiment.submission, fold_of, choose=True)
        log.info("%s: %.4f", name, models[name]["score"])
    fused = _existing(layout.fused("oof"), "python -m pipeline fuse")
    ensemble = _standing(competition, truth, Detections.read(fused), experiment.submission, fold_of, choose=False)
    log.info("ensemble: %.4f (%s, out of fold, %d images)", ensemble["score"], competition.metric, len(truth.images))
    scores = {
        "competition": competition.name,
        "metric": competition.metric,
        "images": len(truth.images),
        "ensemble": ensemble,
        "models": models,
        "provenance": provenance(experiment=experiment.name, submission=experiment.submission.model_dump()),
    }
    write_json(layout.scores, scores)
    return scores


def _alone(experiment: Experiment, layout: Layout, model: str, fold_of: Mapping[int, int]) -> Detections:
    """A model's out-of-fold detections of every image by the training of one fold, under its first view."""
    view = experiment.views(model, "oof")[0]
    tables = []
    for fold in sorted(set(fold_of.values())):
        images = [image_id for image_id, own in fold_of.items() if own == fold]
        path = layout.predictions(model, str(fold), "oof")
        for table in read_images(
            _existing(path, f"python -m pipeline predict --model {model} --fold {fold} --part oof")
        ):
            own = [k for k, source in enumerate(table.sources) if source.rsplit("/", 1)[-1] == view]
            tables.append(table.take(np.isin(table.source, own) & np.isin(table.image_id, images)))
    return Detections.concatenate(tables)


def _existing(path: Path, command: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; make it with: {command}")
    return path


def _standing(
    competition: Competition,
    truth: Dataset,
    detections: Detections,
    submission: SubmissionSettings,
    fold_of: Mapping[int, int],
    choose: bool,
) -> dict[str, Any]:
    """What the metric gives, over all images and fold by fold, with the precision-recall curves."""
    outcome = judged(competition, truth, detections, submission, choose)
    result = {k: v for k, v in outcome.result.items() if k not in ("competition", "metric")}
    if outcome.min_score is not None:
        result["min_score"] = outcome.min_score
    folds = {}
    for fold in sorted({fold_of[image.id] for image in truth.images}):
        images = {image.id for image in truth.images if fold_of[image.id] == fold}
        own = [record for record in outcome.records if record["image_id"] in images]
        folds[str(fold)] = competition.score(truth.subset(images), own)["score"]
    kept = submitted(detections, submission)
    limit = competition.max_detections or max(len(kept), 1)
    # as in a submission of COCO results, whatever the competition's is: empty masks left out, boxes inside the image
    as_coco = coco_results.submission_records(kept, truth)
    return {
        **_by_size(truth, as_coco, limit),
        "best_iou": best_iou(truth, kept.take(kept.score >= (outcome.min_score or 0))),
        **result,  # a competition whose own metric has these numbers has the last word on them
        "folds": folds,
        "curves": _curves(truth, as_coco, limit),
    }


def _by_size(truth: Dataset, records: list[dict[str, Any]], limit: int) -> dict[str, float | None]:
    numbers = coco_summary.summarize(truth, records, [limit]).numbers()
    return {name: None if value < 0 else value for name, value in numbers.items() if name.startswith("AP")}


def _curves(truth: Dataset, records: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    evaluation = coco_ap.evaluate(truth, records, [CURVE_IOU], limit)
    return {
        truth.categories.get(category_id, str(category_id)): {
            "recall": [round(float(v), 2) for v in coco_ap.RECALLS],
            "precision": [round(float(v), 5) for v in curve[0]],
        }
        for category_id, ranking in evaluation.rankings.items()
        if (curve := ranking.precision()) is not None
    }


def score_files(competition: str, truth_path: str | Path, submission_path: str | Path) -> dict[str, Any]:
    """Score any submission against the organisers' own file of the truth, or a COCO annotation file.

    Returns:
        ``{"competition", "metric", "score", …}``, plain JSON values; the score is the leaderboard's to 1e-9.

    Raises:
        CompetitionError: there is no such competition; the submission cannot be read.
        ValueError: the truth cannot be read; a submission on other images, or a damaged mask.
        FileNotFoundError: a file is not there.
    """
    chosen = competitions.get(competition)
    if not Path(truth_path).exists():  # some competitions' truth is a folder of masks
        raise FileNotFoundError(f"there is no file {truth_path}")
    truth = chosen.read_truth(Path(truth_path))
    if not truth.instances:
        raise competitions.CompetitionError(
            f"{truth_path} holds no true instances, so there is nothing to score against"
        )
    return chosen.score(truth, chosen.read_submission(_existing_file(Path(submission_path)), truth))


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path
