"""A run in a notebook that has no widgets: HTML that is replaced twice a second, without buttons.

It needs nothing of the page: styles are written into the elements, histograms are SVG, maps are
pictures within it. Whatever the user has named is escaped.
"""

from __future__ import annotations

import base64
import io
import time
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hepscale.view.base import Partial, Throttle, nothing
from hepscale.view.notebook import finish, payload, show
from hepscale.view.tex import plain
from hepscale.view.text import COLOURS, count_text, failure_lines, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hepscale.view.gallery import Gallery
    from hepscale.view.histograms import Axis, Plot
    from hepscale.view.state import RunState

__all__ = ["HtmlView", "page"]

_HTML_S = 0.5
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 300, 170, 44, 34, 8
_MOST_ROWS = 12
_MOST_COLUMNS = 6
# Viridis, at five places; what is between is mixed.
_HEAT = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
_FONT = "font:13px system-ui,sans-serif;font-variant-numeric:tabular-nums"
_GRID = "display:grid;gap:8px 16px;grid-template-columns:repeat(auto-fill,minmax({},1fr))"


def page(values: dict[str, Any], failures: Sequence[str], plots: Sequence[Plot]) -> str:
    """Return a run as HTML.

    Parameters
    ----------
    values
        What :func:`hepscale.view.notebook.payload` returns.
    failures
        A line for each chunk that has failed.
    plots
        What is drawn.
    """
    desc, percent = escape(values["desc"]), values["percent"]
    facts = "".join(
        f'<div><span style="opacity:.75">{escape(name)}</span><br>{escape(value)}</div>'
        for name, value in values["facts"]
    )
    bar = (
        f'<div role="progressbar" aria-label="{desc}, progress" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{percent:.0f}"'
        ' style="height:6px;margin:4px 0 8px;background:#8884;border-radius:3px">'
        f'<div style="width:{percent}%;height:100%;background:#1976d2;border-radius:3px"></div>'
        "</div>"
    )
    figures = "".join(map(_figure, plots))
    return (
        f'<div role="region" aria-label="{desc}" style="{_FONT};max-width:76rem">'
        f"<b>{desc}</b> {escape(values['chunks'])} · {int(percent)} %{bar}"
        f'<div style="{_GRID.format("7rem")}">{facts}</div>'
        f'<div style="{_GRID.format("260px")};margin-top:8px">{figures}</div>'
        f"{_lines('Failed chunks', '#c62828', failures)}"
        f"{_lines('Notices', '#b26a00', values['notices'])}</div>"
    )


def _lines(name: str, colour: str, lines: Sequence[str]) -> str:
    style = f"border-left:3px solid {colour};padding-left:8px;overflow-wrap:anywhere"
    items = "".join(f'<li style="{style}">{escape(line)}</li>' for line in lines)
    listed = (
        f'<ul aria-label="{name}" style="list-style:none;margin:8px 0 0;padding:0">{items}</ul>'
    )
    return listed if items else ""


def _figure(plot: Plot) -> str:
    name = escape(plain(plot.title))
    if plot.kind == "table":
        caption = f"<figcaption><b>{name}</b></figcaption>"
        return f'<figure style="margin:0">{caption}{_table(plot)}</figure>'
    drawn = _map(plot) if plot.kind == "map" else _steps(plot)
    total = sum(float(np.nansum(one.values)) for one in plot.series)
    total_text = f"Σ {count_text(total)}" if plot.summable else ""
    several = len(plot.series) > 1
    legend = "".join(
        f'<span style="border-top:2px solid {COLOURS[i % len(COLOURS)]};margin-right:8px">'
        f"{escape(one_line(plain(one.name), 30))}</span>"
        for i, one in enumerate(plot.series)
        if several
    )
    return (
        f'<figure style="margin:0"><figcaption><b>{name}</b> {total_text}</figcaption>'
        f'<svg role="img" aria-label="{name}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' style="width:100%;font-size:10px" fill="currentColor">{drawn}</svg>'
        f'<div style="font-size:.85em">{legend}</div></figure>'
    )


