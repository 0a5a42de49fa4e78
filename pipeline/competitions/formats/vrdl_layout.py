"""What the homeworks of NYCU's course VRDL share: train/ beside a json of the test images' ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from pipeline.competitions import CompetitionError, Integrity
from pipeline.competitions.formats.archive import Archive, is_stray
from pipeline.competitions.formats.coco_results import parse_ids
from pipeline.records import Image


def root(archive: Archive, ids: str, what: str) -> str:
    """The folder inside that holds train/ and the ids, with a trailing slash unless it is the top.

    Args:
        ids: the name of the json with the test images' ids.
        what: the archive as it is called, for the error.

    Raises:
        CompetitionError: there is none.
    """
    places = [name[: -len(ids)] for name in archive.names if PurePosixPath(name).name == ids and not is_stray(name)]
    good = [place for place in places if any(name.startswith(f"{place}train/") for name in archive.names)]
    if good:
        return min(good, key=len)
    top = sorted({name.split("/")[0] for name in archive.names})[:8]
    needed = "train/ beside " + ids if places else ids
    raise CompetitionError(f"{archive.path} holds no {needed}; is it the {what}? It has {', '.join(top) or 'nothing'}")


def read_test(
    archive: Archive,
    folder: str,
    ids: str,
    categories: Mapping[int, str],
    size: Callable[[bytes], tuple[int, int]],
    keep: Callable[[bytes, Image], Image],
    integrity: Integrity,
) -> list[Image]:
    """The test images in the order of their ids.

    Args:
        folder: that holds the images, with a trailing slash.
        ids: the json's name in the archive.
        size: of an image file, (height, width); raises ValueError for one that is not whole.
        keep: stores an image file and returns its record in the data set.

    Raises:
        CompetitionError: the json cannot be read; there is no image; one is missing, damaged or of another size.
    """
    place = f"{PurePosixPath(ids).name} in {archive.path}"
    try:
        raw = json.loads(archive.read(ids))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, CompetitionError):
            raise
        raise CompetitionError(f"{place} is not JSON: {error}") from error
    listed = parse_ids(raw, place, categories).images
    files = {name[len(folder) :]: name for name in archive.names if name.startswith(folder) and not is_stray(name)}
    where = PurePosixPath(folder).name
    images, missing = [], []
    for image in sorted(listed, key=lambda i: i.id):
        name = f"{where}/{image.file_name}"
        if image.file_name not in files:
            missing.append(f"{name}: it is in {PurePosixPath(ids).name} but not in {archive.path}")
            continue
        try:
            content = archive.read(files[image.file_name])
            height, width = size(content)
            if (height, width) != (image.height, image.width):
                raise ValueError(f"it is {width}x{height}, {PurePosixPath(ids).name} says {image.width}x{image.height}")
        except ValueError as error:
            missing.append(f"{name}: {error}")
            continue
        images.append(keep(content, image))
    if missing or not images:
        raise CompetitionError(
            "every test image must be whole, or the submission is not; get the archive again:\n  "
            + "\n  ".join(missing or ["there is no test image"])
        )
    for name in sorted(set(files) - {i.file_name for i in listed}):
        integrity.add(
            "warning", f"{where}/{name}", f"is not in {PurePosixPath(ids).name}: it is not predicted", "unknown id"
        )
    return images
