"""What IPython's magics and the commands of a shell mean for an environment."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement

from hepscale.env.units import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "INSTALLERS",
    "OTHER_CELLS",
    "PYTHON_CELLS",
    "SHELL_CELLS",
    "STATEMENTS",
    "installs",
    "modules",
    "requirements",
    "run_target",
    "statement",
]

STATEMENTS = frozenset(
    {"heat", "lprun", "memit", "mprun", "prun", "pyinstrument", "scalene", "snakeviz", "time"}
    | {"timeit"}
)
PYTHON_CELLS = STATEMENTS | {"capture", "debug", "memray_flamegraph", "px"}
SHELL_CELLS = frozenset({"!", "bash", "script", "sh", "sx", "system", "zsh"})
OTHER_CELLS = frozenset(
    {"HTML", "R", "SVG", "ai", "bigquery", "c", "cmd", "cpp", "css", "cuda", "cypher", "cython"}
    | {"dot", "file", "fortran", "html", "javascript", "js", "jsroot", "julia", "latex"}
    | {"markdown", "mermaid", "octave", "perl", "pypy", "python", "python2", "python3", "ruby"}
    | {"rust", "sql", "svg", "writefile", "yaml"}
)
INSTALLERS = frozenset({"conda", "mamba", "micromamba", "pip", "pixi", "uv"})
_INSTALL = re.compile(
    r"(?:^|[\s/])(?:pip[\d.]*|conda|mamba|micromamba|pixi|uv|easy_install)\s(?:.*\s)?"
    r"(?:install|add)\s+\S|(?:^|[\s/])easy_install\s+\S"
)
_QUIET = frozenset({"-U", "-q", "-qq", "-y", "--quiet", "--upgrade", "--user", "--yes"})
_PYTHON = re.compile(r"\{\s*sys\.executable\s*\}|\$\{?\w*(?:python|PYTHON|executable)\w*\}?")
_SECRET = re.compile(r"://[^/\s]*@")
_WORD = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|((?:\\.|[^\s"'])+))""")


def statement(text: str) -> str:
    """Return the Python of ``%timeit -n 10 statement``, or ""."""
    # Which options take a value differs between magics: what is left over has to be Python.
    for _ in range(12):
        text = text.lstrip()
        if not text.startswith("-") and (
            text.startswith(("%", "!")) or parse(text, is_cell=False).problem is None
        ):
            return text
        text = text.partition(" ")[2]
    return ""


def installs(command: str) -> Iterator[str]:
    """Yield the commands in a line of the shell that install packages, without passwords."""
    for part in re.split(r"&&|\|\||[;|\n]", command):
        if _INSTALL.search(part):
            yield _SECRET.sub("://***@", _PYTHON.sub("python", part.strip()))[:200]


def requirements(command: str) -> list[Requirement]:
    """Return what a command is to install; nothing where that is not plain to see."""
    found = _INSTALL.search(command)
    try:
        words = shlex.split(command[found.end() - 1 :]) if found else []
        return [Requirement(word) for word in words if word not in _QUIET]
    except (ValueError, InvalidRequirement):
        return []


def run_target(text: str) -> tuple[str, str]:
    """Return what ``%run text`` runs.

    Returns
    -------
    tuple of str
        "module", "script" or "computed" with its name; "" and "" where there is none.
    """
    words = ["".join(found) for found in _WORD.findall(text)]
    while words and words[0].startswith("-"):
        if words.pop(0) == "-m":
            return ("module", words[0]) if words else ("", "")
    if not words:
        return "", ""
    name = words[0].replace("\\ ", " ")
    return ("computed" if re.search(r"[${*?]", name) else "script"), name


def modules(text: str) -> list[str]:
    """Return the names of ``%aimport a, b, -c`` that are imported."""
    return re.findall(r"(?<![\w.-])[A-Za-z_][\w.]*", text)
