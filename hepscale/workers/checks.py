"""Files and folders that workers are given."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_workdir", "checked_password"]


def checked_password(path: Path) -> Path:
    """Return the absolute path of a password file.

    Raises
    ------
    ConfigError
        If it cannot be read, or others can read it.
    """
    path = path.expanduser().absolute()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            "The password file cannot be read.",
            items=[f"{path}: {error.strerror}"],
            fix="give the file that the manager was given",
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            "The password file can be read by others.",
            items=[f"{path}: mode {stat.S_IMODE(mode):04o}"],
            fix=f"chmod 600 {path}",
        )
    return path


def check_workdir(path: Path) -> None:
    """Check the name of a folder for the files of workers.

    Raises
    ------
    ConfigError
        If a shell would take it for something else.
    """
    # it hands its folder to a shell without quotes
    if not re.fullmatch(r"[\w./@%+=:,-]+", str(path)):
        raise ConfigError(
            "Workers cannot work in a folder of this name.",
            items=[str(path)],
            cause="it has a space or another character that a shell does not take as it is",
            fix="choose another with workdir=..., or export HEPSCALE_SCRATCH_DIR=<folder>",
        )
