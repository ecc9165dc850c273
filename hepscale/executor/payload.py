"""What a run sends: the pickled function and merge, and digests that say whether two are equal.

cloudpickle's bytes differ from one process to the next: random class ids, file names and lines of
a kernel's cells, the order of sets, strings that happen to be one object. A :func:`fingerprint`
walks the same graph through the same reducers and leaves all of that out.
"""

from __future__ import annotations

import contextlib
import copy
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
_MOST_PARTS = 1000
_MOST_STEPS = 30


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a function is made of.

    Attributes
    ----------
    digest
        32 hex digits; equal in every process for the same source and data.
    modules
        Names of the modules that the pickle refers to, installed ones too.
    codes
        The code objects that are pickled by value, in the order in which they are met.
    """

    digest: str
    modules: frozenset[str]
    codes: tuple[types.CodeType, ...]


def fingerprint(obj: object) -> Fingerprint:
    """Digest what would be pickled for `obj`, free of anything that differs between processes.

    Of what is pickled by value the file names, line numbers and comments do not count, all else
    does. Functions and classes of importable modules count by name only: their code is for
    :func:`hepscale.env.local.closure` to find, from ``modules`` and ``codes``.

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
        What tells the chunk from others: plain data, or anything that pickles. The order of dicts
        does not count: coffea builds the user metadata of a chunk from a set.
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
    """Pickle a run's function (of a chunk's item) and merge (of two outputs) for its workers.

    ``pickle.loads`` gives a dict of "function", "merge" and "dumps", which pickles outputs.

    Raises
    ------
    PayloadError
        Something cannot be pickled; the message names the path to it.
    """
    payload = {"function": function, "merge": merge, "dumps": cloudpickle.dumps}
    try:
        return _dumps(payload)
    except Exception as error:
        raise _unpicklable(merge if _pickles(function) else function, error) from error


# cloudpickle fails on the first of these, and sends a mere name in __main__ for the second.
def _reduce_cached_property(obj: functools.cached_property[Any]) -> tuple[Any, ...]:
    # Before Python 3.12 it holds a lock, which its constructor makes anew.
    state = {name: value for name, value in vars(obj).items() if name != "lock"}
    return functools.cached_property, (obj.func,), state


def _reduce_lru_cache(obj: Any) -> Any:
    home = sys.modules.get(obj.__module__) if obj.__module__ != "__main__" else None
    with contextlib.suppress(AttributeError):
        if operator.attrgetter(obj.__qualname__)(home) is obj:
            return obj.__reduce__()
    return functools.lru_cache(**obj.cache_parameters()), (obj.__wrapped__,)


_REDUCERS: ChainMap[Any, Callable[[Any], Any]] = ChainMap(
    {
        functools.cached_property: _reduce_cached_property,
        type(functools.lru_cache(len)): _reduce_lru_cache,
    },
    cloudpickle.Pickler.dispatch_table,
)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = _REDUCERS


def _dumps(obj: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=_PROTOCOL).dump(obj)
    return buffer.getvalue()


def _sized(tag: bytes, content: bytes) -> bytes:
    return b"%b%d:%b" % (tag, len(content), content)


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N;",
    type(...): lambda _: b"E;",
    bool: lambda value: b"B%d;" % value,
    int: lambda value: b"i%x;" % value,
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: lambda value: _sized(b"s", value.encode("utf-8", "surrogatepass")),
    bytes: lambda value: _sized(b"b", value),
}

# Values whose identity depends on caches of the interpreter, and thus on its history.
_CACHED_VALUES = (re.Pattern, types.GenericAlias, types.UnionType, type(typing.List[int]))  # noqa: UP006

# Attributes of a class that depend on where it stands or on what was done with it so far.
_PASSING_ATTRIBUTES = ("__firstlineno__", "__static_attributes__", "__slotnames__", "_abc_impl")


