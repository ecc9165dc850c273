"""The folders in which an analysis finds its local modules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.env.metadata import finder_mapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepscale.env.interpreter import Interpreter

__all__ = ["linked", "package", "search"]


def package(folder: Path | None) -> tuple[Path | None, str]:
    """Return where the package that a folder belongs to is imported from, and its name."""
    names: list[str] = []
    while folder is not None and (folder / "__init__.py").is_file() and folder.name:
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def search(folder: Path | None, paths: Sequence[Path], here: Interpreter) -> tuple[str, ...]:
    """Return the folders in which local modules are looked for, as a run of the code would."""
    standard = {os.path.realpath(one) for one in (here.stdlib, here.platstdlib)}
    standard |= {os.path.join(one, "lib-dynload") for one in standard}
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    scripts = os.path.dirname(here.executable)
    path = [
        one for one in (*given, *here.path) if os.path.realpath(one) not in {*standard, scripts}
    ]
    own = [str(one) for one in (folder, *paths) if one is not None]
    return tuple(dict.fromkeys([*own, *path]))


def linked(here: Interpreter) -> list[str]:
    """Return the folders that setuptools' finders of editable projects lead to."""
    finders = (one for site in here.sites for one in Path(site).glob("__editable__*_finder.py"))
    found = (path for one in finders for path in finder_mapping(str(one)).values())
    return list(dict.fromkeys(os.path.dirname(path) for path in found))