def _table(plot: Plot) -> str:
    columns, rows = plot.series[:_MOST_COLUMNS], plot.rows[:_MOST_ROWS]
    head = "".join(f"<th>{escape(one_line(one.name, 20))}</th>" for one in columns)
    body = "".join(
        f'<tr><th style="text-align:left">{escape(one_line(row, 60))}</th>'
        + "".join(f"<td>{_count(float(one.values[i]))}</td>" for one in columns)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    more = len(plot.rows) - len(rows)
    rest = f"and {more:,} more rows" if more else ""
    return f"<table><tr><th></th>{head}</tr>{body}</table>{rest}"


def _count(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.0f}" if value.is_integer() else count_text(value)


def _edges(axis: Axis | None, bins: int) -> Any:
    if axis is None or axis.edges is None:
        return np.arange(bins + 1, dtype=float)
    return np.array(axis.edges)


def _axes(x: Axis | None, edges: Any, ends: Sequence[tuple[float, str]]) -> str:
    """Return the frame, what stands along it, and the texts at heights beside it."""
    bottom = _HEIGHT - _BOTTOM
    texts = [(_LEFT - 4.0, y + 4, "end", text) for y, text in ends]
    if x is not None and x.labels:
        step = -(-len(x.labels) // 6)
        slot = (_WIDTH - _LEFT) / len(x.labels)
        texts += [
            (_LEFT + slot * (i + 0.5), bottom + 12, "middle", one_line(plain(x.labels[i]), 10))
            for i in range(0, len(x.labels), step)
        ]
    else:
        texts += [(_LEFT, bottom + 12, "start", f"{edges[0]:.4g}")]
        texts += [(_WIDTH, bottom + 12, "end", f"{edges[-1]:.4g}")]
    if x is not None and x.label:
        texts.append((_WIDTH, bottom + 26, "end", one_line(plain(x.label), 45)))
    written = "".join(
        f'<text x="{at:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
        for at, y, anchor, text in texts
    )
    frame = f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH}" fill="none" stroke="currentColor"/>'
    return frame + written


def _steps(plot: Plot) -> str:
    rows = [np.nan_to_num(one.values, nan=0.0, posinf=0.0, neginf=0.0) for one in plot.series]
    bins = len(rows[0]) if rows else 0
    if not bins:
        return ""
    high = max(0.0, *(float(row.max()) for row in rows))
    low = min(0.0, *(float(row.min()) for row in rows))
    span = (high - low) or 1.0
    edges = _edges(plot.x, bins)
    bottom = _HEIGHT - _BOTTOM
    places = _LEFT + (edges - edges[0]) / (edges[-1] - edges[0]) * (_WIDTH - _LEFT)
    lines = []
    for i, row in enumerate(rows):
        heights = np.round(bottom - (row - low) / span * (bottom - _TOP), 1).tolist()
        steps = zip(heights, np.round(places[1:], 1).tolist(), strict=True)
        path = "".join(f"V{y}H{x}" for y, x in steps)
        colour = COLOURS[i % len(COLOURS)]
        lines.append(
            f'<path d="M{_LEFT} {bottom}{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
        )
    ends = [(_TOP, count_text(high if high > low else 1.0)), (bottom, count_text(low))]
    return "".join(lines) + _axes(plot.x, edges, ends)


def _map(plot: Plot) -> str:
    values = np.nan_to_num(plot.series[0].values, nan=0.0, posinf=0.0, neginf=0.0)
    if not values.size:
        return ""
    nx, ny = values.shape
    high = float(values.max()) or 1.0
    shade = np.clip(values / high, 0.0, 1.0) * (len(_HEAT) - 1)
    places = np.arange(len(_HEAT))
    colours = [np.interp(shade, places, _HEAT[:, k]) for k in range(3)]
    # nothing is no colour, or an empty plane would look like a measured one
    image = np.stack([*colours, np.where(values == 0, 0, 255)], axis=-1).astype(np.uint8)
    x, y = _edges(plot.x, nx), _edges(plot.y, ny)
    image = image[_owners(x, _WIDTH - _LEFT)][:, _owners(y, _HEIGHT - _BOTTOM - _TOP)]
    made = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 0, 2)[::-1])).save(made, "png")
    data = base64.b64encode(made.getvalue()).decode("ascii")
    bottom = _HEIGHT - _BOTTOM
    picture = (
        f'<image x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT}" height="{bottom - _TOP}"'
        f' href="data:image/png;base64,{data}"/>'
    )
    sides = (plot.y.labels or ()) if plot.y is not None else ()
    least, most = (sides[0], sides[-1]) if sides else (f"{y[0]:.4g}", f"{y[-1]:.4g}")
    ends = [(_TOP, one_line(most, 7)), (bottom, one_line(least, 7))]
    return picture + _axes(plot.x, x, ends)


def _owners(edges: Any, pixels: int) -> Any:
    """Return which bin each pixel of an axis belongs to."""
    centres = edges[0] + (np.arange(pixels) + 0.5) / pixels * (edges[-1] - edges[0])
    return np.clip(np.searchsorted(edges, centres, side="right") - 1, 0, len(edges) - 2)


class HtmlView:
    """One display that is replaced, by the final bundle at the end.

    Parameters
    ----------
    gallery
        Chooses the histograms; None: there are none.
    clock
        Returns seconds; for tests.
    """

    def __init__(
        self, gallery: Gallery | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gallery = gallery
        self._throttle = Throttle(_HTML_S, clock)
        self._handle: Any = None

    def update(self, state: RunState, output: Partial = nothing, *, force: bool = False) -> None:
        """Draw at most twice a second."""
        if force or self._throttle.due():
            self._throttle.draw(lambda: self._draw(state, output))

    def close(self, state: RunState, output: Partial = nothing) -> None:
        """Put the final bundle where the HTML was."""
        finish(self._handle, state, self._gallery, output)
        self._handle = None

    def _draw(self, state: RunState, output: Partial) -> int:
        plots = () if self._gallery is None else self._gallery.draw(output()).plots
        written = page(payload(state), failure_lines(state), plots)
        shown = {
            "text/html": written,
            "text/plain": f"{one_line(state.desc, 60) or 'Run'}: running",
        }
        if self._handle is None:
            self._handle = show(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
        return len(written)
