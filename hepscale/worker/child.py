"""A forked child becomes a task's process: its session, folder, variables, streams and limits."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

from . import proc

if TYPE_CHECKING:
    from .cells import Cell

__all__ = ["become_task", "leave", "seen"]

# what the kernel enforces lies above what we watch: it is for growth faster than we look
_HARD_FACTOR, _HARD_EXTRA_MB = 1.25, 256
# they name what proves who the user is, and whom he trusts
_PROOFS = ("X509_USER_PROXY", "X509_CERT_DIR", "BEARER_TOKEN_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def become_task(request: dict[str, Any], parent: int, cell: Cell | None = None) -> None:
    """Make this child of the process `parent` what the task of `request` runs in."""
    os.setsid()
    proc.die_with_parent()
    # from within a cell a parent outside has no number
    if os.getppid() != (parent if cell is None else 0):
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(request["dir"])
    for target, name in ((1, "stdout"), (2, "stderr")):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, target)
        os.close(fd)
    with open("task.json", encoding="utf-8") as stream:
        spec = json.load(stream)
    with open(request["environ"], encoding="utf-8") as stream:
        environ = json.load(stream)
    os.makedirs("tmp", exist_ok=True)
    os.environ.clear()
    # the latter tells what is imported here that it must not start a run of its own
    os.environ.update(environ, TMPDIR=os.path.abspath("tmp"), HEPSCALE_TASK=spec["task"])
    if spec["code"]:
        sys.path.insert(0, spec["code"])
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = ["hepscale-task"]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _fresh_random_numbers()
    if request["memory_mb"] is not None:
        _limit_memory(request["memory_mb"])
    if cell is not None:
        cell.enter()
    # that of the cell: root could change the permissions of another
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # one by one, where a kernel or Parrot knows no range, 65,536 of them take seconds
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.close(int(name))
    os.chdir(spec["cwd"])


def seen(request: dict[str, Any]) -> list[str]:
    """Return the paths outside of its folder that the task of `request` reads."""
    with open(os.path.join(request["dir"], "task.json"), encoding="utf-8") as stream:
        spec = json.load(stream)
    with open(request["environ"], encoding="utf-8") as stream:
        environ = json.load(stream)
    user = os.getuid()
    proofs = [environ.get(name, "") for name in _PROOFS]
    proofs += [f"/tmp/x509up_u{user}", f"/tmp/bt_u{user}"]
    paths = [spec["payload"], spec["code"] or "", *spec.get("reads", ()), *proofs]
    return [one for one in paths if one.startswith("/")]


def leave(code: int) -> NoReturn:
    """End this process without what a normal end would do for its parent's sake."""
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _fresh_random_numbers() -> None:
    # every child of a fork would draw the same numbers; Python's own generator reseeds by itself
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _limit_memory(memory_mb: float) -> None:
    """Make the kernel refuse memory well above the limit, as a MemoryError."""
    status = proc.status()
    room_mb = max(memory_mb - status.get("VmRSS", 0) / 1e3, 0)
    hard = status.get("VmData", 0) * 1e3 + (room_mb * _HARD_FACTOR + _HARD_EXTRA_MB) * 1e6
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(hard) if most == resource.RLIM_INFINITY else min(int(hard), most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
