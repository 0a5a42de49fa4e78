"""Competitions by name."""

import subprocess
import sys

import pytest

from pipeline import competitions
from pipeline.competitions import CompetitionError, check_options


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
    check_options("vrdl2021", {"group": "site"}, ["group"])
    with pytest.raises(CompetitionError, match="groups.*did you mean 'group'"):
        check_options("vrdl2021", {"groups": "site"}, ["group"])


def test_scoring_and_validating_need_no_heavy_import() -> None:
    code = (
        "import sys; from pipeline.stages import score, validate, split; from pipeline import competitions;"
        "[competitions.get(n) for n in competitions.names()];"
        "print(*{'torch', 'cv2', 'pandas', 'sklearn', 'matplotlib', 'mmdet', 'snakemake'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
