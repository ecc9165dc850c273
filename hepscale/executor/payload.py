"""What a run sends: the pickled function and merge, and digests that say whether two are equal.

cloudpickle's bytes differ from one process to the next (random class ids, file names and line
numbers of a kernel's cells, the order of sets, strings that happen to be one object), so they
cannot tell whether a function is still the same. A :func:`fingerprint` walks the same graph
through the same reducers and leaves all of that out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import operator
import pickle
import re
import struct
import sys
import types
import typing
from collections import ChainMap
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import cloudpickle

from hepscale.errors import PayloadError
from hepscale.executor.task import ChunkKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence

__all__ = ["Fingerprint", "chunk_key", "dump_payload", "fingerprint"]

_PROTOCOL = 5
_DIGEST_BYTES = 16
_MOST_PROBES = 2000


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a function is made of.

    Attributes
    ----------
    digest
        32 hex digits; equal in every process for the same source and data.
    modules
        Top-level names of the modules that the pickle refers to, installed ones too.
    codes
        The code objects that are pickled by value, in the order in which they are met.
    """

    digest: str
    modules: frozenset[str]
    codes: tuple[types.CodeType, ...]


def fingerprint(obj: object) -> Fingerprint:
    """Digest what would be pickled for `obj`, free of anything that differs between processes.

    File names, line numbers and comments of functions pickled by value do not count; their
    bytecode, constants, names, defaults, closures, the globals that they use and the classes that
    they belong to do. Functions and classes of importable modules count by name only: their code
    is for :func:`hepscale.env.local.closure` to find, from ``modules`` and ``codes``.

    Raises
    ------
    PayloadError
        Something in it cannot be pickled; the message names the path to it.
    """
    walk = _Walk()
    try:
        walk.feed(obj)
    except Exception as error:
        raise _unpicklable(obj, error) from error
    return Fingerprint(walk.hash.hexdigest(), frozenset(walk.modules), tuple(walk.codes.values()))


def chunk_key(function_digest: str, identity: object, duplicate: int = 0) -> ChunkKey:
    """Return the key of a chunk, as 32 hex digits.

    Parameters
    ----------
    function_digest
        Covers the function and the local code that it refers to.
    identity
        What tells the chunk from others: plain data (str, int, bytes, None, tuples, dicts), or
        anything that pickles. The order of dicts does not count: coffea builds the user metadata
        of a chunk from a set.
    duplicate
        How many equal chunks come before it in the run.

    Raises
    ------
    PayloadError
        The identity holds something that cannot be pickled.
    """
    walk = _Walk(ordered=False)
    try:
        walk.feed((function_digest, identity, duplicate))
    except Exception as error:
        raise _unpicklable(identity, error, "chunk") from error
    return ChunkKey(walk.hash.hexdigest())


def dump_payload(function: Callable[..., Any], merge: Callable[..., Any]) -> bytes:
    """Pickle what all tasks of a run share, for a worker to load with ``pickle.loads``.

    Parameters
    ----------
    function
        Called with each chunk's item.
    merge
        Adds two outputs.

    Returns
    -------
    bytes
        A pickled dict of "function", "merge" and "dumps", which pickles outputs.

    Raises
    ------
    PayloadError
        Something cannot be pickled; the message names the path to it.
    """
    payload = {"function": function, "merge": merge, "dumps": cloudpickle.dumps}
    try:
        return _dumps(payload)
    except Exception as error:
        culprit = merge if _pickles(function) else function
        raise _unpicklable(culprit, error) from error


# -- what cloudpickle does not pickle, or not so that a worker can load it ------------------------


def _reduce_cached_property(obj: functools.cached_property[Any]) -> tuple[Any, ...]:
    # Before Python 3.12 it holds a lock, which its constructor makes anew.
    state = {name: value for name, value in vars(obj).items() if name != "lock"}
    return functools.cached_property, (obj.func,), state


def _reduce_lru_cache(obj: Any) -> Any:
    if _is_importable(obj):
        return obj.__reduce__()
    return functools.lru_cache(**obj.cache_parameters()), (obj.__wrapped__,)


