"""Competitions by name."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline import competitions
from pipeline.competitions import CompetitionError, Option, chosen_options


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
    assert chosen_options("vrdl2021", known, {"group": "patient"}) == {"group": "patient"}
    assert chosen_options("vrdl2021", known, {}) == {"group": "site"}
    with pytest.raises(CompetitionError, match="groups.*did you mean 'group'"):
        chosen_options("vrdl2021", known, {"groups": "site"})
    with pytest.raises(CompetitionError, match="vrdl2025 has no such option; it has none"):
        chosen_options("vrdl2025", {}, {"group": "site"})


@pytest.mark.parametrize(
    "option, good, bad, expected",
    [
        (Option("a", "", ("a", "b")), ["a", "b"], ["c", 1, None, []], "'a' or 'b'"),
        (Option(False, "", (True, False)), [True, False], [0, 1, "no", None], "true or false"),
        (Option(None, "", (1, 2)), [1, 2, None], [3, True, "1"], "1 or 2"),
        (Option(4, "", least=2), [2, 400], [1, 2.0, True, "2", None], "a whole number of at least 2"),
        (Option(None, "", least=1), [1, None], [0], "a whole number of at least 1"),
    ],
)
def test_options_take_only_what_they_may_be(option: Option, good: list[Any], bad: list[Any], expected: str) -> None:
    assert [option.fault(value) for value in good] == [""] * len(good)
    assert [option.fault(value) for value in bad] == [expected] * len(bad)


@pytest.mark.parametrize("name", competitions.names())
def test_every_option_says_what_it_means_and_has_a_default_it_takes(name: str) -> None:
    for key, option in competitions.get(name).options.items():
        assert option.about and not option.fault(option.default), key


def test_scoring_and_validating_need_no_heavy_import() -> None:
    code = (
        "import sys; from pipeline.stages import score, validate, split; from pipeline import competitions;"
        "[competitions.get(n) for n in competitions.names()];"
        "print(*{'torch', 'cv2', 'pandas', 'sklearn', 'matplotlib', 'mmdet', 'snakemake'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
