"""A competition's download as one set of files: a zip, a folder, or either holding further zips.

Kaggle hands out one zip with zips inside; other places hand the same parts out one by one. A zip inside is read as the
folder of its name, so that ``stage1_train.zip`` with ``<id>/images/…`` in it, ``stage1_train.zip`` with
``stage1_train/<id>/…`` in it and the unpacked folder differ in nothing but what lies before ``<id>``.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType

from pipeline.competitions.formats.archive import Archive, is_stray


class Bundle:
    """Read-only files, like an `Archive`.

    Attributes:
        path: the zip or folder.
        names: every file's name, sorted: a file of an inner zip has the zip's name, less ``.zip``, as a folder before it.
        unsafe: names that would leave their archive; they cannot be read.
    """

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        """Open the zip or folder and the zips in it.

        A zip beside a folder of its own name has been unpacked there, and is left alone.

        Args:
            scratch: see `Archive`.

        Raises:
            CompetitionError: there is nothing at `path`; it, or a zip in it, is not a whole zip.
        """
        self.path = path
        self._stack = ExitStack()
        self._where: dict[str, tuple[Archive, str]] = {}
        try:
            outer = self._stack.enter_context(Archive(path, scratch))
            self.unsafe = list(outer.unsafe)
            prefix = "" if path.is_dir() else f"{path.stem}/"
            folders = {str(parent) for name in outer.names for parent in PurePosixPath(name).parents}
            for name in outer.names:
                folder, suffix = name[:-4], name[-4:].lower()
                if suffix != ".zip" or is_stray(name):
                    self._where[prefix + name] = (outer, name)
                elif folder not in folders:
                    inner = self._inner(outer, name)
                    self.unsafe += inner.unsafe
                    self._where.update({f"{prefix}{folder}/{member}": (inner, member) for member in inner.names})
        except BaseException:
            self._stack.close()
            raise
        self.names = sorted(self._where)

    def _inner(self, outer: Archive, name: str) -> Archive:
        if outer.path.is_dir():
            return self._stack.enter_context(Archive(outer.path / name))
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="maskfold-")))
        copy = folder / PurePosixPath(name).name
        copy.write_bytes(outer.read(name))
        inner = self._stack.enter_context(Archive(copy))
        inner.path = outer.path / name  # what messages call it
        return inner

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def file(self, name: str) -> Path | None:
        """Where a file of a folder lies on this machine; None for an archive's member."""
        archive, member = self._where[name]
        return archive.file(member)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            CompetitionError: the file is damaged, encrypted or absurdly large.
        """
        archive, member = self._where[name]
        return archive.read(member)