def _is_importable(obj: Any) -> bool:
    if obj.__module__ == "__main__":
        return False
    try:
        found = operator.attrgetter(obj.__qualname__)(sys.modules[obj.__module__])
    except (AttributeError, KeyError):
        return False
    return found is obj


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = ChainMap(
        {
            functools.cached_property: _reduce_cached_property,
            type(functools.lru_cache(len)): _reduce_lru_cache,
        },
        cloudpickle.Pickler.dispatch_table,
    )


def _dumps(obj: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=_PROTOCOL).dump(obj)
    return buffer.getvalue()


# -- the digest -----------------------------------------------------------------------------------


def _sized(tag: bytes, content: bytes) -> bytes:
    return b"%b%d:%b" % (tag, len(content), content)


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N;",
    type(...): lambda _: b"E;",
    type(NotImplemented): lambda _: b"X;",
    bool: lambda value: b"B%d;" % value,
    int: lambda value: b"i%x;" % value,
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: lambda value: _sized(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _sized(b"b", value),
    bytearray: lambda value: _sized(b"a", bytes(value)),
}

# Values whose identity depends on caches of the interpreter, and thus on its history.
_CACHED_VALUES = (
    re.Pattern,
    types.GenericAlias,
    types.UnionType,
    type(typing.List[int]),  # noqa: UP006
    type(typing.Optional[int]),
)

# Attributes of a class that depend on where it stands or on what was done with it so far.
_PASSING_ATTRIBUTES = ("__firstlineno__", "__static_attributes__", "__slotnames__", "_abc_impl")


