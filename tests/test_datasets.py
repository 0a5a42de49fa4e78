"""What some files are of, what is missing, and whether they are sound."""

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import cli, competitions, datasets
from pipeline.competitions import CompetitionError
from pipeline.datasets import choose, describe, examine, file_names, is_sound, listing, recognise, told
from pipeline.masks import crop_to_rle
from pipeline.records import Dataset, Image, Instance
from tests.competitions.test_digits import mnist
from tests.competitions.test_hubmap2023 import layout as hubmap
from tests.competitions.test_hubmap2023 import pack
from tests.competitions.test_vrdl2021 import layout as vrdl
from tests.competitions.test_vrdl2021 import png

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"


# ---------------------------------------------------------------- the list --------------------------------------------


def test_every_competition_is_listed_with_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["datasets"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])["competitions"]
    assert [one["name"] for one in found] == competitions.names()
    for one in found:
        assert all(one[key] for key in ("metric", "submission", "download"))
        assert f"\n{one['name']}\n" in f"\n{captured.err}"
    assert "kaggle competitions download -c hubmap-hacking-the-human-vasculature" in captured.err
    assert found == listing()


# ---------------------------------------------------------------- which competition -----------------------------------


def test_each_competition_is_told_by_its_files(tmp_path: Path) -> None:
    for name, files in (("vrdl2021", vrdl()), ("hubmap2023", hubmap())):
        path = pack(files, tmp_path / f"{name}.zip", "outer/")
        assert choose(path, file_names(path), None).name == name
        assert choose(path, file_names(path), None).missing == []
    folder = mnist(tmp_path / "mnist")
    assert choose(folder, file_names(folder), None).name == "digits"


def test_part_of_a_competition_is_told_too(tmp_path: Path) -> None:
    files = {name: content for name, content in hubmap().items() if not name.startswith("test/")}
    path = pack(files, tmp_path / "hubmap.zip")
    match = choose(path, file_names(path), None)
    assert (match.name, match.missing) == ("hubmap2023", ["test/<id>.tif"])


def test_archives_in_a_folder_count_as_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    files = hubmap()
    pack({n[6:]: c for n, c in files.items() if n.startswith("train/")}, folder / "train.zip")
    for name in ("tile_meta.csv", "polygons.jsonl"):
        (folder / name).write_bytes(files[name])
    names = file_names(folder)
    assert {"train/aaa.tif", "tile_meta.csv"} <= set(names)
    assert choose(folder, names, None).missing == ["test/<id>.tif"]
    (folder / "broken.zip").write_bytes(b"PK")
    assert file_names(folder) == ["broken.zip", "polygons.jsonl", "tile_meta.csv", "train.zip"]


def test_files_of_nothing_and_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CompetitionError, match="looks like no competition that is known .*vrdl2021.*it has notes.txt"):
        examine(tmp_path)
    with pytest.raises(CompetitionError, match="no data at .*gone"):
        examine(tmp_path / "gone")
    with pytest.raises(CompetitionError, match="is not a whole zip"):
        examine(tmp_path / "notes.txt")
    with pytest.raises(CompetitionError, match="did you mean 'vrdl2021'"):
        examine(tmp_path, "vrdl20211")
    twins = [datasets.Match("a", [], 3), datasets.Match("b", [], 3), datasets.Match("c", ["x"], 3)]
    (tmp_path / "one.jpg").write_bytes(b"")  # images alone are no competition
    with pytest.raises(CompetitionError, match="looks like no competition"):
        examine(tmp_path)
    monkeypatch.setattr(datasets, "recognise", lambda names: twins)
    with pytest.raises(CompetitionError, match="may be of a or of b; say which with --competition"):
        choose(tmp_path, [], None)


def test_the_fuller_layout_comes_first() -> None:
    found = recognise(["train/a/images/a.png", "train/a/masks/mask_1.png", "test/a.png", "test_img_ids.json", "t.tif"])
    assert found[0] == datasets.Match("vrdl2021", [], 4)
    assert recognise(["notes.txt"]) == []


# ---------------------------------------------------------------- integrity -------------------------------------------

SIZE = (20, 30)


def instance(
    number: int, image_id: int, category: int, *boxes: tuple[int, int, int, int], crowd: bool = False
) -> Instance:
    mask = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 1
    rle = crop_to_rle(mask, (0, 0, SIZE[1], SIZE[0]), SIZE, threshold=1)
    return Instance(number, image_id, category, rle, (0, 0, 1, 1), float(mask.sum()), crowd)


