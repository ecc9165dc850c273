"""What code imports, read from its syntax tree: nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.util
import os.path
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from hepscale.env import magics
from hepscale.env.expressions import (
    asks_for_surroundings,
    catches_import_error,
    folder,
    is_own_package,
    last_name,
    literal,
    suppresses_import_error,
)
from hepscale.env.repositories import mentioned
from hepscale.env.units import CellMagic, Note, Unit, cell_magic, parse

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Findings", "How", "Import", "Script", "examine"]

How: TypeAlias = Literal["sure", "guarded", "dynamic"]

_IMPORTERS = frozenset({"__import__", "import_module", "importorskip"})
_RESOURCES = frozenset(
    {"contents", "files", "get_data", "is_resource", "open_binary", "open_text", "path"}
    | {"read_binary", "read_text"}
)
_RESOURCE_MODULES = frozenset({"importlib_resources", "pkgutil", "resources"})
_TELLING = (
    *(ast.Import, ast.ImportFrom, ast.Call, ast.If, ast.Try, ast.TryStar, ast.With, ast.AsyncWith),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda),
)
_LEAVES = (ast.Name, ast.expr_context, ast.operator)
_MOST_DEEP = 5


@dataclass(frozen=True, slots=True)
class Import:
    """One module that code imports.

    Attributes
    ----------
    name
        The dotted name as it is written, without the dots in front; "" if it is computed, or if
        there are only dots.
    where
        "cell 3, line 2" or "analysis.py, line 2".
    how
        "guarded": the code goes on without it; "dynamic": its name is computed.
    members
        The names of ``from name import a, b``.
    level
        The number of dots in front.
    lazy
        Whether it is inside a function.
    """

    name: str
    where: str
    how: How
    members: tuple[str, ...] = ()
    level: int = 0
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """A file that ``%run`` runs, as it is written, and where that stands."""

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What one unit holds.

    Attributes
    ----------
    imports, notes, scripts
        In the order of its lines.
    folders
        Those that it puts on ``sys.path`` or changes to.
    repositories
        Of CVMFS, whose paths stand in its texts, each with the place.
    """

    imports: tuple[Import, ...]
    notes: tuple[Note, ...]
    scripts: tuple[Script, ...]
    folders: tuple[str, ...]
    repositories: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=1024)
def examine(unit: Unit) -> Findings:
    """Return all that a unit says about what it needs."""
    finder = _Finder(unit)
    finder.text(unit.source, _Here(guarded=not unit.certain), is_cell=unit.is_cell)
    return Findings(
        tuple(finder.imports),
        tuple(finder.notes),
        tuple(finder.scripts),
        tuple(dict.fromkeys(finder.folders)),
        tuple(dict.fromkeys(finder.repositories)),
    )


@dataclass(frozen=True, slots=True)
class _Here:
    """The surroundings of a node; the text that it is in begins in line `first` of the unit."""

    first: int = 1
    one_line: bool = False
    guarded: bool = False
    lazy: bool = False
    depth: int = 0

    def line(self, node: ast.stmt | ast.expr) -> int:
        return self.at(node.lineno)

    def at(self, number: int) -> int:
        return self.first if self.one_line else self.first + number - 1


_Work: TypeAlias = "list[tuple[ast.AST, _Here]]"


