"""The division into folds, and its CSV."""

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import folds as benchmark
from pipeline import folds
from pipeline.folds import FoldsError, Row, check, divide, read_csv, read_folds, to_csv, used_folds, write_csv
from pipeline.records import Dataset, Image, Instance

RLE = {"size": [4, 5], "counts": "523OO22"}


def dataset(contents: list[tuple[str, dict[int, int]]]) -> Dataset:
    """Images by (group, instances per category)."""
    images = [Image(k + 1, f"{k:03d}.png", 4, 5, group) for k, (group, _) in enumerate(contents)]
    instances = []
    for image, (_, counts) in zip(images, contents, strict=True):
        for category, count in counts.items():
            for _ in range(count):
                instances.append(Instance(len(instances) + 1, image.id, category, RLE, (1, 1, 3, 3), 6.0))
    return Dataset(images, {1: "a", 2: "b"}, instances)


CONTENT = st.tuples(
    st.sampled_from(["", "", "g1", "g2", "g3", "g4"]), st.dictionaries(st.sampled_from([1, 2]), st.integers(0, 5))
)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=1, max_size=14), count=st.integers(2, 5), seed=st.integers(0, 3))
def test_every_image_once_no_group_split_no_fold_empty(
    contents: list[tuple[str, dict[int, int]]], count: int, seed: int
) -> None:
    data = dataset(contents)
    groups = {image.group or image.file_name for image in data.images}
    if len(groups) < count:
        with pytest.raises(FoldsError, match=f"{len(groups)} groups cannot make {count} folds.*folds.count"):
            divide(data, count, seed)
        return
    rows = divide(data, count, seed)
    assert [row.image for row in rows] == [image.file_name for image in data.images]
    assert {row.fold for row in rows} == set(range(count))
    spread = defaultdict(set)
    for row in rows:
        spread[row.group or row.image].add(row.fold)
    assert all(len(folds) == 1 for folds in spread.values())
    assert rows == divide(data, count, seed)
    backwards = Dataset(data.images[::-1], data.categories, data.instances[::-1])
    assert rows == divide(backwards, count, seed)


def test_folds_are_alike_in_images_and_classes() -> None:
    data = dataset([("", {1: 10}) for _ in range(8)] + [("", {2: 3}) for _ in range(4)] + [("", {}) for _ in range(4)])
    for seed in range(5):
        rows = divide(data, 4, seed)
        strata = Counter((row.fold, row.stratum) for row in rows)
        for fold in range(4):
            assert [strata[fold, kind] for kind in ("a", "b", "none")] == [2, 1, 1]


def test_instances_are_balanced_within_the_groups_that_there_are() -> None:
    sizes = [100, 90, 80, 40, 30, 20, 10, 5]
    rows = divide(dataset([(f"g{k}", {1: size}) for k, size in enumerate(sizes)]), 2, 0)
    held = [sum(size for size, row in zip(sizes, rows, strict=True) if row.fold == fold) for fold in (0, 1)]
    assert Counter(row.fold for row in rows) == {0: 4, 1: 4}
    assert max(held) - min(held) <= 15


def test_seed_and_stratum() -> None:
    data = dataset([("", {1: 1}) for _ in range(12)])
    assert divide(data, 3, 0) != divide(data, 3, 1)
    rows = divide(data, 3, 0, lambda image: "even" if image.id % 2 == 0 else "")
    assert {row.stratum for row in rows} == {"even", "a"}
    assert all(count == 2 for count in Counter((row.fold, row.stratum) for row in rows).values())


def test_many_groups_are_quick_and_even() -> None:
    rows = divide(dataset([(f"g{k % 700}", {1: k % 3}) for k in range(900)]), 5, 0)
    assert all(170 <= count <= 190 for count in Counter(row.fold for row in rows).values())


