"""Archives and folders, read without trusting their names."""

import contextlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


# ---------------------------------------------------------------- tar -------------------------------------------------

PACKED = ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]


def tar(path: Path, files: dict[str, bytes], others: list[tarfile.TarInfo] | None = None) -> Path:
    modes = {"tar": "w", "tgz": "w:gz"}
    suffix = path.name.partition(".")[2]
    with tarfile.open(path, modes.get(suffix, f"w:{suffix.rpartition('.')[2]}")) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in others or []:
            archive.addfile(member)
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize("suffix", PACKED)
def test_tar_reads_like_a_zip(tmp_path: Path, suffix: str) -> None:
    folder = special("a", tarfile.DIRTYPE)
    path = tar(tmp_path / f"x.{suffix}", {"./d.txt": b"d", "a/b/c.txt": b"c" * 5000, "a/empty": b""}, [folder])
    (tmp_path / "scratch").mkdir()
    with Archive(path, tmp_path / "scratch") as archive:
        assert archive.names == ["a/b/c.txt", "a/empty", "d.txt"]
        assert [archive.read(name) for name in reversed(archive.names)] == [b"d", b"", b"c" * 5000]
        assert archive.unsafe == []
    assert list((tmp_path / "scratch").iterdir()) == []
    renamed = path.rename(tmp_path / "download")  # told by its content
    with Archive(renamed) as archive:
        assert archive.read("d.txt") == b"d"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_only_safe_members_of_a_tar_are_read(tmp_path: Path, suffix: str) -> None:
    where = tmp_path / "deep" / "er"
    where.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    others = [
        special("link", tarfile.SYMTYPE, "../../secret"),
        special("hard", tarfile.LNKTYPE, "../../secret"),
        special("null", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ]
    files = {"../out.txt": b"x", "/etc/x": b"x", "a/../../y": b"x", "C:/z": b"x", ".": b"x", "good.txt": b"good"}
    with Archive(tar(where / f"x.{suffix}", files, others), where) as archive:
        assert archive.names == ["good.txt"] and archive.read("good.txt") == b"good"
        assert len(archive.unsafe) == 9
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["secret", f"x.{suffix}"]


@pytest.mark.parametrize("suffix", PACKED)
def test_tar_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = tar(tmp_path / f"x.{suffix}", {"a.bin": rng.bytes(50_000), "b.bin": rng.bytes(50_000)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CompetitionError, match=f"x.{suffix} .*not a whole tar archive.*download it again"):  # noqa: SIM117
        with Archive(path, tmp_path) as archive:
            archive.read("b.bin")
    path.write_bytes(b"")
    with pytest.raises(CompetitionError, match=f"x.{suffix} .*not a whole"):
        Archive(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_tar_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "x.tar.gz", {"bomb": bytes(100_000), "another": bytes(100_000)})
    monkeypatch.setattr("pipeline.competitions.formats.archive.MAX_MEMBER_BYTES", 1000)
    with pytest.raises(CompetitionError, match=r"bomb in .*100,000 bytes"):
        Archive(path, tmp_path)
    monkeypatch.setattr("pipeline.competitions.formats.archive.MAX_MEMBER_BYTES", 1 << 20)
    monkeypatch.setattr("pipeline.competitions.formats.archive.MAX_UNPACKED_BYTES", 150_000)
    with pytest.raises(CompetitionError, match="more than 150,000 bytes"):
        Archive(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_reading_a_compressed_tar_in_any_order_unpacks_it_once(tmp_path: Path) -> None:
    """300 files, read backwards: were each read to start over, this would unpack 3 GB."""
    path = tar(tmp_path / "x.tar.gz", {f"{k:03d}": bytes(70_000) + b"%d" % k for k in range(300)})
    opened: list[str] = []
    real_open = tarfile.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *a, **k: (opened.append(k["mode"]), real_open(*a, **k))[1])
        with Archive(path, tmp_path) as archive:
            for name in reversed(archive.names):
                assert archive.read(name).endswith(b"%d" % int(name))
    assert opened == ["r|"]


def test_pipes_in_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_text("a")
    with Archive(tmp_path) as archive:
        assert archive.names == ["a"]


# ---------------------------------------------------------------- any bytes -------------------------------------------


def packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.txt", "hello " * 30)
            archive.writestr("c.txt", "c")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, content in (("a/b.txt", b"hello " * 30), ("c" * 120, b"c"), ("ä", b"")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


SEEDS = {kind: packed(kind) for kind in ("zip", "tar", "tar.gz")}


@settings(max_examples=300, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(SEEDS)), data=st.data())
def test_damaged_bytes_give_a_clear_error_or_are_read(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    inside = tmp_path / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    path = inside / f"x.{kind}"
    path.write_bytes(bytes(content))
    try:
        with Archive(path, inside) as archive:
            for name in archive.names:
                with contextlib.suppress(CompetitionError):
                    archive.read(name)
    except CompetitionError as error:
        assert path.name in str(error)
    assert [p.name for p in inside.iterdir()] == [path.name]
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
