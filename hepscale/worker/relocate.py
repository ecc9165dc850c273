"""Rewrite the paths that an unpacked environment holds of the place where it was made.

The files ``hepscale/relocate-*.json`` in the prefix, one a layer, say which files hold one, as
``[[target, placeholder, "text" | "binary"], ...]``; ``hepscale/prefixes.py`` has the functions that
rewrite them. In an archive of conda-pack the script ``bin/conda-unpack`` has both. Loaded by
``unpack.py`` from its file, so it has no siblings.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from typing import Any

__all__ = ["PrefixTooLong", "load", "relocate"]


class PrefixTooLong(ValueError):
    """A program has less room for a path than the new one needs."""


def load(path: str) -> Any:
    """Return the module in the file `path`, which needs no package."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relocate(prefix: str, final: str, count: int | None) -> None:
    """Make the files of the environment in the folder `prefix` fit for the folder `final`.

    Parameters
    ----------
    prefix
        Where it lies now.
    final
        Where it will lie.
    count
        Number of records that the environment has; None: those of its ``conda-unpack``, if any.

    Raises
    ------
    PrefixTooLong
        If `final` does not fit into a program.
    ValueError
        If the prefix does not hold what it should.
    OSError
        If a file cannot be written.
    """
    try:
        read = _from_conda_unpack if count is None else _from_layers
        records, replace_prefix = read(prefix)
    except (FileNotFoundError, ImportError, SyntaxError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from None
    if count is not None and len(records) != count:
        raise ValueError(f"{len(records)} files to be relocated instead of {count}")
    for target, placeholder, mode in records:
        size, room = len(os.fsencode(final)), len(os.fsencode(placeholder))
        if mode == "binary" and size > room:
            raise PrefixTooLong(f"{final} has {size} bytes, {room} fit into {target}")
        path = os.path.join(prefix, target)
        try:
            with open(path, "rb") as stream:
                data = stream.read()
        except FileNotFoundError as error:
            raise ValueError(str(error)) from None
        changed = replace_prefix(data, mode, placeholder, final)
        if changed != data:
            _replace(path, changed)


def _from_layers(prefix: str) -> tuple[list[tuple[str, str, str]], Any]:
    own = os.path.join(prefix, "hepscale")
    records = []
    for name in sorted(os.listdir(own)):
        if name.startswith("relocate-"):
            with open(os.path.join(own, name), encoding="utf-8") as stream:
                records += [(target, old, mode) for target, old, mode in json.load(stream)]
    return records, load(os.path.join(own, "prefixes.py")).replace_prefix


def _from_conda_unpack(prefix: str) -> tuple[list[tuple[str, str, str]], Any]:
    import runpy

    script = os.path.join(prefix, "bin", "conda-unpack")
    if not os.path.exists(script):
        return [], None
    # it imports a sibling, and does nothing unless it is the main module
    sys.path.insert(0, os.path.dirname(script))
    try:
        known = runpy.run_path(script, run_name="conda_unpack")
    finally:
        del sys.path[0]
    return known["_prefix_records"], known["replace_prefix"]


def _replace(path: str, data: bytes) -> None:
    # not in place: the file may be the program that runs here, or a library of it
    beside = path + ".hepscale-new"
    with open(beside, "wb") as stream:
        stream.write(data)
    shutil.copystat(path, beside)
    os.replace(beside, path)
