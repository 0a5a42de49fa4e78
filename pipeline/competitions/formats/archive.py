"""A competition's files, from a zip or from an unpacked folder, by their names inside."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from types import TracebackType

from pipeline.competitions import CompetitionError

MAX_MEMBER_BYTES = 1 << 30
"""A member that unpacks to more is refused: no file of a competition is so large, and a small zip can hold such."""


class Archive:
    """Read-only files. Names are relative, with ``/``; the archive's names never become paths on this machine.

    Attributes:
        path: the zip or folder.
        names: every file's name, sorted.
        unsafe: names that would leave the archive (absolute, or with ``..``); they cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """Open a zip or folder.

        Raises:
            CompetitionError: there is nothing at `path`, or it is not a zip.
        """
        self.path = path
        self.unsafe: list[str] = []
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        if path.is_dir():
            self.names = sorted(_walk(path))
            return
        if not path.exists():
            raise CompetitionError(
                f"there is no data at {path}; set data.path in the experiment file or pass --data PATH"
            )
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise CompetitionError(
                f"{path} ({path.stat().st_size:,} bytes) is not a whole zip archive: {error}; download it again"
            ) from error
        for member in self._zip.infolist():
            if member.is_dir():
                continue
            name = member.filename.replace("\\", "/")
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or ":" in parts[0] or stat.S_ISLNK(member.external_attr >> 16):
                self.unsafe.append(member.filename)
            else:
                self._members[name] = member
        self.names = sorted(self._members)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._zip is not None:
            self._zip.close()

    def file(self, name: str) -> Path | None:
        """Where a file lies on this machine; None for a zip's member."""
        return self.path / name if self._zip is None else None

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            CompetitionError: the file is damaged, encrypted or absurdly large.
        """
        place = f"{name} in {self.path}"
        try:
            if self._zip is None:
                return (self.path / name).read_bytes()
            member = self._members[name]
            if member.file_size > MAX_MEMBER_BYTES:
                raise CompetitionError(
                    f"{place} unpacks to {member.file_size:,} bytes; no file of a competition is so large"
                )
            return self._zip.read(member)
        except zipfile.BadZipFile as error:
            raise CompetitionError(f"{place} is damaged: {error}; download the archive again") from error
        except (RuntimeError, NotImplementedError, EOFError) as error:  # encrypted; unknown compression; cut off
            raise CompetitionError(f"{place} cannot be unpacked: {error}") from error
        except Exception as error:
            if type(error).__module__ in ("zlib", "lzma"):
                raise CompetitionError(f"{place} is damaged: {error}; download the archive again") from error
            raise


def _walk(folder: Path) -> Iterable[str]:
    for where, folders, files in os.walk(folder):
        folders.sort()
        prefix = Path(where).relative_to(folder).as_posix()
        yield from (name if prefix == "." else f"{prefix}/{name}" for name in files)


def is_stray(name: str) -> bool:
    """Whether a file is litter of editors and file managers: hidden files, checkpoints, resource forks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
