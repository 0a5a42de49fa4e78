"""VRDL 2021's 14,598 mask files from its zip to run lengths: ours against the plain way, side by side.

    python -m benchmarks.read_vrdl [dataset.zip]      default: ../shared/data/vrdl2021/dataset.zip; about two minutes

The plain way opens the zip with zipfile, decodes each mask with OpenCV and encodes the full frame with pycocotools, one after
another. Ours is what `prepare` does, checks for damaged, empty and repeated masks and for shared pixels included. Seconds are
processor time, so that other work on the machine counts little; both must give the same run lengths.
"""

import argparse
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from pipeline.competitions.formats.archive import Archive, is_stray
from pipeline.competitions.formats.mask_files import read_masks

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "vrdl2021" / "dataset.zip"
SIZE = (1000, 1000)

Names = dict[str, list[str]]


def masks(path: Path) -> Names:
    """The mask files' names by image."""
    found: Names = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            parts = PurePosixPath(name).parts
            if not is_stray(name) and len(parts) > 2 and parts[-2] == "masks" and name.endswith(".png"):
                found.setdefault(parts[-3], []).append(name)
    return found


def plain(path: Path, names: Names) -> dict[str, list[str]]:
    """COCO's compressed counts by image; an empty mask has none."""
    with zipfile.ZipFile(path) as archive:
        found = {}
        for image, own in names.items():
            found[image] = counts = []
            for name in own:
                pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
                frame = np.asfortranarray((pixels >= 128).astype(np.uint8))
                if frame.any():
                    counts.append(coco_mask.encode(frame)["counts"].decode())
        return found


def ours(path: Path, names: Names) -> dict[str, list[str]]:
    with Archive(path) as archive:
        return {
            image: [rle["counts"] for rle in read_masks(archive, own, SIZE, image).rles] for image, own in names.items()
        }


def measured(call: Callable[[Path, Names], dict[str, list[str]]], path: Path, names: Names) -> tuple[dict, float]:
    began = time.process_time()
    return call(path, names), time.process_time() - began


def main(path: Path) -> None:
    if not path.exists():
        sys.exit(f"there is no file {path}: name the dataset.zip of VRDL 2021")
    names = masks(path)
    first = next(iter(names))
    ours(path, {first: names[first][:1]})  # the first call on a machine compiles
    mine, our_time = measured(ours, path, names)
    theirs, their_time = measured(plain, path, names)
    same = all(set(mine[image]) == set(theirs[image]) for image in names)  # ours leaves repeated masks out
    print(f"{len(names)} images, {sum(map(len, names.values())):,} masks; the same run lengths: {same}")
    print(f"maskfold  {our_time:7.1f} s of processor time, {sum(map(len, mine.values())):,} objects")
    print(f"plain     {their_time:7.1f} s of processor time, {sum(map(len, theirs.values())):,} objects")
    print(f"ratio     {their_time / our_time:7.1f} x faster")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "zip", nargs="?", type=Path, default=DATA, help="dataset.zip of VRDL 2021 (default: %(default)s)"
    )
    main(parser.parse_args().zip)
