"""From the plan of an environment to the layers that hold it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hepscale.env import contents, layers, pack
from hepscale.env.contents import Entry
from hepscale.env.left_out import left_out
from hepscale.env.spec import Item, Spec
from hepscale.errors import PackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from hepscale.env.plan import Part, Plan
    from hepscale.env.resolve import Missing
    from hepscale.env.store import Layer, Store
    from hepscale.env.units import Note

    # is told what is packed, how many bytes of it are done and how many there are
    Tell: TypeAlias = Callable[[str, int, int], None]
    # for each part of a plan: from the names of its groups to the digests of their files
    _Groups: TypeAlias = tuple[Mapping[str, str], ...]

__all__ = ["CLOSURES", "Closure", "Environment", "Packed", "build", "describe", "write"]

Closure = Literal["full", "imports"]
CLOSURES = ("full", "imports")
_MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Environment:
    """What tasks run in.

    Attributes
    ----------
    digest
        Names the folder that interpreter and packages are unpacked into.
    python, glibc, machine
        Versions of Python and of the newest glibc that anything in it needs, and the machine.
    layers
        Interpreter first, then packages, in the order in which they are unpacked.
    code
        The layer of local modules, if there are any.
    absent
        Modules that are there and that this environment does not have, for workers to watch for.
    whole
        Whether it came as one archive, which brings its own ``conda-unpack``.
    """

    digest: str
    python: str
    glibc: str
    machine: str
    layers: tuple[Layer, ...]
    code: Layer | None = None
    absent: tuple[str, ...] = ()
    whole: bool = False

    def describe(self, version: str) -> str:
        """Return the text that a worker reads; `version` is that of HepScale."""
        relocated = sum(len(one.relocations) for one in self.layers)
        lines = [
            "hepscale-environment 1",
            f"digest {self.digest}",
            f"hepscale {version}",
            f"python {self.python}",
            f"glibc {self.glibc or '-'}",
            f"machine {self.machine or '-'}",
            *(
                f"layer {one.kind} {one.sha256} {one.size_bytes} {one.path.name}"
                for one in self.layers
            ),
            f"relocate {'conda-unpack' if self.whole else relocated}",
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Packed:
    """The single file that :func:`hepscale.pack` writes.

    Attributes
    ----------
    path
        The archive.
    sha256, size_bytes, unpacked_bytes, files
        Of the archive; of the files in it, and their number.
    unchanged
        Whether it was there already, with the same content.
    spec
        What is in it.
    missing, notes
        What the analysis imports and nobody has installed, and other things to know.
    """

    path: Path
    sha256: str
    size_bytes: int
    unpacked_bytes: int
    files: int
    unchanged: bool
    spec: Spec
    missing: tuple[Missing, ...] = ()
    notes: tuple[Note, ...] = ()


def _silent(label: str, done: int, total: int) -> None:
    pass


def build(
    planned: Plan, store: Store, closure: Closure = "full", tell: Tell = _silent
) -> Environment:
    """Return the environment, packing those of its layers that the store does not have.

    Raises
    ------
    PackError
        A file cannot be read, or the store cannot be written.
    """
    need = planned.need
    form = "tar.zst" if layers.has_zstd(need.interpreter, need.index) else "tar.gz"
    forms = ("tar.gz", form, form, "tar.gz")
    wanted = (True, True, closure == "full", True)
    for _ in range(_MOST_TRIES):
        found = [
            _layer(part, store, form, tell) if want else (_group(part, store), None)
            for part, form, want in zip(planned.parts, forms, wanted, strict=True)
        ]
        # while one was packed, somebody may have pruned the one before
        if all(layer is None or layer.path.exists() for _, layer in found):
            break
    groups = tuple(group for group, _ in found)
    made, own = [layer for _, layer in found[:3] if layer], found[3][1]
    absent = left_out(need, closure)
    spec = _spec(planned, groups, closure)
    digest = _digest(one.content for one in made)
    listed = [*made, own] if own else made
    record = {
        "closure": closure,
        "spec": spec.as_json(),
        "layers": [
            {"kind": one.kind, "content": one.content, "size_bytes": one.size_bytes}
            for one in listed
        ],
    }
    store.add(digest, record)
    return Environment(
        digest,
        need.interpreter.version,
        planned.glibc,
        need.interpreter.machine,
        tuple(made),
        own,
        absent,
    )


def describe(planned: Plan, store: Store, closure: Closure = "full") -> Spec:
    """Return what an environment consists of, without packing it."""
    return _spec(planned, _groups(planned, store), closure)


def _spec(planned: Plan, groups: _Groups, closure: Closure) -> Spec:
    base, imported, others, code = groups
    interpreter = planned.need.interpreter
    known = planned.need.index.distributions
    distributions = {
        name: Item(known[name].version, content)
        for group in ((imported, others) if closure == "full" else (imported,))
        for name, content in group.items()
        if name in known
    }
    distributions["python"] = Item(interpreter.version, base["python"])
    modules = {name: Item("", content) for name, content in code.items()}
    return Spec(interpreter.version, planned.glibc, interpreter.machine, distributions, modules)


def write(
    planned: Plan,
    store: Store,
    target: Path,
    form: str,
    closure: Closure = "full",
    tell: Tell = _silent,
) -> Packed:
    """Write the environment, local modules included, as one archive.

    Raises
    ------
    PackError
        A file cannot be read, or the archive cannot be written.
    ConfigError
        The format is not known.
    """
    base, imported, others, _ = planned.parts
    spec = describe(planned, store, closure)
    site = planned.need.interpreter.site_below
    entries = [
        *base.entries,
        *imported.entries,
        *(others.entries if closure == "full" else ()),
        *layers.code(planned.need.modules, site),
        Entry("conda-meta/history"),
        Entry(
            f"{pack.OWN_FOLDER}/environment.json",
            data=json.dumps(spec.as_json(), indent=1, sort_keys=True).encode(),
        ),
    ]
    key = contents.signature([*entries, Entry(f"{target.absolute()} {form}")])
    before = store.recall(key)
    if before and _is_still(target, before):
        sha256, size, unpacked, files = before["archive"]
        return Packed(target, sha256, size, unpacked, files, True, spec)
    told = _told(tell, target.name, entries)
    done = pack.write_archive(entries, target, form, told)
    # what was rewritten may have become smaller
    told(None)
    archive = (done.sha256, done.size_bytes, done.unpacked_bytes, done.files)
    store.remember(key, {"archive": archive, "mtime_ns": target.stat().st_mtime_ns})
    return Packed(target, *archive, False, spec)


def _told(tell: Tell, label: str, entries: Iterable[Entry]) -> Callable[[int | None], None]:
    total = sum(map(contents.size_bytes, entries))
    return lambda at: tell(label, total if at is None else at, total)


def _is_still(target: Path, before: dict[str, object]) -> bool:
    try:
        found = target.stat()
    except OSError:
        return False
    archive = before["archive"]
    return isinstance(archive, list) and (found.st_size, found.st_mtime_ns) == (
        archive[1],
        before["mtime_ns"],
    )


def _layer(
    part: Part, store: Store, form: str, tell: Tell
) -> tuple[Mapping[str, str], Layer | None]:
    """Return the digests of a part's groups and the layer that holds them, if there are any."""
    entries = part.entries
    for _ in range(_MOST_TRIES):
        before = contents.signature(entries)
        group = _group(part, store, before)
        if not group:
            return group, None
        content = _digest(f"{name} {one}" for name, one in sorted(group.items()))
        layer = store.layer(part.kind, content)
        if layer is not None:
            return group, layer
        layer = store.make(part.kind, content, entries, form, _told(tell, part.label, entries))
        if contents.signature(entries) == before:
            return group, layer
        # edited meanwhile: it does not hold what its name says
        layer.path.unlink(missing_ok=True)
    raise PackError(
        f"The files of the {part.label} change while they are packed.",
        cause="something writes into a package's folder: a log, an output file",
        fix="move what is written out of it, or wait until it is complete",
    )


def _groups(planned: Plan, store: Store) -> _Groups:
    """Return the digest of each group of files of each part, from memory if none was touched."""
    return tuple(_group(part, store) for part in planned.parts)


def _group(part: Part, store: Store, key: str = "") -> Mapping[str, str]:
    key = key or contents.signature(part.entries)
    known: Mapping[str, str] | None = store.recall(key)
    if known is None:
        known = {
            name: _digest(sorted(map(contents.digest, entries)))
            for name, entries in part.groups.items()
            if entries
        }
        store.remember(key, known)
    return known


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for one in parts:
        total.update(f"{one}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
