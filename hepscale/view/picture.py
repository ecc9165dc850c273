"""The histograms of a run that has ended as one PNG, by matplotlib, for the saved notebook."""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

from hepscale.view.text import COLOURS, count_text, one_line

if TYPE_CHECKING:
    from hepscale.view.gallery import Drawing
    from hepscale.view.histograms import Axis, Plot, Series

__all__ = ["STYLE", "png"]

_MOST = 12
_WIDTH_IN = 3.5
_HEIGHT_IN = 2.7
_LINE_IN = 0.22
_CHARACTER_IN = 0.068
_DPI = 80
_MOST_LINES = 8
_MOST_ROWS = 9
_MOST_COLUMNS = 3
_MOST_TICKS = 12
_LEGEND = 6
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-4, 5),
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "",
}


def png(drawing: Drawing, text: str) -> bytes:
    """Return a picture of at most twelve plots.

    Parameters
    ----------
    drawing
        What is drawn.
    text
        What is written above, the first line in bold.
    """
    plots = drawing.plots[:_MOST]
    missing = len(drawing.plots) + len(drawing.more) - len(plots)
    columns = min(len(plots), 2 if len(plots) in (2, 4) else 3)
    rows = math.ceil(len(plots) / columns)
    # room for a line of text above a single plot
    width = max(_WIDTH_IN * columns, 5.5)
    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(one_line(line), int(width / _CHARACTER_IN))
    ]
    lines = lines[:_MOST_LINES] + (["..."] if len(lines) > _MOST_LINES else [])
    lines += [f"and {missing:,} more plots"] if missing else []
    head = _LINE_IN * len(lines) + 0.12
    height = _HEIGHT_IN * rows + head
    with mpl.rc_context():
        # what a notebook has set, a user's LaTeX too, is for their own pictures
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        for i, line in enumerate(lines):
            figure.text(
                0.12 / width,
                1 - (0.06 + _LINE_IN * i) / height,
                line,
                va="top",
                weight="bold" if i == 0 else "normal",
                parse_math=False,
            )
        body = figure.add_gridspec(
            rows,
            columns,
            left=0.62 / width,
            right=1 - 0.15 / width,
            bottom=0.45 / height,
            top=1 - (head + 0.28) / height,
            wspace=0.28,
            hspace=0.55,
        )
        for i, plot in enumerate(plots):
            _draw(figure.add_subplot(body[divmod(i, columns)]), plot)
        made = io.BytesIO()
        figure.savefig(made, format="png", dpi=_DPI, metadata={"Software": None})
    return made.getvalue()


def _draw(axes: Any, plot: Plot) -> None:
    axes.set_title(one_line(plot.title, 48), loc="left", parse_math=False)
    if plot.kind == "table":
        _table(axes, plot)
        return
    if plot.x is not None:
        axes.set_xlabel(plot.x.label, parse_math=_is_math(plot.x.label))
    if plot.kind == "map" and plot.y is not None and plot.x is not None:
        axes.set_ylabel(plot.y.label, parse_math=_is_math(plot.y.label))
        values = np.ma.masked_invalid(plot.series[0].values)
        axes.pcolormesh(_edges(plot.x), _edges(plot.y), values.T, cmap="viridis", rasterized=True)
        _label(axes.xaxis, plot.x)
        _label(axes.yaxis, plot.y)
    elif plot.x is not None:
        _steps(axes, plot, plot.x)


def _steps(axes: Any, plot: Plot, x: Axis) -> None:
    edges = _edges(x)
    if len(edges) < 2:
        # categories, of which none has come in
        return
    for i, one in enumerate(plot.series):
        colour = COLOURS[i % len(COLOURS)]
        style = ("-", "--", ":")[i // len(COLOURS) % 3]
        values = np.where(np.isfinite(one.values), one.values, np.nan)
        axes.stairs(values, edges, color=colour, linestyle=style, baseline=None, linewidth=1.1)
        _band(axes, one, edges, colour)
        # matplotlib leaves out names that begin with an underscore
        axes.plot([], [], color=colour, linestyle=style, label=f"\u200b{one.name}")
    axes.set_xlim(edges[0], edges[-1])
    if plot.summable:
        drawn = [one.values[np.isfinite(one.values)] for one in plot.series]
        empty = not any(one.any() for one in drawn)
        negative = any((one < 0).any() for one in drawn)
        axes.set_ylim(None if negative else 0.0, 1.0 if empty else None)
    _label(axes.xaxis, x)
    if len(plot.series) > 1 or (plot.series and plot.series[0].name):
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > _LEGEND:
            handles = handles[:_LEGEND]
            labels = [*labels[: _LEGEND - 1], f"and {len(labels) - _LEGEND + 1} more"]
        legend = axes.legend(handles, [one_line(label, 24) for label in labels], loc="best")
        for one_text in legend.get_texts():
            one_text.set_parse_math(False)


def _band(axes: Any, series: Series, edges: Any, colour: str) -> None:
    """Draw the statistical error as a band."""
    variances = np.abs(series.values) if series.variances is None else series.variances
    with np.errstate(invalid="ignore"):
        error = np.sqrt(variances)
    known = np.isfinite(error) & np.isfinite(series.values)
    values = np.where(known, series.values, np.nan)
    error = np.where(known, error, np.nan)
    axes.stairs(
        values + error, edges, baseline=values - error, fill=True, color=colour, alpha=0.25, lw=0
    )


def _edges(axis: Axis) -> Any:
    return np.arange(len(axis.labels or ()) + 1) if axis.edges is None else np.array(axis.edges)


def _label(axis: Any, shown: Axis) -> None:
    """Write the names of the bins, where these are names."""
    if shown.labels is None:
        return
    step = max(1, math.ceil(len(shown.labels) / _MOST_TICKS))
    labels = [one_line(label, 12) for label in shown.labels[::step]]
    axis.set_ticks(np.arange(len(shown.labels))[::step] + 0.5, labels)
    for text in axis.get_ticklabels():
        text.set_parse_math(False)


def _table(axes: Any, plot: Plot) -> None:
    axes.set_axis_off()
    columns = plot.series[:_MOST_COLUMNS]
    more_columns = len(plot.series) - len(columns)
    rows = list(plot.rows[:_MOST_ROWS])
    lines = [["", *(one_line(one.name, 12) for one in columns)]]
    for i, row in enumerate(rows):
        cells = [_number(one.values[i]) for one in columns]
        lines.append([one_line(row, 26 if any(cells) else 60), *cells])
    if len(plot.rows) > len(rows):
        lines.append([f"and {len(plot.rows) - len(rows):,} more", *([""] * len(columns))])
    if more_columns:
        lines[0][-1] += f" (+{more_columns})"
    for i, line in enumerate(lines):
        y = 0.97 - i / (_MOST_ROWS + 2)
        for k, cell in enumerate(line):
            axes.text(
                0.0 if k == 0 else 1.0 - 0.22 * (len(columns) - k),
                y,
                cell,
                transform=axes.transAxes,
                ha="left" if k == 0 else "right",
                va="top",
                fontsize=7,
                parse_math=False,
            )


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value == round(value, 0) and abs(value) < 1e10 else count_text(value)


def _is_math(label: str) -> bool:
    """Return whether a label is what matplotlib reads: a lone dollar would be an error."""
    if label.count("$") < 2:
        return False
    try:
        MathTextParser("agg").parse(label)
    except ValueError:
        return False
    return True
