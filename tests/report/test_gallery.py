from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import coco_ap
from pipeline.records import Image
from pipeline.report import gallery
from pipeline.report.outlines import UnreadableImageError
from pipeline.report.verdicts import judge

from .conftest import DrawnRun


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.lists(st.floats(1, 500), max_size=4),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=6),
)
def test_a_window_is_inside_the_image(
    height: int, width: int, extents: list[float], places: list[tuple[float, float]]
) -> None:
    focus = np.array([(x * (width - 1), y * (height - 1)) for x, y in places]).reshape(-1, 2)
    x0, y0, x1, y1 = gallery.window((height, width), np.array(extents), focus)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    if len(focus) == 1:
        assert x0 <= focus[0, 0] < x1 and y0 <= focus[0, 1] < y1


def test_a_window_is_where_most_points_are() -> None:
    crowd = np.array([(1500 + k, 90 + k) for k in range(10)])
    alone = np.array([(10, 900)] * 3)
    x0, y0, x1, y1 = gallery.window((1000, 2000), np.array([20.0]), np.concatenate([alone, crowd]))
    assert x0 <= 1500 and x1 > 1509 and y0 <= 90 and y1 > 99
    assert (x1 - x0, y1 - y0) == (240, 240)  # twelve objects


def test_small_images_and_large_objects_are_shown_whole() -> None:
    assert gallery.window((300, 400), np.array([5.0]), np.zeros((0, 2))) == (0, 0, 400, 300)
    assert gallery.window((1536, 2048), np.array([200.0]), np.array([[5.0, 5.0]])) == (0, 0, 2048, 1536)


def test_every_instance_of_a_verdict_is_outlined_once(drawn_run: DrawnRun) -> None:
    found = drawn_run.detections(drawn_run.train, recall=0.6)
    match = coco_ap.match(drawn_run.train, found)
    for verdict in judge(drawn_run.train, found, match, 0.2):
        picture = gallery.verdict_picture(drawn_run.train, verdict, found, match)
        kinds = [o.kind for o in picture.outlines]
        assert kinds.count("true") == kinds.count("found") == len(verdict.found)
        assert kinds.count("missed") == len(verdict.missed)
        assert kinds.count("false") == len(verdict.false)
        assert all(o.path.startswith("M") for o in picture.outlines)
        assert picture.view_box == "0 0 320 240"
        for outline in picture.outlines:
            assert outline.label.startswith(outline.kind)


def test_only_what_reaches_the_window_is_outlined(drawn_run: DrawnRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "window", lambda *_: (0, 0, 100, 100))
    image = drawn_run.test.images[0]
    found = drawn_run.detections(drawn_run.test)
    found = found.take(found.image_id == image.id)
    picture = gallery.final_picture(drawn_run.test, image, found)
    inside = [(box[0] < 100) and (box[1] < 100) for box in found.mask_box]
    assert 0 < len(picture.outlines) == sum(inside) < len(found)
    assert f"{len(found)} masks, {sum(inside)} of them in this part" == picture.caption
    assert [o.opacity for o in picture.outlines] == sorted(o.opacity for o in picture.outlines)


def test_test_images_without_masks_or_with_unknown_classes(drawn_run: DrawnRun) -> None:
    image = drawn_run.test.images[0]
    found = drawn_run.detections(drawn_run.test)
    empty = gallery.final_picture(drawn_run.test, image, found.take([]))
    assert (empty.outlines, empty.caption) == ([], "0 masks")
    found.category_id[:] = 77
    strange = gallery.final_picture(drawn_run.test, image, found.take(found.image_id == image.id))
    assert strange.outlines[0].label.startswith("class 77, score ")


def test_a_missing_image_is_named(drawn_run: DrawnRun) -> None:
    image = drawn_run.test.images[0]
    drawn_run.test.path(image).unlink()
    with pytest.raises(UnreadableImageError, match=image.file_name):
        gallery.final_picture(drawn_run.test, image, drawn_run.detections(drawn_run.test).take([]))


@given(st.integers(0, 40), st.integers(1, 8))
def test_spread_takes_different_images_from_end_to_end(total: int, count: int) -> None:
    images = [Image(k, f"{k}.png", 1, 1) for k in range(total)]
    ids = [i.id for i in gallery.spread(images, count)]
    assert ids == sorted(set(ids)) and len(ids) == min(count, total)
    if total > 1 and count > 1:
        assert ids[0] == 0 and ids[-1] == total - 1
