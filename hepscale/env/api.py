"""`analyze` and `pack`: what an analysis imports, and the archive that holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.config import load_settings
from hepscale.env import analysis, environment, sources
from hepscale.env.pack import FORMATS
from hepscale.env.plan import Plan, plan
from hepscale.env.store import Store
from hepscale.errors import ConfigError, misspelt

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from hepscale.config import Settings
    from hepscale.env.analysis import Analysis
    from hepscale.env.environment import Closure, Packed, Tell
    from hepscale.env.imports import Import

__all__ = ["DEFAULT_CLOSURE", "analyze", "learnt", "pack", "planned", "store"]

_SUFFIXES = {"tar.gz": (".gz", ".tgz"), "tar.zst": (".zst",)}
DEFAULT_CLOSURE: Closure = "full"


def store(settings: Settings | None = None) -> Store:
    """Return the store of layers and environments of this user."""
    return Store((settings or load_settings()).cache_dir / "environments")


def learnt() -> Path:
    """Return the folder for what was learnt of installed files."""
    return load_settings().cache_dir / "learnt"


def analyze(
    file: str | os.PathLike[str] | None = None,
    *,
    python: str | os.PathLike[str] | None = None,
    extra_packages: Sequence[str] = (),
    exclude_packages: Sequence[str] = (),
    roots: Iterable[Import] = (),
) -> Analysis:
    """Find out what a script or a notebook imports, without importing or running it.

    Parameters
    ----------
    file
        A script (``.py``) or a notebook (``.ipynb``); None: the notebook or script that runs.
    python
        The interpreter whose environment is meant; None: the running one.
    extra_packages, exclude_packages
        Distributions or modules to take, and to leave out, whatever the code says.
    roots
        What is imported besides.

    Returns
    -------
    Analysis
        Imports, distributions, local modules, what is missing, notes.

    Raises
    ------
    InputError
        The file is missing or neither script nor notebook.
    ConfigError
        A package is not there, or `python` cannot be run.
    """
    found = sources.running() if file is None else sources.from_file(Path(file))
    return analysis.examine(
        found,
        str(file or "the running notebook"),
        python=python,
        roots=roots,
        extra=extra_packages,
        exclude=exclude_packages,
        cache=learnt(),
    )


def planned(found: Analysis) -> Plan:
    """Return which files the environment of an analysis consists of."""
    return plan(found.need, learnt())


def pack(
    file: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] = "env.tar.gz",
    *,
    format: str | None = None,  # noqa: A002
    closure: Closure = DEFAULT_CLOSURE,
    python: str | os.PathLike[str] | None = None,
    extra_packages: Sequence[str] = (),
    exclude_packages: Sequence[str] = (),
    tell: Tell | None = None,
) -> Packed:
    """Write the environment of a script or a notebook as one archive.

    It is a conda-pack archive: ``tar xf``, ``source bin/activate``, ``conda-unpack``. The same
    environment gives the same bytes, wherever and whenever it is packed.

    Parameters
    ----------
    file
        A script or a notebook; None: the one that runs.
    output
        The archive.
    format
        "tar.gz" or "tar.zst"; None: what the name of `output` says.
    closure
        "full": all that the imported distributions require; "imports": those distributions only
        that are imported at import time.
    python, extra_packages, exclude_packages
        See :func:`analyze`.
    tell
        Is told what is packed, how many bytes of it are done, and how many there are.

    Raises
    ------
    InputError, ConfigError
        As :func:`analyze`; or an option has a value that is not known.
    PackError
        A file cannot be read, or the archive cannot be written.
    """
    if closure not in environment.CLOSURES:
        raise misspelt("closure", closure, environment.CLOSURES, 'closure="{}"')
    form = format or ("tar.zst" if str(output).endswith(".zst") else "tar.gz")
    if form not in FORMATS:
        raise misspelt("format", form, FORMATS, 'format="{}"')
    if str(output).endswith((".gz", ".tgz", ".zst")) and not str(output).endswith(_SUFFIXES[form]):
        raise ConfigError(
            f"{output} is no name for an archive of the format {form}.",
            cause="the name says another one",
            fix=f"leave the format out, or call it env.{form}",
        )
    found = analyze(
        file, python=python, extra_packages=extra_packages, exclude_packages=exclude_packages
    )
    options = () if tell is None else (tell,)
    packed = environment.write(planned(found), store(), Path(output), form, closure, *options)
    return replace(packed, missing=found.missing, notes=found.notes)
