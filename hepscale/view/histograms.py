"""Histograms and tables as plain arrays: what is drawn of them, whatever draws it.

A histogram is whatever has the protocol (UHI: `axes`, `values`, `variances`, `kind`). Nothing here
changes one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from hepscale.view.finding import key_text, number
from hepscale.view.layouts import MOST_BINS, MOST_SERIES, Axis, layout
from hepscale.view.text import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from hepscale.view.finding import Found
    from hepscale.view.layouts import Dimension, Layout

__all__ = ["Axis", "Plot", "Projector", "Series"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_MOST_BINS_OF_MAP = 160
_MOST_LABELS = 100
_MOST_ROWS = 200
_OTHER = "other"
# Of boost-histogram's memory, by what it calls them: counts, and sums of weights.
_FORMATS = {
    "d": np.dtype("f8"),
    "q": np.dtype("i8"),
    "l": np.dtype("i8"),
    "^T{d:value:d:variance:}": np.dtype([("value", "f8"), ("variance", "f8")]),
}


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """What is drawn over the axes: `values` of shape (n,), of a map (nx, ny); NaN is a gap.

    Without `variances` the values are counts, which are their own.
    """

    name: str
    values: Array
    variances: Array | None


@dataclass(frozen=True, slots=True, eq=False)
class Plot:
    """One histogram or table, ready to be drawn.

    Attributes
    ----------
    name
        Its path in the output, such as ``DY.mass``.
    kind
        "steps": series over `x`; "map": one series over `x` and `y`; "table": `rows`, and a column
        for each series.
    summable
        Whether series may be added up and compared by their sums; means may not.
    choices, chosen
        The categories of a map, and the one that is drawn; None: all.
    """

    name: str
    kind: Literal["steps", "map", "table"]
    x: Axis | None
    y: Axis | None
    series: tuple[Series, ...]
    rows: tuple[str, ...] = ()
    summable: bool = True
    choices: tuple[str, ...] = ()
    chosen: str | None = None

    @property
    def title(self) -> str:
        """What is written above a picture of it, on one line."""
        return one_line(self.name if self.chosen is None else f"{self.name}: {self.chosen}", 60)


class Projector:
    """Makes plots of histograms and tables.

    It keeps what it knows of the axes for as long as a histogram is the same object of the same
    shape.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, Layout]] = {}

    def forget(self, names: Collection[str]) -> None:
        """Keep nothing but what is known of these."""
        self._known = {name: one for name, one in self._known.items() if name in names}

    def project(self, found: Found, source: Any, chosen: str | None = None) -> Plot:
        """Return the plot of a histogram or a table; of what cannot be drawn a table that says so.

        The bins of one axis are drawn, with a series for each category, or a map of the first two.
        All other axes are summed over, with what lies outside of their bins, as ``Hist.project``
        does. It raises nothing.

        Parameters
        ----------
        found
            What it is called, and whether it is a table.
        source
            What is there.
        chosen
            The category of a map that is drawn alone, if there is one of this name.
        """
        try:
            if found.table:
                return _table(found, source)
            return _drawn(found.name, *self._parts(found.name, source), chosen)
        except Exception as error:  # noqa: BLE001
            row = f"cannot be drawn: {one_line(f'{type(error).__name__}: {error}', 100)}"
            return _numbers(found.name, {row: math.nan})

    def _parts(self, name: str, source: Any) -> tuple[Layout, list[Array]]:
        kept, known = self._known.get(name, (None, None))
        if kept is source and known is not None:
            if known.inner is not None and (bins := _memory(source, known.drawn[0].n)):
                return known, bins
            parts = _parts(source, known.means)
            if parts[0].shape == known.shape:
                return known, parts
        known = layout(source)
        self._known[name] = source, known
        parts = _parts(source, known.means)
        if parts[0].shape != known.shape:
            shape = parts[0].shape
            raise ValueError(f"its values have the shape {shape}, its axes {known.shape}")
        return known, parts


def _numbers(name: str, rows: Mapping[str, float]) -> Plot:
    column = Series("", np.array([*rows.values()], dtype=float), None)
    return Plot(name, "table", None, None, (column,), tuple(rows))


def _table(found: Found, source: Mapping[Any, Any]) -> Plot:
    tables = {key_text(key): source[key] for key in found.columns[:MOST_SERIES]} or {"": source}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))[:_MOST_ROWS]
    series = []
    for name, table in tables.items():
        values = [number(table[key]) if key in table else None for key in keys]
        column = np.array([math.nan if one is None else one for one in values], dtype=float)
        series.append(Series(name, column, None))
    rows = tuple(key_text(key) for key in keys)
    return Plot(found.name, "table", None, None, tuple(series), rows)


# -- values ----------------------------------------------------------------------------------------


def _drawn(name: str, known: Layout, parts: list[Array], chosen: str | None) -> Plot:
    if known.inner is not None:
        # what most histograms are, twenty of them ten times a second
        if parts[0].shape == known.shape:
            parts = [part[known.inner] for part in parts]
        single = Series("", parts[0], parts[1] if len(parts) > 1 else None)
        return Plot(name, "steps", known.drawn[0].axis, None, (single,))
    if not known.drawn:
        return _numbers(name, {"sum": float(parts[0])})
    if known.summed:
        parts = [part.sum(axis=known.summed) for part in parts]
    if len(known.drawn) == 2:
        return _map(name, known, parts, chosen if chosen in known.names else None)
    return _steps(name, known, parts)


