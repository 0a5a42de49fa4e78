"""Submissions fused without a run: CSV and Parquet of every competition that submits a CSV, and capped lists of drawn cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import competitions, masks
from pipeline.fusion.lists import as_lists, fuse_lists
from pipeline.records import Dataset, Detections, Image, Instance
from pipeline.stages import fuse
from tests.fusion.cells import ellipse, table

SIZES = {"dsb2018": (120, 140), "sartorius": (520, 704), "hubmap2023": (512, 512)}
PLACES = [(30, 30), (30, 90), (90, 60)]


def found(size: tuple[int, int], seed: int, cells: list[int]) -> Detections:
    """Binary masks of some of the cells, hardly displaced, in images 1 and 2."""
    rng = np.random.default_rng(seed)
    parts = []
    for image_id in (1, 2):
        frames = [(ellipse(*(rng.integers(-1, 2, 2) + PLACES[k]), 11, 13, size) >= 128) * np.uint8(255) for k in cells]
        parts.append(table(frames, [0.9 - 0.1 * k for k in cells], "m/0/identity", image_id))
    return Detections.concatenate(parts)


@pytest.mark.parametrize("name", list(SIZES))
def test_csv_and_parquet_of_a_competition_are_fused(name: str, tmp_path: Path) -> None:
    host, size = competitions.get(name), SIZES[name]
    images = Dataset([Image(k, f"{letter}.png", *size) for k, letter in ((1, "aaa"), (2, "bbb"))], {1: "cell"})
    ids = tmp_path / "test.json"
    images.write(ids)
    paths = []
    for seed, cells in enumerate(([0, 1, 2], [0, 1], [0, 2])):
        paths.append(tmp_path / f"{seed}.csv")
        host.write(found(size, seed, cells), images, paths[-1])
    table_path = tmp_path / "run.parquet"
    found(size, 9, [0, 1]).write(table_path)
    paths.append(table_path)
    result = fuse.fuse_files(name, paths, tmp_path / "fused.csv", ids)
    assert (result["files"], result["images"], result["problems"]) == (4, 2, [])
    assert host.validate(tmp_path / "fused.csv", images) == []
    records = host.read_submission(tmp_path / "fused.csv", images)
    # every cell is in at least half of the files
    assert [sum(r["image_id"] == k for r in records) for k in (1, 2)] == [3, 3]


@pytest.mark.parametrize("name", list(SIZES))
def test_files_that_found_nothing(name: str, tmp_path: Path) -> None:
    images = Dataset([Image(1, "aaa.png", *SIZES[name])], {1: "cell"})
    ids = tmp_path / "test.json"
    images.write(ids)
    Detections.empty(["m/0/identity"]).write(tmp_path / "a.parquet")
    result = fuse.fuse_files(name, [tmp_path / "a.parquet"] * 2, tmp_path / "fused.csv", ids)
    assert result["detections"] == 0 and result["images"] == 1


# ---------------------------------------------------------------- capped lists ----------------------------------------

FRAME, ROOM = (150, 170), 12
GRID = [(14 + 24 * row, 14 + 24 * column) for row in range(6) for column in range(7)]


def drawn_lists(seed: int, files: int = 6, images: int = 4) -> tuple[Dataset, list[Detections]]:
    """The truth, and lists of the best `ROOM` masks of an image.

    Every other image is crowded with 42 cells that all lists find and are sure of: each holds another twelve. The others
    have six cells, and six things that all lists take for cells, less surely.
    """
    rng = np.random.default_rng(seed)
    instances: list[Instance] = []
    tables: list[list[Detections]] = [[] for _ in range(files)]
    for image_id in range(1, images + 1):
        crowded = image_id % 2 == 0
        places = rng.permutation(len(GRID)).tolist()
        true, false = (places, []) if crowded else (places[:6], places[6:12])
        for k in true:
            mask = ellipse(*GRID[k], 10, 10, FRAME) >= masks.FOREGROUND
            x0, y0, x1, y1 = masks.tight_box(mask)
            rle = masks.crop_to_rle(mask[y0:y1, x0:x1], (x0, y0, x1, y1), FRAME, 1)
            box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
            instances.append(Instance(len(instances) + 1, image_id, 1, rle, box, float(mask.sum())))
        for mine in tables:
            score = np.concatenate(
                [rng.uniform(0.75 if crowded else 0.6, 1, len(true)), rng.uniform(0.3, 0.8, len(false))]
            )
            held = np.argsort(-score)[:ROOM]
            centres = np.array([GRID[k] for k in true + false])[held] + rng.normal(0, 1, (len(held), 2))
            frames = [(ellipse(*c, 10, 10, FRAME) >= masks.FOREGROUND) * np.uint8(255) for c in centres]
            mine.append(table(frames, score[held].tolist(), "x", image_id))
    images_of = [Image(k, f"{k}.png", *FRAME) for k in range(1, images + 1)]
    return Dataset(images_of, {1: "cell"}, instances), [Detections.concatenate(mine) for mine in tables]


@pytest.mark.parametrize("seed", range(4))
def test_capped_lists_fused_are_not_below_the_best_of_them(seed: int) -> None:
    """They are where silence counts as a vote against: what only some lists had room for falls behind agreed errors."""
    truth, tables = drawn_lists(seed)
    host = competitions.get("vrdl2021")
    sizes = {image.id: FRAME for image in truth.images}

    def score(detections: Detections) -> float:
        return float(host.score(truth, detections.top(ROOM).to_coco(sizes))["score"])

    lists = as_lists(tables, [str(k) for k in range(len(tables))])
    best = max(score(mine) for mine in tables)
    assert score(fuse_lists(lists, sizes)) >= best
    assert score(fuse_lists(lists, sizes, silence=False)) < best - 0.03
