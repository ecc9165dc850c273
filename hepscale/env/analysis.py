"""What an analysis imports, where each of it comes from, and what is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.env import index, interpreter, local, magics, places, repositories, resolve
from hepscale.env.imports import Import
from hepscale.env.plan import Need
from hepscale.env.repositories import UsedRepository, repository_of
from hepscale.env.sources import Note, Sources
from hepscale.env.walk import Found, Origin, Walk
from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from hepscale.env.index import Index
    from hepscale.env.interpreter import Interpreter
    from hepscale.env.local import LocalModule

__all__ = ["Analysis", "Found", "Origin", "UsedDistribution", "UsedModule", "examine"]


@dataclass(frozen=True, slots=True)
class UsedDistribution:
    """A distribution of the closure.

    Attributes
    ----------
    name, version, size_bytes
        As it is installed; without bytecode.
    reasons
        Who needs it: "cell 3, line 2: import yaml", "required by coffea".
    at_import
        Whether it is imported at import time, or comes with the full closure only.
    """

    name: str
    version: str
    size_bytes: int
    reasons: tuple[str, ...]
    at_import: bool


@dataclass(frozen=True, slots=True)
class UsedModule:
    """A local module or package, with its data files.

    Attributes
    ----------
    name
        As it is imported.
    files
        Absolute paths.
    size_bytes
        Of all of them.
    reasons
        Where it is imported.
    """

    name: str
    files: tuple[str, ...]
    size_bytes: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an analysis imports and what would be sent with it.

    Attributes
    ----------
    source
        What was looked at.
    python, prefix
        Version and place of the interpreter whose environment was looked at.
    imports
        Of the analysis and of its local modules, in the order in which they stand.
    distributions
        The closure, by name.
    modules
        Local modules, by name.
    missing
        What could not be found, and what to do about it.
    notes
        Other things to know: syntax errors, computed names, packages that a cell installs.
    repositories
        Repositories of CVMFS that are needed, by name; what is imported from there is no part of
        the closure.
    """

    source: str
    python: str
    prefix: str
    imports: tuple[Found, ...]
    distributions: tuple[UsedDistribution, ...]
    modules: tuple[UsedModule, ...]
    missing: tuple[resolve.Missing, ...]
    notes: tuple[Note, ...]
    repositories: tuple[UsedRepository, ...]
    need: Need = field(repr=False, compare=False)

    @property
    def size_bytes(self) -> int:
        """Size of the closure and of local code, unpacked, without the interpreter."""
        packages = sum(one.size_bytes for one in self.distributions)
        return packages + sum(one.size_bytes for one in self.modules)


def examine(
    found: Sources,
    source: str,
    *,
    python: str | os.PathLike[str] | None = None,
    roots: Iterable[Import] = (),
    extra: Sequence[str] = (),
    exclude: Sequence[str] = (),
    cache: Path | None = None,
) -> Analysis:
    """Analyse code; nothing of it is imported or run.

    Parameters
    ----------
    found
        The code.
    source
        What it is called.
    python
        The interpreter whose environment is meant; None: the running one.
    roots
        What is imported besides: by a pickled function, say.
    extra, exclude
        Distributions or modules to take, and to leave out, whatever the code says.
    cache
        Folder for what was learnt of installed files.

    Raises
    ------
    ConfigError
        `extra` or `exclude` names something that is not there, or `python` cannot be run.
    PayloadError
        A local file cannot be read.
    """
    here = interpreter.this() if python is None else interpreter.of(Path(python))
    known = index.load(here, cache)
    folder, package = places.package(found.folder)
    lookup: local.Here = "before" if found.running else "after"
    linked: list[str] = []
    if python is not None:
        # what this process imports is another matter
        lookup, linked = "never", places.linked(here)
    walk = Walk(here, known, (*places.search(folder, found.paths, here), *linked), lookup)
    _of_interpreter(here, walk)
    walk.add(found.units, package)
    for one in roots:
        walk.take(one)
    wanted = [name for name in extra if not walk.take_local(name)]
    walk.follow()
    _refuse_local(exclude, walk.modules, known)
    outside = [*walk.outside, *_of_editable(walk, known), *_of_shared(walk, known)]
    resolution = resolve.resolve(outside, known, here, extra=wanted, exclude=exclude, cache=cache)
    missing = {one.name for one in resolution.missing}
    taken = [one for one in resolution.taken if not _of_repository(one, walk)]
    need = Need(
        here,
        known,
        tuple(one.distribution.name for one in taken if one.at_import),
        tuple(one.distribution.name for one in taken if not one.at_import),
        resolution.excluded,
        frozenset(one.name.partition(".")[0] for one in walk.imports if one.origin == "standard"),
        tuple(sorted(walk.modules.values(), key=lambda one: one.name)),
    )
    return Analysis(
        source,
        here.version,
        here.prefix,
        tuple(_with_provider(one, known, missing) for one in walk.imports),
        tuple(
            UsedDistribution(
                one.distribution.name,
                one.distribution.version,
                one.distribution.size_bytes,
                one.reasons,
                one.at_import,
            )
            for one in taken
        ),
        tuple(_used(one, walk.reasons) for one in need.modules),
        tuple(_perhaps_there(one, walk) for one in resolution.missing),
        (*_open(found.notes, known), *_open(walk.notes, known), *_of_absent(walk, known)),
        tuple(UsedRepository(*one) for one in sorted(_reasons(walk))),
        need,
    )


