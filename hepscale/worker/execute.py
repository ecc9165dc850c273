"""Executes a command in place of a process of ours."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["execute"]

# as a shell says it
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


def execute(command: list[str]) -> int:
    """Become `command`; if that cannot be, say so and return the exit code that a shell has."""
    # Python ignores these, and the command would too
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"hepscale: {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
