"""A small run folder as the stages leave it, drawn and invented, for the report to tell of."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.experiment import Experiment, Layout
from pipeline.masks import crop_to_rle, rle_to_crop
from pipeline.records import Dataset, Detections, Image, Instance

CLASSES = {1: "round", 2: "long", 4: "ring <&> $"}


@dataclass
class DrawnRun:
    """Makes artifacts/<run> below `root`, one kind of file at a time."""

    root: Path
    models: tuple[str, ...] = ("mask-rcnn-slim", "cascade-slim")
    classes: dict[int, str] = field(default_factory=lambda: dict(CLASSES))
    images: int = 11
    size: tuple[int, int] = (240, 320)
    folds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.layout = Layout("drawn", self.root)
        model = {"framework": "mmdet", "config": "slim.py"}
        self.experiment = Experiment.model_validate(
            {
                "name": "drawn",
                "description": "Cells & rings, <drawn> for a test",
                "competition": "vrdl2021",
                "folds": {"count": self.folds},
                "models": dict.fromkeys(self.models, model),
            }
        )
        self.train = self._draw("train", self.images)
        self.test = self._draw("test", 3)

    def _draw(self, part: str, count: int) -> Dataset:
        height, width = self.size
        images, instances = [], []
        for k in range(count):
            name = f"images/{part}/{k:02d}.png"
            canvas = np.tile(np.linspace(60, 110, width), (height, 1)) + self.random.normal(0, 6, (height, width))
            taken = np.zeros((height, width), np.uint8)
            for _ in range(int(self.random.integers(6, 24)) if k or part == "test" else 0):
                category = int(self.random.choice(list(self.classes)))
                center = (int(self.random.integers(0, width)), int(self.random.integers(0, height)))
                axes = (int(self.random.integers(6, 16)), int(self.random.integers(6, 10)))
                mask = np.zeros((height, width), np.uint8)
                cv2.ellipse(
                    mask, center, axes, float(self.random.uniform(0, 180)), 0, 360, 1, 4 if category == 4 else -1
                )
                mask[taken > 0] = 0
                if mask.sum() < 30:
                    continue
                taken |= mask
                canvas[mask > 0] += 70 + 20 * category
                x, y, w, h = cv2.boundingRect(mask)
                rle = crop_to_rle(mask[y : y + h, x : x + w], (x, y, x + w, y + h), self.size, threshold=1)
                box = (float(x), float(y), float(w), float(h))
                instances.append(Instance(len(instances) + 1, k + 1, category, rle, box, float(mask.sum())))
            path = self.layout.artifacts / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.clip(canvas, 0, 255).astype(np.uint8))
            images.append(Image(k + 1, name, height, width, f"slide-{k // 2}"))
        return Dataset(images, self.classes, instances, self.layout.artifacts / "data")

    def detections(self, truth: Dataset, recall: float = 0.85, false: int = 3) -> Detections:
        """Most instances, a little off, with good scores, and some masks out of nowhere, with poor ones."""
        height, width = self.size
        tables = []
        for image in truth.images:
            rows: list[tuple[tuple[int, int, int, int], np.ndarray, float, int]] = []
            for instance in truth.by_image[image.id]:
                if self.random.random() < recall:
                    box, mask = rle_to_crop(instance.rle)
                    x = int(np.clip(box[0] + self.random.integers(-1, 2), 0, width - mask.shape[1]))
                    moved = (x, int(box[1]), x + mask.shape[1], int(box[3]))
                    rows.append((moved, mask * np.uint8(255), float(self.random.uniform(0.5, 1)), instance.category_id))
            for _ in range(false):
                x, y = int(self.random.integers(0, width - 20)), int(self.random.integers(0, height - 20))
                grid = np.full((14, 14), 200, np.uint8)
                rows.append(((x, y, x + 14, y + 14), grid, float(self.random.uniform(0, 0.7)), min(self.classes)))
            boxes = np.array([row[0] for row in rows]).reshape(-1, 4)
            grids, scores, categories = [r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows]
            tables.append(Detections.build(image.id, categories, scores, boxes, boxes, grids, "fused"))
        return Detections.concatenate(tables)

    # ------------------------------------------------ the stages' files ----------------------------------------------

    def prepare(self) -> None:
        self.train.write(self.layout.train_json)
        self.test.write(self.layout.test_json)
        problem = {
            "severity": "warning",
            "kind": "stray file",
            "file": "train/.ipynb_checkpoints",
            "text": "<passed> over",
        }
        self.write(
            self.layout.integrity, {"problems": [problem] * 5 + [{**problem, "severity": "error", "kind": "torn"}]}
        )

    def split(self) -> None:
        rows = [f"{i.file_name},{k % self.folds},,{i.group}" for k, i in enumerate(self.train.images)]
        self.layout.folds.parent.mkdir(parents=True, exist_ok=True)
        self.layout.folds.write_text("\n".join(["image,fold,stratum,group", *rows]) + "\n")

    def learn(self) -> None:
        for model in self.models:
            for fold in self.experiment.fold_names():
                folder = self.layout.training(model, fold)
                folder.mkdir(parents=True)
                lines = []
                for i in range(20, 420, 20):
                    parts = {
                        "loss_rpn_cls": 0.3 * np.exp(-i / 120) + 0.02,
                        "loss_bbox": 0.4 * np.exp(-i / 200) + 0.1,
                        "loss_mask": 0.7 * np.exp(-i / 90) + 0.15,
                    }
                    parts = {k: float(v * self.random.uniform(0.85, 1.15)) for k, v in parts.items()}
                    row = {"iteration": i, "loss": sum(parts.values()), "learning_rate": 1e-3, "acc": 97.0, **parts}
                    lines.append(json.dumps(row))
                (folder / "log.jsonl").write_text("\n".join(lines) + '\n{"iteration": 420, "lo')
                versions = {"torch": "2.11.0+cpu", "numpy": "2.2.6"}
                self.write(folder / "provenance.json", {"seconds": 123.4, "versions": versions})

    def fuse(self, **how: Any) -> None:
        self.detections(self.train, **how).write(self.layout.fused("oof"))
        self.detections(self.test, **how).write(self.layout.fused("test"))
        self.layout.fusion.write_text("settings: {method: wbf, iou: 0.55}\nprovenance: {seed: 0}\n")
        none: dict[str, Any] = {"gain": None, "low": None, "high": None}
        asked = {"score": 0.78, "ap50_capped_truths": 0.5}
        steps = [
            {"step": "best single", "score": 0.78, **none, "adopted": True, "competition": asked, "settings": {}},
            {"step": "+ views", "score": 0.80, "gain": 0.02, "low": 0.01, "high": 0.03, "adopted": True},
            {"step": "largest part", "score": 0.799, "gain": -0.001, "low": -0.004, "high": 0.002, "adopted": False},
        ]
        for step in steps[1:]:
            step |= {"competition": {}, "settings": {"largest_part": True, "weights": {"a<b": 2}}}
        self.write(self.layout.artifacts / "fusion" / "ladder.json", steps)

    def score(self) -> None:
        recall = [k / 100 for k in range(101)]

        def one(score: float) -> dict[str, Any]:
            curve = {"recall": recall, "precision": [max(0.0, 1 - (r / score) ** 4) for r in recall]}
            folds = {str(k): score + 0.01 * (k - 0.5) for k in range(self.folds)}
            names = list(self.classes.values())
            return {
                "score": score,
                "folds": folds,
                "classes": dict.fromkeys(names, score),
                "curves": dict.fromkeys(names, curve),
            }

        models = {name: one(0.75 + 0.02 * k) for k, name in enumerate(self.models)}
        ensemble = {**one(0.8125), "true_positives_at_100": 187, "AP75": 0.6}
        value = {"competition": "vrdl2021", "metric": "segm AP50 maxDets=100", "ensemble": ensemble, "models": models}
        self.write(self.layout.scores, value)

    def encode(self, records: list[dict[str, Any]] | None = None) -> None:
        sizes = {i.id: (i.height, i.width) for i in self.test.images}
        records = self.detections(self.test).to_coco(sizes) if records is None else records
        path = self.layout.submission()
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("answer.json", json.dumps(records))
        self.write(self.layout.artifacts / "validation.json", {"file": path.name, "ok": True, "problems": []})

    def benchmark(self) -> None:
        folder = self.layout.artifacts / "benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
        (folder / "prepare.tsv").write_text(head + "3.2500\t0:00:03\t250.5\t1\t1\t1\t0\t0\t90\t2.9\n")
        (folder / "train-cascade-slim-0.tsv").write_text(head + "4000.0\t1:06:40\t2500.5\t1\t1\t1\t0\t0\t90\t7000\n")
        (folder / "split.tsv").write_text(head + "0.3\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n")

    def everything(self) -> None:
        for step in (self.prepare, self.split, self.learn, self.fuse, self.score, self.encode, self.benchmark):
            step()

    @staticmethod
    def write(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


@pytest.fixture
def drawn_run(tmp_path: Path) -> DrawnRun:
    return DrawnRun(tmp_path)
