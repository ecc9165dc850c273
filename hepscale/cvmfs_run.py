"""Runs a command that finds repositories below ``/cvmfs``, on a machine that has not mounted them.

A child of this process enters namespaces of its own, mounts the repositories there, and starts the
command. It ends when the command does, or when this process does; with it end the processes that
serve the repositories, and with the last of them the mounts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from hepscale.errors import EngineError
from hepscale.worker import Unusable, proc, repositories, sandbox, world

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

_NOT_FOUND, _NOT_EXECUTABLE, _SIGNAL = 127, 126, 128


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
    reading, writing = os.pipe()
    # what is typed to end the command is for the command
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
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


def _become_world(told: dict[str, Any], line: list[str], writing: int) -> NoReturn:
    """Mount, run the command, and end with its exit code; what is wrong is written to a pipe."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, _end_all)
        proc.adopt_orphans()
        proc.die_with_parent(signal.SIGTERM)
        world.enter()
        for notice in repositories.provide(told).notices:
            sys.stderr.write(f"note: {notice}\n")
        sys.stderr.flush()
        os.close(writing)
        code = _run(line)
    except BaseException as error:  # noqa: BLE001
        os.write(writing, json.dumps(_explained(error)).encode())
    finally:
        os._exit(code)


def _end_all(*_: object) -> NoReturn:
    """End with all that the command has started: it would keep mounts that nobody serves."""
    # those of whom is killed become children of this process
    while children := proc.children(os.getpid()):
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    os._exit(_SIGNAL + signal.SIGTERM)


def _run(line: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        code = _NOT_EXECUTABLE
        try:
            proc.die_with_parent()
            # Python ignores these, and the command would too
            for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(line[0], line)  # noqa: S606
        except OSError as error:
            sys.stderr.write(f"hepscale: {line[0]}: {error.strerror}\n")
            sys.stderr.flush()
            code = _NOT_FOUND if isinstance(error, FileNotFoundError) else code
        finally:
            os._exit(code)
    # those that serve are children too
    _, status = os.waitpid(pid, 0)
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