class _Finder:
    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._aliases: dict[str, str] = {}
        self.imports: list[Import] = []
        self.notes: list[Note] = []
        self.scripts: list[Script] = []
        self.folders: list[str] = []
        self.repositories: list[tuple[str, str]] = []

    def text(self, source: str, here: _Here, *, is_cell: bool) -> None:
        if here.depth > _MOST_DEEP:
            return
        magic = cell_magic(source) if is_cell else None
        if magic is not None:
            self._cell_magic(magic, here)
            return
        parsed = parse(source, is_cell=is_cell)
        if parsed.problem is not None and self._unit.certain:
            number, what = parsed.problem
            self._note(
                here.at(number),
                f"{what}; the rest was analysed as far as it can be read",
                "correct or remove the line",
            )
        # Not recursive: expressions may be nested more deeply than calls may.
        work: _Work = [(parsed.tree, here)]
        while work:
            node, here = work.pop()
            if isinstance(node, _TELLING):
                work.extend(reversed(self._look(node, here)))
            elif isinstance(node, ast.Constant):
                if isinstance(node.value, str):
                    self._mention(node.value, here.line(node))
            elif isinstance(node, ast.Expr) and literal(node.value) is not None:
                # a docstring
                continue
            elif not isinstance(node, _LEAVES):
                work.extend(reversed(_each(ast.iter_child_nodes(node), here)))

    def _look(self, node: ast.AST, here: _Here) -> _Work:
        """Record what the node is, and return what is inside it."""
        match node:
            case ast.Import():
                for alias in node.names:
                    self._add(alias.name, here.line(node), here)
            case ast.ImportFrom():
                self._from(node, here)
            case ast.Call():
                self._call(node, here)
            case ast.If():
                return self._branches(node, here)
            case ast.Try() | ast.TryStar():
                if any(catches_import_error(handler.type) for handler in node.handlers):
                    guarded = replace(here, guarded=True)
                    inside = [*node.body, *node.handlers, *node.orelse]
                    return _each(inside, guarded) + _each(node.finalbody, here)
            case ast.With() | ast.AsyncWith():
                if any(suppresses_import_error(item.context_expr) for item in node.items):
                    return _each(node.items, here) + _each(node.body, replace(here, guarded=True))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                body = node.body if isinstance(node.body, list) else [node.body]
                known = set(map(id, body))
                rest = [one for one in ast.iter_child_nodes(node) if id(one) not in known]
                return _each(rest, here) + _each(body, replace(here, lazy=True))
        return _each(ast.iter_child_nodes(node), here)

    def _from(self, node: ast.ImportFrom, here: _Here) -> None:
        names = tuple(alias.name for alias in node.names)
        module = node.module or ""
        self._add(module, here.line(node), here, members=names, level=node.level)
        resources = module.rpartition(".")[2] in _RESOURCE_MODULES
        for alias in node.names:
            name = alias.name
            if name in _IMPORTERS or name == "TYPE_CHECKING":
                self._aliases[alias.asname or name] = name
            elif resources and name in _RESOURCES:
                self._aliases[alias.asname or name] = f"resources.{name}"

    def _branches(self, node: ast.If, here: _Here) -> _Work:
        taken = self._verdict(node.test)
        inner = here
        if taken is None and asks_for_surroundings(node.test):
            inner = replace(here, guarded=True)
        work = _each([node.test], here)
        if taken is not False:
            work += _each(node.body, inner)
        if taken is not True:
            work += _each(node.orelse, inner)
        return work

    def _verdict(self, test: ast.expr, depth: int = 0) -> bool | None:
        """Return whether a condition holds at run time, None where that is open."""
        negated = False
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, negated = test.operand, not negated
        found: bool | None = None
        if isinstance(test, ast.Constant):
            found = bool(test.value)
        elif self._called(test)[1] == "TYPE_CHECKING":
            found = False
        elif isinstance(test, ast.BoolOp) and depth < _MOST_DEEP:
            each = [self._verdict(value, depth + 1) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in each:
                found = decisive
            elif None not in each:
                found = not decisive
        return found if found is None else found is not negated

    # -- calls -----------------------------------------------------------------------------------

    def _called(self, node: ast.expr) -> tuple[str, str]:
        """Return the last two parts of a dotted name; from-imports are taken into account."""
        if isinstance(node, ast.Attribute):
            inner = node.value.func if isinstance(node.value, ast.Call) else node.value
            return last_name(inner), node.attr
        owner, _, name = self._aliases.get(last_name(node), last_name(node)).rpartition(".")
        return owner, name

    def _call(self, node: ast.Call, here: _Here) -> None:
        owner, name = self._called(node.func)
        text = literal(node.args[0]) if node.args else None
        if name in _IMPORTERS:
            self._import_by_name(name, node, here)
        elif owner in _RESOURCE_MODULES and name in _RESOURCES and text:
            self._add(text, here.line(node), here)
        elif owner == "path" and name in {"append", "extend", "insert"} and node.args:
            given = node.args[-1]
            each = given.elts if isinstance(given, (ast.List, ast.Tuple)) else [given]
            found = (folder(one, self._unit.path) for one in each)
            self.folders += [one for one in found if one]
        elif name in {"getoutput", "popen", "system"}:
            self._shell(text or "", here.line(node))
        elif name in {"run_cell_magic", "run_line_magic"} or owner == "get_ipython":
            inner = replace(here, first=here.line(node), one_line=True, depth=here.depth + 1)
            texts = [literal(arg) or "" for arg in node.args]
            if name == "run_line_magic" and len(texts) > 1:
                self._line_magic(texts[0], texts[1].strip(), inner)
            elif name == "run_cell_magic" and len(texts) > 2:
                self._cell_magic(CellMagic(texts[0], texts[1].strip(), texts[2], 1), inner)
            elif name == "magic" and texts:
                magic, _, rest = texts[0].lstrip("%").partition(" ")
                self._line_magic(magic, rest.strip(), inner)

    def _import_by_name(self, importer: str, node: ast.Call, here: _Here) -> None:
        given = dict(zip(("name", "package"), node.args, strict=False))
        given |= {word.arg: word.value for word in node.keywords if word.arg}
        name, package = literal(given.get("name")), given.get("package")
        line = here.line(node)
        if importer == "importorskip":
            name = literal(given.get("name") or given.get("modname"))
            here = replace(here, guarded=True)
        if name and not name.startswith("."):
            self._add(name, line, here)
            return
        if name and importer == "import_module":
            below = name.lstrip(".")
            told = literal(package)
            if told and len(name) - len(below) <= told.count(".") + 1:
                self._add(importlib.util.resolve_name(name, told), line, here)
                return
            if package is not None and is_own_package(package):
                self._add(below, line, here, level=len(name) - len(below))
                return
        self.imports.append(Import("", self._where(line), "dynamic", lazy=here.lazy))
        self._note(
            line,
            f"the name of the module that {importer}(...) imports is computed",
            'extra_packages=["NAME"], unless something else imports it',
        )

    # -- magics and commands of the shell --------------------------------------------------------

    def _line_magic(self, name: str, rest: str, here: _Here) -> None:
        line = here.first
        if name in magics.STATEMENTS:
            self.text(magics.statement(rest), here, is_cell=True)
        elif name in {"system", "sx"}:
            self._shell(rest, line)
        elif name in magics.INSTALLERS:
            self._shell(f"{name} {rest}", line)
        elif name == "run":
            self._run(rest, here)
        elif name == "cd" and rest and not rest.startswith("-"):
            self.folders.append(os.path.expanduser(rest.strip("'\"")))
        elif name in {"aimport", "pylab"}:
            for module in ["numpy", "matplotlib"] if name == "pylab" else magics.modules(rest):
                self._add(module, line, here)

    def _cell_magic(self, magic: CellMagic, here: _Here) -> None:
        body = replace(here, first=here.at(magic.first), depth=here.depth + 1)
        line = here.at(magic.first - 1)
        if magic.name in magics.SHELL_CELLS:
            for number, command in enumerate(magic.body.split("\n"), start=1):
                self._shell(command, body.at(number))
        elif magic.name in magics.PYTHON_CELLS:
            if magic.name in magics.STATEMENTS:
                setup = replace(body, first=line, one_line=True)
                self.text(magics.statement(magic.line), setup, is_cell=True)
            self.text(magic.body, body, is_cell=True)
        elif magic.name not in magics.OTHER_CELLS:
            if cell_magic(magic.body) or parse(magic.body, is_cell=True).problem is None:
                self.text(magic.body, replace(body, guarded=True), is_cell=True)
            else:
                self._note(
                    line,
                    f"the body of %%{magic.name} does not look like Python and was not analysed",
                    'extra_packages=["NAME"], if it needs something that nothing else imports',
                )

    def _run(self, rest: str, here: _Here) -> None:
        kind, name = magics.run_target(rest)
        if kind == "module":
            self._add(name, here.first, here)
        elif kind == "script":
            self.scripts.append(Script(name, self._where(here.first)))
        elif kind:
            self._note(
                here.first,
                f"%run {name}: the name of the script is computed",
                "write the script's name, so that its imports can be found",
            )

    def _mention(self, text: str, line: int) -> None:
        self.repositories += [(name, self._where(line)) for name in mentioned(text)]

    def _shell(self, command: str, line: int) -> None:
        self._mention(command, line)
        for install in magics.installs(command):
            text = f"{install}: not run for a pack, which takes what is installed already"
            self._note(line, text, install)

    # -- records ---------------------------------------------------------------------------------

    def _where(self, line: int) -> str:
        return f"{self._unit.label}, line {line}"

    def _note(self, line: int, text: str, fix: str) -> None:
        self.notes.append(Note(self._where(line), text, fix))

    def _add(
        self,
        name: str,
        line: int,
        here: _Here,
        *,
        members: tuple[str, ...] = (),
        level: int = 0,
    ) -> None:
        how: How = "guarded" if here.guarded else "sure"
        self.imports.append(Import(name, self._where(line), how, members, level, here.lazy))


def _each(nodes: Iterable[ast.AST], here: _Here) -> _Work:
    return [(node, here) for node in nodes]