def _of_editable(walk: Walk, known: Index) -> Iterator[Import]:
    """Yield local modules that are installed as editable: their metadata and requirements are."""
    for name in walk.modules:
        owner = known.owner(name)
        if owner is not None and known.distributions[owner].editable:
            yield Import(name, next(iter(walk.reasons.get(name, ())), "local code"), "guarded")


def _of_shared(walk: Walk, known: Index) -> Iterator[Import]:
    """Yield imports of what is installed in namespaces that also have a local part."""
    for one in walk.inside:
        top = one.name.partition(".")[0]
        if local.is_namespace(walk.modules[top]):
            for name in (one.name, *(f"{one.name}.{member}" for member in one.members)):
                if known.module_file(name):
                    yield replace(one, name=name, members=())


def _perhaps_there(one: resolve.Missing, walk: Walk) -> resolve.Missing:
    """Return what to do about a module that may lie in a repository which is not mounted here."""
    there = [f"{repositories.TOP}/{name}" for name in walk.repositories]
    away = [path for path in there if not os.path.isdir(f"{path}/.")]
    if not away:
        return one
    return replace(one, fix=f"{one.fix}; nothing if it is in {' or '.join(away)}, not mounted here")


def _of_repository(taken: resolve.Taken, walk: Walk) -> bool:
    """Return whether a distribution is installed in a repository, which is then needed."""
    name = repository_of(taken.distribution.site)
    if name:
        for reason in taken.reasons:
            walk.need(name, reason)
    return bool(name)


def _of_interpreter(here: Interpreter, walk: Walk) -> None:
    for place in (here.executable, here.base_executable, here.stdlib):
        if name := repository_of(place):
            walk.need(name, f"Python: {place}")
            return


def _reasons(walk: Walk) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, reasons in walk.repositories.items():
        # what the code says itself comes first
        yield name, tuple(sorted(reasons, key=lambda one: one.startswith("required by")))


def _open(notes: Iterable[Note], known: Index) -> Iterator[Note]:
    """Yield notes, but for those of commands that install what is installed already."""
    for note in notes:
        wanted = magics.requirements(note.fix)
        if not wanted or not all(map(known.has, wanted)):
            yield note


def _of_absent(walk: Walk, known: Index) -> Iterator[Note]:
    """Yield notes of modules that the installed packages do not have."""
    for one in walk.outside:
        owner = known.owner(one.name)
        if one.how == "sure" and owner is not None and known.lacks(one.name):
            text = f"there is no module {one.name} in {owner} {known.distributions[owner].version}"
            yield Note(one.where, text, f"correct the name, or install a {owner} that has it")


def _refuse_local(exclude: Sequence[str], modules: Mapping[str, LocalModule], known: Index) -> None:
    for name in exclude:
        if name in modules and known.owner(name) is None:
            raise ConfigError(
                f"{name!r} is local code, which cannot be left out.",
                items=[path for _, path in modules[name].files],
                cause="the analysis imports it, and packages alone can be excluded",
                fix=f"remove the import of {name}",
            )


def _with_provider(one: Found, known: Index, missing: set[str]) -> Found:
    if one.origin != "installed":
        return one
    owner = known.owner(one.name) or known.owner(one.name.partition(".")[0])
    if owner is None or one.name in missing:
        return Found(one.name, one.where, one.how, "missing")
    if repository := repository_of(known.distributions[owner].site):
        return Found(one.name, one.where, one.how, "cvmfs", repository)
    return Found(one.name, one.where, one.how, "installed", owner)


def _used(module: LocalModule, reasons: Mapping[str, Sequence[str]]) -> UsedModule:
    files = tuple(path for _, path in module.files)
    size = sum(os.stat(path).st_size for path in files)
    return UsedModule(module.name, files, size, tuple(reasons.get(module.name, ())))
