"""Zips in zips and folders, read as one set of files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats.bundle import Bundle

FILES = {"a/images/a.png": b"picture", "a/masks/1.png": b"mask"}


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@pytest.mark.parametrize("outer", ["folder", "zip", "unpacked", "one zip"])
def test_a_zip_inside_is_the_folder_of_its_name(tmp_path: Path, outer: str) -> None:
    path = tmp_path / "train"
    if outer == "zip":
        path = tmp_path / "all.zip"
        path.write_bytes(zipped({"train.zip": zipped(FILES), "sample.csv": b"ids"}))
    elif outer == "one zip":
        path = tmp_path / "train.zip"
        path.write_bytes(zipped(FILES))
    else:
        path = tmp_path / "all"
        path.mkdir()
        (path / "sample.csv").write_bytes(b"ids")
        if outer == "folder":
            (path / "train.zip").write_bytes(zipped(FILES))
        for name, data in FILES.items() if outer == "unpacked" else ():
            (path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            (path / "train" / name).write_bytes(data)
    with Bundle(path) as bundle:
        prefix = "all/" if outer == "zip" else ""
        sample = [] if outer == "one zip" else [f"{prefix}sample.csv"]
        assert bundle.names == sorted([f"{prefix}train/{name}" for name in FILES] + sample)
        assert bundle.read(f"{prefix}train/a/masks/1.png") == b"mask"
        assert bundle.unsafe == []


def test_what_was_unpacked_beside_its_zip_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "x.png").write_bytes(b"by hand")
    (tmp_path / "train.zip").write_bytes(zipped(FILES))
    with Bundle(tmp_path) as bundle:
        assert bundle.names == ["train/a/x.png"]


def test_unsafe_names_of_inner_zips_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"../out.txt": b"x", "good.txt": b"x"}))
    with Bundle(tmp_path) as bundle:
        assert bundle.names == ["x/good.txt"] and bundle.unsafe == ["../out.txt"]


@pytest.mark.parametrize("inside", [True, False])
def test_damage_names_the_zip(tmp_path: Path, inside: bool) -> None:
    half = zipped(FILES)[:60]
    path = tmp_path / "all.zip"
    path.write_bytes(zipped({"train.zip": half}) if inside else half)
    with pytest.raises(CompetitionError, match=f"{'train' if inside else 'all'}.zip .*not a whole zip"):
        Bundle(path)
    with pytest.raises(CompetitionError, match="no data at"):
        Bundle(tmp_path / "nowhere")
