from __future__ import annotations

import re
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest

from pipeline.report import figures
from pipeline.report.figures import Line

NASTY = '<script>alert("x")</script> & $\\frac{1}{2}$ _b'


def some_line(label: str = "a", series: int = 0) -> Line:
    return Line(label, np.arange(1, 9), np.geomspace(1, 0.1, 8), series, dot=(3.0, 0.5))


def charts() -> dict[str, str]:
    return {
        "lines": figures.lines([some_line(), some_line("b", 1)], "Lines", "x", "y", log_y=True),
        "one line": figures.lines([some_line()], "One", "x", "y", unit_square=True),
        "one point": figures.lines([Line("a", np.array([5]), np.array([2.0]), 0)], "Point", "x", "y", log_y=True),
        "nasty": figures.lines([some_line(NASTY), some_line("b", 9)], NASTY, NASTY, NASTY),
        "sizes": figures.size_histogram({"a": np.array([3.0, 5.0, 40.0]), "b": np.zeros(0)}, "Sizes"),
        "no sizes": figures.size_histogram({"a": np.zeros(0)}, "No sizes"),
        "one size": figures.size_histogram({"a": np.full(5, 7.0)}, "One size"),
        "counts": figures.histogram(np.array([0, 3, 3, 1800]), "Counts", "x", "y"),
        "zero": figures.histogram(np.array([0]), "Zero", "x", "y"),
        "intervals": figures.intervals([(NASTY, 0.1, 0.0, 0.2, True), ("b", -0.1, -0.2, 0.0, False)], "Gains", "x"),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return charts()


@pytest.mark.parametrize("name", list(charts()))
def test_a_chart_is_whole_and_holds_nothing_from_outside(drawn: dict[str, str], name: str) -> None:
    svg = drawn[name]
    fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))
    assert svg.startswith('<svg class="chart" role="img"')
    assert "<style" not in svg and "<metadata" not in svg and "font-family" not in svg
    assert "url(http" not in svg and not re.search(r'href="[^#]', svg)
    assert not re.search(r"#0102\w\w", svg)


def test_labels_are_text_and_nothing_else(drawn: dict[str, str]) -> None:
    for name in ("nasty", "intervals"):
        assert "<script" not in drawn[name]
        assert "&lt;script&gt;" in drawn[name]
        texts = " ".join(
            "".join(t.itertext()) for t in fromstring(drawn[name].replace("xlink:", "")).iter() if "text" in t.tag
        )
        assert NASTY in texts


def test_references_lead_to_their_own_chart(drawn: dict[str, str]) -> None:
    everything = [i for svg in drawn.values() for i in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(everything) == len(set(everything))
    for svg in drawn.values():
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids


def test_colours_are_the_pages(drawn: dict[str, str]) -> None:
    assert "var(--series-0)" in drawn["lines"] and "var(--series-1)" in drawn["lines"]
    assert "var(--text)" in drawn["lines"] and "var(--line)" in drawn["lines"]


def test_the_same_data_gives_the_same_bytes(drawn: dict[str, str]) -> None:
    assert charts() == drawn
