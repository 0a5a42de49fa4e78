"""What competitions have in common that take COCO results in a zip and score AP50 of masks with pycocotools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.competitions import Problem
from pipeline.competitions.formats import coco_fix, coco_results
from pipeline.metrics.coco_ap import Evaluation, evaluate
from pipeline.records import Dataset, Detections, Image

IOU = 0.5


class CocoCompetition:
    """Base of such a competition.

    Attributes:
        name: the competition's module.
        metric: the metric in words.
        member: the name of the zip's one file.
        categories: names by category id.
        max_detections: per image and class.
    """

    name: str
    metric: str
    member: str
    categories: Mapping[int, str]
    suffix: str = ".zip"
    max_detections: int | None = 100
    ranked = True
    ious: Sequence[float] = (IOU,)

    def stratum(self, image: Image) -> str:
        return ""

    def score(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """AP at IoU 0.5, equal to pycocotools; beside it the classes, and how many truths were found at all.

        ``true_positives_in_first_100`` counts, over all images, the truths found among the 100 best-scored detections
        of an image (and class); ``true_positives_per_image`` the same by image id. Where single images hold more truths
        than detections are counted, AP is a coarse ruler and this is a finer one.
        """
        return self.summary(truth, self.evaluate(truth, records), records)

    def evaluate(self, truth: Dataset, records: Sequence[Mapping[str, Any]]) -> Evaluation:
        return evaluate(truth, records, [IOU], self.max_detections or len(records))

    def summary(self, truth: Dataset, evaluation: Evaluation, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found = evaluation.true_positives(IOU)
        classes = {
            truth.categories.get(c, str(c)): evaluation.ap(category_id=c) if ranking.truths else None
            for c, ranking in evaluation.rankings.items()
        }
        return {
            "competition": self.name,
            "metric": self.metric,
            "score": evaluation.ap(),
            "images": len(truth.images),
            "truths": sum(sum(r.truths.values()) for r in evaluation.rankings.values()),
            "detections": len(records),
            f"true_positives_in_first_{self.max_detections}": sum(found.values()),
            "true_positives_per_image": {str(image.id): found.get(image.id, 0) for image in truth.images},
            "classes": classes,
        }

    def records(self, detections: Detections, images: Dataset) -> list[dict[str, Any]]:
        return coco_results.submission_records(detections, images)

    def write(self, detections: Detections, test: Dataset, path: Path) -> None:
        coco_results.write_zip(self.records(detections, test), path, self.member)

    def read_submission(self, path: Path, images: Dataset | None = None) -> Sequence[dict[str, Any]]:
        return coco_results.read_records(path, self.member, images)

    def read_truth(self, path: Path) -> Dataset:
        return Dataset.read(path)

    def read_ids(self, path: Path) -> Dataset:
        return coco_results.read_ids(path, self.categories)

    def validate(self, path: Path, ids: Dataset) -> list[Problem]:
        return coco_results.check(path, self.member, ids, self.categories, self.max_detections)

    def fix(self, path: Path, ids: Dataset, target: Path) -> list[str]:
        return coco_fix.fix(path, self.member, ids, self.categories, target)
