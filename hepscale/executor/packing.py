"""The environment of a run: the one of this process, a packed copy of it, or a given archive."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.env import api, archive, environment, local
from hepscale.env.imports import Import
from hepscale.env.left_out import local_names
from hepscale.env.repositories import repositories
from hepscale.errors import ConfigError, PayloadError
from hepscale.executor import cvmfs
from hepscale.executor.shipping import EnvironmentReady, Packing

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hepscale.config import Settings
    from hepscale.env.analysis import Analysis
    from hepscale.env.environment import Environment
    from hepscale.env.index import Index
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
        Returns one that has these modules too, and in which they are not watched for any more.
    modules
        Local modules that the notebook imports, beside those that the pickle refers to.
    missing
        What the analysis imports and nobody has installed, and repositories that nobody has
        configured, with what to do about it.
    archive
        The name of the given archive; empty where there is none.
    excluded
        Modules that the user does not want.
    """

    environment: Environment | None = None
    widen: Callable[[Sequence[str]], RunEnvironment] | None = None
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
    return _Packer(wanted, roots, observer).begin()


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
        self._missed: list[str] = []
        self._index: Index | None = None
        self._name = ""

    def begin(self) -> RunEnvironment:
        """Pack what was seen in advance, and what earlier runs of the same have missed."""
        made = self._pack(self._wanted.closure)
        assert made.environment is not None
        self._name = f"missed-{made.environment.digest}"
        self._missed = self._store.recall(self._name) or []
        if self._missed:
            made = self._pack(self._wanted.closure)
        self._tell.ready(made.environment)
        settings = self._wanted.settings
        self._store.prune(settings.keep_environments, settings.cache_dir / "unpacked")
        return made

    def widen(self, missed: Sequence[str]) -> RunEnvironment:
        """Pack all that is required, and what was missed; what workers have stays as it is."""
        self._missed = [*dict.fromkeys((*self._missed, *missed))]
        self._store.remember(self._name, self._missed)
        made = self._pack("full")
        self._tell.ready(made.environment)
        return made

    def _pack(self, closure: environment.Closure) -> RunEnvironment:
        # guarded: what was missed once may not be installed any more
        missed = [Import(name, "a task", "guarded") for name in self._missed]
        owners = [] if self._index is None else map(self._index.owner, self._missed)
        found = api.analyze(
            extra_packages=[*self._wanted.extra, *filter(None, owners)],
            exclude_packages=self._wanted.exclude,
            roots=[*self._roots, *missed],
        )
        self._index = found.need.index
        made = environment.build(api.planned(found), self._store, closure, self._tell)
        settings = self._wanted.settings
        known = found.need.index.distributions
        unwanted = frozenset(name for one in found.need.excluded for name in known[one].modules)
        watched = {*made.absent, *_beside()} - {*self._missed} - unwanted
        return RunEnvironment(
            replace(made, absent=tuple(sorted(watched))),
            self.widen,
            tuple(one.name for one in found.modules),
            (*_missing(found), *cvmfs.unreachable(repositories(found), settings.cvmfs)),
            excluded=unwanted,
        )


def _beside() -> set[str]:
    """Return the local modules that computed imports may lead to."""
    folders = [Path(entry).absolute() for entry in sys.path]
    own = [str(one) for one in folders if not local.is_installed(str(one / "x"))]
    return {name for folder in own for name in local_names(folder)}


class _Sayer:
    """Says which layer is being packed, if that takes a moment, and what came of it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._packed: set[str] = set()

    def __call__(self, label: str, done: int, total: int) -> None:
        self._packed.add(label)
        if total > _WORTH_TELLING_BYTES:
            self._observer.see(Packing(label, done, total))
        self._observer.tick()

    def ready(self, made: Environment | None) -> None:
        """Say what there is now."""
        if made is None:
            return
        layers = [*made.layers, *filter(None, [made.code])]
        size_bytes = sum(one.size_bytes for one in layers)
        cached = max(0, len(layers) - len(self._packed))
        self._observer.see(EnvironmentReady(len(layers), cached, size_bytes))


def _missing(found: Analysis) -> Iterator[str]:
    for one in [one for one in found.missing if one.how == "sure"][:_MOST_NOTICES]:
        where = one.where[0] if one.where else "the processor"
        yield f"{one.name} ({where}) was not found and is not packed: {one.fix}"


def _minor(version: str) -> str:
    return ".".join(version.split()[0].split(".")[:2])
