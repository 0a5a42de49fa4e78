"""The one file inside a submission's zip: found, opened, and what is wrong with how it is packed."""

from __future__ import annotations

import difflib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.competitions import CompetitionError, Problem
from pipeline.competitions.formats.faults import SHOWN
from pipeline.files import FULL


class DamagedError(CompetitionError):
    """The zip cannot be read; the message says why, without the file's name."""


def is_zip(path: Path) -> bool:
    """Whether a file is one, or claims to be.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as handle:
        return handle.read(2) == b"PK" or path.suffix.lower() == ".zip"


@contextmanager
def opened(path: Path, member: str, limit: int, problems: list[Problem]) -> Iterator[IO[bytes] | None]:
    """The zip's file `member`, unpacked as it is read; None where there is no telling which file is meant.

    A single other file with the same suffix is read too, with a problem.

    Args:
        limit: bytes; a file that unpacks to more is not opened.
        problems: what is wrong is appended.

    Raises:
        DamagedError: the archive is cut off, damaged or encrypted, be it found on opening or while reading.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise DamagedError(f"is not a whole zip archive: {error}") from error
    try:
        with archive:
            chosen = _choose(
                [i for i in archive.infolist() if not i.filename.endswith("/")], member, path.name, problems
            )
            if chosen is not None and chosen.file_size > limit:
                text = f"{chosen.filename} unpacks to {chosen.file_size:,} bytes, not a submission"
                problems.append(Problem("error", path.name, text, "archive"))
                chosen = None
            if chosen is None:
                yield None
                return
            try:
                handle = archive.open(chosen)
            except (RuntimeError, NotImplementedError, ValueError) as error:  # encrypted; unknown compression
                raise DamagedError(f"cannot be unpacked: {error}") from error
            with handle:
                yield io.BufferedReader(handle, 1 << 16)  # type: ignore[type-var]
    except zipfile.BadZipFile as error:
        raise DamagedError(f"is not a whole zip archive: {error}") from error
    except (EOFError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno in FULL
        ):  # not of this file: of one that is being written meanwhile
            raise
        raise DamagedError(f"cannot be unpacked: {error}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "_lzma"):
            raise DamagedError(f"is damaged: {error}") from error
        raise


def _choose(files: list[zipfile.ZipInfo], member: str, archive: str, problems: list[Problem]) -> zipfile.ZipInfo | None:
    chosen = next((info for info in files if info.filename == member), None)
    others = [info.filename for info in files if info.filename != member]
    if chosen is None:
        problems.append(Problem("error", archive, _wrong_member(others, member), "archive"))
        suffix = Path(member).suffix
        readable = [i for i in files if i.filename.lower().endswith(suffix) and not _litter(i.filename)]
        return readable[0] if len(readable) == 1 else None
    if others:
        text = f"holds {', '.join(others[:SHOWN])}{' …' if len(others) > SHOWN else ''} beside {member}"
        problems.append(Problem("warning", archive, text, "archive"))
    return chosen


def _litter(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1].startswith(".")


def _wrong_member(names: list[str], member: str) -> str:
    if not names:
        return f"is an empty archive; it must hold {member}"
    nested = [name for name in names if name.replace("\\", "/").rsplit("/", 1)[-1] == member and not _litter(name)]
    if nested:
        return f"holds {nested[0]}; {member} must lie at the top, in no folder"
    near = difflib.get_close_matches(member, names, n=1, cutoff=0.5)
    shown = near[0] if near else ", ".join(names[:SHOWN])
    return f"holds {shown} and no {member}; the file inside must have exactly that name"


@contextmanager
def written(path: Path, member: str, large: bool = False, level: int = 6) -> Iterator[IO[bytes]]:
    """Write a zip with one deflated member as its content comes; the same content gives the same bytes.

    Args:
        large: whether the content may be more than 2 GB.
        level: of compression, up to 9.
    """
    info = zipfile.ZipInfo(member, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(path, "w", compresslevel=level) as archive,
        archive.open(info, "w", force_zip64=large) as handle,
    ):
        yield handle
