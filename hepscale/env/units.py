"""A piece of the user's code, and its syntax tree: cells with magics, and code with errors in it.

Nothing here imports or runs what it reads. Line numbers in a tree are those that the user sees.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["CellMagic", "Note", "Parsed", "Unit", "cell_magic", "parse"]

# A cell is tokenized anew for each magic in it: this many lines in all take 0.2 s.
_MOST_LINES = 20_000
_MOST_DEEP = 20
# "run helper.py" alone in a cell works as "%run helper.py" does.
_AUTOMAGIC = re.compile(
    r"(?:aimport|autoreload|cd|conda|config|load_ext|ls|mamba|matplotlib|micromamba|pip|prun|pwd"
    r"|pylab|reload_ext|run|time|timeit|uv|who|whos)(?![\w.(])(?!\s*=)"
)
_CONTINUED = re.compile(r"[ \t)\]}#]|(?:else|elif|except|finally)\b")
_TRIPLE_QUOTE = re.compile(r"'''|\"\"\"")
_PARENTHESES = str.maketrans("()", "  ")
_FUNCTION = re.compile(r"\s*(?:async\s+)?def\b")
_IMPORT = re.compile(r"\s*(?:import\s+\w|from\s+[.\w]+\s+import\b)")


@dataclass(frozen=True, slots=True)
class Unit:
    """A cell, a script or another piece of code of the user.

    Attributes
    ----------
    label
        What the user knows it by: "cell 3", "In [7]" (an executed cell that is not in the
        notebook's file), or a file's name.
    source
        The text as it was written, with magics.
    path
        The file that it stands in, or "".
    is_cell
        Whether it may hold magics.
    certain
        False for code that may never run to its end: a cell that failed, or one of the notebook's
        file that the kernel has not executed. All its imports count as guarded.
    """

    label: str
    source: str
    path: str = ""
    is_cell: bool = False
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the user should know about the code: where, what, and what to do."""

    where: str
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class CellMagic:
    """A cell that begins with ``%%name line``; its body begins in line `first` of the cell."""

    name: str
    line: str
    body: str
    first: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """A syntax tree; `problem` is the line and the text of the first error, or None."""

    tree: ast.Module
    problem: tuple[int, str] | None = None


def cell_magic(source: str) -> CellMagic | None:
    """Return the cell's magic, or None if it is a cell of Python."""
    text = _clean(source)
    if not text.lstrip().startswith("%%"):
        return None
    above = text.count("\n", 0, text.index("%%"))
    head, _, body = textwrap.dedent(text.split("\n", above)[-1]).partition("\n")
    if re.match(r"%%\w+\?", head):
        return None
    name, _, line = head[2:].strip().partition(" ")
    return CellMagic(name, line.strip(), body, above + 2)


def parse(source: str, *, is_cell: bool) -> Parsed:
    """Parse a script, or a cell without a cell magic, as far as it is Python.

    Line magics and commands of the shell become calls of ``get_ipython()``, as in IPython. What
    cannot be parsed is left out, except for lines that are an import on their own.
    """
    with warnings.catch_warnings():
        # "\d" in the user's strings is not for us to complain of.
        warnings.simplefilter("ignore")
        parsed = _parsed(_clean(source), is_cell=is_cell)
    if "\0" in source:
        line = source.count("\n", 0, source.index("\0")) + 1
        return Parsed(parsed.tree, (line, "this holds null bytes"))
    return parsed


def _parsed(text: str, *, is_cell: bool) -> Parsed:
    try:
        return Parsed(_tree(text))
    except _Unparsable as error:
        problem = error
    if is_cell:
        text = _prepared(text)
        try:
            return Parsed(_tree(_as_python(text)))
        except _Unparsable as error:
            problem = error
    tree, first = _salvaged(text, is_cell=is_cell)
    line = min(problem.line or first, max(1, text.count("\n")))
    return Parsed(tree, (line, problem.text) if first else None)


class _Unparsable(Exception):
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise _Unparsable(error.lineno or 1, f"this is not Python: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise _Unparsable(0, "this is nested too deeply") from None


def _clean(source: str) -> str:
    """Return the text without what the parser does not take at all."""
    text = source.removeprefix("\ufeff").replace("\0", "")
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> list[str]:
    """Split as editors do; `str.splitlines` would split at form feeds as well."""
    return re.findall(r".*\n|.+", text)


# -- magics --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _manager() -> Any:
    # Takes a tenth of a second, and only cells with magics or errors need it.
    from IPython.core import inputtransformer2

    return inputtransformer2.TransformerManager()  # type: ignore[no-untyped-call]


def _prepared(text: str) -> str:
    """Remove prompts and common indentation; ``pip install x`` alone becomes ``%pip install x``."""
    lines = _lines(text.rstrip() + "\n")
    for clean in _manager().cleanup_transforms:
        lines = clean(lines)
    kept = "".join(lines)
    if _AUTOMAGIC.match(kept) and kept.count("\n") == 1:
        kept = "%" + kept
    return "\n" * (text.rstrip().count("\n") + 1 - kept.count("\n")) + kept


def _as_python(text: str) -> str:
    """Replace line magics by calls, in as many lines as there were."""
    lines = _lines(text)
    try:
        for _ in range(min(500, 1 + _MOST_LINES // (len(lines) + 1))):
            changed, after = _manager().do_one_token_transform(lines)
            if not changed:
                break
            fewer = len(lines) - len(after)
            at = next(n for n, line in enumerate(after) if line != lines[n])
            lines = [*after[: at + 1], *["\n"] * fewer, *after[at + 1 :]]
    except (SyntaxError, LookupError, AssertionError, StopIteration):
        # IPython gives up in these ways; the cell's blocks are tried one by one next.
        pass
    return "".join(lines)


# -- code with errors ----------------------------------------------------------------------------


def _salvaged(text: str, *, is_cell: bool, depth: int = 0) -> tuple[ast.Module, int]:
    """Return the statements that parse, and the line where the first begins that does not, or 0."""
    body: list[ast.stmt] = []
    first = 0
    for line, block in _blocks(text):
        try:
            found = _tree(_as_python(block) if is_cell else block)
            ast.increment_lineno(found, line - 1)
            body += found.body
        except _Unparsable:
            first = first or line
            head, *inside = _lines(block)
            indent = re.match(r"\s*", next(filter(str.strip, inside), ""))
            if indent is None or not indent[0] or depth > _MOST_DEEP:
                body += _lone_imports([head, *inside], line)
                continue
            # What is inside is looked at as if it stood outside, and then put back into a block.
            body += _lone_imports([head], line)
            lines = [one.removeprefix(indent[0]) if one[0] in " \t" else "\n" for one in inside]
            found, _ = _salvaged("".join(lines), is_cell=is_cell, depth=depth + 1)
            ast.increment_lineno(found, line)
            body.append(_block_of(found.body, is_function=_FUNCTION.match(head) is not None))
    return ast.Module(body, []), first


def _block_of(body: list[ast.stmt], *, is_function: bool) -> ast.stmt:
    guarded = ast.Try(body, [ast.ExceptHandler(None, None, [])], [], [])
    if not is_function:
        return guarded
    (function,) = ast.parse("def broken(): pass").body
    assert isinstance(function, ast.FunctionDef)
    function.body = [guarded]
    return function


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the statements of the outermost level, with the line that each begins in."""
    block: list[str] = []
    begin, quote, joined = 1, "", False
    for number, line in enumerate(_lines(text), start=1):
        inside = quote or joined or not line.strip() or _CONTINUED.match(line)
        if block and not inside:
            yield begin, "".join(block)
            block, begin = [], number
        block.append(line)
        joined = line.startswith("@") or line.rstrip("\n").endswith("\\")
        for found in _TRIPLE_QUOTE.findall(line):
            quote = "" if found == quote else quote or found
    yield begin, "".join(block)


def _lone_imports(lines: Iterable[str], begin: int) -> Iterator[ast.stmt]:
    """Yield the lines that are imports on their own; indented ones as guarded."""
    for number, line in enumerate(lines, start=begin):
        if not _IMPORT.match(line):
            continue
        # What stands in further lines is lost: it is names of members, or other modules.
        code = re.split("[#;]", line)[0].strip().rstrip("\\ ,(").translate(_PARENTHESES)
        code += " *" if code.endswith("import") else ""
        try:
            found = _tree(f"try: {code}\nexcept ImportError: pass" if line[0].isspace() else code)
        except _Unparsable:
            continue
        for node in ast.walk(found):
            if isinstance(node, ast.stmt):
                node.lineno = number
        yield from found.body
