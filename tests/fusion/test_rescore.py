"""The features, the training table on disk, cross-fitting, and that learning ranks better on images it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.fusion import rescore
from pipeline.fusion.fuse import vote
from pipeline.fusion.match import Overlaps, truths
from pipeline.fusion.rescore import Features, Table, cross_fit, group_of, scores
from pipeline.fusion.settings import Fusion
from pipeline.records import Detections
from tests.fusion.cells import SIZE, ellipse, sighting, table, truth

VOTERS = [f"{model}/0/{view}" for model in ("a", "b") for view in ("identity", "hflip")]
SETTINGS = Fusion(iou=0.4, fill_holes=False)


def column(found: Features, name: str) -> np.ndarray:
    return found.values[:, found.names.index(name)]


def described(frames: list[np.ndarray], score: list[float], sources: list[int], **settings: float) -> Features:
    found = table(frames, score)
    found.source[:] = sources
    found.sources = VOTERS
    ballot = vote(found, Fusion(**{**SETTINGS.model_dump(), **settings}), VOTERS, SIZE, describe=True)
    assert ballot.described is not None
    return ballot.described


def test_agreement_is_counted_over_the_voters_that_could_have_voted() -> None:
    near, far = ellipse(40, 40, 9, 9), ellipse(90, 100, 9, 9)
    found = described([near, near, near, far], [0.9, 0.5, 0.7, 0.8], [0, 1, 2, 3])
    assert column(found, "category").tolist() == [1, 1]
    assert column(found, "voters").tolist() == [0.75, 0.25]
    assert column(found, "models").tolist() == [1.0, 0.5]
    assert column(found, "score of a") == pytest.approx([0.7, 0])  # an absent view of a model counts 0
    assert column(found, "score of b") == pytest.approx([0.35, 0.4])
    assert column(found, "best score") == pytest.approx([0.9, 0.8])
    assert column(found, "mean score") == pytest.approx([0.7, 0.8])
    assert column(found, "score spread") == pytest.approx([np.std([0.9, 0.5, 0.7]), 0], abs=1e-6)
    assert column(found, "mask agreement") == pytest.approx([1, 1])


def test_what_lies_around() -> None:
    frames = [ellipse(40, 40, 9, 9), ellipse(40, 47, 9, 9), ellipse(100, 120, 9, 9), ellipse(8, 100, 10, 9)]
    found = described(frames, [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0], iou=0.9)
    diameter = 2 * np.sqrt(np.median(np.exp(column(found, "log area"))) / np.pi)
    assert column(found, "nearest")[:2] * diameter == pytest.approx([7, 7], abs=0.2)
    common = int(((frames[0] >= 128) & (frames[1] >= 128)).sum())
    assert column(found, "covered") == pytest.approx([0, common / (frames[1] >= 128).sum(), 0, 0])
    assert column(found, "covering")[0] == pytest.approx(common / (frames[0] >= 128).sum())
    assert column(found, "neighbours")[0] == pytest.approx(0.8 / 4, abs=1e-6)
    assert column(found, "at border").tolist() == [0, 0, 0, 1]
    assert column(found, "rank of score") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert column(found, "image's objects") == pytest.approx([3.0 / 4] * 4)


def test_members_that_differ() -> None:
    found = described([ellipse(40, 40, 12, 12), ellipse(40, 40, 9, 9)], [0.9, 0.9], [0, 1])
    assert len(found.values) == 1
    assert 0.5 < column(found, "worst mask agreement")[0] <= column(found, "mask agreement")[0] < 1
    assert column(found, "solidity")[0] > 0.9 and column(found, "eccentricity")[0] < 0.3
    assert np.isnan(column(found, "nearest")[0])


def test_no_masks() -> None:
    empty = vote(Detections.empty(VOTERS), SETTINGS, VOTERS, SIZE, describe=True)
    assert empty.described is not None and empty.described.values.shape == (0, len(empty.described.names))
    assert "score of b" in empty.described.names


def training(images: range, voters: list[str] = VOTERS) -> tuple[Table, list[tuple[np.ndarray, np.ndarray]]]:
    """Rows of several images in two folds, and per image the clusters' own scores and what is true."""
    dataset = truth(max(images))
    true = truths(dataset, images)
    parts, flags, ious, group, plain = [], [], [], [], []
    for image_id in images:
        found = Detections.concatenate([sighting(image_id, name, k) for k, name in enumerate(voters)])
        ballot = vote(found, SETTINGS, voters, SIZE, describe=True)
        pairs = Overlaps.of(ballot.detections, true[image_id])
        right, _ = pairs.matched(ballot.detections.score)
        assert ballot.described is not None
        parts.append(ballot.described)
        flags.append(right)
        ious.append(pairs.best)
        group += [str(image_id % 2)] * len(right)
        plain.append((ballot.detections.score, right))
    return Table(
        Features.concatenate(parts), np.concatenate(flags), np.concatenate(ious), np.array(group, object)
    ), plain


@pytest.fixture(scope="module")
def trained() -> tuple[Table, list[tuple[np.ndarray, np.ndarray]]]:
    return training(range(1, 25))