def _memory(source: Any, n: int) -> list[Array]:
    """Return the `n` bins of a histogram of one axis, its variances too; nothing if unknown.

    For the array that boost-histogram's own `view` returns, numpy reads a description of its type,
    which takes ten times as long as all else.
    """
    try:
        memory = memoryview(source._hist)
        dtype = _FORMATS.get(memory.format)
        if dtype is None or memory.shape != (n,):
            return []
        bins = np.frombuffer(memory, dtype)
    except (AttributeError, TypeError, ValueError):
        return []
    if dtype.names is not None:
        return [bins["value"], bins["variance"]]
    return [bins if dtype.kind == "f" else bins.astype(float)]


def _parts(source: Any, means: bool) -> list[Array]:
    """Return arrays that may be added up over bins.

    Of a histogram of counts: its values, and its variances if they are not the values. Of one of
    means: the number of entries, the sum, and the variance of the sum.
    """
    view: Any = source.view(flow=True) if hasattr(source, "view") else None
    dtype = getattr(view, "dtype", None)
    if getattr(dtype, "names", None) == ("value", "variance"):
        # half the time of asking for them one after the other
        plain = np.asarray(view)
        parts = [plain["value"], plain["variance"]]
    elif dtype is not None and dtype.names is None and not means:
        # counts: they are their own variances, which need not be sent
        parts = [np.asarray(view, dtype=float)]
    else:
        parts = [np.asarray(source.values(flow=True), dtype=float)]
        variances = source.variances(flow=True)
        parts += [] if variances is None else [np.asarray(variances, dtype=float)]
    if means:
        counts = np.asarray(source.counts(flow=True), dtype=float)
        filled = counts > 0
        spread = parts[1] if len(parts) > 1 else np.full_like(counts, np.nan)
        sums = np.where(filled, counts * parts[0], 0.0)
        parts = [counts, sums, np.where(filled, counts**2 * spread, 0.0)]
    return parts


def _finished(parts: Sequence[Array], means: bool) -> tuple[Array, Array | None]:
    if not means:
        return parts[0], parts[1] if len(parts) > 1 else None
    counts, sums, spread = parts
    counts = np.where(counts > 0, counts, np.nan)
    return sums / counts, spread / counts**2


def _map(name: str, known: Layout, parts: Sequence[Array], chosen: str | None) -> Plot:
    x, y = known.drawn
    found = []
    for part in parts if known.means else parts[:1]:
        rows = np.moveaxis(part, known.groups, range(len(known.groups))).reshape(-1, x.size, y.size)
        plane = rows.sum(axis=0) if chosen is None else rows[known.kept[known.names.index(chosen)]]
        array, x_axis = _bins(plane, x, 0, _MOST_BINS_OF_MAP)
        array, y_axis = _bins(array, y, 1, _MOST_BINS_OF_MAP)
        found.append(array)
    values, _ = _finished(found, known.means)
    return Plot(
        name,
        "map",
        x_axis,
        y_axis,
        (Series("", values, None),),
        summable=not known.means,
        choices=known.names,
        chosen=chosen,
    )


def _steps(name: str, known: Layout, parts: Sequence[Array]) -> Plot:
    (x,) = known.drawn
    found = []
    for part in parts:
        rows = np.moveaxis(part, known.groups, range(len(known.groups))).reshape(-1, x.size)
        array, axis = _bins(rows, x, 1, MOST_BINS)
        found.append(array)
    names, kept = known.names, known.kept
    if not known.names and not known.rest:
        names, kept = ("",), (0,)
    series = [
        Series(one, *_finished([part[row] for part in found], known.means))
        for one, row in zip(names, kept, strict=True)
    ]
    rest = [part[list(known.rest)].sum(axis=0) for part in found] if known.rest else []
    if rest and rest[0].any():
        series.append(Series(_OTHER, *_finished(rest, known.means)))
    return Plot(name, "steps", axis, None, tuple(series), summable=not known.means)


def _bins(array: Array, along: Dimension, dim: int, most: int) -> tuple[Array, Axis]:
    """Return what lies within the bins of an axis, neighbours added up where there are many."""
    inner: list[Any] = [slice(None)] * array.ndim
    inner[dim] = slice(along.below, along.below + along.n)
    array, axis, n = array[tuple(inner)], along.axis, along.n
    if axis.labels is not None:
        array = array if along.order == tuple(range(n)) else array.take(along.order, axis=dim)
        if n <= _MOST_LABELS:
            return array, axis
        starts = np.arange(_MOST_LABELS)
        axis = Axis(axis.label, None, (*axis.labels[: _MOST_LABELS - 1], _OTHER))
        return np.add.reduceat(array, starts, axis=dim), axis
    if n <= most or axis.edges is None:
        return array, axis
    step = -(-n // most)
    # bins of one width rather than a narrow one at the end
    step = next((one for one in range(step, 2 * step) if n % one == 0), step)
    starts = np.arange(0, n, step)
    axis = Axis(axis.label, (*axis.edges[:-1:step], axis.edges[-1]), None)
    return np.add.reduceat(array, starts, axis=dim), axis
