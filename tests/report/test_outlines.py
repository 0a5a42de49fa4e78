from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.report.outlines import UnreadableImageError, outline, picture, read_image


def points(path: str) -> list[set[tuple[int, int]]]:
    """The corners of every closed line of SVG path data."""
    lines = []
    for x, y, steps in re.findall(r"M(-?\d+) (-?\d+)l([^z]*)z", path):
        corner = np.array([int(x), int(y)])
        numbers = np.array(steps.split(), int).reshape(-1, 2)
        corners = np.concatenate([[corner], corner + np.cumsum(numbers, axis=0)])
        lines.append({(int(a), int(b)) for a, b in corners})
    return lines


def test_a_rectangle_is_drawn_where_it_lies() -> None:
    mask = np.ones((3, 5), np.uint8)  # 5 wide, 3 high
    assert points(outline(mask, (10, 20))) == [{(10, 20), (14, 20), (14, 22), (10, 22)}]


def test_x_and_y_are_not_swapped() -> None:
    mask = np.zeros((9, 4), bool)
    mask[7:9, 1] = True
    assert points(outline(mask, (100, 0))) == [{(101, 7), (101, 8)}]


def test_parts_and_holes_have_their_own_lines() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[2:12, 2:12] = 1
    mask[5:8, 5:8] = 0
    mask[15:18, 20:25] = 1
    lines = points(outline(mask, (0, 0)))
    assert len(lines) == 3
    assert {(2, 2), (11, 2), (11, 11), (2, 11)} in lines
    assert {(20, 15), (24, 15), (24, 17), (20, 17)} in lines


def test_one_pixel_is_a_dot_and_nothing_is_nothing() -> None:
    dot = np.zeros((3, 3), np.uint8)
    dot[1, 2] = 1
    assert outline(dot, (0, 0)) == "M2 1l0 0z"
    assert outline(np.zeros((3, 3), np.uint8), (0, 0)) == ""
    assert outline(np.zeros((0, 0), np.uint8), (0, 0)) == ""


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(image[:, :, ::-1])


def test_a_window_keeps_its_place_and_colours() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:60] = (200, 40, 10)  # red
    part = decoded(picture(image, (30, 20, 60, 40)))
    assert part.shape == (20, 30, 3)
    assert np.abs(part.astype(int) - (200, 40, 10)).max() < 8


def test_a_large_window_is_scaled_down_and_a_thin_one_keeps_a_pixel() -> None:
    assert decoded(picture(np.zeros((100, 400, 3), np.uint8), (0, 0, 400, 100), longest=200)).shape == (50, 200, 3)
    assert decoded(picture(np.zeros((1, 4000, 3), np.uint8), (0, 0, 4000, 1), longest=200)).shape == (1, 200, 3)


@pytest.mark.parametrize("kind", ["grey", "colour", "alpha", "16 bit"])
def test_every_kind_of_image_is_three_channels_of_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.png"
    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (20, 1))  # (20, 50)
    blue_green_red = np.stack([ramp, ramp // 2, ramp // 4], axis=2)
    stored = {
        "grey": ramp,
        "colour": blue_green_red,
        "alpha": np.concatenate([blue_green_red, np.full((20, 50, 1), 7, np.uint8)], axis=2),
        "16 bit": ramp.astype(np.uint16) * 10,
    }[kind]
    cv2.imwrite(str(path), stored)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((20, 50, 3), np.uint8)
    if kind in ("colour", "alpha"):
        assert np.array_equal(image, blue_green_red[:, :, ::-1])
    else:
        assert np.array_equal(image[:, :, 0], image[:, :, 2])
        assert (image[:, -1].min() >= 245) and image[:, 0].max() == 0
    assert image.flags.c_contiguous


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    for name in ("torn.png", "absent.png"):
        with pytest.raises(UnreadableImageError, match=name):
            read_image(tmp_path / name)
