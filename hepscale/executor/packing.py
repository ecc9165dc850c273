"""The environment of a run: the one of this process, a packed copy of it, or a given archive."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.env import api, archive, environment, local
from hepscale.env.imports import Import
from hepscale.errors import ConfigError, PayloadError
from hepscale.executor.task import Notice

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hepscale.config import Settings
    from hepscale.env.analysis import Analysis
    from hepscale.env.environment import Environment
    from hepscale.errors import HepScaleError
    from hepscale.executor.job import Observer
    from hepscale.executor.payload import Fingerprint

__all__ = ["RunEnvironment", "Wanted", "pack"]

PACKED = "packed"
_MOST_NOTICES = 3
_WORTH_TELLING_BYTES = 5_000_000
_NO_MODULE = re.compile(r"No module named '(\w+)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user has asked for; see :class:`hepscale.HepScaleExecutor`."""

    environment: str | os.PathLike[str] | None
    closure: Any
    extra: tuple[str, ...]
    exclude: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class RunEnvironment:
    """What the tasks of a run are to run in.

    Attributes
    ----------
    environment
        None: what this process runs in.
    widen
        Returns one that has these modules too.
    modules
        Local modules that the notebook imports, beside those that the pickle refers to.
    missing
        What the analysis imports and nobody has installed, with what to do about it.
    archive
        The name of the given archive; empty where there is none.
    excluded
        Modules that the user does not want.
    """

    environment: Environment | None = None
    widen: Callable[[Sequence[str]], Environment] | None = None
    modules: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    archive: str = ""
    excluded: frozenset[str] = frozenset()

    def explain(self, error: HepScaleError) -> None:
        """Say of a module that a task has missed why the environment does not have it."""
        if not isinstance(error, ModuleNotFoundError | PayloadError):
            return
        found = _NO_MODULE.search("\n".join([*error.items, error.detail]))
        if found and self.archive:
            error.cause = f"{self.archive} was packed without {found[1]}"
            error.fix = f"hepscale env pack --with {found[1]} analysis.ipynb -o env.tar.gz"
        elif found and found[1] in self.excluded:
            error.cause = "exclude_packages says that it is not packed"
            error.fix = f"take what provides {found[1]} out of exclude_packages"


def pack(
    wanted: Wanted, printed: Fingerprint, preload: Iterable[str], observer: Observer
) -> RunEnvironment:
    """Return the environment for a run, packing it first if it is not in the store.

    Parameters
    ----------
    wanted
        What was asked for.
    printed
        Of the function that the tasks run: what its pickle refers to comes along.
    preload
        Modules that every task imports.
    observer
        Is told what takes long.

    Raises
    ------
    ConfigError, InputError, PackError
        The environment cannot be made.
    """
    if wanted.environment != PACKED:
        return _given(wanted)
    names = {*preload, *printed.modules}
    roots = [Import(name, "the processor", "sure") for name in sorted(names)]
    roots += [
        Import(name, f"{code.co_name} in {Path(code.co_filename).name}", "guarded", lazy=True)
        for code in printed.codes
        for name in dict.fromkeys(local.imported(code))
    ]
    packer = _Packer(wanted, roots, observer)
    found = packer.analysis
    known = found.need.index.distributions
    return RunEnvironment(
        packer.begin(),
        packer.widen,
        tuple(one.name for one in found.modules),
        tuple(_missing(found)),
        excluded=frozenset(name for one in found.need.excluded for name in known[one].modules),
    )


def _given(wanted: Wanted) -> RunEnvironment:
    """Return the environment where nothing is to be packed."""
    given = str(wanted.environment or "")
    if wanted.environment is not None and not archive.is_archive(given):
        raise ConfigError(
            f"environment={given!r} cannot be used.",
            cause='it is "packed", or the name of an archive: env.tar.gz, env.tar.zst',
            fix='HepScaleExecutor(environment="packed")',
        )
    if wanted.extra or wanted.exclude:
        raise ConfigError(
            "extra_packages and exclude_packages say what is packed, and nothing is.",
            cause=f"tasks run in {given or 'the environment of this process'}",
            fix='HepScaleExecutor(environment="packed", ...)',
        )
    if not given:
        return RunEnvironment()
    path = Path(given).expanduser()
    taken = archive.take(path, api.store(wanted.settings))
    here, there = _minor(sys.version), _minor(taken.python)
    if here != there:
        raise ConfigError(
            f"The archive holds Python {there}, and this is Python {here}.",
            items=[str(path.absolute())],
            cause="the code of the analysis is sent as bytecode, which only its own Python reads",
            fix=f"run the analysis with Python {there}, or pack the environment with Python {here}",
        )
    return RunEnvironment(taken, archive=path.name)


class _Packer:
    """Packs an environment, and again with what was missed in it."""

    def __init__(self, wanted: Wanted, roots: list[Import], observer: Observer) -> None:
        self._wanted = wanted
        self._roots = roots
        self._store = api.store(wanted.settings)
        self._tell = _Sayer(observer)
        # what the environment that tasks run in was made from
        self.analysis = self._analyze(())
        self._missed: list[str] = []
        self._name = ""

    def begin(self) -> Environment:
        """Pack what was seen in advance, and what earlier runs of the same have missed."""
        made = self._build(self.analysis, self._wanted.closure)
        self._name = f"missed-{made.digest}"
        self._missed = self._store.recall(self._name) or []
        if self._missed:
            try:
                self.analysis = self._analyze(self._missed)
                made = self._build(self.analysis, self._wanted.closure)
            except ConfigError:
                # it is not installed any more
                self._missed = []
        settings = self._wanted.settings
        self._store.prune(settings.keep_environments, settings.cache_dir / "unpacked")
        return made

    def widen(self, missed: Sequence[str]) -> Environment:
        """Pack all that is required, and what was missed; what workers have stays as it is."""
        self._missed = [*dict.fromkeys((*self._missed, *missed))]
        self._store.remember(self._name, self._missed)
        need = self.analysis.need
        packed = (need.index.distributions[name] for name in (*need.imported, *need.others))
        if not set(missed) <= {module for one in packed for module in one.modules}:
            self.analysis = self._analyze(self._missed)
        return self._build(self.analysis, "full")

    def _analyze(self, missed: Sequence[str]) -> Analysis:
        extra = (*self._wanted.extra, *missed)
        return api.analyze(
            extra_packages=extra, exclude_packages=self._wanted.exclude, roots=self._roots
        )

    def _build(self, found: Analysis, closure: environment.Closure) -> Environment:
        return environment.build(api.planned(found), self._store, closure, self._tell)


class _Sayer:
    """Says once of each layer that it is being packed, if that takes a moment."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._told: set[str] = set()

    def __call__(self, label: str, _done: int, total: int) -> None:
        if total > _WORTH_TELLING_BYTES and label not in self._told:
            self._told.add(label)
            size = f"{total / 1e6:.0f} MB"
            self._observer.see(Notice(f"Packing {label} for the workers: {size}, once."))
        self._observer.tick()


def _missing(found: Analysis) -> Iterator[str]:
    for one in [one for one in found.missing if one.how == "sure"][:_MOST_NOTICES]:
        where = one.where[0] if one.where else "the processor"
        yield f"{one.name} ({where}) was not found and is not packed: {one.fix}"


def _minor(version: str) -> str:
    return ".".join(version.split()[0].split(".")[:2])
