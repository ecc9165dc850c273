"""What an analysis was found to need."""

from __future__ import annotations

from collections.abc import Callable

from hepscale.env.analysis import Analysis

Look = Callable[..., Analysis]


def names(found: Analysis) -> tuple[list[str], list[str], list[str]]:
    """Return distributions, local modules, and what is missing."""
    return (
        [one.name for one in found.distributions],
        [one.name for one in found.modules],
        [one.name for one in found.missing],
    )


def files(found: Analysis, module: str) -> set[str]:
    """Return a module's files, below the folder that it is in."""
    (one,) = [one for one in found.need.modules if one.name == module]
    return {below for below, _ in one.files}
