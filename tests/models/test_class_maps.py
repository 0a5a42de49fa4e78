"""From class maps to instances, on maps drawn by hand."""

import numpy as np
import pytest
from scipy import ndimage

from pipeline.models.class_maps import instances, watershed


def maps(*classes: np.ndarray) -> np.ndarray:
    return np.stack(classes).astype(np.float32)


def discs(*centres: tuple[int, int], radius: int = 10, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx in centres], axis=0)


def test_each_class_and_each_component_is_an_object() -> None:
    first, second = np.zeros((20, 30)), np.zeros((20, 30))
    first[2:8, 2:8] = 0.9
    first[2:5, 2:8] = 0.7
    first[10:16, 20:26] = 0.6
    second[10:16, 2:8] = 0.85
    masks, scores, labels = instances(maps(first, second))
    assert labels.tolist() == [0, 0, 1] and masks.dtype == np.float32 and masks.shape == (3, 20, 30)
    assert scores.tolist() == pytest.approx([0.8, 0.6, 0.85])
    np.testing.assert_allclose(masks[0], np.where(np.arange(30) < 15, first, 0))  # probabilities, and nothing outside
    np.testing.assert_allclose(masks[2], second)
    best, _, labels = instances(maps(first, second), most=2)
    np.testing.assert_array_equal(best, masks[[2, 0]])
    assert labels.tolist() == [1, 0]


def test_a_pixel_is_of_its_most_probable_class_alone() -> None:
    first, second = np.zeros((20, 30)), np.zeros((20, 30))
    first[5:15, 2:20] = 0.7
    second[5:15, 10:28] = 0.9
    masks, _, labels = instances(maps(first, second))
    assert labels.tolist() == [0, 1] and not (masks[0] * masks[1]).any()
    assert np.argwhere(masks[0])[:, 1].max() == 9 and np.argwhere(masks[1])[:, 1].min() == 10


def test_corners_join_and_specks_are_none() -> None:
    region = np.zeros((20, 20))
    region[2:8, 2:8] = region[8:14, 8:14] = 0.9
    region[17:19, 1:3] = 0.9
    masks, _, _ = instances(maps(region))
    assert len(masks) == 1 and (masks[0] > 0).sum() == 72
    assert len(instances(maps(region), least=4)[0]) == 2
    assert len(instances(maps(region), least=4, threshold=0.95)[0]) == 0


@pytest.mark.parametrize("split", ["components", "watershed"])
def test_nothing_is_no_object(split: str) -> None:
    masks, scores, labels = instances(np.zeros((3, 9, 7), np.float32), split)  # type: ignore[arg-type]
    assert masks.shape == (0, 9, 7) and scores.shape == labels.shape == (0,)
    assert masks.dtype == np.float32 and labels.dtype == np.int64


def test_watershed_cuts_at_the_waist() -> None:
    both = discs((20, 18), (20, 36))
    whole, _, _ = instances(maps(both * 0.9))
    assert len(whole) == 1
    parts, scores, _ = instances(maps(both * 0.9), "watershed")
    cut = parts > 0
    assert len(cut) == 2 and scores.tolist() == pytest.approx([0.9, 0.9])
    assert np.array_equal(cut[0] | cut[1], both) and not (cut[0] & cut[1]).any()
    left = cut[0] if cut[0][20, 18] else cut[1]
    columns = np.arange(60)
    assert left[both & (columns <= 25)].all() and not left[both & (columns >= 29)].any()  # they meet at 27


def test_watershed_leaves_one_disc_whole_and_small_ones_their_own_summit() -> None:
    apart = discs((20, 15), radius=12) * 1 + discs((20, 50), radius=3) * 2  # each measured by its own size
    parts = watershed(apart)
    assert len(np.unique(parts[apart == 1])) == len(np.unique(parts[apart == 2])) == 1
    assert len(np.unique(parts)) == 3 and np.array_equal(parts > 0, apart > 0)


def test_watershed_keeps_every_pixel_also_at_the_border() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        parts, count = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(33, 47)), 2) > 0, np.ones((3, 3)))
        cut = watershed(parts)
        assert np.array_equal(cut > 0, parts > 0) and len(np.unique(cut)) - 1 >= count
        for number in range(1, cut.max() + 1):  # no part reaches over two components
            assert len(np.unique(parts[cut == number])) == 1