def ranking_loss(score: np.ndarray, true: np.ndarray) -> float:
    """The chance that a false mask is scored above a true one."""
    return float((score[~true][:, None] >= score[true][None]).mean())


def test_learning_ranks_better_on_what_it_has_not_seen(
    trained: tuple[Table, list[tuple[np.ndarray, np.ndarray]]],
) -> None:
    everything, plain = trained
    fitted = cross_fit(everything)
    learned = np.zeros(len(everything.true))
    for group in ("0", "1"):
        rows = np.flatnonzero(everything.group == group)
        learned[rows] = fitted(group)(everything.features.take(rows))
    pooled = np.concatenate([score for score, _ in plain])
    assert ranking_loss(learned, everything.true) < 0.8 * ranking_loss(pooled, everything.true)
    assert learned.min() >= 0 and learned.max() <= 1
    assert abs(learned.mean() - everything.true.mean()) < 0.05  # a probability, not only an order


def test_a_group_is_scored_by_a_rescorer_that_did_not_see_it(
    trained: tuple[Table, list[tuple[np.ndarray, np.ndarray]]],
) -> None:
    """Turning the group's own labels round leaves its order as it was, and changes everybody else's."""
    everything, _ = trained
    own = everything.group == "0"
    turned = Table(
        everything.features,
        np.where(own, ~everything.true, everything.true),
        np.where(own, 1 - everything.iou, everything.iou),
        everything.group,
    )
    mine = everything.features.take(np.flatnonzero(own))

    def order(table: Table, group: str) -> list[int]:
        return np.argsort(cross_fit(table)(group)(mine), kind="stable").tolist()

    assert order(everything, "0") == order(turned, "0")
    assert order(everything, "1") != order(turned, "1")
    assert order(everything, "all") not in (order(everything, "0"), order(turned, "all"))


def test_the_table_on_disk_gives_the_same_rescorer(
    tmp_path: Path, trained: tuple[Table, list[tuple[np.ndarray, np.ndarray]]]
) -> None:
    everything, _ = trained
    everything.write(tmp_path / "t.parquet")
    again = Table.read(tmp_path / "t.parquet")
    assert again.features.names == everything.features.names
    np.testing.assert_array_equal(again.features.values, everything.features.values)
    np.testing.assert_array_equal(again.true, everything.true)
    np.testing.assert_allclose(again.iou, everything.iou)
    assert again.group.tolist() == everything.group.tolist()
    some = everything.features.take(np.arange(50))
    for group in ("0", "all"):
        np.testing.assert_array_equal(cross_fit(again)(group)(some), cross_fit(again)(group)(some))


def test_tables_with_little_in_them(tmp_path: Path) -> None:
    def table(scores: list[float], true: list[bool], group: list[str]) -> Table:
        described = Features(("score",), np.array(scores, np.float32).reshape(-1, 1))
        return Table(described, np.array(true, bool), np.array(true, np.float32), np.array(group, object))

    empty = Table(Features((), np.zeros((0, 0), np.float32)), np.zeros(0, bool), np.zeros(0), np.zeros(0, object))
    empty.write(tmp_path / "t.parquet")
    assert len(Table.read(tmp_path / "t.parquet").true) == 0
    anything = Features(("score",), np.array([[0.5]], np.float32))
    assert cross_fit(empty)("all")(anything).tolist() == [0.5]
    pair, groups = [0.1, 0.9], ["0", "1"]
    for few in (table([0.1], [True], ["0"]), table(pair, [False, True], groups), table(pair, [True, True], groups)):
        for group in ("0", "all"):
            assert 0 <= cross_fit(few)(group)(anything)[0] <= 1
            assert len(cross_fit(few)(group)(Features(("score",), np.zeros((0, 1), np.float32)))) == 0
    for name, content in (("text", b"hello"), ("missing", None)):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="run the stage `tune` again"):
            Table.read(tmp_path / name)


def test_columns_are_found_by_name() -> None:
    a = Features(("x", "y"), np.array([[1, 2]], np.float32))
    b = Features(("y", "z"), np.array([[3, 4]], np.float32))
    both = Features.concatenate([a, b])
    assert both.names == ("x", "y", "z")
    np.testing.assert_array_equal(both.values, [[1, 2, np.nan], [np.nan, 3, 4]])


def test_ways_and_groups() -> None:
    score, inside = np.array([0.5, 0.4]), np.array([0.5, 1.0])
    assert scores("none", score, inside, None, None).tolist() == [0.5, 0.4]
    assert scores("mask", score, inside, None, None).tolist() == [0.25, 0.4]
    with pytest.raises(ValueError, match="training table"):
        scores("learned", score, inside, None, None)
    assert group_of("3", 17, ["0", "3"]) == "3"
    assert group_of("0", 17, ["0"]) == "images 2"


def test_a_large_table_is_sampled(monkeypatch: pytest.MonkeyPatch, trained: tuple[Table, object]) -> None:
    everything, _ = trained
    monkeypatch.setattr(rescore, "MOST_ROWS", 200)
    small = cross_fit(everything)("0")(everything.features)
    monkeypatch.undo()
    assert not np.array_equal(small, cross_fit(everything)("0")(everything.features))
