"""The parent of the workers of this machine: it ends them when the manager has gone.

It is told by a JSON file what to start, says on its standard output what it has started, and holds
the read end of a pipe whose other end is the manager's. It ends by SIGTERM as well, and when all
of its workers have ended.

A worker that a signal has killed, as the kernel does when memory runs out, left its files and
processes behind: they are removed, and another worker is started. One that ended by itself knew
why.
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
from typing import Any

from hepscale.worker import proc, scratch
from hepscale.workers import records

__all__ = ["main"]

_LOOK_S = 0.25
_GRACE_S = 3.0
# a worker that lived for less than this is replaced after as long
_YOUNG_S = 5.0
# more are not started in its place: within a minute, for each that was asked for
_MOST_REPLACED = 3
_WITHIN_S = 60.0


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
    crew = _Crew(told)
    crew.start()
    while crew.needed and not stopped and not (manager_pid and _gone(manager_pid)):
        if manager_pid is None:
            time.sleep(_LOOK_S)
        crew.look()
    _end(crew.running)
    shutil.rmtree(told["folder"], ignore_errors=True)
    # a manager that was killed could not remove its own
    scratch.sweep(str(Path(told["folder"]).parent))


class _Crew:
    """The workers, and what comes in place of those that are killed."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._folder = Path(told["folder"]).resolve()
        # when each was started
        self._since: dict[int, float] = {}
        # when those that are missing may be started, and when others were
        self._due: list[float] = []
        self._replaced: list[float] = []
        self._killed = 0
        self._given_up = False
        # what killed workers left, which their processes may still write to
        self._left: set[Path] = set()

    @property
    def running(self) -> set[int]:
        """The workers that run."""
        return set(self._since)

    @property
    def needed(self) -> bool:
        """Whether one runs or is going to."""
        return bool(self._since or self._due)

    def start(self) -> None:
        """Start all, or none, and say so to whoever has started us."""
        problem = None
        try:
            for _ in range(self._told["count"]):
                self._start_one()
        except OSError as error:
            problem = str(error)
            _end(self.running)
            self._since.clear()
        workers = list(self._since)
        answer = {"supervisor": os.getpid(), "workers": workers, "problem": problem}
        print(json.dumps(answer), flush=True)
        with open(self._told["log"], "ab") as log:
            os.dup2(log.fileno(), 1)

    def look(self) -> None:
        """Take note of workers that have ended; start others for those that were killed."""
        now = time.monotonic()
        killed = False
        for pid, status in _ended().items():
            since = self._since.pop(pid, None)
            if since is None or not os.WIFSIGNALED(status):
                continue
            killed = True
            self._left.add(self._folder / f"worker-{os.getuid()}-{pid}")
            self._due.append(now if now - since > _YOUNG_S else now + _YOUNG_S)
            self._say(f"a worker, process {pid}, was killed by signal {os.WTERMSIG(status)}")
            self._killed += 1
        self._left = {one for one in self._left if not _removed(one)}
        if killed or (self._due and min(self._due) <= now):
            self._replace(now)
            self._note()

    def _replace(self, now: float) -> None:
        self._replaced = [one for one in self._replaced if now - one < _WITHIN_S]
        for due in sorted(self._due):
            if due > now:
                break
            if len(self._replaced) >= _MOST_REPLACED * self._told["count"]:
                self._say("workers are killed again and again: no more are started")
                self._due, self._given_up = [], True
                break
            try:
                self._start_one()
            except OSError as error:
                self._say(f"no other can be started: {error}")
                self._due, self._given_up = [], True
                break
            self._due.remove(due)
            self._replaced.append(now)

    def _start_one(self) -> None:
        with open(self._told["log"], "ab") as log:
            worker = subprocess.Popen(
                self._told["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                # the folder is in use as long as one of them lives, whatever becomes of us
                pass_fds=(self._told["lock"],),
                # even if we are killed: it then ends its tasks and removes their files
                preexec_fn=_end_with_us,
            )
        # reaped by `_ended`
        worker.returncode = 0
        self._since[worker.pid] = time.monotonic()

    def _note(self) -> None:
        """Tell those who look for the workers."""
        # who stops them removes its folder
        with contextlib.suppress(OSError):
            records.note_here(
                Path(self._told["log"]).parent, self.running, self._killed, self._given_up
            )

    def _say(self, text: str) -> None:
        print(f"hepscale: {text}", flush=True)


def _end_with_us() -> None:
    proc.die_with_parent(signal.SIGTERM)


def _gone(manager_pid: int) -> bool:
    """Wait a moment; whether the manager has closed its end, or died while another holds it."""
    readable, _, _ = select.select([0], [], [], _LOOK_S)
    return bool(readable) or os.getppid() != manager_pid


def _ended() -> dict[int, int]:
    """Return the children that have ended, each with how."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0] > 0:
            ended[one[0]] = one[1]
    return ended


def _removed(workspace: Path) -> bool:
    """Remove what a killed worker left, with the processes there; whether all is gone."""
    for pid in proc.family(os.getpid())[1:]:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(workspace):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(workspace, ignore_errors=True)
    return not workspace.exists()


def _end(workers: set[int]) -> None:
    """End the workers, which then remove their files; after a while everything that is left."""
    left = set(workers)
    for pid in left:
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _GRACE_S
    while (left := left - {*_ended()}) and time.monotonic() < until:
        time.sleep(0.02)
    while descendants := proc.family(os.getpid())[1:]:
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        _ended()


if __name__ == "__main__":
    main(sys.argv[1])
