"""What single expressions say about imports, read without computing anything."""

from __future__ import annotations

import ast
import os.path

__all__ = [
    "asks_for_surroundings",
    "catches_import_error",
    "folder",
    "is_own_package",
    "last_name",
    "literal",
    "suppresses_import_error",
]

_CAUGHT = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_SURROUNDINGS = frozenset(
    {"environ", "find_spec", "get_ipython", "getenv", "hexversion", "implementation", "modules"}
    | {"platform", "uname", "version_info"}
)
_SAME_PATH = frozenset(
    {"Path", "PurePath", "abspath", "absolute", "as_posix", "expanduser", "fspath", "realpath"}
    | {"resolve", "str"}
)


def last_name(node: ast.AST | None) -> str:
    """Return ``c`` of ``a.b.c`` and of ``c``, or ""."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def literal(node: ast.AST | None) -> str | None:
    """Return the text of a string constant, or None."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def catches_import_error(caught: ast.expr | None) -> bool:
    """Return whether ``except caught:`` sees a module that is missing."""
    each = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(one is None or last_name(one) in _CAUGHT for one in each)


def suppresses_import_error(context: ast.expr) -> bool:
    """Return whether this is ``suppress(ImportError)`` or like it."""
    return (
        isinstance(context, ast.Call)
        and last_name(context.func) == "suppress"
        and any(last_name(one) in _CAUGHT for one in context.args)
    )


def asks_for_surroundings(test: ast.expr) -> bool:
    """Return whether a condition depends on what there is: its branches are for other places."""
    for node in ast.walk(test):
        name = last_name(node)
        if name in _SURROUNDINGS:
            return True
        if name == "name" and isinstance(node, ast.Attribute) and last_name(node.value) == "os":
            return True
    return False


def is_own_package(node: ast.expr) -> bool:
    """Return whether this is ``__package__``, ``__name__`` or ``__spec__.parent``."""
    if last_name(node) == "parent" and isinstance(node, ast.Attribute):
        return last_name(node.value) == "__spec__"
    return last_name(node) in {"__package__", "__name__"}


def folder(node: ast.expr, file: str, *, depth: int = 0) -> str | None:
    """Return the path that an expression such as ``os.path.abspath("..")`` stands for.

    Parameters
    ----------
    node
        The expression.
    file
        What ``__file__`` is.
    depth
        How deep the expression is in the one that is asked for; 20 is too deep.

    Returns
    -------
    str or None
        A path, relative ones from the working folder; None where it cannot be read.
    """
    text = literal(node)
    if text is not None:
        return os.path.expanduser(text)
    parts: list[ast.expr] = []
    below = ""
    match node:
        case ast.Name(id="__file__"):
            return file or None
        case ast.Attribute(attr="parent"):
            parts, below = [node.value], ".."
        case ast.BinOp(op=ast.Div()):
            parts = [node.left, node.right]
        case ast.Call():
            name = last_name(node.func)
            if name in {"getcwd", "cwd"}:
                return "."
            if name == "join":
                parts = node.args
            elif name == "dirname":
                parts, below = node.args, ".."
            elif name in _SAME_PATH:
                owner = node.func.value if isinstance(node.func, ast.Attribute) else None
                parts = node.args or ([owner] if owner is not None else [])
    if depth >= 20:
        return None
    found = [folder(part, file, depth=depth + 1) for part in parts]
    known = [one for one in found if one is not None]
    if not found or len(known) < len(found):
        return None
    return os.path.normpath(os.path.join(*known, below))
