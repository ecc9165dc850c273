"""The axes of histograms: which of them are drawn, summed over or made series of."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hepscale.view.finding import key_order, key_text
from hepscale.view.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOST_BINS", "MOST_SERIES", "Axis", "Dimension", "Layout", "layout"]

# What is drawn of one histogram: more could not be seen, and would be sent many times a second.
MOST_SERIES = 20
MOST_BINS = 1_000
_MOST_CHOICES = 200
_MOST_GROUPS = 5_000
_MOST_CELLS = 20_000_000


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a plot: n + 1 `edges`, finite and increasing, or the `labels` of n bins."""

    label: str
    edges: tuple[float, ...] | None
    labels: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Dimension:
    """An axis of a histogram; `below` and `above` are its bins for what lies outside."""

    axis: Axis
    n: int
    below: int
    above: int
    categorical: bool
    # of the bins, where labels are sorted
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.below + self.n + self.above


@dataclass(frozen=True, slots=True)
class Layout:
    """What becomes of the axes of a histogram; holds as long as its shape does.

    Attributes
    ----------
    shape
        Of the values with what lies outside of the bins.
    drawn, summed
        The axes that are drawn, one or two, and those that are summed over.
    groups
        The axes of categories, counted among those that are not summed over.
    kept, names, rest
        With these flattened: the rows that are series of their own, or choices for a map, what they
        are called, and the rows that are one series together. Empty where there are none.
    means
        Whether it holds means.
    inner
        The bins of the one axis, where nothing but these is drawn.
    """

    shape: tuple[int, ...]
    drawn: tuple[Dimension, ...]
    summed: tuple[int, ...]
    groups: tuple[int, ...]
    kept: tuple[int, ...]
    names: tuple[str, ...]
    rest: tuple[int, ...]
    means: bool
    inner: slice | None


def layout(histogram: Any) -> Layout:
    """Return what becomes of the axes of a histogram."""
    axes = [_dimension(axis) for axis in histogram.axes]
    drawn = [i for i, one in enumerate(axes) if not one.categorical][:2]
    if not drawn and axes:
        drawn = [len(axes) - 1]
    groups = [i for i, one in enumerate(axes) if one.categorical and i not in drawn]
    if math.prod(axes[i].size for i in groups) > _MOST_GROUPS:
        groups = []
    most = MOST_SERIES if len(drawn) < 2 else _MOST_CHOICES
    kept, names, rest = _flattened([axes[i] for i in groups], most) if groups else ((), (), ())
    summed = tuple(i for i in range(len(axes)) if i not in drawn and i not in groups)
    left = [i for i in range(len(axes)) if i not in summed]
    shape = tuple(one.size for one in axes)
    if math.prod(shape) > _MOST_CELLS:
        raise ValueError(f"it has {math.prod(shape):,} bins")
    means = str(getattr(histogram.kind, "value", histogram.kind)) == "MEAN"
    only = axes[0] if len(axes) == 1 and not axes[0].categorical and not means else None
    plain = only is not None and only.n <= MOST_BINS
    return Layout(
        shape,
        tuple(axes[i] for i in drawn),
        summed,
        tuple(left.index(i) for i in groups),
        kept,
        names,
        rest,
        means,
        slice(only.below, only.below + only.n) if only is not None and plain else None,
    )


def _dimension(axis: Any) -> Dimension:
    n = len(axis)
    traits = getattr(axis, "traits", None)
    below = int(getattr(traits, "underflow", False))
    above = int(getattr(traits, "overflow", False))
    label = one_line(str(getattr(axis, "label", "") or getattr(axis, "name", "") or ""), 80)
    order = tuple(range(n))
    boolean = type(axis).__name__ == "Boolean"
    if not boolean and getattr(traits, "ordered", not getattr(traits, "discrete", False)):
        shown = Axis(label, _finite(axis.edges), None)
        return Dimension(shown, n, below, above, categorical=False, order=order)
    bins = [bool(one) for one in axis] if boolean else list(axis)
    if getattr(traits, "growth", False):
        # they are in the order in which they came, which differs from run to run
        order = tuple(sorted(order, key=lambda i: key_order(bins[i])))
    shown = Axis(label, None, tuple(key_text(bins[i]) for i in order))
    return Dimension(shown, n, below, above, categorical=True, order=order)


def _finite(edges: Any) -> tuple[float, ...]:
    """Return edges that can be drawn: one at infinity is put a bin's width beside its neighbour."""
    array = np.array(edges, dtype=float)
    inner = array[np.isfinite(array)]
    if not len(inner):
        return tuple(map(float, range(len(array))))
    width = float(inner[-1] - inner[0]) / max(len(inner) - 1, 1) or 1.0
    array[array == -np.inf] = inner[0] - width
    array[array == np.inf] = inner[-1] + width
    return tuple(array.tolist())


def _flattened(
    groups: Sequence[Dimension],
    most: int,
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """Return which rows are series, their names, and which are "other", see :class:`Layout`."""
    sizes = [one.size for one in groups]
    labels = [dict(zip(one.order, one.axis.labels or (), strict=True)) for one in groups]
    kept, names = [], []
    for where in itertools.product(*(one.order for one in groups)):
        kept.append(int(np.ravel_multi_index(where, sizes)))
        names.append(" / ".join(text[i] for text, i in zip(labels, where, strict=True)))
    if len(kept) > most:
        kept, names = kept[: most - 1], names[: most - 1]
    rest = set(range(math.prod(sizes))) - set(kept)
    return tuple(kept), tuple(names), tuple(sorted(rest))
