"""From imports to installed distributions, and from these to all that they need.

Nothing is solved or downloaded: what is installed is what the analysis runs with. Whether the
installed versions fit together is not asked.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hepscale.env import reach
from hepscale.env.pipnames import NAMESPACES, module_of, pip_name
from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from hepscale.env.imports import How, Import
    from hepscale.env.index import Distribution, Index
    from hepscale.env.interpreter import Interpreter

__all__ = ["Missing", "Resolution", "Taken", "resolve"]

_MOST_REASONS = 5
_SCRIPTS = frozenset({"console_scripts", "gui_scripts"})
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
# Most requirements are of extras that nobody has asked for; parsing is what costs time.
_ONLY_WITH_EXTRA = re.compile(r";(?!.*\bor\b).*\bextra\s*==")


@dataclass(frozen=True, slots=True)
class Taken:
    """A distribution of the closure.

    Attributes
    ----------
    distribution
        What is installed.
    reasons
        Why it is taken, the first few: "cell 3, line 2: import yaml", "required by coffea",
        "plugin of fsspec (fsspec.specs)", "imported by numba.misc", "asked for".
    at_import
        Whether it is reached by imports at import time.
    """

    distribution: Distribution
    reasons: tuple[str, ...]
    at_import: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that is not installed.

    Attributes
    ----------
    name
        The module, or the distribution if a distribution requires it.
    where
        Where it is imported, or "required by X, which is installed without it".
    how
        "guarded" for what a distribution requires: nobody may ever import it.
    fix
        What to do.
    """

    name: str
    where: tuple[str, ...]
    how: How
    fix: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an analysis needs of what is installed, and what was excluded; sorted by name."""

    taken: tuple[Taken, ...]
    missing: tuple[Missing, ...]
    excluded: tuple[str, ...] = ()


def resolve(
    imports: Iterable[Import],
    index: Index,
    interpreter: Interpreter,
    *,
    extra: Sequence[str] = (),
    exclude: Sequence[str] = (),
    cache: Path | None = None,
) -> Resolution:
    """Find the distributions that provide some imports, and all that these need.

    What they need is what they require by their metadata, plugins for them, and what they import
    although they do not require it.

    Parameters
    ----------
    imports
        What is imported, without local modules and the standard library.
    index, interpreter
        What is installed, and for which Python.
    extra
        Requirements ("hist[plot]"), distributions or modules to take besides.
    exclude
        Distributions or modules not to take, nor what only they need.
    cache
        A folder for what is found in them.

    Raises
    ------
    ConfigError
        `extra` or `exclude` names something that is not installed.
    """
    closure = _Closure(index, interpreter, exclude)
    roots = list(closure.ask(extra))
    for one in imports:
        roots += closure.take_import(one)
    closure.grow()
    reached = reach.at_import(
        dict.fromkeys(roots),
        index,
        None if cache is None else cache / "reach",
        requires=closure.required_by,
        declared=frozenset(closure.taken),
        plugins=[plugin for plugin, _ in closure.plugins],
        exclude=closure.excluded,
    )
    for name, by in reached.items():
        closure.take_reached(name, by)
    closure.grow()
    return Resolution(
        tuple(
            Taken(
                index.distributions[name],
                tuple(closure.taken[name])[:_MOST_REASONS],
                name in reached
                or name in closure.asked
                # its code is local and followed as such
                or bool(index.distributions[name].editable),
            )
            for name in sorted(closure.taken)
        ),
        tuple(closure.missing[name] for name in sorted(closure.missing)),
        tuple(sorted(closure.excluded)),
    )


class _Closure:
    """The distributions that are taken so far, with reasons in the order in which they came."""

    def __init__(self, index: Index, interpreter: Interpreter, exclude: Sequence[str]) -> None:
        self.taken: dict[str, dict[str, None]] = {}
        self.asked: set[str] = set()
        self.missing: dict[str, Missing] = {}
        self._index = index
        self._installed = index.distributions
        self._environment = dict(interpreter.markers)
        self._needed: dict[tuple[str, str], tuple[Requirement, ...]] = {}
        self._extras: dict[str, dict[str, None]] = {}
        self._waiting: deque[tuple[str, str]] = deque()
        self._modules = {module for one in self._installed.values() for module in one.modules}
        self.excluded = frozenset(self._named(text)[0] for text in exclude)
        self.plugins = tuple(self._find_plugins())

    # -- what is asked for -----------------------------------------------------------------------

    def ask(self, extra: Iterable[str]) -> Iterator[str]:
        """Take requirements, distributions and modules, and yield the modules that they mean."""
        for text in extra:
            name, module, extras = self._named(text)
            if name not in self.excluded:
                self.asked.add(name)
                self._take(name, "asked for", extras)
                yield from [module] if module else self._installed[name].modules

    def _named(self, text: str) -> tuple[str, str, Collection[str]]:
        """Return what the user means: a distribution, and module or extras if one is named."""
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise ConfigError(
                f"{text!r} is no requirement, and names no distribution or module.",
                items=[str(error).partition("\n")[0]],
                fix="write it like one of: numpy, hist[plot], sklearn.svm",
            ) from error
        name = canonicalize_name(wanted.name)
        if name in self._installed:
            return name, "", wanted.extras
        owner = self._index.owner(wanted.name)
        if owner is not None:
            return owner, wanted.name, wanted.extras
        known = sorted({*self._installed, *self._modules})
        near = difflib.get_close_matches(wanted.name, known, 3) or difflib.get_close_matches(
            name, known, 3
        )
        raise ConfigError(
            f"{text!r} is not installed, neither as a distribution nor as a module.",
            items=[f"installed is {one}" for one in near],
            cause="a typing error, or it is installed for another Python",
            fix=f"pip install {shlex.quote(pip_name(text))}, or correct or remove the name",
        )

    # -- imports ---------------------------------------------------------------------------------

    def take_import(self, one: Import) -> Iterator[str]:
        """Take what provides an import, and yield the modules that it imports."""
        if one.level or not one.name:
            return
        members = [member for member in one.members if member != "*"]
        shown = ", ".join(members[:3]) + (", ..." if len(members) > 3 else "")
        text = f"from {one.name} import {shown}" if members else f"import {one.name}"
        # the parts of a namespace package belong to different distributions
        for name in [f"{one.name}.{member}" for member in members] or [one.name]:
            owners = self._index.owners(name)
            if not owners:
                self._miss_import(name, one)
            for owner in owners:
                if owner not in self.excluded:
                    self._take(owner, f"{one.where}: {text}")
                    yield name

    def _miss_import(self, name: str, one: Import) -> None:
        top = name.partition(".")[0]
        if one.how == "guarded":
            return
        if top not in self._modules | NAMESPACES:
            name = top
        known = self.missing.get(name, Missing(name, (), one.how, self._fix(name)))
        where = tuple(dict.fromkeys((*known.where, one.where)))
        how: How = "sure" if "sure" in {known.how, one.how} else one.how
        self.missing[name] = replace(known, where=where, how=how)

    def _fix(self, module: str) -> str:
        pip = pip_name(module)
        fix = f"pip install {pip}" + (f" (provides {module})" if pip != module else "")
        near = difflib.get_close_matches(module, self._modules, 1, 0.8)
        return f"write {near[0]} if that was meant, else {fix}" if near else fix

    # -- requirements and plugins ----------------------------------------------------------------

    def take_reached(self, name: str, by: reach.Reached) -> None:
        """Take what is imported, declared or not."""
        if name not in self.taken:
            self._take(name, f"imported by {by.module}")

    def grow(self) -> None:
        """Take what is required, and the plugins of what is taken, until nothing is added."""
        added = True
        while added:
            while self._waiting:
                name, extra = self._waiting.popleft()
                by = f"{name}[{extra}]" if extra else name
                for one in self._needs(name, extra):
                    required = self._find(one)
                    if required is None:
                        self._miss_required(by, name, one)
                    elif required not in self.excluded:
                        self._take(required, f"required by {by}", one.extras)
            added = False
            for plugin, group in self.plugins:
                name = plugin.distribution
                if plugin.host in self.taken and not {name} & {*self.taken, *self.excluded}:
                    self._take(name, f"plugin of {plugin.host} ({group})")
                    added = True

    def required_by(self, name: str) -> tuple[str, ...]:
        """Return the installed distributions that one requires, with the extras in use."""
        extras = self._extras.get(name, {""})
        found = (self._find(one) for extra in extras for one in self._needs(name, extra))
        return tuple(dict.fromkeys(one for one in found if one))

    def _take(self, name: str, reason: str, extras: Iterable[str] = ()) -> None:
        self.taken.setdefault(name, {})[reason] = None
        known = self._extras.setdefault(name, {})
        for extra in ("", *sorted(canonicalize_name(one) for one in extras)):
            if extra not in known:
                known[extra] = None
                self._waiting.append((name, extra))

    def _needs(self, name: str, extra: str) -> tuple[Requirement, ...]:
        key = name, extra
        if key not in self._needed:
            self._needed[key] = tuple(self._active(self._installed[name].requires, extra))
        return self._needed[key]

    def _active(self, requires: Iterable[str], extra: str) -> Iterator[Requirement]:
        environment = {**self._environment, "extra": extra}
        for text in requires:
            if not extra and _ONLY_WITH_EXTRA.search(text):
                continue
            try:
                one = Requirement(text)
            except InvalidRequirement:
                # what pip would not install today; the name is all that is needed
                name = _NAME.match(text)
                if name and ";" not in text:
                    yield Requirement(name[0])
                continue
            marker = one.marker
            # what is required without the extra has been followed
            if extra and (marker is None or marker.evaluate({**environment, "extra": ""})):
                continue
            if marker is None or marker.evaluate(environment):
                yield one

    def _find(self, one: Requirement) -> str | None:
        name = canonicalize_name(one.name)
        if name in self._installed:
            return name
        # conda calls some by other names, and who puts a folder there by hand uses none
        for module in (module_of(name), name.replace("-", "_")):
            owner = self._index.owner(module) if module else None
            if owner is not None:
                return owner
        return None

    def _miss_required(self, by: str, name: str, one: Requirement) -> None:
        if self._installed[name].kind == "conda":
            # conda looks after its own, by its own names
            return
        known = self.missing.get(one.name)
        if known is None:
            wanted = shlex.quote(f"{one.name}{one.specifier}")
            known = Missing(one.name, (), "guarded", f"pip install {wanted}")
        where = (*known.where, f"required by {by}, not installed")
        self.missing[one.name] = replace(known, where=where)

    def _find_plugins(self) -> Iterator[tuple[reach.Plugin, str]]:
        hosts: dict[str, str | None] = {}
        for one in self._installed.values():
            for group, module in one.entry_points:
                if group in _SCRIPTS:
                    continue
                head = group.partition(".")[0]
                if head not in hosts:
                    hosts[head] = self._host(head)
                host = hosts[head]
                # some only say which part of the host itself is to be used with them
                if host and host != one.name and self._index.owner(module) == one.name:
                    yield reach.Plugin(host, one.name, module), group

    def _host(self, head: str) -> str | None:
        """Return the distribution whose name a group's begins with: numba for numba_extensions."""
        parts = re.split("[_-]", head)
        for last in range(len(parts), 0, -1):
            for name in ("-".join(parts[:last]).lower(), "_".join(parts[:last])):
                if name in self._installed:
                    return name
                owner = self._index.owner(name)
                if owner is not None:
                    return owner
        return None