def test_exchanging_groups_never_makes_it_worse_and_ends_where_nothing_helps() -> None:
    """Against every move and exchange, tried one by one on the sums themselves."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        weights = rng.random((9, 4)) * rng.random(4)
        fold = rng.permutation(np.arange(9) % 3)
        held = np.stack([weights[fold == f].sum(axis=0) for f in range(3)])

        def unevenness(fold: np.ndarray, weights: np.ndarray = weights) -> float:
            return sum(float((weights[fold == f].sum(axis=0) ** 2).sum()) for f in range(3))

        before = unevenness(fold)
        folds._improve(weights, fold, held)
        after = unevenness(fold)
        assert after <= before + 1e-12 and set(fold) == {0, 1, 2}
        np.testing.assert_allclose(held, [weights[fold == f].sum(axis=0) for f in range(3)], atol=1e-12)
        for g in range(9):
            for f in range(3):
                moved = np.where(np.arange(9) == g, f, fold)
                assert len(set(moved)) < 3 or unevenness(moved) >= after - 1e-9
            for h in range(g):
                swapped = fold.copy()
                swapped[[g, h]] = fold[[h, g]]
                assert unevenness(swapped) >= after - 1e-9


def test_thousands_of_strata_leave_the_folds_alike() -> None:
    """COCO has tens of thousands of combinations of classes."""
    data = dataset([("", {1: 1}) for _ in range(3000)])
    rows = divide(data, 5, 0, lambda image: f"s{image.id % 1500}")
    assert all(590 <= count <= 610 for count in Counter(row.fold for row in rows).values())


# ---------------------------------------------------------------- against scikit-learn --------------------------------


def real_sets() -> list[str]:
    return ["vrdl2021 by site", "vrdl2021 by patient", "dsb2018", "vrdl2025, 50 images", "segpc2021"]


@pytest.fixture(scope="module")
def real() -> dict[str, tuple[Dataset, benchmark.Stratum]]:
    return {name: (data, stratum) for name, data, stratum in benchmark.real(benchmark.DATA)}


@pytest.mark.parametrize("name", real_sets())
def test_more_even_than_scikit_learn(name: str, real: dict[str, tuple[Dataset, benchmark.Stratum]]) -> None:
    """The reason for dealing groups ourselves; benchmarks/folds.py has the numbers."""
    if name not in real:
        pytest.skip(f"needs {name} in {benchmark.DATA}")
    data, stratum = real[name]
    wanted = benchmark.quantities(data, stratum)

    def mean(folds: np.ndarray) -> float:
        return float(np.mean([benchmark.unevenness(folds, values) for values in wanted.values()]))

    ours = np.mean([mean(benchmark.by_us(data, stratum, seed)) for seed in range(3)])
    for kind in range(3):
        try:
            theirs = np.mean([mean(benchmark.by_sklearn(data, stratum, seed, kind)) for seed in range(3)])
        except ValueError as error:
            assert "n_splits=5 cannot be greater" in str(error)  # it needs a stratum with as many images as folds
            continue
        assert ours < theirs


# ---------------------------------------------------------------- the CSV ---------------------------------------------

DATA = dataset([("p1", {1: 1}), ("p1", {1: 1}), ("p2", {1: 1}), ("", {})])
GOOD = [Row("000.png", 0, "a", "p1"), Row("001.png", 0, "a", "p1"), Row("002.png", 1, "a", "p2"), Row("003.png", 1)]


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    write_csv(GOOD, path)
    assert path.read_text().splitlines()[:2] == ["image,fold,stratum,group,instances", "000.png,0,a,p1,"]
    assert read_csv(path) == GOOD
    assert read_folds(path, DATA) == {1: (0,), 2: (0,), 3: (1,), 4: (1,)}
    assert check(GOOD, path, DATA, 2) == []
    odd = [Row('a,"b".png', 0, "ä", "", 12)]
    write_csv(odd, path)
    assert read_csv(path) == odd


def test_csv_says_how_many_instances_there_are(tmp_path: Path) -> None:
    data = dataset([("", {1: 3, 2: 1}), ("", {})])
    data.instances[0] = replace(data.instances[0], crowd=True)
    assert [(row.stratum, row.instances) for row in divide(data, 2, 0)] == [("a+b", 3), ("none", 0)]
    path = tmp_path / "run.csv"
    path.write_text("image,fold,instances\n000.png,0,many\n")
    assert read_csv(path) == [Row("000.png", 0)]


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_bytes("\ufefffold, image\r\n0, 000.png\r\n0,001.png\r\n1,002.png\r\n1,003.png\r\n,\r\n".encode())
    assert read_folds(path, DATA) == {1: (0,), 2: (0,), 3: (1,), 4: (1,)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column image and no column fold; it has none"),
        ("image,folds\n", "no column fold; it has image, folds"),
        ("image,fold\n000.png,x\n", "line 2: the fold of 000.png is 'x'"),
        ("image,fold\n000.png,-1\n", "must be a whole number"),
        ("image,fold\n000.png\n", "line 2: the fold of 000.png is ''"),
        ("image,fold\n000.png,0\n000.png,1\n", "names 000.png more than once"),
    ],
)
def test_unreadable_csv(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "run.csv"
    path.write_text(text)
    with pytest.raises(FoldsError, match=f"run.csv.*{expected}"):
        read_csv(path)


def test_missing_csv_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FoldsError, match="none.csv.*python -m pipeline split"):
        read_csv(tmp_path / "none.csv")
    path = tmp_path / "run.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FoldsError, match="not a CSV"):
        read_csv(path)


def test_what_does_not_fit_is_all_listed() -> None:
    rows = [Row("00.png", 0), Row("001.png", 7), *GOOD[2:]]
    with pytest.raises(FoldsError) as caught:
        check(rows, Path("run.csv"), DATA, 2)
    text = str(caught.value)
    for expected in (
        "names images that are not in the data: 00.png (is it 00",
        "misses images of the data: 000.png",
        "has the folds 7, but folds.count is 2",
    ):
        assert expected in text
    with pytest.raises(FoldsError, match="leaves the folds 1 without an image"):
        check([Row(row.image, 0) for row in GOOD], Path("run.csv"), DATA, 2)


def test_split_groups_are_a_warning() -> None:
    rows = [Row("000.png", 0), Row("001.png", 1), Row("002.png", 1), Row("003.png", 0)]  # groups known from the data
    (warning,) = check(rows, Path("run.csv"), DATA, 2)
    assert "splits groups over folds" in warning and warning.endswith("p1")


def test_csv_text_is_what_is_written(tmp_path: Path) -> None:
    write_csv(GOOD, tmp_path / "run.csv")
    assert to_csv(GOOD) == (tmp_path / "run.csv").read_text()


# ---------------------------------------------------------------- repeated divisions ----------------------------------


def drawn(images: int, groups: int) -> Dataset:
    return dataset([(f"g{k % groups}", {1: k % 5, 2: k % 3}) for k in range(images)])


def test_repeats_go_on_counting_and_differ() -> None:
    data = drawn(30, groups=10)
    rows = divide(data, 3, 0, repeats=3)
    assert [replace(row, further=()) for row in rows] == divide(data, 3, 0)  # the first division is as it was
    for k in range(3):
        assert {row.folds[k] for row in rows} == {3 * k, 3 * k + 1, 3 * k + 2}
        by_group: dict[str, set[int]] = {}
        for row in rows:
            by_group.setdefault(row.group, set()).add(row.folds[k])
        assert all(len(folds) == 1 for folds in by_group.values())
    partitions = {tuple(sorted(tuple(r.image for r in rows if r.folds[k] == f) for f in range(3 * k, 3 * k + 3)))
                  for k in range(3)}  # fmt: skip
    assert len(partitions) == 3
    assert divide(data, 3, 0, repeats=3) == rows


def test_repeats_end_where_there_is_one_division_only() -> None:
    rows = divide(drawn(4, groups=2), 2, 0, repeats=2)
    assert {row.folds for row in rows} <= {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_repeats_in_the_csv(tmp_path: Path) -> None:
    data = drawn(12, groups=6)
    rows, path = divide(data, 2, 0, repeats=2), tmp_path / "run.csv"
    write_csv(rows, path)
    assert path.read_text().splitlines()[0] == "image,fold,fold_2,stratum,group,instances"
    assert read_csv(path) == rows
    assert check(rows, path, data, 2, 2) == []
    assert read_folds(path, data) == {image.id: row.folds for image, row in zip(data.images, rows, strict=True)}
    assert used_folds({1: (0, 2), 2: (1, 3), 3: (1, 2)}, [0, 2]) == {1: [0, 2], 3: [2]}
    with pytest.raises(FoldsError, match=r"folds.repeats is 3"):
        check(rows, path, data, 2, 3)
    moved = [replace(row, further=(row.further[0] - 1,)) for row in rows]
    with pytest.raises(FoldsError, match="from 2 to 3 in column fold_2"):
        check(moved, path, data, 2, 2)
    path.write_text("image,fold,fold_2\n" + "".join(f"{row.image},0,x\n" for row in rows))
    with pytest.raises(FoldsError, match="the fold of .* is 'x'"):
        read_csv(path)


# ---------------------------------------------------------------- any bytes -------------------------------------------

LINES = b"image,fold,stratum,group,instances\na.png,0,s,g,3\nb.png,1,s,h,2\n"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60)
    | st.tuples(
        st.integers(0, len(LINES)), st.integers(0, 12), st.text('",;\n\r0-a\0\ufeff', max_size=6).map(str.encode)
    ).map(lambda cut: LINES[: cut[0]] + cut[2] + LINES[cut[0] + cut[1] :])
)
def test_any_bytes_are_folds_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "folds.csv"
    path.write_bytes(content)
    data = Dataset([Image(1, "a.png", 4, 5), Image(2, "b.png", 4, 5)], {1: "a"})
    try:
        found = read_folds(path, data)
    except FoldsError as error:
        assert "folds.csv" in str(error)
        return
    assert set(found) == {1, 2} and all(fold >= 0 for (fold,) in found.values())
