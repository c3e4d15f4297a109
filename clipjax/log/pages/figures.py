"""Curves for the report: inline SVG in the page's colours."""

import html
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clipjax.log.pages.numbers import short_number

_POINTS = 400  # points drawn of one curve; longer ones become the mean and range of this many bins

# Stand-ins that the SVG is drawn in; each is replaced by a CSS variable, so that a figure turns
# dark with the page.
_COLOURS = {
    "ink": "#010203",
    "muted": "#010204",
    "grid": "#010205",
    **{f"s{i}": f"#0102{15 + i:02x}" for i in range(1, 7)},
}
_SERIES = 6
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _COLOURS["muted"],
    "axes.labelcolor": _COLOURS["muted"],
    "text.color": _COLOURS["ink"],
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "grid.color": _COLOURS["grid"],
}


def curve_svg(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    percent: bool = False,
) -> str:
    """Draws curves over samples seen as an inline `<svg>`.

    Args:
        title: read out by screen readers; the page shows it itself.
        series: label to (samples, values); non-finite values leave a gap. With several, each is
            labelled at its end.
        percent: values are shares, shown in percent.

    Curves of more than 400 points are drawn as the mean of 400 bins over a band from their least to
    their greatest value.
    """
    # The salt keeps the ids of several inline figures apart.
    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.3, 2.5), layout="constrained")
        axes = figure.add_subplot()
        ends = []
        for i, (label, (xs, ys)) in enumerate(series.items()):
            colour = _COLOURS[f"s{i % _SERIES + 1}"]
            x, mean, low, high = _binned(np.asarray(xs, float), np.asarray(ys, float))
            if low is not mean:
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            few = len(x) <= 30
            axes.plot(x, mean, color=colour, linewidth=1.8, marker="o" if few else "", markersize=3)
            finite = np.flatnonzero(np.isfinite(mean))
            if len(finite):
                ends.append((label, x[finite[-1]], mean[finite[-1]], colour))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", linewidth=1)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.set_xlabel("samples seen")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:.4g}%" if percent else f"{value:.4g}")
        )
        axes.set_xlim(left=0)
        if len(series) > 1:
            _label_ends(axes, ends)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue().decode("utf-8"), title)


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if len(x) <= _POINTS:
        return x, y, y, y
    edges = np.linspace(0, len(x), _POINTS + 1).astype(int)[:-1]
    count = np.diff(np.append(edges, len(x)))
    mean = np.add.reduceat(y, edges) / count
    low, high = np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
    return np.add.reduceat(x, edges) / count, mean, low, high


def _label_ends(axes, ends: list[tuple[str, float, float, str]]) -> None:
    bottom, top = axes.get_ylim()
    gap = 0.085 * (top - bottom)
    ends = sorted(ends, key=lambda end: end[2])
    heights = [end[2] for end in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    over = max(0.0, heights[-1] - top) if heights else 0.0
    for (label, _, _, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            label,
            (1.0, height - over),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )


def _inline(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg).group(0)
    label = html.escape(title, quote=True)
    svg = re.sub(r"<svg[^>]*>", f'<svg {view_box} role="img" aria-label="{label}">', svg, count=1)
    # An inline svg needs no namespaces, but matplotlib's links inside it are written as xlink:href.
    svg = svg.replace("xlink:href=", "href=")
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()
