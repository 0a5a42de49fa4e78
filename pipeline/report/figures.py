"""Line charts and histograms as inline SVG, in the page's own colours and fonts, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

CROWDED = 4
"""Charts with more curves than this have their legend outside, where it covers none."""

SERIES = 8
"""Number of colours for series, ``--series-0`` and so on in style.css; further series start again."""

# Colours that no chart needs, written by matplotlib and replaced by the page's variables.
_PLACEHOLDERS = {
    "#010203": "var(--text)",
    "#010204": "var(--quiet)",
    "#010205": "var(--line)",
    "#010206": "var(--page)",
}
_PLACEHOLDERS |= {f"#0102{16 + k:02x}": f"var(--series-{k})" for k in range(SERIES)}
_TEXT, _QUIET, _LINE, _PAGE = list(_PLACEHOLDERS)[:4]


@dataclass(frozen=True)
class Line:
    """One curve: (N,) x and y, in the colour of series number `series`, and a point on it to mark."""

    label: str
    x: np.ndarray
    y: np.ndarray
    series: int
    dashed: bool = False
    dot: tuple[float, float] | None = None


def lines(
    curves: Sequence[Line], title: str, x_label: str, y_label: str, log_y: bool = False, unit_square: bool = False
) -> str:
    """Curves over a common x axis.

    Args:
        unit_square: for precision over recall: from 0 to 1, and less far to the right where no curve gets half-way.
    """
    with _figure(title) as (_, axes, svg):
        for curve in curves:
            style = {"linestyle": (0, (4, 2))} if curve.dashed else {}
            axes.plot(curve.x, curve.y, color=_series(curve.series), linewidth=1.5, label=_plain(curve.label), **style)
            if curve.dot:
                axes.plot(*curve.dot, color=_series(curve.series), marker="o", markersize=5)
        if log_y:
            axes.set_yscale("log")
            _plain_log(axes.yaxis)
        if unit_square:
            reached = max([float(curve.x.max()) for curve in curves], default=1.0)
            # a metric may look at few detections only, and a model may find nothing
            axes.set_xlim(0, 1.05 * reached if 0 < reached <= 0.5 else 1)
            axes.set_ylim(0, 1.02)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(curves) > CROWDED:
            axes.figure.legend(loc="outside right upper")
        elif len(curves) > 1:
            axes.legend(loc="best")
    return svg[0]


def size_histogram(sizes: dict[str, np.ndarray], title: str) -> str:
    """How large the instances are, one outline per class, on a logarithmic axis of pixels."""
    everything = np.concatenate([s[s > 0] for s in sizes.values()] or [np.zeros(0)])
    with _figure(title) as (_, axes, svg):
        if everything.size:
            low, high = float(everything.min()), float(everything.max())
            edges = np.geomspace(low / 1.05, high * 1.05, 9 + min(everything.size // 40, 24))
            for k, (name, values) in enumerate(sizes.items()):
                counts, _ = np.histogram(values, edges)
                axes.stairs(counts, edges, color=_series(k), linewidth=1.5, label=_plain(name))
            axes.set_xscale("log")
            _plain_log(axes.xaxis)
            axes.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("square root of the area, pixels")
        axes.set_ylabel("instances")
        if len(sizes) > 1:
            axes.legend(loc="best")
    return svg[0]


def histogram(values: np.ndarray, title: str, x_label: str, y_label: str) -> str:
    """How often whole numbers, (N,) and N > 0, occur."""
    with _figure(title) as (_, axes, svg):
        step = max(-(-(int(values.max()) + 1) // 16), 1)  # whole numbers to a bin, at most 16 bins
        counts, edges = np.histogram(values, bins=np.arange(-0.5, values.max() + step, step))
        axes.stairs(counts, edges, color=_series(0), fill=True, alpha=0.35)
        axes.stairs(counts, edges, color=_series(0), linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    return svg[0]


def intervals(rows: Sequence[tuple[str, float, float, float, bool]], title: str, x_label: str) -> str:
    """A value with its interval per row, top to bottom: (label, value, low, high, filled)."""
    with _figure(title, height=0.9 + 0.32 * max(len(rows), 1)) as (_, axes, svg):
        axes.axvline(0, color=_QUIET, linewidth=0.8)
        for y, (_, value, low, high, filled) in enumerate(rows):
            colour = _series(0) if filled else _QUIET
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
            axes.plot([value], [y], marker="o", markersize=6, color=colour, markerfacecolor=colour if filled else _PAGE)
        axes.set_yticks(range(len(rows)), [_plain(label) for label, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(x_label)
    return svg[0]


# ---------------------------------------------------------------- plumbing --------------------------------------------


def _series(k: int) -> str:
    return list(_PLACEHOLDERS)[4 + k % SERIES]


def _plain(label: str) -> str:
    """A label without matplotlib's mathematics, and not hidden from a legend by a leading underscore."""
    return label.replace("$", r"\$").removeprefix("_") or " "


def _plain_log(axis: Any) -> None:
    """Ticks like 0.5, 1, 2, 5, 10 on a logarithmic axis: powers of ten alone leave short ranges without a number."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@contextmanager
def _figure(title: str, width: float = 4.6, height: float = 3.0) -> Iterator[tuple[Any, Any, list[str]]]:
    """A figure with one pair of axes; on leaving the block the finished SVG is appended to the yielded list."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    svg: list[str] = []
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 9.5,
        "text.color": _TEXT,
        "axes.labelcolor": _QUIET,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "grid.color": _LINE,
        "grid.linewidth": 0.6,
        "xtick.color": _LINE,
        "xtick.labelcolor": _QUIET,
        "ytick.color": _LINE,
        "ytick.labelcolor": _QUIET,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(_plain(title))
        yield figure, axes, svg
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg.append(_for_the_page(buffer.getvalue(), title))


def _for_the_page(text: str, title: str) -> str:
    """Matplotlib's SVG file as an element of the page: its own ids, the page's colours and fonts, a spoken title."""
    import html
    import zlib

    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)  # its styles would be the page's
    prefix = f"f{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    for placeholder, variable in _PLACEHOLDERS.items():
        text = text.replace(placeholder, variable)
    text = re.sub(r"font-family: [^;\"]*(?:;|(?=\"))", "", text)
    text = re.sub(r"\bfont: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size, text[:200]
    attributes = {
        "class": "chart",
        "role": "img",
        "aria-label": html.escape(title),
        "viewBox": f"0 0 {size[1]} {size[2]}",
        "style": f"max-width: {float(size[1]) * 1.35:.0f}px",
    }
    head = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return f"<svg {head}{text[text.index('>') :]}"
