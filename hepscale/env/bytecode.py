"""The imports in a compiled module, read from its bytecode without running it.

Parsing the source of the two thousand modules behind an analysis takes ten seconds; their bytecode
is there already. What Python executes when the module is imported is told apart from what waits
in functions, and code under ``if TYPE_CHECKING`` does not count.
"""

from __future__ import annotations

import inspect
import opcode
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["Found", "Loader", "found_in", "loader_in"]

_OPS = opcode.opmap
_IMPORT_NAME = _OPS["IMPORT_NAME"]
_EXTENDED_ARG = _OPS["EXTENDED_ARG"]
_LOAD_CONST = _OPS["LOAD_CONST"]
_LOAD_SMALL_INT = _OPS.get("LOAD_SMALL_INT", -1)  # since 3.14
_CACHE = _OPS["CACHE"]
_LOAD_NAME = _OPS["LOAD_NAME"]
_LOAD_GLOBAL = _OPS["LOAD_GLOBAL"]
_LOAD_ATTR = _OPS["LOAD_ATTR"]
_LOADS = frozenset({_LOAD_NAME, _LOAD_GLOBAL, _LOAD_ATTR, _OPS.get("LOAD_METHOD", _LOAD_NAME)})
# These use the lowest bit of their argument for something else; LOAD_ATTR since 3.12, when it
# took over from LOAD_METHOD.
_SHIFTED = {_LOAD_GLOBAL, _LOAD_ATTR} if sys.version_info >= (3, 12) else {_LOAD_GLOBAL}
_NOISE = frozenset(_OPS[name] for name in ("PUSH_NULL", "TO_BOOL", "NOT_TAKEN") if name in _OPS)
_FORWARD_JUMPS = frozenset(
    code for name, code in _OPS.items() if code in opcode.hasjrel and "BACKWARD" not in name
)
_JUMP_IF_FALSE = _OPS.get("POP_JUMP_FORWARD_IF_FALSE", _OPS.get("POP_JUMP_IF_FALSE", -1))
_IMPORTERS = frozenset({"import_module", "__import__"})
_DOTTED = re.compile(r"\.*\w+(\.\w+)*")
# What looks like a function and is executed where it stands.
_EXECUTED = ("<generic parameters of ", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


@dataclass(frozen=True, slots=True)
class Found:
    """One import.

    Attributes
    ----------
    name
        Dotted, as written, without the dots in front.
    level
        Number of dots in front.
    members
        The names of ``from name import a, b``.
    lazy
        Whether it is inside a function.
    """

    name: str
    level: int
    members: tuple[str, ...]
    lazy: bool


@dataclass(frozen=True, slots=True)
class Loader:
    """How a module loads attributes when they are asked for.

    Attributes
    ----------
    names
        Members that it may have without defining them.
    strings
        All that could be the name of a submodule.
    imports
        Those in its ``__getattr__``.
    """

    names: frozenset[str]
    strings: frozenset[str]
    imports: tuple[Found, ...]


class _Step(NamedTuple):
    """An instruction: where it begins and its inline caches end, in units of two bytes."""

    at: int
    end: int
    op: int
    arg: int


def found_in(module: CodeType) -> Iterator[Found]:
    """Yield the imports of a module's code, and of all code inside it."""
    waiting = [(module, False)]
    called = _called(module)
    while waiting:
        code, lazy = waiting.pop()
        names = code.co_names
        dead: Collection[int] = ()
        if "TYPE_CHECKING" in names:
            dead = _never_executed(code)
        yield from _import_statements(code, lazy, dead)
        if not _IMPORTERS.isdisjoint(names):
            yield from _import_calls(code, lazy, dead)
        unwanted = _constants_at(code, dead) if dead else ()
        for const in code.co_consts:
            if type(const) is CodeType and id(const) not in unwanted:
                executed = _is_executed(const) or id(const) in called
                waiting.append((const, lazy or not executed))


def loader_in(module: CodeType) -> Loader | None:
    """Return how a module loads its attributes on demand, None where it does not.

    It does with a function ``__getattr__`` or with the package ``lazy_loader``.
    """
    names = module.co_names
    inside = [const for const in module.co_consts if type(const) is CodeType]
    functions = [code for code in inside if code.co_name == "__getattr__"]
    if not functions and "lazy_loader" not in names:
        return None
    strings = {text for code in (module, *functions) for text in _strings(code.co_consts)}
    return Loader(
        frozenset(text for text in strings.difference(names) if text.isidentifier()),
        frozenset(text for text in strings if _DOTTED.fullmatch(text)),
        tuple(one for code in functions for one in found_in(code)),
    )


def _strings(constants: Iterable[object]) -> Iterator[str]:
    for const in constants:
        if isinstance(const, str):
            yield const
        elif isinstance(const, (tuple, frozenset)):
            yield from _strings(const)


def _is_executed(code: CodeType) -> bool:
    return not code.co_flags & inspect.CO_OPTIMIZED or code.co_name.startswith(_EXECUTED)


def _called(module: CodeType) -> frozenset[int]:
    """Return the ids of the module's functions that it uses itself while it is imported."""
    inside = [const for const in module.co_consts if type(const) is CodeType]
    functions = {code.co_name: code for code in inside if not _is_executed(code)}
    if not any(_IMPORT_NAME in code.co_code[::2] for code in functions.values()):
        return frozenset()
    waiting = [
        name
        for code in (module, *(code for code in inside if _is_executed(code)))
        if not functions.keys().isdisjoint(code.co_names)
        for name in {_loaded(code, step) for step in _steps(code)}
        if name in functions
    ]
    called: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in called:
            called.add(name)
            waiting += [other for other in functions[name].co_names if other in functions]
    return frozenset(id(functions[name]) for name in called)


def _import_statements(code: CodeType, lazy: bool, dead: Collection[int]) -> Iterator[Found]:
    raw = code.co_code
    ops = raw[::2]
    at = ops.find(_IMPORT_NAME)
    while at >= 0:
        if at not in dead:
            name, before = _argument(raw, at)
            members, before = _constant(code, raw, before)
            level, _ = _constant(code, raw, before)
            yield Found(
                code.co_names[name],
                level if isinstance(level, int) else 0,
                members if isinstance(members, tuple) else (),
                lazy,
            )
        at = ops.find(_IMPORT_NAME, at + 1)


def _argument(raw: bytes, at: int) -> tuple[int, int]:
    """Return the argument of an instruction, and where the one before it is."""
    value, shift = raw[2 * at + 1], 8
    at -= 1
    while at >= 0 and raw[2 * at] == _EXTENDED_ARG:
        value |= raw[2 * at + 1] << shift
        shift += 8
        at -= 1
    return value, at


def _constant(code: CodeType, raw: bytes, at: int) -> tuple[object, int]:
    if at < 0:
        return None, at
    value, before = _argument(raw, at)
    if raw[2 * at] == _LOAD_CONST:
        return code.co_consts[value], before
    return (value if raw[2 * at] == _LOAD_SMALL_INT else None), before


def _steps(code: CodeType) -> list[_Step]:
    raw = code.co_code
    ops, args = raw[::2], raw[1::2]
    steps: list[_Step] = []
    at, last, extended = 0, len(ops), 0
    while at < last:
        op, arg = ops[at], args[at] | extended
        start = at
        at += 1
        if op == _EXTENDED_ARG:
            extended = arg << 8
            continue
        extended = 0
        while at < last and ops[at] == _CACHE:
            at += 1
        steps.append(_Step(start, at, op, arg))
    return steps


def _loaded(code: CodeType, step: _Step) -> str:
    if step.op not in _LOADS:
        return ""
    at = step.arg >> 1 if step.op in _SHIFTED else step.arg
    return code.co_names[at] if at < len(code.co_names) else ""


def _import_calls(code: CodeType, lazy: bool, dead: Collection[int]) -> Iterator[Found]:
    steps = [step for step in _steps(code) if step.op not in _NOISE]
    for step, following in pairwise(steps):
        if _loaded(code, step) not in _IMPORTERS or step.at in dead:
            continue
        given = code.co_consts[following.arg] if following.op == _LOAD_CONST else None
        if isinstance(given, str) and given:
            name = given.lstrip(".")
            yield Found(name, len(given) - len(name), (), lazy)


def _never_executed(code: CodeType) -> frozenset[int]:
    """Return where the code is that only type checkers see."""
    steps = [step for step in _steps(code) if step.op not in _NOISE]
    dead: set[int] = set()
    for step, jump in pairwise(steps):
        if jump.op != _JUMP_IF_FALSE or _loaded(code, step) != "TYPE_CHECKING":
            continue
        begin, end = jump.end, jump.end + jump.arg
        # "if x or TYPE_CHECKING:" comes here by another way
        if not any(
            begin <= other.end + other.arg < end and not begin <= other.at < end
            for other in steps
            if other.op in _FORWARD_JUMPS and other is not jump
        ):
            dead.update(range(begin, end))
    return frozenset(dead)


def _constants_at(code: CodeType, places: Collection[int]) -> frozenset[int]:
    """Return the ids of the constants that are loaded there."""
    loaded = (step.arg for step in _steps(code) if step.at in places and step.op == _LOAD_CONST)
    return frozenset(id(code.co_consts[arg]) for arg in loaded)
