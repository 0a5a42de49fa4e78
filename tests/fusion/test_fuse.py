"""One image with one voter and with many, one fold and several; whole files, streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.fusion.crops import Crops
from pipeline.fusion.fuse import by_image, fuse_image, fuse_to, vote
from pipeline.fusion.rescore import Features
from pipeline.fusion.settings import Fusion, Voter, voters_of
from pipeline.records import Detections
from pipeline.records import provenance as stored_provenance
from tests.fusion.cells import SIZE, ellipse, frames_of, sighting, table

PLAIN = Fusion(rescore="none", fill_holes=False, iou=0.4)


def names(models: str, folds: str, views: tuple[str, ...] = ("identity", "hflip")) -> list[str]:
    return [f"{m}/{f}/{v}" for m in models for f in folds for v in views]


def sightings(image_id: int, voters: list[str]) -> Detections:
    return Detections.concatenate([sighting(image_id, name, k) for k, name in enumerate(voters)])


def test_one_voter_is_passed_through() -> None:
    found = table([ellipse(40, 40, 9, 9), ellipse(90, 100, 8, 12)], [0.4, 0.7])
    fused = fuse_image(found, PLAIN, found.sources, SIZE)
    assert fused.score.tolist() == [0.7, 0.4] and fused.sources == ["fused"]
    np.testing.assert_array_equal(fused.box, found.box[[1, 0]])
    for i, k in ((0, 1), (1, 0)):
        np.testing.assert_array_equal(fused.grid(i), found.grid(k))
    assert fused.extra["agreement"].tolist() == [1, 1]


def test_agreement_and_score_count_the_silent() -> None:
    voters = names("ab", "0")
    found = table([ellipse(40, 40, 9, 9)] * 3, [0.9, 0.6, 0.3])
    found.source[:], found.sources = [0, 1, 2], voters
    fused = fuse_image(found, PLAIN, voters, SIZE)
    assert fused.extra["agreement"] == pytest.approx([0.75]) and fused.score == pytest.approx([1.8 / 4])
    silent = Fusion(**{**PLAIN.model_dump(), "weights": {"b": 0.0}})
    assert fuse_image(found, silent, voters, SIZE).score == pytest.approx([1.5 / 2])
    one_view = Fusion(**{**PLAIN.model_dump(), "views": ["hflip"]})
    assert fuse_image(found, one_view, voters, SIZE).score == pytest.approx([0.6 / 2])
    weighted = Fusion(**{**PLAIN.model_dump(), "weights": {"b": 3.0}})
    assert fuse_image(found, weighted, voters, SIZE).score == pytest.approx([(0.9 + 0.6 + 0.9) / 8])


def test_folds_are_fused_apart_and_then_together() -> None:
    """Two folds that say the same say no more than one; a fold that is silent halves the score."""
    found = table([ellipse(40, 40, 9, 9), ellipse(90, 100, 9, 9)], [0.8, 0.6], "a/0/identity")
    other = Detections(**{**vars(found.take([0])), "sources": ["a/1/identity"]})
    both = fuse_image(Detections.concatenate([found, other]), PLAIN, names("a", "01", ("identity",)), SIZE)
    assert both.score == pytest.approx([0.8, 0.3]) and both.extra["agreement"] == pytest.approx([1, 0.5])
    np.testing.assert_array_equal(frames_of(Crops.of(both))[0], ellipse(40, 40, 9, 9))


def test_the_rescorer_is_asked_of_each_fold_with_that_folds_features() -> None:
    voters = names("ab", "01")
    found = sightings(1, voters)
    asked: list[float] = []

    def rescorer(described: Features) -> np.ndarray:
        asked.append(float(described.columns(["voters"]).max()))
        return np.full(len(described.values), 0.25 if len(asked) == 1 else 0.75)

    learned = Fusion(**{**PLAIN.model_dump(), "rescore": "learned"})
    fused = fuse_image(found, learned, voters, SIZE, rescorer)
    assert asked == [1.0, 1.0]  # four voters each, though the image has eight
    assert set(np.round(fused.score, 6)) <= {0.125, 0.375, 0.5}
    with pytest.raises(ValueError, match="training table"):
        fuse_image(found, learned, voters, SIZE)


def test_more_voters_find_more() -> None:
    """Averaging four noisy sightings brings the outlines closer to the truth than any of them."""
    from pipeline.fusion.match import Overlaps, truths
    from tests.fusion.cells import truth

    true = truths(truth(3), [1, 2, 3])
    single, together = [], []
    for image_id in true:
        found = sightings(image_id, names("ab", "0"))
        fused = fuse_image(found, PLAIN, found.sources, SIZE).top(10)
        alone = sighting(image_id, "a/0/identity", 0).top(10)
        together.append(Overlaps.of(fused, true[image_id]).best.mean())
        single.append(Overlaps.of(alone, true[image_id]).best.mean())
    assert np.mean(together) > np.mean(single) + 0.1


def test_baselines_share_the_interface() -> None:
    found = sightings(1, names("ab", "0"))
    for method in ("nms", "concatenate"):
        settings = Fusion(**{**PLAIN.model_dump(), "method": method})
        fused = fuse_image(found, settings, found.sources, SIZE)
        originals = {tuple(box) for box in found.box.tolist()}
        assert {tuple(box) for box in fused.box.tolist()} <= originals
        assert (len(fused) == len(found)) == (method == "concatenate")
        assert (np.diff(fused.score) <= 0).all()


@pytest.mark.parametrize("overlap", ["box", "mask"])
@pytest.mark.parametrize("method", ["soft-nms-linear", "soft-nms-gaussian", "nms"])
def test_what_suppression_leaves_keeps_its_own_mask(method: str, overlap: str) -> None:
    found = sightings(1, names("ab", "0"))
    settings = Fusion(**{**PLAIN.model_dump(), "method": method, "overlap": overlap})
    fused = fuse_image(found, settings, found.sources, SIZE)
    own = {found.grid(i).tobytes() for i in range(len(found))}
    assert len(fused) and {fused.grid(i).tobytes() for i in range(len(fused))} <= own
    if method != "nms":
        assert len(fused) == (found.score >= settings.skip).sum() and fused.score.min() < found.score.min()


@pytest.mark.parametrize("method", ["wbf", "nmw"])
def test_masks_leak_out_of_the_fused_box_and_are_not_stretched_to_it(method: str) -> None:
    """Regressed boxes far smaller, and elsewhere than the masks' own: the masks' mean stays where the masks are."""
    a, b = ellipse(40, 40, 9, 9), ellipse(43, 44, 12, 10)
    found = table([a, b], [0.6, 0.6])
    found.source[:], found.sources = [0, 1], names("a", "0")
    found.box[:] = [[36, 36, 46, 47], [36, 36, 46, 47]]
    fused = fuse_image(found, Fusion(**{**PLAIN.model_dump(), "method": method}), found.sources, SIZE)
    np.testing.assert_array_equal(fused.box, found.box[:1])
    np.testing.assert_allclose(frames_of(Crops.of(fused))[0], (a.astype(float) + b) / 2, atol=0.51)
    x0, y0, x1, y1 = fused.mask_box[0]
    assert x0 < 36 and y0 < 36 and x1 > 46 and y1 > 47


def test_nmw_averages_masks_by_score_and_overlap() -> None:
    a, b = ellipse(40, 40, 9, 9), ellipse(40, 43, 9, 9)
    found = table([a, b], [0.8, 0.4])
    found.source[:], found.sources = [0, 1], names("a", "0")
    fused = fuse_image(found, Fusion(**{**PLAIN.model_dump(), "method": "nmw", "overlap": "mask"}), found.sources, SIZE)
    common, union = ((a >= 128) & (b >= 128)).sum(), ((a >= 128) | (b >= 128)).sum()
    expected = (0.8 * a.astype(float) + 0.4 * common / union * b) / (0.8 + 0.4 * common / union)
    np.testing.assert_allclose(frames_of(Crops.of(fused))[0], expected, atol=0.51)
    assert fused.score.tolist() == [0.8]


def test_thresholds_by_category() -> None:
    """Two pairs that overlap alike: one category joins them, the other does not; one is asked for more score."""
    found = table([ellipse(40, x, 9, 9) for x in (40, 43, 90, 93)], [0.9, 0.8, 0.9, 0.8])
    found.source[:], found.sources, found.category_id[:] = [0, 1, 0, 1], names("a", "0"), [1, 1, 2, 2]
    settings = {**PLAIN.model_dump(), "iou": {"1": 0.3, "default": 0.9}}
    fused = fuse_image(found, Fusion(**settings), found.sources, SIZE)
    assert sorted(fused.category_id.tolist()) == [1, 2, 2]
    settings = {**PLAIN.model_dump(), "skip": {1: 0.85, 2: 0.0}, "min_score": {1: 0.0, 2: 0.99}}
    fused = fuse_image(found, Fusion(**settings), found.sources, SIZE)
    assert fused.category_id.tolist() == [1] and fused.score == pytest.approx([0.45])
    with pytest.raises(ValueError, match="the category 2 has no number"):
        fuse_image(found, Fusion(**{**PLAIN.model_dump(), "iou": {"1": 0.3}}), found.sources, SIZE)


@pytest.mark.parametrize("overlap", ["box", "mask"])
@pytest.mark.parametrize("method", ["wbf", "nmw", "nms", "soft-nms-linear", "soft-nms-gaussian", "concatenate"])
def test_nothing_one_and_many_voters(method: str, overlap: str) -> None:
    settings = Fusion(**{**PLAIN.model_dump(), "method": method, "overlap": overlap, "one_per_source": True})
    many = [f"m{k}/{k % 2}/identity" for k in range(130)]  # more voters than one machine word has bits
    assert len(fuse_image(Detections.empty(many), settings, many, SIZE)) == 0
    one = table([ellipse(40, 40, 9, 9)], [0.9], many[-1])
    fused = fuse_image(one, settings, many, SIZE)
    assert len(fused) == 1 and 0 < fused.score[0] <= 0.45  # of two folds one has it
    everyone = Detections.concatenate([table([ellipse(40, 40, 9, 9)], [0.9], name) for name in many])
    fused = fuse_image(everyone, settings, many, SIZE)
    if method in ("wbf", "nmw", "nms"):
        assert (
            len(fused) == 1 and fused.score == pytest.approx([0.9]) and fused.extra["agreement"] == pytest.approx([1])
        )
    blank = table([np.zeros(SIZE, np.uint8)], [0.9], many[0])  # a box without a mask
    blank.box[:] = [3, 3, 20, 20]
    assert len(fuse_image(blank, settings, many, SIZE)) == 0


def test_nobody_to_vote() -> None:
    voters = names("a", "01")
    with pytest.raises(ValueError, match="nobody votes"):
        fuse_image(Detections.empty(voters), Fusion(weights={"a": 0.0}), voters, SIZE)


def test_voters() -> None:
    assert Voter.parse("a/b/3/hflip@2.0") == Voter("a/b", "3", "hflip@2.0")
    assert Voter.parse("answer_1") == Voter("answer_1")
    settings = Fusion(weights={"a": 0.0}, views=["hflip"])
    assert voters_of(settings, ["a/0/hflip", "b/0/hflip", "b/0/vflip", "c", "c"]) == ["b/0/hflip", "c"]


# ---------------------------------------------------------------- files -----------------------------------------------


def write(path: Path, voters: list[str], images: list[int], ascending: bool = True) -> Path:
    from pipeline.records import DetectionsWriter

    with DetectionsWriter(path, voters) as writer:
        for image_id in images if ascending else images[::-1]:
            writer.add(sightings(image_id, voters))
    return path


def test_files_are_read_side_by_side(tmp_path: Path) -> None:
    a = write(tmp_path / "a", names("a", "0"), [1, 2, 5])
    b = write(tmp_path / "b", names("b", "0"), [2, 3, 5], ascending=False)
    c = write(tmp_path / "c", names("c", "0"), [])
    seen = list(by_image([a, b, c]))
    assert [image_id for image_id, _ in seen] == [1, 2, 3, 5]
    for (image_id, found), models in zip(seen, ("a", "ab", "b", "ab"), strict=True):
        expected = sum(len(sightings(image_id, names(model, "0"))) for model in models)
        assert len(found) == expected and (found.image_id == image_id).all()


def test_an_image_in_several_row_groups_is_one(tmp_path: Path) -> None:
    from pipeline.records import DetectionsWriter

    voters = names("a", "0")
    tables = [sightings(i, voters) for i in (1, 2)]
    with DetectionsWriter(tmp_path / "a", voters) as writer:
        writer.add(tables[0].take([0, 1]))
        writer.add(Detections.concatenate([tables[0].take([2]), tables[1]]))
    seen = list(by_image([tmp_path / "a"]))
    assert [(image_id, len(found)) for image_id, found in seen] == [(1, 3), (2, len(tables[1]))]


@pytest.mark.parametrize("everyone", [True, False])
def test_a_file_is_fused_image_by_image(tmp_path: Path, everyone: bool) -> None:
    """Out of fold only the folds that have the image could have voted; on test images everybody could."""
    paths = [
        write(tmp_path / "a0", names("a", "0"), [1, 2]),
        write(tmp_path / "b0", names("b", "0"), [2]),
        write(tmp_path / "a1", names("a", "1"), [3]),
    ]
    target = tmp_path / "fused.parquet"
    folds_of = None if everyone else {1: ["0"], 2: ["0"], 3: ["1"]}
    sizes = dict.fromkeys((1, 2, 3), SIZE)
    done = list(fuse_to(target, paths, PLAIN, sizes, None, folds_of=folds_of, provenance={"x": 1}))
    fused = Detections.read(target)
    assert [image_id for image_id, _ in done] == [1, 2, 3] and sum(n for _, n in done) == len(fused)
    assert stored_provenance(target) == {"x": 1} and set(fused.extra) == {"agreement", "inside"}
    voters = names("ab", "0")
    found = sightings(1, names("a", "0"))
    expected = fuse_image(found, PLAIN, voters + names("a", "1") if everyone else voters, SIZE)
    np.testing.assert_array_equal(fused.score[fused.image_id == 1], expected.score)
    assert fused.extra["agreement"][fused.image_id == 1].max() <= 0.5


def test_a_fold_that_found_nothing_on_an_image_counts(tmp_path: Path) -> None:
    """Out of fold in two divisions: what one of the two folds has alone gets half its score."""
    paths = [write(tmp_path / "a0", names("a", "0"), [1]), write(tmp_path / "a2", names("a", "2"), [])]
    scores = []
    for folds in (["0"], ["0", "2"]):
        target = tmp_path / "fused.parquet"
        list(fuse_to(target, paths, PLAIN, {1: SIZE}, None, folds_of={1: folds}, provenance={}))
        scores.append(Detections.read(target).score)
    np.testing.assert_allclose(scores[1], scores[0] / 2)


def test_unequal_weights_give_no_score_above_one() -> None:
    """Two members of the heavier voter: ensemble_boxes' mean of weighted votes is then 1.167 of the weights."""
    found = table([ellipse(40, 40, 9, 9)] * 2, [0.9, 0.85], "a/0/identity")
    settings = Fusion(**{**PLAIN.model_dump(), "weights": {"a": 2, "b": 1}, "one_per_source": False})
    ballot = vote(found, settings, ["a/0/identity", "b/0/identity"], SIZE)
    assert ballot.detections.score.tolist() == [1.0]