class _Walk:
    """Digests an object graph in the order in which pickle would save it.

    It keeps its own stack, so that depth is no limit. Each token tells its kind and its length or
    number of children: no two different graphs give the same stream. What can be changed is
    remembered by identity, as pickle does, which ends cycles; values that cannot be changed are
    digested each time, since whether two of them are one object differs between processes.
    """

    def __init__(self, parent: _Walk | None = None, *, ordered: bool = True) -> None:
        self.hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._pending = bytearray()
        self._keep: list[object] = []
        if parent is None:
            self.modules: set[str] = set()
            self.codes: dict[int, types.CodeType] = {}
            self._memo: MutableMapping[int, int] = {}
            self._count = 0
            self._ordered = ordered
            self._pickler = _Pickler(io.BytesIO(), protocol=_PROTOCOL)
        else:
            self.modules, self.codes = parent.modules, parent.codes
            self._memo = ChainMap({}, parent._memo)
            self._count = parent._count
            self._ordered = parent._ordered
            self._pickler = parent._pickler

    def feed(self, obj: object) -> None:
        """Add an object and all that it refers to."""
        stack = [obj]
        while stack:
            item = stack.pop()
            encode = _SCALARS.get(type(item))
            if encode is not None:
                self._write(encode(item))
            else:
                stack.extend(reversed(self._visit(item)))
        self.hash.update(self._pending)
        self._pending.clear()

    def _write(self, token: bytes) -> None:
        self._pending += token
        if len(self._pending) > 1 << 16:
            self.hash.update(self._pending)
            self._pending.clear()

    def _open(self, tag: bytes, children: Sequence[Any]) -> Sequence[Any]:
        self._write(b"%b%d;" % (tag, len(children)))
        return children

    def _visit(self, obj: Any) -> Sequence[Any]:
        """Write the head of an object that is no scalar; return what follows it."""
        kind = type(obj)
        if kind is tuple:
            return self._open(b"t", obj)
        if kind is set or kind is frozenset:
            return self._unordered(b"S" if kind is set else b"Z", obj)
        if kind is types.CodeType:
            return self._code(obj)
        if kind is pickle.PickleBuffer:
            self._write(b"p%d;" % obj.raw().nbytes)
            self.hash.update(self._pending)
            self._pending.clear()
            self.hash.update(obj.raw())
            return ()
        if not isinstance(obj, _CACHED_VALUES):
            known = self._memo.get(id(obj))
            if known is not None:
                self._write(b"r%d;" % known)
                return ()
            self._memo[id(obj)] = self._count
            self._count += 1
            self._keep.append(obj)
        if kind is list:
            return self._open(b"l", obj)
        if kind is dict:
            return self._dict(obj)
        return self._reduced(obj)

    def _alone(self, obj: object) -> bytes:
        encode = _SCALARS.get(type(obj))
        if encode is not None:
            return encode(obj)
        walk = _Walk(self)
        walk.feed(obj)
        return b"h" + walk.hash.digest()

    def _unordered(self, tag: bytes, items: Iterable[object]) -> Sequence[Any]:
        tokens = sorted(map(self._alone, items))
        self._open(tag, tokens)
        for token in tokens:
            self._write(token)
        return ()

    def _dict(self, obj: dict[Any, Any]) -> Sequence[Any]:
        pairs: Iterable[tuple[Any, Any]] = obj.items()
        if not self._ordered:
            pairs = sorted(pairs, key=lambda pair: self._alone(pair[0]))
        return self._open(b"d", [part for pair in pairs for part in pair])

    def _code(self, code: types.CodeType) -> Sequence[Any]:
        self.codes.setdefault(id(code), code)
        self._keep.append(code)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        titles = (code.co_name, code.co_qualname)
        return self._open(
            b"C",
            (code.co_code, code.co_exceptiontable, code.co_consts, *counts, *names, *titles),
        )

    def _reduced(self, obj: Any) -> Sequence[Any]:
        kind = type(obj)
        if kind.__name__ == "_CustomPickled" and kind.__module__ == "numba.core.serialize":
            # numba pickles its functions to bytes of its own, with a random id among them.
            states = {name: value for name, value in obj.states.items() if name != "uuid"}
            return self._open(b"J", (obj.ctor, states))
        if isinstance(obj, types.ModuleType):
            self._refer(obj.__name__)
        reduced = self._pickler.reducer_override(obj)
        if reduced is NotImplemented:
            if isinstance(obj, type | types.FunctionType):
                return self._named(obj, obj.__qualname__)
            reduce = _Pickler.dispatch_table.get(kind)
            reduced = obj.__reduce_ex__(_PROTOCOL) if reduce is None else reduce(obj)
        if isinstance(reduced, str):
            return self._named(obj, reduced)
        function, arguments, state, items, pairs, setter = (*reduced, *(None,) * 4)[:6]
        special = getattr(setter or function, "__name__", "")
        if special == "_function_setstate":
            return self._function(obj, arguments, state)
        if special == "_class_setstate":
            return self._class(obj, arguments, state[0])
        if special == "_make_typevar":
            arguments = arguments[:-1]
        listed = None if items is None else tuple(items)
        paired = None if pairs is None else dict(pairs) if not self._ordered else tuple(pairs)
        return self._open(b"R", (function, arguments, state, listed, paired, setter))

    def _refer(self, module: str | None) -> None:
        if module and module != "__main__":
            self.modules.add(module.partition(".")[0])

    def _named(self, obj: Any, name: str) -> Sequence[Any]:
        """Refer to something that a worker imports."""
        module = pickle.whichmodule(obj, name)
        if module == "__main__":
            raise pickle.PicklingError(
                f"{name} is looked up by its name in __main__, where a worker does not have it"
            )
        self._refer(module)
        # What does not name its module is found in whichever was imported first.
        home = module if getattr(obj, "__module__", None) else None
        return self._open(b"G", (home, name))

    def _function(self, obj: Any, arguments: Any, state: Any) -> Sequence[Any]:
        code, namespace = arguments[:2]
        attributes, slots = state
        # Relative imports inside it need its package, which is taken whole.
        self._refer(obj.__module__)
        for module in slots["_cloudpickle_submodules"]:
            self._refer(module.__name__)
        # Which submodules are loaded already depends on what else was imported.
        kept = {name: value for name, value in slots.items() if name != "_cloudpickle_submodules"}
        return self._open(b"F", (code, namespace.get("__name__"), attributes, kept))

    def _class(self, obj: Any, arguments: Any, attributes: dict[str, Any]) -> Sequence[Any]:
        self._refer(obj.__module__)
        registered = {found for found in attributes.get("_abc_impl", ()) if found is not None}
        kept = {
            name: value for name, value in attributes.items() if name not in _PASSING_ATTRIBUTES
        }
        # The last two are the random id that cloudpickle gives to a class, and nothing.
        return self._open(b"K", (*arguments[:-2], kept, registered))


