"""Reading large COCO results: record by record into columns, so that half a million detections take 60 MB, not 600."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.competitions.formats import coco_results
from pipeline.competitions.formats.json_array import elements
from pipeline.metrics.results import Results
from pipeline.records import Dataset

MAX_BYTES = 8 << 30
"""Of JSON that are read this way; COCO's 20,288 test-dev images with 100 masks each are a good 1 GB."""


class _NotPlainError(Exception):
    """The file is no list of records in JSON, bare or in a zip by itself."""


def read_results(path: Path, member: str, images: Dataset | None = None) -> Sequence[dict[str, Any]]:
    """What `coco_results.read_records` gives, as columns where the file is as it should be.

    Raises:
        CompetitionError: it cannot be read, or is no list of records.
    """
    sizes = {} if images is None else {i.id: (i.height, i.width) for i in images.images}
    try:
        with _opened(path) as handle:
            return Results.of(elements(handle), sizes)
    except (_NotPlainError, ValueError, RuntimeError, NotImplementedError, EOFError, OSError, zipfile.BadZipFile):
        pass
    except Exception as error:
        if type(error).__module__ not in ("zlib", "lzma"):
            raise
    # which tells what is wrong, or reads what can yet be read
    return coco_results.read_records(path, member, images)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as handle:
        head = handle.read(4)
        handle.seek(0)
        if head[:2] != b"PK":
            if path.stat().st_size > MAX_BYTES or head == b"PAR1":
                raise _NotPlainError
            yield handle
            return
        with zipfile.ZipFile(handle) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            if len(files) != 1 or "/" in files[0].filename or files[0].file_size > MAX_BYTES:
                raise _NotPlainError
            with archive.open(files[0]) as content:
                yield cast(BinaryIO, content)
