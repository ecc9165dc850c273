"""Where in an output the histograms and tables are, by their paths.

Histograms are known by their protocol (UHI: `axes`, `values`, `kind`), so those of hist,
boost-histogram and uproot all are. Nothing here changes an output or keeps a part of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hepscale.view.text import one_line

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ["Found", "Path", "find", "key_order", "key_text", "number", "reach"]

Path: TypeAlias = "tuple[Hashable, ...]"

# An output that holds more than this is not walked to its end, nor are lists of data.
_MOST_NODES = 50_000
_MOST_DEPTH = 16
_MOST_LISTED = 100
_MOST_ROWS = 200
_ROOT = "output"
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Found:
    """Where something is that can be drawn; `columns` are the keys of a table made of tables."""

    name: str
    path: Path
    table: bool = False
    columns: tuple[Hashable, ...] = ()

    @property
    def names(self) -> Iterator[str]:
        """The names that a pattern may mean: that of the whole, and those of its columns."""
        yield self.name
        for column in self.columns:
            yield f"{self.name}.{key_text(column)}"


def find(output: Any) -> tuple[Found, ...]:
    """Return what can be drawn of an output, in the order of the names.

    Mappings, lists and tuples are looked into. A mapping of two and more names to numbers is a
    table, a mapping of such tables with rows in common is one table of several columns.
    """
    found: dict[str, Found] = {}
    budget = [_MOST_NODES]
    for one in _walk(output, (), budget):
        name, number = one.name, 2
        while name in found:
            name, number = f"{one.name} ({number})", number + 1
        found[name] = one if name == one.name else Found(name, one.path, one.table, one.columns)
    return tuple(found.values())


def reach(output: Any, path: Path) -> Any:
    """Return what is at a path of an output.

    Raises
    ------
    LookupError, TypeError
        There is nothing.
    """
    for key in path:
        # a defaultdict would make what is not there
        if isinstance(output, Mapping) and key not in output:
            raise KeyError(key)
        output = output[key]
    return output


def _walk(node: Any, path: Path, budget: list[int]) -> Iterator[Found]:
    if len(path) > _MOST_DEPTH:
        return
    if isinstance(node, Mapping):
        if _is_table(node):
            yield Found(_name(path), path, table=True)
        elif columns := _columns(node, path):
            yield Found(_name(path), path, table=True, columns=columns)
        elif budget[0] >= len(node):
            budget[0] -= len(node)
            inner = [key for key, value in node.items() if _may_hold(value)]
            for key in sorted(inner, key=key_order):
                yield from _walk(node[key], (*path, key), budget)
    elif isinstance(node, list | tuple):
        if len(node) <= _MOST_LISTED:
            for index, item in enumerate(node):
                yield from _walk(item, (*path, index), budget)
    elif _is_histogram(node):
        yield Found(_name(path), path)


def _may_hold(node: Any) -> bool:
    return isinstance(node, Mapping | list | tuple) or _is_histogram(node)


def _is_histogram(node: Any) -> bool:
    # of its class: a property may cost something, and a class in an output is no histogram
    kind = type(node)
    return hasattr(kind, "kind") and hasattr(kind, "axes") and hasattr(kind, "values")


def _is_table(node: Mapping[Any, Any]) -> bool:
    return 2 <= len(node) <= _MOST_ROWS and all(
        isinstance(key, str) and number(value) is not None for key, value in node.items()
    )


def _columns(node: Mapping[Any, Any], path: Path) -> tuple[Hashable, ...]:
    """Return the keys of a mapping of tables that have rows in common, else nothing."""
    if not (path or len(node) > 1) or len(node) > _MOST_ROWS:
        return ()
    shared: set[Any] | None = None
    for value in node.values():
        if not (isinstance(value, Mapping) and _is_table(value)):
            return ()
        shared = set(value) if shared is None else shared & set(value)
    return tuple(sorted(node, key=key_order)) if shared else ()


def number(value: Any) -> float | None:
    """Return a number, also one that an accumulator holds, or None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float | np.integer | np.floating):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    # accumulators that hold one: coffea's value_accumulator, boost-histogram's sums
    inner = None if isinstance(value, str) else getattr(value, "value", None)
    return float(inner) if isinstance(inner, int | float) and not isinstance(inner, bool) else None


def key_order(key: Hashable) -> list[tuple[bool, int, str]]:
    """Sort keys by it: "b2" comes before "b10". In a merged output they are in that of arrival."""
    parts = [part for part in _DIGITS.split(key_text(key)) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def key_text(key: object) -> str:
    """Return a key as it is shown, on one line."""
    if isinstance(key, tuple):
        return ".".join(map(key_text, key))
    return one_line(str(key), 80)


def _name(path: Path) -> str:
    return ".".join(map(key_text, path)) or _ROOT
