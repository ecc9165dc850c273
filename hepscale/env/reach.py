"""Which distributions are imported when an analysis imports its modules, decided without importing.

A closure by metadata holds what a distribution may ever need; this holds what Python loads. The
walk goes from module to module through their bytecode.
"""

from __future__ import annotations

import gc
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from hepscale.env.facts import Known

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from hepscale.env.facts import Facts
    from hepscale.env.index import Index

__all__ = ["SMALL_BYTES", "Plugin", "Reached", "at_import"]

SMALL_BYTES = 5_000_000


class Plugin(NamedTuple):
    """A module that a distribution offers to another one, its host, by an entry point."""

    host: str
    distribution: str
    module: str


class Reached(NamedTuple):
    """The module that led to a distribution, empty if it was given, and whether by a function."""

    module: str
    lazy: bool = False


def _nothing(_distribution: str) -> tuple[str, ...]:
    return ()


def at_import(
    modules: Iterable[str],
    index: Index,
    cache: Path | None = None,
    *,
    requires: Callable[[str], Iterable[str]] = _nothing,
    declared: Collection[str] | None = None,
    plugins: Collection[Plugin] = (),
    exclude: Collection[str] = (),
) -> dict[str, Reached]:
    """Find the distributions that are imported along with some modules.

    Imports at the level of a module or class count, guarded ones too if they are installed, those
    under ``if TYPE_CHECKING`` do not. Imports inside functions count if the distribution that they
    lead to is reached anyway, or is `declared` and has at most 5 MB: there a miss costs more than
    the room. A distribution with a module that cannot be read, because it is compiled, counts with
    all that it requires.

    Parameters
    ----------
    modules
        Dotted names to begin with; ``a.b`` for ``from a import b`` too.
    index
        What is installed.
    cache
        A folder for what has been found in distributions. One that cannot be used is no error.
    requires
        Returns the distributions that one requires.
    declared
        Distributions that something requires; None: all.
    plugins
        Those of a host that is reached are reached.
    exclude
        Distributions that are not there.

    Returns
    -------
    dict
        For each distribution what led to it.
    """
    small = index.distributions if declared is None else declared
    walk = _Walk(index, Known(index, cache), requires, small, frozenset(exclude))
    with _no_garbage_collection():
        for module in modules:
            walk.add(module, "")
        walk.go()
        walk.follow_functions()
        waiting = list(plugins)
        while ready := [one for one in waiting if one.host in walk.taken]:
            waiting = [one for one in waiting if one.host not in walk.taken]
            for one in ready:
                walk.take(one.distribution, one.host)
                walk.add(one.module, one.host)
            walk.follow_functions()
    walk.books.save()
    return walk.taken


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hundreds of thousands of constants are made and none is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Walk:
    def __init__(
        self,
        index: Index,
        books: Known,
        requires: Callable[[str], Iterable[str]],
        declared: Collection[str],
        exclude: frozenset[str],
    ) -> None:
        self.taken: dict[str, Reached] = {}
        self.books = books
        self._index = index
        self._requires = requires
        self._declared = declared
        self._exclude = exclude
        self._waiting: deque[tuple[str, str]] = deque()
        self._seen: set[str] = set()
        self._whole_of: set[str] = set()
        self._lazy: list[tuple[str, Facts]] = []
        self._functions = False

    def add(self, name: str, by: str) -> None:
        """Put a module and its parents on the list."""
        if name in self._seen:
            return
        self._seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            self.add(parent, by)
        self._waiting.append((name, by))

    def take(self, distribution: str, by: str) -> None:
        """Count a distribution, whatever its size."""
        if distribution not in self._exclude:
            self.taken.setdefault(distribution, Reached(by, self._functions))

    def go(self) -> None:
        """Follow everything that is on the list."""
        while self._waiting:
            name, by = self._waiting.popleft()
            owner = self.books.owner(name)
            if owner is None:
                continue
            if self._may_take(owner):
                self._visit(name, owner, by)
            else:
                # a plugin may bring the distribution yet
                self._seen.discard(name)

    def follow_functions(self) -> None:
        """Follow the imports inside functions too, from now on."""
        self._functions = True
        self.go()
        while self._lazy:
            name, facts = self._lazy.pop()
            for other in facts.lazy:
                self.add(other, name)
            self.go()

    def _may_take(self, distribution: str) -> bool:
        if distribution in self._exclude:
            return False
        if not self._functions or distribution in self.taken:
            return True
        small = self._index.distributions[distribution].size_bytes <= SMALL_BYTES
        return small and distribution in self._declared

    def _visit(self, name: str, owner: str, by: str) -> None:
        facts = self.books.facts(name, owner)
        if facts is None:
            self._member(name)
            return
        self.taken.setdefault(owner, Reached(by, self._functions))
        for other in facts.eager:
            self.add(other, name)
        if facts.opaque:
            self._whole(owner, name)
        self._lazy.append((name, facts))

    def _member(self, name: str) -> None:
        """Load what the module of which `name` is a member may load to get it."""
        module, _, member = name.rpartition(".")
        owner = self.books.owner(module) if module else None
        facts = self.books.facts(module, owner) if owner else None
        if facts is not None and member in facts.offers:
            for other in facts.loads:
                self.add(other, module)

    def _whole(self, distribution: str, by: str) -> None:
        """Take all that a distribution requires, as nobody knows what of it is imported."""
        for required in self._requires(distribution):
            if required not in self._whole_of and self._may_take(required):
                self._whole_of.add(required)
                self.take(required, by)
                for module in self._index.distributions[required].modules:
                    self.add(module, by)
                self._whole(required, by)
