"""Competitions by name."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline import competitions
from pipeline.competitions import CompetitionError, chosen_options


def test_every_name_gives_a_competition_of_that_name() -> None:
    assert {"synthetic", "vrdl2021"} <= set(competitions.names())
    for name in competitions.names():
        competition = competitions.get(name)
        assert competition.name == name
        assert competition.metric and competition.suffix.startswith(".")


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(CompetitionError, match="'vrld2021'.*did you mean 'vrdl2021'.*known: .*synthetic"):
        competitions.get("vrld2021")


@pytest.mark.parametrize("name", ["formats", "..files", "os", ""])
def test_what_is_no_competition_is_not_imported(name: str) -> None:
    with pytest.raises(CompetitionError):
        competitions.get(name)


def test_unknown_option_gives_the_nearest() -> None:
    known = competitions.get("vrdl2021").options
    assert chosen_options(known, {"group": "patient"}).model_dump() == {"group": "patient"}
    assert chosen_options(known, {}).model_dump() == {"group": "site"}
    with pytest.raises(CompetitionError, match="data.options.groups.*did you mean 'group'"):
        chosen_options(known, {"groups": "site"})
    with pytest.raises(CompetitionError, match="unknown setting data.options.group; there is none here"):
        chosen_options(competitions.get("vrdl2025").options, {"group": "site"})


@pytest.mark.parametrize(
    ("name", "option", "good", "bad", "expected"),
    [
        ("vrdl2021", "group", ["site", "patient"], ["plate", 1, None, []], "'site' or 'patient'"),
        ("sartorius", "fill_holes", [True, False], [0, 1, "no", None], "boolean"),
        ("dsb2018", "stage", [1, 2, None], [3, "1"], "1 or 2"),
        ("synthetic", "size", [64, 400], [63, 100.0, True, "100", None], "integer|greater than or equal to 64"),
        ("digits", "fewest", [1, 12, None], [0, 13], "1|more than digits, 12"),
        ("coco", "train", ["train2017", None], ["", 3], "string|character"),
        ("hubmap2023", "datasets", [[1], [2, 1]], [[], [3], 1], "1 or 2|at least 1|list"),
        ("cityscapes", "classes", [8, 5, ["car"]], [6, True, [], ["cars"], None], "8, 5, or a list of person"),
    ],
)
def test_options_take_only_what_they_may_be(
    name: str, option: str, good: list[Any], bad: list[Any], expected: str
) -> None:
    known = competitions.get(name).options
    for value in good:
        assert getattr(chosen_options(known, {option: value}), option) == value
    for value in bad:
        with pytest.raises(CompetitionError, match=rf"data\.options\.{option}.*({expected})"):
            chosen_options(known, {option: value})


@pytest.mark.parametrize("name", competitions.names())
def test_the_defaults_may_be_written_down(name: str) -> None:
    known = competitions.get(name).options
    assert chosen_options(known, known().model_dump()) == known()


def test_scoring_and_validating_need_no_heavy_import() -> None:
    code = (
        "import sys; from pipeline.stages import score, validate, split; from pipeline import competitions;"
        "[competitions.get(n) for n in competitions.names()];"
        "print(*{'torch', 'cv2', 'pandas', 'sklearn', 'matplotlib', 'mmdet', 'snakemake'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
