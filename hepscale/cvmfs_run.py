"""Runs a command that finds repositories below ``/cvmfs``, on a machine that has not mounted them.

A child of this process enters namespaces of its own, mounts the repositories there, and starts the
command in one of processes. It ends when the command does, or when this process does; with it end
all that the command has started, the processes that serve the repositories, and with the last of
them the mounts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from hepscale.errors import EngineError
from hepscale.worker import Unusable, bubblewrap, proc, repositories, sandbox, syscalls, world
from hepscale.worker.execute import execute

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

_SIGNAL = 128


def run(told: dict[str, Any], command: Sequence[str]) -> int:
    """Run a command, and return its exit code as a shell does.

    Parameters
    ----------
    told
        What a client is told of the repositories.
    command
        A program and its arguments; none: the user's shell.

    Raises
    ------
    EngineError
        A repository cannot be had, or this machine does not let users mount.
    """
    line = list(command) or [os.environ.get("SHELL") or "/bin/sh"]
    door = _door()
    reading, writing = os.pipe()
    # what is typed to end the command is for the command
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        if door:
            _go_behind(door, told, line, writing)
        _become_world(told, line, writing)
    os.close(writing)
    try:
        with open(reading, encoding="utf-8") as stream:
            said = stream.read()
        _, status = os.waitpid(pid, 0)
    finally:
        signal.signal(signal.SIGINT, before)
    if said:
        raise EngineError(**json.loads(said))
    return _code(status)


def _door() -> list[str]:
    """Return the beginning of a command that lets it mount; empty: it can by itself, or never."""
    if not sandbox.tried(world.enter):
        return []
    with tempfile.TemporaryDirectory(prefix="hepscale-") as folder:
        return sandbox.way({"dir": folder})[0]


def _go_behind(door: list[str], told: dict[str, Any], line: list[str], writing: int) -> NoReturn:
    """Go on behind a door, in a new process."""
    settings = os.memfd_create("settings", 0)
    os.write(settings, json.dumps([told, line, writing]).encode())
    os.set_inheritable(writing, True)
    proc.die_with_parent()
    code = f"from hepscale.cvmfs_run import behind; behind({settings})"
    os._exit(execute([door[0], "--die-with-parent", *door[1:], sys.executable, "-P", "-c", code]))


def behind(settings: int) -> NoReturn:
    """Go on with what `run` was told, which a descriptor says."""
    with open(settings, "rb") as stream:
        stream.seek(0)
        told, line, writing = json.load(stream)
    os.set_inheritable(writing, False)
    # what is executed from here on would have the capabilities that are given there
    syscalls.keep_to_self()
    _become_world(told, line, writing)


def _become_world(told: dict[str, Any], line: list[str], writing: int) -> NoReturn:
    """Mount, run the command, and end with its exit code; what is wrong is written to a pipe."""
    code = 1
    try:
        proc.die_with_parent()
        world.enter()
        os.environ.pop(bubblewrap.BEHIND, None)
        for notice in repositories.provide(told).notices:
            sys.stderr.write(f"note: {notice}\n")
        sys.stderr.flush()
        # of the next child, and of all that it starts
        syscalls.unshare(syscalls.NEW_PIDS)
        os.close(writing)
        code = _run(line)
    except BaseException as error:  # noqa: BLE001
        os.write(writing, json.dumps(_explained(error)).encode())
    finally:
        os._exit(code)


def _run(line: list[str]) -> int:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(writing)
            proc.die_with_parent()
            # from in there a parent has no number: that it lives shows by what it holds
            if not select.select([reading], [], [], 0)[0]:
                code = _be_first(line)
        finally:
            os._exit(code)
    # those that serve are children too
    _, status = os.waitpid(pid, 0)
    return _code(status)


def _be_first(line: list[str]) -> int:
    """Be process 1 of the command and of all that it starts, which ends with it."""
    # where a part of it is covered, as in containers, numbers there are those outside
    with suppress(OSError):
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", "/proc", "proc", flags)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os._exit(execute(line))
    while True:
        ended, status = os.wait()
        if ended == pid:
            return _code(status)


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return _SIGNAL - code if code < 0 else code


def _explained(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Unusable):
        return {"fact": error.fact, "items": [error.item], "cause": error.cause, "fix": error.fix}
    return {
        "fact": "Nothing can be mounted on this machine.",
        "items": [sandbox.reason(error)],
        "cause": "it does not let users have namespaces, or it is a container that may not",
        "fix": "hepscale doctor",
    }
