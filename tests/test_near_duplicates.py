"""Copies of images: real ones turned, rescaled, compressed and brightened; and what is no copy."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.near_duplicates import (
    MAX_DISTANCE,
    MIN_SIMILARITY,
    SIDE,
    Copies,
    Pair,
    clusters,
    find,
    find_pairs,
    join_groups,
    thumbnail,
    thumbnails,
)
from pipeline.records import Dataset, Image
from pipeline.views import TURNS, View

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "dsb2018"


def real(name: str, every: int = 1) -> list[tuple[str, np.ndarray]]:
    """Names and grey pixels of the images of a real archive."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"needs the real images at {path}")
    found = []
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if "/images/" in n and n.endswith(".png"))
        for file in names[::every]:
            pixels = cv2.imdecode(np.frombuffer(archive.read(file), np.uint8), cv2.IMREAD_GRAYSCALE)
            found.append((file.split("/")[0], pixels))
    return found


def small(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float16)


def changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rescaled, compressed and brightened."""
    factor = float(rng.choice([0.4, 0.7, 1.5]))
    pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    pixels = np.round(255 * (pixels / 255) ** float(rng.choice([0.7, 1.0, 1.4]))).astype(np.uint8)
    quality = int(rng.choice([30, 50, 80]))
    return np.asarray(
        cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    )


def scene(seed: int, size: tuple[int, int] = (120, 150), light: np.ndarray | None = None) -> np.ndarray:
    """Drawn cells on a grey ground, under light of (height, width) where it is given."""
    rng = np.random.default_rng(seed)
    canvas = np.full(size, 60, np.float32)
    for _ in range(25):
        x, y = (int(v) for v in rng.integers(0, (size[1], size[0])))
        cv2.circle(canvas, (x, y), int(rng.integers(4, 9)), float(rng.integers(110, 200)), -1)
    canvas += rng.normal(0, 4, size)
    return np.clip(canvas if light is None else 0.3 * canvas + 150 * light, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- real images -----------------------------------------


def test_real_copies_are_found_under_every_turn_and_nothing_else_is() -> None:
    originals = [pixels for _, pixels in real("stage1_train.zip", every=5)]
    rng = np.random.default_rng(0)
    turns = [list(TURNS)[k % len(TURNS)] for k in range(len(originals))]
    copies = [changed(View(turn).apply(pixels), rng) for turn, pixels in zip(turns, originals, strict=True)]
    assert len(originals) >= 40
    found = find_pairs(np.stack([small(pixels) for pixels in originals + copies]))
    assert [(p.first, p.second, p.turn) for p in found] == [
        (k, k + len(originals), turn) for k, turn in enumerate(turns)
    ]
    assert min(p.similarity for p in found) > MIN_SIMILARITY + 0.05  # both thresholds have room
    assert max(p.distance for p in found) <= MAX_DISTANCE - 2


def test_the_real_leak_of_dsb2018() -> None:
    """One of the stage-1 test images is a copy of a training image, twice as bright; nothing else in 286 images is one."""
    images = real("stage1_train.zip") + real("stage1_test.zip")
    (pair,) = find_pairs(np.stack([small(pixels) for _, pixels in images]))
    assert (images[pair.first][0][:12], images[pair.second][0][:12]) == ("7c318172e976", "0a849e0eb15f")
    assert pair.similarity > 0.99
    first, second = View(pair.turn).apply(images[pair.first][1]), images[pair.second][1]
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99 and second.mean() > 1.8 * first.mean()


# ---------------------------------------------------------------- drawn images ----------------------------------------


@pytest.mark.parametrize("turn", list(TURNS))
def test_the_turn_is_that_of_the_first_to_the_second(turn: str) -> None:
    one = scene(1)
    (pair,) = find_pairs(np.stack([small(one), small(View(turn).apply(one))]))
    assert pair == Pair(0, 1, turn, pair.similarity, pair.distance)
    assert pair.similarity == pytest.approx(1, abs=1e-3) and pair.distance <= 2


def test_shared_light_makes_no_copies() -> None:
    """Two fields of view under the same lamp: their plain correlation is high, and they are not the same."""
    y, x = np.mgrid[-1:1:120j, -1:1:150j]
    light = 1 - 0.4 * (x**2 + y**2)
    thumbs = np.stack([small(scene(seed, light=light)) for seed in range(12)])
    flat = thumbs.reshape(12, -1).astype(np.float64)
    assert np.corrcoef(flat)[~np.eye(12, dtype=bool)].max() > 0.7
    assert find_pairs(thumbs) == []


def test_plain_images_are_no_copies_of_each_other() -> None:
    rng = np.random.default_rng(0)
    plain = [np.full((40, 40), 7, np.uint8), np.full((40, 40), 7, np.uint8), np.zeros((40, 40), np.uint8)]
    plain += [np.tile(np.linspace(0, 200, 40), (40, 1)).astype(np.uint8) for _ in range(2)]  # light alone
    plain += [np.full((640, 640), 50, np.uint8) + rng.integers(0, 3, (640, 640)).astype(np.uint8)]
    assert find_pairs(np.stack([small(pixels) for pixels in plain])) == []


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_pair_that_a_plain_search_finds(seed: int) -> None:
    """The search by hash and transform against one by turning pixels."""
    rng = np.random.default_rng(seed)
    base = [small(scene(int(s))) for s in rng.integers(0, 50, 3)]
    thumbs = []
    for _ in range(6):
        turned = View(str(rng.choice(list(TURNS)))).apply(base[rng.integers(3)].astype(np.float32))
        thumbs.append((turned + rng.normal(0, rng.choice([0.5, 3, 12]), turned.shape)).astype(np.float16))
    y, x = (v.ravel() / SIDE for v in np.mgrid[:SIDE, :SIDE])
    surfaces = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)

    def telling(pixels: np.ndarray) -> np.ndarray:
        flat = pixels.astype(np.float64).ravel()
        flat = flat - surfaces @ np.linalg.lstsq(surfaces, flat, rcond=None)[0]
        return np.asarray(flat / np.linalg.norm(flat))

    expected = {}
    for i in range(6):
        for j in range(i + 1, 6):
            similar = [float(telling(View(turn).apply(thumbs[i])) @ telling(thumbs[j])) for turn in TURNS]
            if max(similar) > MIN_SIMILARITY + 0.02:
                expected[i, j] = max(similar)
    found = {(p.first, p.second): p for p in find_pairs(np.stack(thumbs))}
    assert set(expected) <= set(found)
    for key, similarity in expected.items():
        assert found[key].similarity == pytest.approx(similarity, abs=1e-2)


def test_few_images() -> None:
    assert find_pairs(np.zeros((0, SIDE, SIDE), np.float16)) == []
    assert find_pairs(small(scene(0))[None]) == []
    assert thumbnails([]).shape == (0, SIDE, SIDE)


def test_many_copies_of_one() -> None:
    found = find_pairs(np.stack([small(scene(3))] * 20))
    assert [(p.first, p.second) for p in found] == [(i, j) for i in range(20) for j in range(i + 1, 20)]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    assert thumbnail(tmp_path / "a.png") is None and thumbnail(tmp_path / "none.png") is None
    assert find_pairs(thumbnails([tmp_path / "a.png", tmp_path / "none.png"])) == []


# ---------------------------------------------------------------- groups ----------------------------------------------


def test_clusters_hang_together() -> None:
    assert clusters(7, [(5, 2), (2, 6), (0, 1), (1, 0)]) == [[0, 1], [2, 5, 6]]
    assert clusters(3, []) == []


@settings(max_examples=60, deadline=None)
@given(
    links=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=9), order=st.randoms(use_true_random=False)
)
def test_clusters_do_not_depend_on_the_order(links: list[tuple[int, int]], order: object) -> None:
    first = clusters(9, links)
    shuffled = list(links)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert clusters(9, [(b, a) for a, b in shuffled]) == first
    of = {k: number for number, members in enumerate(first) for k in members}
    assert all(a == b or of[a] == of[b] for a, b in links)


def images(*groups: str) -> list[Image]:
    return [Image(k + 1, f"images/train/{'abcdef'[k]}.png", 9, 9, group) for k, group in enumerate(groups)]


def test_copies_share_a_group() -> None:
    joined = join_groups(images("", "s1", "s2", "s1", "", ""), [[0, 5], [1, 2]])
    assert [i.group for i in joined] == ["a", "s1+s2", "s1+s2", "s1+s2", "", "a"]
    assert [(i.id, i.file_name) for i in joined] == [(i.id, i.file_name) for i in images(*[""] * 6)]
    assert [i.group for i in join_groups(images("s1", "s1", ""), [[0, 1]])] == ["s1", "s1", ""]
    assert [i.group for i in join_groups(images("s1", "", ""), [[0, 2]])] == ["s1", "", "s1"]
    assert [i.group for i in join_groups(images("w", "x", "y", "z", ""), [[0, 1, 2, 3]])] == ["w+x+y+1 more"] * 4 + [""]
    assert join_groups([], []) == []


def test_copies_of_a_competition(tmp_path: Path) -> None:
    """Two training images are copies of the same test image: they must stay together although they differ more."""
    one = scene(1)
    pictures = {"a": one, "b": scene(2), "c": np.rot90(one), "t": one[:, ::-1], "u": scene(3)}
    for name, pixels in pictures.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    train = Dataset([Image(k + 1, f"{n}.png", *pictures[n].shape) for k, n in enumerate("abc")], {}, root=tmp_path)
    test = Dataset([Image(k + 1, f"{n}.png", *pictures[n].shape) for k, n in enumerate("tu")], {}, root=tmp_path)
    copies = find(train, test)
    assert copies.together == [[0, 2]]
    assert [(p.first, p.second, p.turn) for p in copies.pairs] == [
        (0, 2, "rot90"), (0, 3, "hflip"), (2, 3, copies.pairs[2].turn)
    ]  # fmt: skip
    np.testing.assert_array_equal(View(copies.pairs[2].turn).apply(pictures["c"]), pictures["t"])
    assert copies.to_json()["sets"] == [["a.png", "c.png"]]
    assert [(p.kind, p.place) for p in copies.problems()] == [
        ("near-duplicate images", "a.png"),
        ("test image in training", "t.png"),
        ("test image in training", "t.png"),
    ]
    through_test = Copies([copies.pairs[1], copies.pairs[2]], copies.names, 3)
    assert through_test.together == [[0, 2]]
