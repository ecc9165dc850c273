"""The folder in which a task runs: links to its input files under their relative names."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

__all__ = ["lay_out", "opened", "output_tail"]

_TAIL_BYTES = 4096


def lay_out(folder: str, inputs: list[tuple[str, str]]) -> str:
    """Make the folder that a task's process begins in, below the task's own.

    Parameters
    ----------
    folder
        Of the task.
    inputs
        Pairs of a relative name and the absolute path of the file or folder that is meant.

    Returns
    -------
    str
        Its path. Names that climb up stay within `folder`.

    Raises
    ------
    OSError
        It cannot be written.
    """
    depth = max((_steps_up(name) for name, _ in inputs), default=0)
    cwd = os.path.join(folder, "work.d", *["_"] * depth)
    os.makedirs(cwd)
    inside = os.path.realpath(folder) + os.sep
    # folders before what lies in them: through a link that would be made in the user's own folder
    for name, source in sorted(inputs, key=lambda one: one[0].count("/")):
        link = os.path.normpath(os.path.join(cwd, name))
        if not os.path.realpath(os.path.dirname(link)).startswith(inside):
            # below a folder of the user's that is linked already: nothing is made in there
            continue
        os.makedirs(os.path.dirname(link), exist_ok=True)
        # a name like a/../b needs the folder a
        os.makedirs(os.path.dirname(os.path.join(cwd, name)), exist_ok=True)
        if not os.path.lexists(link):
            os.symlink(source, link)
    return cwd


def opened(folder: str, name: str, flags: int) -> int:
    """Open a file that a task may have put there: no link to what it cannot reach, no pipe.

    Raises
    ------
    OSError
        There is none, or it is something else.
    """
    descriptor = os.open(
        os.path.join(folder, name), flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    )
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a file", name)


def output_tail(folder: str) -> str:
    """Return the last of what a task printed."""
    texts = []
    for name in ("stdout", "stderr"):
        with contextlib.suppress(OSError), open(opened(folder, name, os.O_RDONLY), "rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - _TAIL_BYTES, 0))
            texts.append(stream.read(_TAIL_BYTES).decode(errors="replace"))
    return "".join(texts)


def _steps_up(name: str) -> int:
    """Return how many folders a relative name climbs up."""
    return os.path.normpath(name).split(os.sep).count(os.pardir)
