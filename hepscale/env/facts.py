"""What installed modules import, kept on disk for each distribution."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import marshal
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, NamedTuple

from hepscale.env.bytecode import found_in, loader_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hepscale.env.bytecode import Found
    from hepscale.env.index import Distribution, Index

__all__ = ["Facts", "Known"]

_FORMAT = 1
_PYC_HEADER = 16


class Facts(NamedTuple):
    """What a module imports: names are absolute, and may be of modules or of their members."""

    eager: tuple[str, ...] = ()
    lazy: tuple[str, ...] = ()
    # members that it loads on demand, and the submodules that it may load for them
    offers: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    opaque: bool = False


class Known:
    """What is known of the modules of each distribution, in memory and in the cache."""

    def __init__(self, index: Index, cache: Path | None) -> None:
        self._index = index
        self._cache = cache
        self._books: dict[str, dict[str, Facts | None]] = {}
        self._changed: set[str] = set()
        providers: dict[str, set[str]] = {}
        for one in index.distributions.values():
            for module in one.modules:
                providers.setdefault(module.partition(".")[0], set()).add(one.name)
        self._shared = frozenset(top for top, names in providers.items() if len(names) > 1)
        self._only = {top: min(names) for top, names in providers.items()}

    def owner(self, module: str) -> str | None:
        """Return the distribution that a module or a member of one belongs to."""
        top = module.partition(".")[0]
        return self._index.owner(module) if top in self._shared else self._only.get(top)

    def facts(self, module: str, owner: str) -> Facts | None:
        """Return what a module imports; None if there is no such module."""
        book = self._books.get(owner)
        if book is None:
            book = self._books[owner] = self._load(self._index.distributions[owner])
        if module not in book:
            book[module] = self._read(module, owner)
            self._changed.add(owner)
        return book[module]

    def _read(self, module: str, owner: str) -> Facts | None:
        file = self._index.module_file(module)
        if file is None:
            return None
        code = _code(file)
        if code is None:
            return Facts(opaque=True)
        is_package = os.path.basename(file).partition(".")[0] == "__init__"
        package = module if is_package else module.rpartition(".")[0]
        found = list(found_in(code))
        eager = self._names([one for one in found if not one.lazy], package, owner)
        lazy = self._names([one for one in found if one.lazy], package, owner)
        offers, loads = self._on_demand(code, file, package, owner)
        if "lazy_loader" in code.co_names:
            eager |= loads
        lazy |= loads
        return Facts(
            tuple(eager), tuple(name for name in lazy if name not in eager), offers, tuple(loads)
        )

    def _names(self, found: Iterable[Found], package: str, owner: str) -> dict[str, None]:
        """Return absolute names of modules, and of what may be modules, in a fixed order."""
        names: dict[str, None] = {}
        for one in found:
            base = _absolute(one.name, one.level, package)
            for member in ("", *one.members):
                name = f"{base}.{member}".strip(".")
                if member != "*" and name not in names and self._matters(name, owner):
                    names[name] = None
        return names

    def _matters(self, name: str, owner: str) -> bool:
        top = name.partition(".")[0]
        if top in self._only:
            # what the same distribution has not today, it will not have until it is another one
            return self.owner(name) != owner or self._index.module_file(name) is not None
        return bool(top) and top not in sys.stdlib_module_names

    def _on_demand(
        self, code: CodeType, file: str, package: str, owner: str
    ) -> tuple[tuple[str, ...], dict[str, None]]:
        """Return the members that a module may have without defining them, and what it loads."""
        loader = loader_in(code)
        if loader is None:
            return (), {}
        offers, strings = loader.names, loader.strings
        if "attach_stub" in code.co_names:
            strings |= _members_of_stub(file)
            offers |= strings
        loads = self._names(loader.imports, package, owner)
        for text in sorted(strings):
            for name in (f"{package}.{text.lstrip('.')}", text):
                if name.startswith(f"{package}.") and self._index.module_file(name) is not None:
                    loads[name] = None
        return tuple(sorted(offers)), loads

    def _load(self, distribution: Distribution) -> dict[str, Facts | None]:
        path, stamp = self._path(distribution), _stamp(distribution)
        if path is None or stamp is None:
            return {}
        with suppress(OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
            content = json.loads(path.read_bytes())
            if content["format"] == _FORMAT and content["stamp"] == stamp:
                return {
                    str(module): None if kept is None else _unpacked(kept)
                    for module, kept in content["modules"].items()
                }
        return {}

    def save(self) -> None:
        """Write what is new to the cache, if that can be done."""
        for name in self._changed:
            distribution = self._index.distributions[name]
            path, stamp = self._path(distribution), _stamp(distribution)
            if path is None or stamp is None:
                continue
            modules = {
                module: None if facts is None else _packed(facts)
                for module, facts in self._books[name].items()
            }
            content = {"format": _FORMAT, "stamp": stamp, "modules": modules}
            with suppress(OSError):
                _write(path, json.dumps(content, separators=(",", ":")))

    def _path(self, distribution: Distribution) -> Path | None:
        if self._cache is None or distribution.editable:
            return None
        # another Python may not be able to read what this one reads
        place = f"{sys.version_info[:2]} {distribution.site}".encode("utf-8", "surrogateescape")
        digest = hashlib.sha256(place).hexdigest()
        return self._cache / f"{distribution.name}-{digest[:12]}.json"


def _packed(facts: Facts) -> list[str]:
    names = (facts.eager, facts.lazy, facts.offers, facts.loads)
    return [*(" ".join(each) for each in names), "opaque" if facts.opaque else ""]


def _unpacked(kept: list[str]) -> Facts:
    eager, lazy, offers, loads, opaque = (tuple(text.split()) for text in kept)
    return Facts(eager, lazy, offers, loads, bool(opaque))


def _stamp(distribution: Distribution) -> list[str | int] | None:
    """Return what differs after another installation; None if nothing is known to."""
    if not distribution.info:
        return None
    try:
        stamp: list[str | int] = [distribution.version, os.stat(distribution.info).st_mtime_ns]
    except OSError:
        return None
    with suppress(OSError):
        stamp.append(os.stat(os.path.join(distribution.info, "RECORD")).st_mtime_ns)
    return stamp


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _absolute(name: str, level: int, package: str) -> str:
    if not level:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], name]).strip(".")


def _code(path: str) -> CodeType | None:
    """Return a module's code; None if it is compiled or cannot be read by this Python."""
    if path.endswith(".pyc"):
        return _unmarshal(path, None)
    if not path.endswith(".py"):
        # mypyc leaves the source beside what it has made of it
        folder, _, name = path.rpartition("/")
        path = f"{folder}/{name.partition('.')[0]}.py"
    try:
        status = os.stat(path)
        code = _unmarshal(importlib.util.cache_from_source(path), status)
        return code or _compiled(Path(path).read_bytes(), path)
    except OSError:
        return None


def _unmarshal(path: str, source: os.stat_result | None) -> CodeType | None:
    """Read a ``.pyc`` file of this version of Python that was made from this source."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        if data[:4] != importlib.util.MAGIC_NUMBER:
            return None
        stamp = [int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12)]
        if source is not None:
            expected = [0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF]
            if stamp != expected:
                return None
        code = marshal.loads(memoryview(data)[_PYC_HEADER:])  # noqa: S302
    except (OSError, EOFError, ValueError, TypeError):
        return None
    return code if isinstance(code, CodeType) else None


def _compiled(source: bytes, path: str) -> CodeType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _members_of_stub(file: str) -> frozenset[str]:
    """Return what the ``.pyi`` file beside a module imports from its submodules."""
    found: set[str] = set()
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(Path(file).with_suffix(".pyi").read_bytes())):
            if isinstance(node, ast.ImportFrom):
                found.update({node.module or ""}, (alias.name for alias in node.names))
    return frozenset(found - {""})
