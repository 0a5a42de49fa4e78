"""Every view: transform an image, find the objects in it, undo the view, and compare with the objects of the original."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import masks
from pipeline.records import GRID_CAP, Detections
from pipeline.views import TURNS, View, parse

SIZES = [(37, 53), (64, 64), (1, 7), (9, 1)]


def blobs(height: int, width: int, count: int, seed: int) -> list[np.ndarray]:
    """`count` random soft blobs as full frames (height, width) uint8; lopsided, so that no turn maps one onto itself."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frames = []
    for _ in range(count):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(2, max(height / 4, 3)), rng.uniform(2, max(width / 4, 3))
        bulge = 1 + 0.4 * np.tanh((x - cx) / rx + 0.5 * (y - cy) / ry)
        distance = np.hypot((y - cy) / ry, (x - cx) / rx) / bulge
        frames.append((255 / (1 + np.exp(6 * (distance - 1)))).astype(np.uint8))
    return frames


def found(frames: list[np.ndarray]) -> Detections:
    """Detections of full frames: one a frame, tight mask boxes, and a regressed box that is not the mask box."""
    boxes, mask_boxes, grids = [], [], []
    for frame in frames:
        x0, y0, x1, y1 = masks.tight_box(frame)
        mask_boxes.append((x0, y0, x1, y1))
        boxes.append((x0 + 0.25, y0 - 0.5, x1 + 1.75, y1 + 0.125))
        grids.append(frame[y0:y1, x0:x1])
    return Detections.build(1, 2, np.linspace(1, 0.1, len(frames)), boxes, mask_boxes, grids, "m/0/v")


def frame_of(detections: Detections, i: int, height: int, width: int) -> np.ndarray:
    frame = np.zeros((height, width), np.uint8)
    x0, y0, x1, y1 = detections.mask_box[i]
    frame[y0:y1, x0:x1] = detections.crop(i)
    return frame


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_is_undone_exactly(turn: str, size: tuple[int, int]) -> None:
    height, width = size
    frames = [f for f in blobs(height, width, 12, seed=3) if f.any()]
    view = View(turn)
    seen = [view.apply(f) for f in frames]
    assert seen[0].shape == view.turned_size(height, width) == view.size(height, width)
    back = view.invert(found(seen), height, width)
    original = found(frames)
    np.testing.assert_array_equal(back.mask_box, original.mask_box)
    np.testing.assert_array_equal(back.shape, original.shape)
    np.testing.assert_array_equal(back.pixels, original.pixels)
    np.testing.assert_array_equal(back.score, original.score)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_moves_regressed_boxes_as_it_moves_pixels(turn: str) -> None:
    height, width = 5, 9
    frame = np.zeros((height, width), np.uint8)
    frame[1:3, 2:7] = 255
    view = View(turn)
    x0, y0, x1, y1 = masks.tight_box(view.apply(frame))
    inside = np.array([[x0 + 0.25, y0 + 0.5, x1, y1]])
    back = view.unturn_boxes(inside, height, width)[0]
    assert (back[2] - back[0]) * (back[3] - back[1]) == pytest.approx((x1 - x0 - 0.25) * (y1 - y0 - 0.5))
    assert back[0] >= 2 and back[1] >= 1 and back[2] <= 7 and back[3] <= 3