def test_counts_and_measures_by_hand() -> None:
    images = [Image(1, "a.png", *SIZE, "s"), Image(2, "b.png", *SIZE, "s"), Image(3, "c.png", 5, 6)]
    instances = [
        instance(1, 1, 1, (0, 0, 4, 4)),
        instance(2, 1, 1, (2, 2, 6, 6)),  # shares 4 pixels with the first
        instance(3, 1, 2, (10, 10, 12, 12), (15, 15, 16, 18)),  # two parts
        instance(4, 1, 2, (20, 0, 22, 2), (22, 2, 24, 4)),  # touches at a corner: one part
        instance(5, 2, 1, (0, 0, 5, 2)),
        instance(6, 2, 1, (0, 0, 5, 2)),  # the same again
        instance(7, 2, 1, (0, 0, 30, 20), crowd=True),
        instance(8, 2, 2, (3, 1, 7, 3)),  # lies on the cell with 2 pixels
    ]
    facts = describe(Dataset(images, {1: "cell", 2: "dot", 3: "never"}, instances))
    assert facts == {
        "images": 3,
        "groups": 2,
        "sizes": {"30x20": 2, "6x5": 1},
        "empty_images": 1,
        "instances": 7,
        "crowds": 1,
        "per_image": [0.0, 3.0, 4.0],
        "classes": {
            "cell": {"instances": 4, "images": 2, "area": [10.0, 13.0, 16.0]},
            "dot": {"instances": 3, "images": 2, "area": [7.0, 8.0, 8.0]},
            "never": {"instances": 0, "images": 0, "area": []},
        },
        "overlaps": {"pixels": 4 + 10, "images": 2, "masks": 4, "between_classes": 2},
        "duplicate_masks": {"count": 1, "examples": ["b.png, annotation 6"]},
        "two_part_masks": {"count": 1, "examples": ["a.png, annotation 3"]},
    }
    assert describe(Dataset([], {}))["per_image"] == []


def test_examine_a_sound_competition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pack(vrdl(), tmp_path / "dataset.zip", "dataset/")
    assert cli.main(["datasets", str(path)]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["competition"], report["missing"], report["error"], report["problems"]) == ("vrdl2021", [], None, [])
    assert report["train"]["instances"] == 9 and report["train"]["classes"]["nucleus"]["images"] == 3
    assert report["test"]["images"] == 2 and report["near_duplicates"] == {"sets": [], "pairs": []}
    for expected in (
        "is of vrdl2021",
        "train: 3 images of 2 sources",
        "9 instances, 3 to 3 an image",
        "near-duplicate images: 0 pairs",
    ):
        assert expected in captured.err
    assert report == json.loads(json.dumps(examine(path)))


def test_copies_in_a_competition_are_reported_and_kept_together(tmp_path: Path) -> None:
    files = vrdl()
    first, second, third = sorted(name for name in files if "/images/" in name)
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (10, 12, 3), np.uint8), (60, 50), interpolation=cv2.INTER_CUBIC)
    files[first] = png(picture)
    files[third] = png(picture[::-1])
    test = sorted(name for name in files if name.startswith("test/"))[0]
    files[test] = png(picture)
    report = examine(pack(files, tmp_path / "dataset.zip"))
    stored = [f"images/train/{Path(name).name}" for name in (first, third)]
    assert report["near_duplicates"]["sets"] == [stored]
    assert {pair["turn"] for pair in report["near_duplicates"]["pairs"]} == {"identity", "vflip"}
    assert report["same_files"] == [[stored[0], f"images/test/{Path(test).name}"]]
    assert report["train"]["groups"] == 1  # the first two are of one site already
    assert {p["kind"] for p in report["problems"]} == {"near-duplicate images", "test image in training"}
    assert is_sound(report)  # these are warnings
    assert any(line.startswith("warning: images/train") for line in told(report))


def test_examine_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: content for name, content in hubmap().items() if not name.startswith("test/")}
    path = pack(files, tmp_path / "hubmap.zip")
    assert cli.main(["datasets", str(path)]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert report["missing"] == ["test/<id>.tif"] and "there is no test/<id>.tif" in report["error"]
    for expected in (
        "missing: test/<id>.tif",
        "where to get the data:",
        "kaggle competitions download",
        "it cannot be read",
    ):
        assert expected in captured.err
    assert cli.main(["datasets", str(tmp_path / "gone")]) == 1


def test_errors_of_the_data_are_not_sound(tmp_path: Path) -> None:
    files: dict[str, Any] = vrdl()
    name = next(name for name in files if "/masks/" in name)
    files[name] = files[name][:50]
    report = examine(pack(files, tmp_path / "dataset.zip"))
    assert not is_sound(report) and report["problems"][0]["kind"] == "damaged mask"


def test_the_real_vrdl2021() -> None:
    path = REAL / "vrdl2021" / "dataset.zip"
    if not path.exists():
        pytest.skip(f"needs the competition's files at {path}")
    report = examine(path)
    assert (report["competition"], report["missing"], report["error"]) == ("vrdl2021", [], None)
    train = report["train"]
    assert (train["images"], train["instances"], train["sizes"]) == (24, 14598, {"1000x1000": 24})
    assert report["near_duplicates"]["pairs"] == [] and report["same_files"] == []
    assert train["per_image"][0] == 294 and train["per_image"][2] == 1862


def test_a_folder_with_only_litter(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(CompetitionError, match="it has nothing"):
        examine(tmp_path / "empty.zip")
