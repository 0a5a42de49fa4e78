"""A competition's files, from a zip, a tar or an unpacked folder, by their names inside."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from pipeline.competitions import CompetitionError
from pipeline.files import FULL

MAX_MEMBER_BYTES = 1 << 30
"""A member that unpacks to more is refused: no file of a competition is so large, and a small zip can hold such."""

MAX_UNPACKED_BYTES = 100 << 30
"""A compressed tar that unpacks to more is refused: a small one can hold any amount."""

_OPEN: dict[bytes, Callable[[Path], IO[bytes]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # type: ignore[dict-item]
"""How to read a compressed file, by how it begins."""

_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


class Archive:
    """Read-only files. Names are relative, with ``/``; the archive's names never become paths on this machine.

    A compressed tar can only be read from its beginning, so it is unpacked once, each member under a number, and what
    was unpacked goes with the archive.

    Attributes:
        path: the zip, tar or folder.
        names: every file's name, sorted.
        unsafe: names that would leave the archive (absolute, with ``..``, links, devices); they cannot be read.
    """

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        """Open a zip, a tar (also .tar.gz, .tar.bz2, .tar.xz) or a folder.

        Args:
            scratch: an existing folder in which there is room to unpack a compressed tar; the system's by default.

        Raises:
            CompetitionError: there is nothing at `path`; it is neither a zip nor a tar, cut off, or absurdly large.
        """
        self.path = path
        self.unsafe: list[str] = []
        self._zip: zipfile.ZipFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._entries: dict[str, tarfile.TarInfo] = {}
        self._unpacked: dict[str, Path] = {}
        self._exit = ExitStack()
        if path.is_dir():
            self.names = sorted(_walk(path))
            return
        if not path.exists():
            raise CompetitionError(
                f"there is no data at {path}; set data.path in the experiment file or pass --data PATH"
            )
        with path.open("rb") as handle:
            head = handle.read(512)
        packed = next((opener for mark, opener in _OPEN.items() if head.startswith(mark)), None)
        try:
            if packed is not None or head[257:262] == b"ustar" or path.name.lower().endswith(_SUFFIXES):
                self._open_tar(packed, scratch)
            else:
                self._open_zip()
        except BaseException:
            self._exit.close()
            raise
        self.names = sorted([*self._members, *self._entries, *self._unpacked])

    def _open_zip(self) -> None:
        try:
            self._zip = self._exit.enter_context(zipfile.ZipFile(self.path))
            members = self._zip.infolist()
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
            raise CompetitionError(
                f"{self.path} ({self.path.stat().st_size:,} bytes) is not a whole zip archive: {error}; "
                f"download it again"
            ) from error
        for member in members:
            if member.filename.endswith("/"):
                continue
            name = None if stat.S_ISLNK(member.external_attr >> 16) else _safe(member.filename)
            if name is None:
                self.unsafe.append(member.filename)
            else:
                self._members[name] = member

    def _open_tar(self, packed: Callable[[Path], IO[bytes]] | None, scratch: Path | None) -> None:
        """Keep the members of a plain tar, which is read where they lie, or unpack those of a compressed one."""
        unpacked = 0
        folder = None
        try:
            content = self._exit.enter_context(self.path.open("rb") if packed is None else packed(self.path))
            self._tar = self._exit.enter_context(
                tarfile.open(fileobj=content, mode="r:" if packed is None else "r|", errors="replace")  # noqa: SIM115
            )
            if packed is not None:
                temporary = tempfile.TemporaryDirectory(prefix=".unpacked-", dir=scratch, ignore_cleanup_errors=True)
                folder = Path(self._exit.enter_context(temporary))
            for number, member in enumerate(self._tar):
                if member.size < 0:  # an older tarfile would go round in circles
                    raise tarfile.ReadError(f"{member.name} has a negative size")
                if member.isdir():
                    continue
                unpacked += member.size
                if packed is not None and unpacked > MAX_UNPACKED_BYTES:
                    raise CompetitionError(f"{self.path} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                name = _safe(member.name) if member.isreg() and not member.issparse() else None
                if name is None:
                    self.unsafe.append(member.name)
                elif folder is None:
                    self._entries[name] = member
                else:
                    self._check_size(name, member.size)
                    self._unpacked[name] = folder / str(number)
                    self._unpack(member, self._unpacked[name])
            if packed is not None:  # the checksum is at the very end
                while unpacked <= MAX_UNPACKED_BYTES and (rest := content.read(1 << 20)):
                    unpacked += len(rest)
        except OSError as error:
            if error.errno in FULL:
                raise CompetitionError(
                    f"there is no room in {scratch or tempfile.gettempdir()} to unpack {self.path}, {unpacked:,} bytes "
                    f"and more; free some, or unpack it elsewhere and give the folder"
                ) from error
            raise self._no_whole_tar(error) from error
        except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            if isinstance(error, CompetitionError):
                raise
            raise self._no_whole_tar(error) from error
        except Exception as error:
            if type(error).__module__ in ("zlib", "lzma", "_lzma"):
                raise self._no_whole_tar(error) from error
            raise

    def _no_whole_tar(self, error: Exception) -> CompetitionError:
        size = self.path.stat().st_size
        return CompetitionError(f"{self.path} ({size:,} bytes) is not a whole tar archive: {error}; download it again")

    def _unpack(self, member: tarfile.TarInfo, path: Path) -> None:
        assert self._tar is not None
        source = self._tar.extractfile(member)
        assert source is not None, member.name
        with source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        if path.stat().st_size != member.size:
            raise EOFError(f"{member.name} is cut off")

    def _check_size(self, name: str, size: int) -> None:
        if size > MAX_MEMBER_BYTES:
            raise CompetitionError(
                f"{name} in {self.path} unpacks to {size:,} bytes; no file of a competition is so large"
            )

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def file(self, name: str) -> Path | None:
        """Where a file of a folder lies on this machine; None for an archive's member."""
        return self.path / name if self.path.is_dir() else None

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            CompetitionError: the file is damaged, unreadable, encrypted or absurdly large.
        """
        place = f"{name} in {self.path}"
        try:
            if name in self._unpacked:
                return self._unpacked[name].read_bytes()
            if name in self._entries:
                return self._from_tar(self._entries[name])
            if self._zip is None:
                if self._tar is not None:
                    raise KeyError(name)
                return (self.path / name).read_bytes()
            member = self._members[name]
            self._check_size(name, member.file_size)
            return self._zip.read(member)
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise CompetitionError(f"{place} is damaged: {error}; download the archive again") from error
        except OSError as error:  # besides the disk's own faults: places before the file's beginning
            raise CompetitionError(f"{place} cannot be read: {error}") from error
        except (RuntimeError, NotImplementedError, EOFError) as error:  # encrypted; unknown compression; cut off
            raise CompetitionError(f"{place} cannot be unpacked: {error}") from error
        except Exception as error:
            if type(error).__module__ in ("zlib", "lzma", "_lzma"):
                raise CompetitionError(f"{place} is damaged: {error}; download the archive again") from error
            raise

    def _from_tar(self, member: tarfile.TarInfo) -> bytes:
        assert self._tar is not None
        self._check_size(member.name, member.size)
        source = self._tar.extractfile(member)
        assert source is not None, member.name
        content = source.read()
        if len(content) != member.size:
            raise EOFError(f"it is cut off after {len(content):,} of {member.size:,} bytes")
        return content


def _safe(name: str) -> str | None:
    """The name as it is read by, without ``./``; None for one that leaves the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return None
    return str(path)


def _walk(folder: Path) -> Iterable[str]:
    for where, folders, files in os.walk(folder):
        folders.sort()
        prefix = Path(where).relative_to(folder).as_posix()
        for name in files:
            if os.path.isfile(os.path.join(where, name)):  # no pipes, no devices, no links to nothing
                yield name if prefix == "." else f"{prefix}/{name}"


def is_stray(name: str) -> bool:
    """Whether a file is litter of editors and file managers: hidden files, checkpoints, resource forks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