def test_quarter_turns_are_numpys() -> None:
    image = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    for k, name in ((1, "rot90"), (2, "rot180"), (3, "rot270")):
        np.testing.assert_array_equal(View(name).apply(image), np.rot90(image, k))
    np.testing.assert_array_equal(View("hflip").apply(image), image[:, ::-1])
    np.testing.assert_array_equal(View("vflip").apply(image), image[::-1])
    np.testing.assert_array_equal(View("transpose").apply(image), image.swapaxes(0, 1))
    np.testing.assert_array_equal(View("antitranspose").apply(image), np.rot90(image, 2).swapaxes(0, 1))


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.5, 2.0])
@pytest.mark.parametrize("turn", TURNS)
def test_a_scaled_view_comes_back_to_its_place(turn: str, scale: float) -> None:
    height, width = 61, 83
    view = View(turn, scale)
    frames = [f for f in blobs(height, width, 15, seed=5) if (f >= masks.FOREGROUND).sum() > 60]
    assert len(frames) > 5
    seen = [view.apply(f) for f in frames]
    assert seen[0].shape == view.size(height, width)
    back = view.invert(found(seen), height, width)
    y, x = np.mgrid[:height, :width]
    way_back = cv2.INTER_LINEAR if scale < 1 else cv2.INTER_AREA
    for i, frame in enumerate(frames):
        mine = frame_of(back, i, height, width)
        turned = cv2.resize(seen[i], view.turned_size(height, width)[::-1], interpolation=way_back)
        whole = frame_of(view.unturn(found([turned]), height, width), 0, height, width)
        assert np.abs(mine.astype(int) - whole).mean() < 0.1  # as resizing the full frame, but for what cv2 rounds
        both = (mine >= masks.FOREGROUND) & (frame >= masks.FOREGROUND)
        either = (mine >= masks.FOREGROUND) | (frame >= masks.FOREGROUND)
        assert both.sum() / either.sum() > 0.7
        for axis in (y, x):  # no shift: the centres agree to a fraction of a pixel
            assert (axis * 1.0 * mine).sum() / mine.sum() == pytest.approx(
                (axis * 1.0 * frame).sum() / frame.sum(), abs=0.15
            )


@pytest.mark.parametrize("turn", TURNS)
def test_boxes_of_a_scaled_view_come_back_by_the_sides_true_ratio(turn: str) -> None:
    height, width = 37, 53
    view = View(turn, 1.49)
    rows, columns = view.size(height, width)
    whole = view.boxes_to_original(np.array([[0, 0, columns, rows]], np.float32), height, width)
    np.testing.assert_allclose(whole, [[0, 0, width, height]], atol=1e-9)
    detections = found([view.apply(f) for f in blobs(height, width, 4, seed=1)])
    np.testing.assert_allclose(
        view.invert(detections, height, width).box, view.boxes_to_original(detections.box, height, width), atol=1e-4
    )


def test_scaling_by_two_and_back_by_area_is_exact() -> None:
    view = View("rot90", 2.0)
    frame = blobs(31, 22, 1, seed=9)[0]
    doubled = np.repeat(np.repeat(np.rot90(frame), 2, axis=0), 2, axis=1)
    back = view.invert(found([doubled]), 31, 22)
    np.testing.assert_array_equal(frame_of(back, 0, 31, 22), frame)


def test_an_object_larger_than_the_cap_survives_turn_and_scale() -> None:
    height, width = 300, 401
    frame = np.zeros((height, width), np.uint8)
    frame[20:290, 100:380] = 255
    frame[20:150, 100:200] = 0
    view = View("antitranspose", 1.5)
    back = view.invert(found([view.apply(frame)]), height, width)
    assert back.shape.max() == GRID_CAP
    mine = frame_of(back, 0, height, width) >= 128
    assert (mine & (frame > 0)).sum() / (mine | (frame > 0)).sum() > 0.98


def test_a_mask_at_the_images_border_does_not_fade_there() -> None:
    frame = np.zeros((40, 40), np.uint8)
    frame[:20, 25:] = 180
    back = View("identity", 0.5).invert(found([View("identity", 0.5).apply(frame)]), 40, 40)
    mine = frame_of(back, 0, 40, 40)
    assert (mine[:18, -1] == 180).all() and (mine[0, 27:] == 180).all()


@given(st.sampled_from(sorted(TURNS)), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1.0, 0.3, 2.5]))
def test_no_detections_stay_none(turn: str, height: int, width: int, scale: float) -> None:
    back = View(turn, scale).invert(Detections.empty(["a/0/b"]), height, width)
    assert len(back) == 0 and back.sources == ["a/0/b"]


