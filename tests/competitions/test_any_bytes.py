"""Whatever is done to a file of a competition, every face of it reads the file or says in words what is wrong.

The files are what the competition itself writes and hands out, damaged here and there: bytes changed, cut out, repeated, odd
numbers and names put in, in the packed file or in a zip's member before it is packed again. atheris would look further, but
needs clang to build; that damage starts from good files is what gets past the first check.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import competitions
from pipeline.competitions import Competition
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Detections, Image, Instance

BOXES = [(2, 3, 7, 7), (10, 8, 15, 12)]
ODD = [
    b"-",
    b"0",
    b"9" * 20,
    b'"',
    b",",
    b"null",
    b"NaN",
    b"1e999",
    b"[",
    b"{}",
    b"\n",
    b"\t",
    b"\0",
    b"true",
    b"[]",
    b"\xff",
]
SUFFIXES = [".json", ".zip", ".csv", ".parquet", ".jsonl", ""]

Damage = tuple[float, int, bytes, int]


def material(competition: Competition) -> tuple[Dataset, Detections]:
    """Two images, the first with two objects of the first class; SegPC's are a cell and its nucleus."""
    known: dict[int, str] = dict(getattr(competition, "categories", {})) or {1: "blood_vessel", 2: "other"}
    stems = ("1", "2")
    if competition.name == "cityscapes":
        stems = ("aachen_000000_000019_leftImg8bit", "aachen_000001_000019_leftImg8bit")
    size = (512, 512) if competition.name == "hubmap2023" else (20, 24)
    images = [Image(k, f"{stem}.png", *size) for k, stem in enumerate(stems, start=1)]
    grids = [np.full((4, 5), 255, np.uint8)] * 2
    first = min(known)
    found = Detections.build([1, 1], first, [0.9, 0.8], BOXES, BOXES, grids)
    if competition.name == "segpc2021":
        inner = [BOXES[0], (3, 4, 6, 6)]
        found = Detections.build([1, 1], [1, 2], [0.9, 0.8], inner, inner, [grids[0], grids[0][:2, :3]])
    rles = [crop_to_rle(np.ones((4, 5), np.uint8), box, size, 1) for box in BOXES]
    own = [Instance(k, 1, first, rle, (0, 0, 5, 4), 20.0) for k, rle in enumerate(rles, start=1)]
    return Dataset(images, known, own), found


def handed_out(competition: Competition, folder: Path) -> dict[str, bytes]:
    """The competition's files by name."""
    truth, found = material(competition)
    competition.write(found, truth, folder / f"submission{competition.suffix}")
    found.write(folder / "detections.parquet")
    truth.write(folder / "truth.json")
    (folder / "results.json").write_text(json.dumps(list(competition.records(found, truth))))
    listed = [{"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in truth.images]
    (folder / "ids.json").write_text(json.dumps(listed))
    if competition.name == "dsb2018":
        (folder / "solution.csv").write_text("ImageId,EncodedPixels,Height,Width,Usage\n1,1 3 50 4,20,24,Public\n")
    if competition.name == "sartorius":
        (folder / "train.csv").write_text("id,annotation,width,height,cell_type\n1,1 3 50 4,24,20,shsy5y\n")
    if competition.name == "hubmap2023":
        ring = [[1, 2], [30, 2], [30, 40]]
        line = {"id": "1", "annotations": [{"type": "blood_vessel", "coordinates": [ring]}]}
        (folder / "polygons.jsonl").write_text(json.dumps(line))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damaged(content: bytes, damages: Iterable[Damage]) -> bytes:
    changed = bytearray(content)
    for share, how, odd, length in damages:
        place = int(share * len(changed))
        if how == 0:
            changed[place : place + 1] = odd[:1]
        elif how == 1:
            changed[place:place] = odd
        elif how == 2:
            del changed[place : place + length]
        elif how == 3:
            changed[place:place] = changed[place : place + length]
        else:
            del changed[place:]
    return bytes(changed)


def repacked(content: bytes, damages: Iterable[Damage], pick: float) -> bytes:
    """A zip with one member damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = list(members)[int(pick * len(members))]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, own in members.items():
            archive.writestr(name, damaged(own, damages) if name == chosen else own)
    return packed.getvalue()


SHARE = st.floats(0, 1, exclude_max=True)
DAMAGE = st.tuples(
    SHARE, st.integers(0, 4), st.sampled_from(ODD) | st.binary(min_size=1, max_size=2), st.integers(1, 40)
)


@pytest.mark.parametrize("name", competitions.names())
def test_any_damage_is_read_or_refused_in_words(tmp_path: Path, name: str) -> None:
    competition = competitions.get(name)
    truth, _ = material(competition)
    (tmp_path / "good").mkdir()
    good = handed_out(competition, tmp_path / "good")
    folder = tmp_path / "in"

    @settings(
        max_examples=15 if name == "segpc2021" else 120,  # its scorer's frames are 1080x1440
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        file=st.sampled_from(sorted(good)),
        damages=st.lists(DAMAGE, min_size=1, max_size=4),
        pick=st.none() | SHARE,
        suffix=st.none() | st.sampled_from(SUFFIXES),
    )
    def check(file: str, damages: list[Damage], pick: float | None, suffix: str | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        inside = pick is not None and file.endswith(".zip")
        path = folder / f"x{Path(file).suffix if suffix is None else suffix}"
        path.write_bytes(repacked(good[file], damages, pick or 0) if inside else damaged(good[file], damages))
        target = folder / f"fixed{competition.suffix}"
        assert all(problem.text for problem in competition.validate(path, truth))
        faces: list[Callable[[], Any]] = [
            lambda: list(competition.read_submission(path)),
            lambda: competition.score(truth, competition.read_submission(path, truth)),
            lambda: competition.score(competition.read_truth(path), []),
            lambda: competition.read_ids(path),
            lambda: competition.fix(path, truth, target),
        ]
        for face in faces:
            try:
                face()
            except ValueError as error:
                assert len(str(error)) > 10, error
        assert {p.name for p in folder.iterdir()} <= {path.name, target.name}

    check()
