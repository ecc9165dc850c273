"""The parent of the workers of this machine: it ends them when the manager has gone.

It is told by a JSON file what to start, says on its standard output what it has started, and holds
the read end of a pipe whose other end is the manager's. It ends by SIGTERM as well, and when all
of its workers have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from hepscale.worker import proc, scratch

__all__ = ["main"]

_LOOK_S = 0.25
_GRACE_S = 3.0


def main(path: str) -> None:
    """Start workers, stay until they or their manager have gone, leave nothing behind.

    Parameters
    ----------
    path
        File that says ``command``, ``count``, ``folder`` (which is removed), ``log``, ``lock``
        (the descriptor that holds the folder) and ``manager_pid`` (None: nobody owns them).
    """
    with open(path, encoding="utf-8") as stream:
        told = json.load(stream)
    manager_pid = told["manager_pid"]
    if manager_pid is None and os.fork():
        os._exit(0)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopped.append(number))
    # what a task leaves behind becomes ours, and ends with us
    proc.adopt_orphans()
    workers = _start(told)
    with open(told["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
    while workers and not stopped and not (manager_pid and _gone(manager_pid)):
        if manager_pid is None:
            time.sleep(_LOOK_S)
        workers -= _ended()
    _end(workers)
    shutil.rmtree(told["folder"], ignore_errors=True)
    # a manager that was killed could not remove its own
    scratch.sweep(str(Path(told["folder"]).parent))


def _start(told: dict[str, object]) -> set[int]:
    command, folder, lock = told["command"], told["folder"], told["lock"]
    assert isinstance(command, list)
    assert isinstance(folder, str)
    assert isinstance(lock, int)
    pids: list[int] = []
    problem = None
    with open(str(told["log"]), "ab") as log:
        try:
            for _ in range(int(str(told["count"]))):
                worker = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    # the folder is in use as long as one of them lives, whatever becomes of us
                    pass_fds=(lock,),
                    # even if we are killed: it then ends its tasks and removes their files
                    preexec_fn=_end_with_us,
                )
                pids.append(worker.pid)
                # reaped by `_ended`
                worker.returncode = 0
        except OSError as error:
            problem = str(error)
            _end(set(pids))
            pids = []
    print(json.dumps({"supervisor": os.getpid(), "workers": pids, "problem": problem}), flush=True)
    return set(pids)


def _end_with_us() -> None:
    proc.die_with_parent(signal.SIGTERM)


def _gone(manager_pid: int) -> bool:
    """Wait a moment; whether the manager has closed its end, or died while another holds it."""
    readable, _, _ = select.select([0], [], [], _LOOK_S)
    return bool(readable) or os.getppid() != manager_pid


def _ended() -> set[int]:
    ended = set()
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
            ended.add(pid)
    return ended


def _end(workers: set[int]) -> None:
    """End the workers, which then remove their files; after a while everything that is left."""
    left = set(workers)
    for pid in left:
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _GRACE_S
    while (left := left - _ended()) and time.monotonic() < until:
        time.sleep(0.02)
    while descendants := proc.family(os.getpid())[1:]:
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        _ended()


if __name__ == "__main__":
    main(sys.argv[1])
