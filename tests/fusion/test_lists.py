"""Finished lists as voters: what a full list's silence means, and lists with one image, one row, odd names."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.fusion.clusters import cluster
from pipeline.fusion.lists import BELOW, as_lists, fuse_lists
from pipeline.records import Detections
from tests.fusion.cells import SIZE, ellipse, table


def binary(found: Detections) -> Detections:
    return Detections(**{**vars(found), "pixels": np.where(found.pixels >= 128, 255, 0).astype(np.uint8)})


def lists(images: dict[int, list[list[float]]]) -> Detections:
    """By image id and list, the scores it gives to the first cells of a row of cells."""
    cells = [ellipse(20, 15 + 25 * k, 9, 9) for k in range(5)]
    tables, names = [], []
    for k in range(max(len(rows) for rows in images.values())):
        parts = [table(cells[: len(rows[k])], rows[k], "x", i) for i, rows in images.items() if rows[k]]
        tables.append(binary(Detections.concatenate(parts)))
        names.append(f"f{k}")
    return as_lists(tables, names)


def score_of(fused: Detections, image_id: int) -> list[float]:
    """Scores by place, from left to right."""
    mine = fused.take(fused.image_id == image_id)
    return mine.score[np.argsort(mine.box[:, 0])].tolist()


def test_a_full_list_is_taken_to_have_given_a_little_less_than_its_lowest() -> None:
    found = lists({1: [[0.9, 0.8], [0.7, 0.0001]], 2: [[0.9, 0.5], [0.6]]})
    fused = fuse_lists(found.take(found.score > 0.001), {1: SIZE, 2: SIZE})
    # the first file holds two on both images: it is full. The second holds one on both: full as well.
    assert score_of(fused, 1) == pytest.approx([0.8, (0.8 + BELOW * 0.7) / 2])
    assert score_of(fused, 2) == pytest.approx([0.75, (0.5 + BELOW * 0.6) / 2])


def test_a_list_that_is_not_full_has_said_no() -> None:
    found = lists({1: [[0.9, 0.8], [0.7]], 2: [[0.9, 0.5], [0.6, 0.5, 0.4]]})
    fused = fuse_lists(found, {1: SIZE, 2: SIZE})
    assert score_of(fused, 1) == pytest.approx([0.8, 0.4])  # the second file could hold three
    # its three are reached only once: no limit shows, but the first file is full on both
    assert score_of(fused, 2) == pytest.approx([0.75, 0.5, (0.4 + BELOW * 0.5) / 2])


def test_a_list_without_the_image_says_nothing_of_it() -> None:
    found = lists({1: [[0.9, 0.8], []], 2: [[0.9, 0.5], [0.6]]})
    assert score_of(fuse_lists(found, {1: SIZE, 2: SIZE}), 1) == pytest.approx([0.45, 0.4])


def test_easy_images_are_not_ranked_behind_the_doubts_of_others() -> None:
    """Of twenty sure cells each list holds another eight; in the other image all lists agree, four times wrongly."""
    rng = np.random.default_rng(0)
    cells = [ellipse(14 + 28 * (k // 5), 14 + 28 * (k % 5), 9, 9) for k in range(20)]
    tables = []
    for _ in range(6):
        held = rng.choice(20, 8, replace=False)
        easy = table([cells[k] for k in held], rng.uniform(0.9, 1, 8).tolist(), "x", 1)
        hard = table(cells[:8], [*rng.uniform(0.85, 1, 4), *rng.uniform(0.5, 0.6, 4)], "x", 2)
        tables.append(binary(Detections.concatenate([easy, hard])))
    found = as_lists(tables, [str(k) for k in range(6)])
    fused = fuse_lists(found, {1: SIZE, 2: SIZE})
    doubtful = np.array(score_of(fused, 2))
    sure = fused.take(fused.image_id == 1).top(8).score
    assert sorted(doubtful)[3] < sure.min()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.fusion.lists.BELOW", 0.0)
        naive = fuse_lists(found, {1: SIZE, 2: SIZE})
    assert sorted(score_of(naive, 2))[3] > naive.take(naive.image_id == 1).top(8).score.min()


def test_boxes_are_the_masks_own_even_where_the_files_are_wrong() -> None:
    found = lists({1: [[0.9], [0.8]]})
    found.box[:] = [900, 900, 3, 3]
    fused = fuse_lists(found, {1: SIZE})
    assert len(fused) == 1
    x0, y0, x1, y1 = fused.box[0]
    assert (x0, y0, x1, y1) == tuple(fused.mask_box[0])


def test_names() -> None:
    one, two = table([ellipse(20, 20, 9, 9)], [0.5], "a/0/x"), table([ellipse(20, 20, 9, 9)], [0.5], "b")
    two.sources = ["b/0/x", "b/0/y"]
    joined = as_lists([one, one, two], ["m/n", "m/n", "p"])
    assert joined.sources == ["m_n", "m_n 2", "p//0", "p//1"]
    assert [joined.sources[i] for i in joined.source] == ["m_n", "m_n 2", "p//0"]
    assert len(fuse_lists(as_lists([], []), {})) == 0


def test_scores_of_absent_voters_need_wbf_and_avg() -> None:
    box = np.array([[0, 0, 10, 10]], float)
    found = cluster(box, [0.8], [1], [0], [1.0, 3.0], absent=np.array([0.9, 0.4]))
    assert found.score == pytest.approx([(0.8 + 3 * 0.4) / 4])
    for change in ({"method": "nms"}, {"confidence": "max"}, {"absent": np.zeros(3)}):
        with pytest.raises(ValueError, match="absent"):
            cluster(box, [0.8], [1], [0], [1.0, 3.0], **{"absent": np.zeros(2), **change})  # type: ignore[arg-type]