def test_an_empty_grid_and_other_columns_survive() -> None:
    table = Detections.build([7, 7], 1, [0.5, 0.25], [[0, 0, 4, 4], [1, 1, 3, 3]], [[0, 0, 0, 0], [2, 0, 4, 6]],
                             [np.zeros((0, 0), np.uint8), np.full((6, 2), 200, np.uint8)],
                             "a/1/rot90@2.0", {"q": [1, 2]})  # fmt: skip
    back = parse("rot90@2.0").invert(table, 10, 12)
    assert back.sources == ["a/1/rot90@2.0"] and back.extra["q"].tolist() == [1, 2] and back.image_id.tolist() == [7, 7]
    assert back.shape[0].tolist() == [0, 0] and len(back.grid(1)) > 0


def test_images_keep_their_channels_and_are_never_aliased() -> None:
    image = np.random.default_rng(0).integers(0, 255, (11, 17, 1), np.uint8)
    for turn in TURNS:
        for scale in (1.0, 0.6, 1.7):
            view = View(turn, scale)
            seen = view.apply(image)
            assert (
                seen.shape == (*view.size(11, 17), 1) and seen.flags.c_contiguous and not np.shares_memory(seen, image)
            )


@pytest.mark.parametrize("turn", TURNS)
def test_a_side_of_a_view_has_the_length_asked_for(turn: str) -> None:
    for (height, width), longest, sides in (
        ((37, 53), None, (80, 115)),  # 53 * 80 / 37 = 114.6
        ((53, 37), None, (80, 115)),
        ((200, 210), None, (80, 84)),
        ((37, 53), 100, (70, 100)),  # 37 * 100 / 53 = 69.8
        ((37, 53), 115, (80, 115)),
        ((7, 7), 100, (80, 80)),
    ):
        view = View(turn, shortest=80, longest=longest)
        assert tuple(sorted(view.size(height, width))) == sides
        frames = blobs(height, width, 4, seed=1)
        seen = view.apply(frames[0])
        assert seen.shape == view.size(height, width)
        rows, columns = seen.shape
        whole = view.boxes_to_original(np.array([[0, 0, columns, rows]], np.float32), height, width)
        np.testing.assert_allclose(whole, [[0, 0, width, height]], atol=1e-9)
        same = View(turn, sides[0] / min(height, width))
        if longest is None:  # the same view by its factor
            np.testing.assert_array_equal(seen, same.apply(frames[0]))
            mine, other = (v.invert(found([v.apply(f) for f in frames]), height, width) for v in (view, same))
            np.testing.assert_array_equal(mine.mask_box, other.mask_box)
            np.testing.assert_array_equal(mine.pixels, other.pixels)


def test_names() -> None:
    assert parse("hflip@2.0") == parse(" hflip@2 ") == View("hflip", 2.0)
    assert parse("rot90") == View("rot90") and str(parse("rot90")) == "rot90" and str(View("vflip", 1.5)) == "vflip@1.5"
    assert all(parse(str(View(turn, scale))) == View(turn, scale) for turn in TURNS for scale in (1.0, 0.5, 2.0))
    with pytest.raises(ValueError, match="did you mean 'hflip'"):
        parse("hflp")
    with pytest.raises(ValueError, match=r"size behind its @, e.g. hflip@2.0, hflip@800px"):
        parse("hflip@two")
    assert parse("hflip@800px") == View("hflip", shortest=800)
    assert parse("hflip@800-1333px") == View("hflip", shortest=800, longest=1333)
    assert all(str(parse(name)) == name for name in ("hflip@800px", "rot90@800-1333px", "identity@8-8px"))
    for name in ("hflip@0px", "hflip@7px", "hflip@800-600px", "hflip@800-0px"):
        with pytest.raises(ValueError, match="at most the longer one"):
            parse(name)
    for wrong in ({"longest": 5}, {"scale": 2.0, "shortest": 800}):
        with pytest.raises(ValueError, match="a scale, or a length"):
            View("hflip", **wrong)
    for scale in ("0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match="above 0"):
            parse(f"hflip@{scale}")
