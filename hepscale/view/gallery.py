"""Which histograms of an output are drawn, and what they look like at this moment."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import numpy as np

from hepscale.view.finding import Found, find, reach
from hepscale.view.histograms import Plot, Projector, Series
from hepscale.view.layouts import Axis
from hepscale.view.text import one_line

__all__ = ["Drawing", "Encoder", "Gallery", "Watch", "decode", "encode"]

logger = logging.getLogger(__name__)

Watch: TypeAlias = Sequence[str] | Callable[[Any], Mapping[str, Any]]

_MOST_DRAWN = 12
_MOST_WATCHED = 48
# Looking for histograms again may take this part of the time, and is no part of each drawing.
_SEARCH_SHARE, _SEARCH_S = 0.01, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What is drawn at one moment; `more` are the names of what could be drawn as well."""

    plots: tuple[Plot, ...] = ()
    more: tuple[str, ...] = ()


class Gallery:
    """Finds histograms, chooses among them and projects those that are drawn.

    It looks into an output only when it is asked to. Between two drawings it keeps paths, and what
    is known of the axes.

    Parameters
    ----------
    watch
        Patterns of names, in the order in which they are drawn; or what returns the histograms to
        draw by name, given a copy of the output; None: the first twelve.
    tell
        Is told, once, why `watch` could not be used.
    clock
        Returns seconds; for tests.
    """

    def __init__(
        self,
        watch: Watch | None = None,
        tell: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patterns = () if watch is None or callable(watch) else tuple(watch)
        self._callable = watch if callable(watch) else None
        self._tell = tell
        self._clock = clock
        self._picked: tuple[str, ...] | None = None
        self._found: tuple[Found, ...] = ()
        self._shown: tuple[Found, ...] = ()
        self._more: tuple[str, ...] = ()
        self._search_s = float("-inf")
        self._projector = Projector()
        self._last: tuple[Any, Drawing] | None = None
        self._chosen_of: dict[str, str | None] = {}

    def pick(self, names: Sequence[str]) -> None:
        """Draw these from now on; may be called from another thread."""
        self._picked = tuple(dict.fromkeys(names))[:_MOST_WATCHED]
        self._search_s = float("-inf")

    def choose(self, name: str, category: str | None) -> None:
        """Draw one category of a map alone, or all; may be called from another thread."""
        self._chosen_of[name] = category

    def draw(self, output: Any, *, search: bool = False) -> Drawing:
        """Return what is to be drawn of an output; None is one that holds nothing yet.

        Parameters
        ----------
        output
            What the processor's outputs have been added up to; it is not changed.
        search
            Look for histograms even if that was done a moment ago.
        """
        if output is None:
            return Drawing()
        output = self._chosen(output)
        if search or self._clock() >= self._search_s:
            self._search(output)
        try:
            plots = self._plots(output)
        except (LookupError, TypeError):
            # it is not what it was: another dataset, or a list that is shorter
            self._search(output)
            plots = self._plots(output)
        return Drawing(plots, self._more)

    def _plots(self, output: Any) -> tuple[Plot, ...]:
        project, chosen = self._projector.project, self._chosen_of.get
        return tuple(
            [project(one, reach(output, one.path), chosen(one.name)) for one in self._shown]
        )

    def last(self, output: Any) -> Drawing:
        """Return what is to be drawn of an output that will not change any more."""
        if self._last is None or self._last[0] is not output:
            self._last = output, self.draw(output, search=True)
        return self._last[1]

    def missed(self, output: Any) -> list[str]:
        """Return a sentence for each pattern that means nothing in the last output.

        It raises nothing.
        """
        if not self._patterns:
            return []
        try:
            self.last(output)
            names = [name for one in self._found for name in one.names]
        except Exception as error:  # noqa: BLE001
            logger.warning("The output cannot be looked into: %r", error)
            return []
        told = []
        for pattern in self._patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = get_close_matches(pattern.strip("*?."), names, 3, 0.5) or sorted(names)[:3]
                there = f"there is {' and '.join(map(repr, near))}" if near else "there are none"
                told.append(f"watch={pattern!r} is the name of no histogram: {there}.")
        return told

    def _chosen(self, output: Any) -> Any:
        if self._callable is None:
            return output
        try:
            chosen = self._callable(copy.deepcopy(output))
            if isinstance(chosen, Mapping):
                return chosen
            raise TypeError(f"it returned {type(chosen).__name__} in place of a dict")
        except Exception as error:  # noqa: BLE001
            self._callable = None
            why = one_line(f"{type(error).__name__}: {error}")
            if self._tell is not None:
                self._tell(f"watch= has failed, the first histograms are drawn instead: {why}")
            return output

    def _search(self, output: Any) -> None:
        begun_s = self._clock()
        # the choice first: one that is made meanwhile is for the next search
        self._search_s = float("inf")
        self._found = find(output)
        self._shown = tuple(self._choice())
        shown = {one.name for one in self._shown}
        self._more = tuple(one.name for one in self._found if one.name not in shown)
        self._projector.forget(shown)
        now_s = self._clock()
        if self._search_s == float("inf"):
            pause_s = max(_SEARCH_S, (now_s - begun_s) / _SEARCH_SHARE)
            self._search_s = now_s + (pause_s if self._found else 0.0)

    def _choice(self) -> Sequence[Found]:
        if self._picked is not None:
            by_name = {one.name: one for one in self._found}
            return [by_name[name] for name in self._picked if name in by_name]
        if self._patterns:
            matching = [
                one
                for pattern in self._patterns
                for one in self._found
                if any(fnmatchcase(name, pattern) for name in one.names)
            ]
            return list(dict.fromkeys(matching))[:_MOST_WATCHED]
        return self._found[: _MOST_WATCHED if self._callable else _MOST_DRAWN]


class Encoder:
    """Encodes drawings, see :func:`encode`; as long as a spec is the same it is the same object.

    Parameters
    ----------
    number
        What numbers are written as.
    label
        What labels of axes and names of series are written as.
    """

    def __init__(self, number: str = "<f4", label: Callable[[str], str] = str) -> None:
        self._number, self._label = number, label
        self._seen: Any = None
        self._spec: dict[str, Any] = {}

    def __call__(self, drawing: Drawing) -> tuple[dict[str, Any], bytes]:
        """Return the spec, and the numbers that it refers to."""
        arrays: list[np.ndarray[Any, Any]] = []
        seen: list[Any] = [drawing.more]
        for plot in drawing.plots:
            axes, choice = (plot.x, plot.y), (plot.choices, plot.chosen)
            seen.append((plot.name, plot.kind, axes, plot.rows, plot.summable, choice))
            for one in plot.series:
                arrays.append(one.values)
                if one.variances is not None:
                    arrays.append(one.variances)
                seen.append((one.name, one.values.size, one.variances is None))
        # making the spec anew takes longer than the numbers do, and a widget compares it
        if seen != self._seen:
            self._seen, self._spec = seen, _spec(drawing, self._label)
        with np.errstate(over="ignore", invalid="ignore"):
            flat = [array if array.ndim == 1 else array.reshape(-1) for array in arrays]
            numbers = np.concatenate(flat).astype(self._number).tobytes() if flat else b""
        return self._spec, numbers


def encode(drawing: Drawing, number: str = "<f4") -> tuple[dict[str, Any], bytes]:
    """Return what a front end draws from: a JSON object, and the numbers that it refers to.

    Numbers are little-endian float32, one array after the other; ``[offset, n]`` counts floats. A
    map is row-major, x first. `number` is another type for them.
    """
    return Encoder(number)(drawing)


def _spec(drawing: Drawing, label: Callable[[str], str]) -> dict[str, Any]:
    end = 0

    def place(array: np.ndarray[Any, Any] | None) -> list[int] | None:
        nonlocal end
        if array is None:
            return None
        end += array.size
        return [end - array.size, array.size]

    plots = [
        {
            "name": plot.name,
            "kind": plot.kind,
            "x": _axis(plot.x, label),
            "y": _axis(plot.y, label),
            "series": [
                {
                    "name": label(one.name),
                    "values": place(one.values),
                    "variances": place(one.variances),
                }
                for one in plot.series
            ],
            "rows": list(plot.rows),
            "summable": plot.summable,
            "choices": list(plot.choices),
            "choice_labels": [*map(label, plot.choices)],
            "chosen": plot.chosen,
        }
        for plot in drawing.plots
    ]
    return {"plots": plots, "more": list(drawing.more)}


def _axis(axis: Axis | None, label: Callable[[str], str]) -> dict[str, Any] | None:
    if axis is None:
        return None
    return {
        "label": label(axis.label),
        "edges": None if axis.edges is None else list(axis.edges),
        "labels": None if axis.labels is None else [*map(label, axis.labels)],
    }


def decode(spec: Mapping[str, Any], bins: bytes) -> Drawing:
    """Return what :func:`encode` was given, with numbers of type ``<f8``.

    Raises
    ------
    LookupError, TypeError, ValueError
        It is not what `encode` has returned.
    """
    numbers = np.frombuffer(bins, "<f8")
    plots = [_plot_of(one, numbers) for one in spec["plots"]]
    return Drawing(tuple(plots), tuple(spec["more"]))


def _plot_of(one: Mapping[str, Any], numbers: np.ndarray[Any, Any]) -> Plot:
    x, y = _axis_of(one["x"]), _axis_of(one["y"])

    def take(place: Sequence[int] | None) -> Any:
        if place is None:
            return None
        flat = numbers[place[0] : place[0] + place[1]]
        return flat if x is None or y is None else flat.reshape(_bins(x), _bins(y))

    series = [Series(s["name"], take(s["values"]), take(s["variances"])) for s in one["series"]]
    rest = (tuple(one["rows"]), one["summable"], tuple(one.get("choices", ())), one.get("chosen"))
    return Plot(one["name"], one["kind"], x, y, tuple(series), *rest)


def _bins(axis: Axis) -> int:
    return len(axis.labels or ()) if axis.edges is None else len(axis.edges) - 1


def _axis_of(axis: Mapping[str, Any] | None) -> Axis | None:
    if axis is None:
        return None
    edges, labels = (None if axis[key] is None else tuple(axis[key]) for key in ("edges", "labels"))
    return Axis(axis["label"], edges, labels)