# -- what to say of something that cannot be pickled ----------------------------------------------


def _pickles(obj: object) -> bool:
    try:
        _dumps(obj)
    except Exception:  # noqa: BLE001 - a reducer of anybody's may raise anything
        return False
    return True


def _unpicklable(obj: object, error: Exception, path: str = "") -> PayloadError:
    path, culprit = _culprit(obj, path)
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}"
    if isinstance(error, RecursionError) or "recursion" in str(error):
        cause = "it is nested too deeply, or it refers to itself in a way that never ends"
        fix = "make it flatter, for example lists or arrays instead of linked objects"
    elif isinstance(culprit, types.GeneratorType | io.IOBase) or "lock" in kind.lower():
        cause = "open files, locks, connections and running generators exist in one process only"
        fix = "open or make it inside process(), or drop it in __getstate__()"
    else:
        cause = "it holds something that exists in this process only, or its type does not pickle"
        fix = f"make {path} inside process(), or move its code to a module beside the notebook"
    return PayloadError(
        f"{path} cannot be pickled, so it cannot be sent to a worker.",
        items=[f"{path} ({kind}): {error}"],
        cause=cause,
        fix=fix,
    )


def _culprit(obj: object, path: str) -> tuple[str, object]:
    """Follow what does not pickle down to the part that is to blame, and name the way to it."""
    path = path or _title(obj)
    seen: set[int] = set()
    probes = _MOST_PROBES
    while probes > 0:
        seen.add(id(obj))
        for below, part in islice(_parts(obj, path), probes):
            probes -= 1
            if id(part) not in seen and not _pickles(part):
                path, obj = below, part
                break
        else:
            break
    return path, obj


def _title(obj: Any) -> str:
    named = isinstance(obj, type | types.FunctionType)
    return str(obj.__qualname__ if named else type(obj).__qualname__)


def _parts(obj: Any, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(obj, functools.partial):
        yield _title(obj.func), obj.func
        yield from ((f"{_title(part)}", part) for part in obj.args)
        yield from obj.keywords.items()
    elif isinstance(obj, types.MethodType):
        yield _title(obj.__self__), obj.__self__
        yield path, obj.__func__
    elif isinstance(obj, dict):
        yield from ((f"{path}[{key!r}]", part) for key, part in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"{path}[{at}]", part) for at, part in enumerate(obj))
    elif isinstance(obj, types.FunctionType):
        yield from _parts_of_function(obj, path)
    elif isinstance(obj, property | staticmethod | classmethod):
        yield path, getattr(obj, "fget", None) or getattr(obj, "__func__", None)
    else:
        yield from ((f"{path}.{name}", part) for name, part in _attributes(obj))
        yield path, type(obj)


def _parts_of_function(obj: types.FunctionType, path: str) -> Iterator[tuple[str, object]]:
    for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=False):
        if cell != types.CellType():
            yield f"{path}: variable {name}", cell.cell_contents
    for name in obj.__code__.co_names:
        if name in obj.__globals__:
            yield f"{path}: global {name}", obj.__globals__[name]
    yield from ((f"{path}: a default", part) for part in obj.__defaults__ or ())
    yield from ((f"{path}: default of {n}", part) for n, part in (obj.__kwdefaults__ or {}).items())


def _attributes(obj: Any) -> Iterator[tuple[str, object]]:
    yield from list(getattr(obj, "__dict__", {}).items())
    for cls in type(obj).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(obj, name):
                yield name, getattr(obj, name)