class _Walk:
    """Digests an object graph in the order in which pickle would save it, at any depth.

    Each token tells its kind and its length or number of children: no two graphs give the same
    stream. What can be changed is remembered by identity, as pickle does, which ends cycles;
    other values are digested each time: whether two are one object differs between processes.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self.modules: set[str] = set()
        self.codes: dict[int, types.CodeType] = {}
        self._ordered = ordered
        self._pickler = _Pickler(io.BytesIO(), protocol=_PROTOCOL)
        self._count = 0
        self._begin({})

    def _begin(self, memo: MutableMapping[int, int]) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self._pending = bytearray()
        self._keep: list[object] = []
        self._memo = memo

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
        self._write(b"", flush=True)

    def _write(self, token: bytes, *, flush: bool = False) -> None:
        self._pending += token
        if flush or len(self._pending) > 1 << 16:
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
            self._write(b"p%d;" % obj.raw().nbytes, flush=True)
            self.hash.update(obj.raw())
            return ()
        if not issubclass(kind, _CACHED_VALUES):
            known = self._memo.get(id(obj))
            if known is not None:
                self._write(b"r%d;" % known)
                return ()
            self._memo[id(obj)] = self._count
            self._count += 1
            self._keep.append(obj)
        if kind is list:
            return self._open(b"l", obj)
        if kind is not dict:
            return self._reduced(obj)
        pairs = obj.items()
        if not self._ordered:
            pairs = sorted(pairs, key=lambda pair: self._alone(pair[0]))
        return self._open(b"d", [part for pair in pairs for part in pair])

    def _alone(self, obj: object) -> bytes:
        encode = _SCALARS.get(type(obj))
        if encode is not None:
            return encode(obj)
        walk = copy.copy(self)
        walk._begin(ChainMap({}, self._memo))
        walk.feed(obj)
        return b"h" + walk.hash.digest()

    def _unordered(self, tag: bytes, items: Iterable[object]) -> Sequence[Any]:
        tokens = sorted(map(self._alone, items))
        self._open(tag, tokens)
        self._write(b"".join(tokens))
        return ()

    def _code(self, code: types.CodeType) -> Sequence[Any]:
        self.codes.setdefault(id(code), code)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        body = (code.co_code, code.co_exceptiontable, code.co_consts)
        return self._open(b"C", (*body, *counts, *names, code.co_name, code.co_qualname))

    def _reduced(self, obj: Any) -> Sequence[Any]:
        kind = type(obj)
        if kind.__name__ == "_CustomPickled" and kind.__module__ == "numba.core.serialize":
            # numba pickles its functions to bytes of its own, with a random id among them.
            states = {name: value for name, value in obj.states.items() if name != "uuid"}
            return self._open(b"J", (obj.ctor, states))
        if kind is types.ModuleType:
            self._refer(obj.__name__)
        reduced = self._pickler.reducer_override(obj)
        if reduced is NotImplemented:
            if issubclass(kind, type) or kind is types.FunctionType:
                return self._named(obj, obj.__qualname__)
            reduce = _REDUCERS.get(kind)
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
            self.modules.add(module)

    def _named(self, obj: Any, name: str) -> Sequence[Any]:
        module = pickle.whichmodule(obj, name)  # type: ignore[attr-defined]
        if module == "__main__":
            raise pickle.PicklingError(f"a worker does not find {name} in its own __main__")
        self._refer(module)
        # What does not name its module is found in whichever was imported first.
        home = module if getattr(obj, "__module__", None) else None
        return self._open(b"G", (home, name))

    def _function(self, obj: Any, arguments: Any, state: Any) -> Sequence[Any]:
        code, namespace = arguments[:2]
        attributes, slots = state
        # Relative imports inside it need its package, which is taken whole.
        self._refer(obj.__module__)
        # Which submodules are loaded already depends on what else was imported.
        for module in slots.pop("_cloudpickle_submodules"):
            self._refer(module.__name__.partition(".")[0])
        return self._open(b"F", (code, namespace.get("__name__"), attributes, slots))

    def _class(self, obj: Any, arguments: Any, attributes: dict[str, Any]) -> Sequence[Any]:
        self._refer(obj.__module__)
        registered = {found for found in attributes.get("_abc_impl", ()) if found is not None}
        kept = {name: part for name, part in attributes.items() if name not in _PASSING_ATTRIBUTES}
        # The last two are the random id that cloudpickle gives to a class, and nothing.
        return self._open(b"K", (*arguments[:-2], kept, registered))


def _pickles(obj: object) -> bool:
    with contextlib.suppress(Exception):
        _dumps(obj)
        return True
    return False


def _unpicklable(obj: object, error: Exception, path: str = "") -> PayloadError:
    path = path or _title(obj)
    if isinstance(error, RecursionError) or "recursion" in str(error):
        cause = "it is nested too deeply"
        fix = "make it flatter: lists or arrays instead of linked objects"
    else:
        path, obj = _culprit(obj, path)
        cause = "files, locks, connections and running generators exist in one process only"
        fix = f"make {path} inside process(), or leave it out in __getstate__()"
    if "__main__" in str(error):
        cause = "it is made by something that keeps only its name"
        fix = "move it to a module beside the notebook and import it from there"
    return PayloadError(
        f"{path} cannot be pickled, so it cannot be sent to a worker.",
        items=[f"{path} ({type(obj).__module__}.{type(obj).__qualname__}): {error}"],
        cause=cause,
        fix=fix,
    )


def _culprit(obj: object, path: str) -> tuple[str, object]:
    """Follow what does not pickle down to the part that is to blame."""
    seen: set[int] = set()
    while len(seen) < _MOST_STEPS:
        seen.add(id(obj))
        parts = islice(_parts(obj, path), _MOST_PARTS)
        below = ((at, part) for at, part in parts if id(part) not in seen and not _pickles(part))
        found = next(below, None)
        if found is None:
            break
        path, obj = found
    return path, obj


def _title(obj: Any) -> str:
    return str(getattr(obj, "__qualname__", None) or type(obj).__qualname__)


def _parts(obj: Any, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(obj, functools.partial):
        yield from ((_title(part), part) for part in (obj.func, *obj.args))
        yield from obj.keywords.items()
    elif isinstance(obj, types.MethodType):
        yield _title(obj.__self__), obj.__self__
    elif isinstance(obj, dict):
        yield from ((f"{path}[{key!r}]", part) for key, part in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"{path}[{at}]", part) for at, part in enumerate(obj))
    elif isinstance(obj, types.FunctionType):
        yield f"{path}: defaults", (obj.__defaults__, obj.__kwdefaults__)
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            if cell != types.CellType():
                yield f"{path}: variable {name}", cell.cell_contents
        used = (name for name in obj.__code__.co_names if name in obj.__globals__)
        yield from ((f"{path}: global {name}", obj.__globals__[name]) for name in used)
    else:
        attributes = dict(getattr(obj, "__dict__", {}))
        yield from ((f"{path}.{name}", part) for name, part in attributes.items())
        yield path, type(obj)
