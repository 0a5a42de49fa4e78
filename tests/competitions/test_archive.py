"""Archives and folders, read without trusting their names."""

import zipfile
from pathlib import Path

import pytest

from pipeline.competitions import CompetitionError
from pipeline.competitions.formats.archive import Archive, is_stray


def test_zip_and_folder_give_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c.txt").write_text("c")
    (folder / "d.txt").write_text("d")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.mkdir("a")
        archive.writestr("d.txt", "d")
        archive.writestr("a\\b\\c.txt", "c")  # as some Windows tools write it
    for path in (folder, tmp_path / "x.zip"):
        with Archive(path) as archive:
            assert archive.names == ["a/b/c.txt", "d.txt"]
            assert archive.read("a/b/c.txt") == b"c"
            assert archive.unsafe == []


def test_names_that_leave_the_archive_cannot_be_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("../out.txt", "/etc/x", "a/../../y", "C:/z", "good.txt"):
            archive.writestr(name, "x")
    with Archive(tmp_path / "x.zip") as archive:
        assert archive.names == ["good.txt"]
        assert len(archive.unsafe) == 4


def test_damage_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CompetitionError, match="no data at .*nowhere.zip.*--data"):
        Archive(tmp_path / "nowhere.zip")
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "hello " * 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CompetitionError, match="x.zip .*not a whole zip archive.*download it again"):
        Archive(path)
    path.write_bytes(whole[:40] + b"\x00\x00\x00" + whole[43:])
    with Archive(path) as archive, pytest.raises(CompetitionError, match="a.txt in .*x.zip.*"):
        archive.read("a.txt")


def test_absurd_members_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.competitions.formats.archive.MAX_MEMBER_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(100_000))
    with Archive(tmp_path / "x.zip") as archive, pytest.raises(CompetitionError, match="bomb.*100,000 bytes"):
        archive.read("bomb")


def test_stray_names() -> None:
    assert is_stray("test/.ipynb_checkpoints/a-checkpoint.png")
    assert is_stray("__MACOSX/a.png") and is_stray("a/._b.png") and is_stray(".DS_Store")
    assert not is_stray("train/a/masks/mask_0001.png")
