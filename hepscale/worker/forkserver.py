"""The warm interpreter of a worker: imports what the analysis imports, forks one child per task.

It is started with its folder, the process that it belongs to (its parent, or one that is known by
when it began), and the modules to import first; in
an environment that is not whole also with the names of those that it lacks (`absent`). A client
connects to the socket ``s`` in its folder and sends one JSON object a line::

    {"op": "run", "id": ..., "dir": ..., "memory_mb": ... or null, "environ": PATH}
    {"op": "kill", "id": ...}

and receives ``{"ev": "ready", "pid": ..., "hepscale": ..., "python": ..., "glibc": ..., "prefix":
..., "interposer": {"kind": ..., "why": ..., "cvmfs": {...}, "notices": [...]}}`` once, then for
each task ``{"ev": "ended", "id": ..., "status": "done" | "died" | "memory" | "cancelled", "detail":
..., "cpu_s": ..., "wall_s": ..., "memory_mb": ..., "left": {"files": ..., "bytes": ...}}``. The
tasks of a client die with its connection; the forkserver ends with its manager or when it was idle
for long; all its folders go with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from . import UNUSABLE, VERSION, Unusable, absent, child, chunks, proc, scratch
from .layout import opened
from .process import NOTHING_LEFT, TaskProcess

if TYPE_CHECKING:
    import resource

    from .sandbox import Sandbox

__all__ = ["main"]

_WATCH_S = 0.05
_IDLE_LOOK_S = 1.0
# so long after the end of a task its worker is told of it once more: it may miss the kernel's word,
# and would look seconds later
_REMIND_S = (0.05, 0.5)
# so long what was killed may take to end
_LAST_S = 2.0

_PEER = struct.Struct("iii")
# of what a task says it has imported
_MOST_TOLD = 1 << 20

_NO_SANDBOX: dict[str, Any] = {"kind": "none", "why": "", "cvmfs": {}, "notices": []}


class _Client:
    """One connection: a run of the manager."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def requests(self) -> list[dict[str, Any]] | None:
        """Return what has arrived, or None when the connection is closed."""
        try:
            data = self.socket.recv(1 << 20)
        except OSError:
            return None
        if not data:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]


class _Forkserver:
    def __init__(self, settings: dict[str, Any], sandbox: Sandbox | None) -> None:
        self.settings = settings
        self.told = _NO_SANDBOX if sandbox is None else sandbox.told()
        self.nursery = None if sandbox is None else sandbox.nursery
        # processes of ours that are no tasks
        self.helpers: set[int] = set() if sandbox is None else sandbox.helpers
        self.root: str = settings["dir"]
        self.tasks: dict[int, TaskProcess[_Client]] = {}
        self.selector = selectors.DefaultSelector()
        self.listener = scratch.listen(self.root, settings.get("listener"))
        self.wakeup, wakeup_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(self.wakeup, selectors.EVENT_READ, self._woken)
        if not settings.get("since"):
            # the manager holds the other end of our standard input for as long as it lives
            self.selector.register(0, selectors.EVENT_READ, self._manager_gone)
        self.clients = 0
        self.remind_at_s: list[float] = []
        self.has_local_code = False
        self.busy_until = time.monotonic()
        self.over = False
        self.to_preload: list[str] = list(settings["preload"])

    def serve(self) -> None:
        self._preload()
        while not self.over:
            timeout = _WATCH_S if self.tasks or self.remind_at_s else _IDLE_LOOK_S
            for key, _ in self.selector.select(timeout):
                key.data(key.fileobj)
            self._look_after_tasks()
            if self.to_preload and not self.tasks:
                self._preload()
            self._remind_worker()
            self._end_if_unneeded()

    def close(self) -> None:
        """Kill what still runs and remove every folder that is ours or was our manager's."""
        # who comes now is to find nobody, not somebody who goes
        self.listener.close()
        for task in self.tasks.values():
            task.kill("cancelled")
        _kill_strays(set())
        for pid, task in self.tasks.items():
            # what is not gone could still write
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            if task.cell is not None:
                task.cell.close()
        if self.nursery is not None:
            self.nursery.close()
        _end_children()
        shutil.rmtree(self.root, ignore_errors=True)
        scratch.sweep(os.path.dirname(self.root))

    def _preload(self) -> None:
        names, self.to_preload = self.to_preload, []
        # what is imported stays: to look for garbage meanwhile costs a tenth of the time
        gc.disable()
        for name in names:
            # a module that cannot be imported here is the task's business, with its traceback
            with contextlib.suppress(BaseException):
                importlib.import_module(name)
        gc.enable()
        gc.collect()
        gc.freeze()
        self.busy_until = time.monotonic()
        # an installed package may have imported an editable one, whose edits we would not see
        self.has_local_code = any(map(_is_local, list(sys.modules)))

    def _accept(self, _: object) -> None:
        connection, _address = self.listener.accept()
        if self.nursery is not None and _is_task(connection):
            connection.close()
            return
        client = _Client(connection)
        self.clients += 1
        self.selector.register(connection, selectors.EVENT_READ, lambda _: self._serve(client))
        client.send({"ev": "ready", "pid": os.getpid(), "interposer": self.told, **_versions()})

    def _serve(self, client: _Client) -> None:
        requests = client.requests()
        if requests is None:
            self.selector.unregister(client.socket)
            client.socket.close()
            self.clients -= 1
            if self.settings.get("since"):
                self.remind_at_s = [time.monotonic() + one for one in _REMIND_S]
            if self.has_local_code and not self.clients:
                self.over = True
            for task in self.tasks.values():
                if task.client is client:
                    task.kill("cancelled")
            return
        for request in requests:
            if request["op"] == "run":
                self._run(client, request)
            else:
                for task in self.tasks.values():
                    if task.id == request["id"]:
                        task.kill("cancelled")

    def _run(self, client: _Client, request: dict[str, Any]) -> None:
        if self.to_preload:
            self._preload()
        cell = None
        try:
            if self.nursery is not None:
                shown = child.seen(request)
                cell = self.nursery.cell(request["dir"], shown, request["memory_mb"])
            pid = os.fork() if cell is None else cell.fork()
        except Exception as error:
            if cell is not None:
                cell.close()
            client.send(_not_begun(request, f"it cannot be started: {error}"))
            return
        if pid == 0:
            code = 1
            try:
                self.selector.close()
                child.become_task(request, self.settings["pid"], cell)
                chunks.run_task(request["dir"])
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                child.leave(code)
        self.tasks[pid] = TaskProcess(pid, client, request, cell)
        if self.nursery is not None:
            self.nursery.prepare()

    def _look_after_tasks(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            task = self.tasks.pop(pid, None)
            if task is not None:
                self._reap(task, os.waitstatus_to_exitcode(status), used)
            elif pid in self.helpers:
                sys.stderr.write("a process that the sandboxes of tasks need was killed\n")
                self.over = True
        for task in self.tasks.values():
            task.watch()
        _kill_strays(set(self.tasks) | self.helpers)

    def _reap(self, task: TaskProcess[_Client], code: int, used: resource.struct_rusage) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(task.pid, signal.SIGKILL)
        self.to_preload += _imported(task.dir)
        task.client.send(task.ended(code, used))

    def _remind_worker(self) -> None:
        if self.remind_at_s and time.monotonic() >= self.remind_at_s[0]:
            del self.remind_at_s[0]
            if not self._is_orphan():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.settings["manager_pid"], signal.SIGCHLD)

    def _end_if_unneeded(self) -> None:
        if self.clients:
            self.busy_until = time.monotonic()
        idle_s = time.monotonic() - self.busy_until
        if self._is_orphan() or idle_s > self.settings["idle_s"]:
            self.over = True

    def _is_orphan(self) -> bool:
        manager, since = self.settings["manager_pid"], self.settings.get("since")
        if not since:
            return bool(os.getppid() != manager)
        # whoever has started us is gone; a worker that is told to leave its manager empties its
        # workspace and goes on
        return proc.since(manager) != since or not os.path.exists(os.path.join(self.root, "s"))

    def _woken(self, _: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 4096)

    def _manager_gone(self, _: object) -> None:
        self.over = True

    def end(self, *_: object) -> None:
        """Stop serving, from a signal handler."""
        self.over = True


def main(settings_path: str) -> None:
    """Serve until the manager is gone or nobody needs this any more."""
    with open(settings_path, encoding="utf-8") as stream:
        settings = json.load(stream)
    settings["pid"] = os.getpid()
    sandbox = _sandbox(settings)
    # a packed interpreter knows its own
    if settings.get("sys_path") is not None:
        sys.path[:] = settings["sys_path"]
    sys.path += settings.get("more_path", ())
    absent.watch(settings.get("known", ()))
    in_use = scratch.hold_environment(sys.prefix)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    proc.adopt_orphans()
    server = _Forkserver(settings, sandbox)
    signal.signal(signal.SIGTERM, server.end)
    try:
        server.serve()
    finally:
        # a forked task never comes here: it leaves by os._exit
        server.close()
        if in_use >= 0:
            os.close(in_use)


def _sandbox(settings: dict[str, Any]) -> Sandbox | None:
    """Return what tasks are to run in; may start this program anew."""
    if not settings.get("interposer"):
        return None
    # what it imports is of no use to others
    from .sandbox import arrange

    try:
        return arrange(settings)
    except Unusable as error:
        sys.stderr.write(str(error))
        sys.exit(UNUSABLE)


def _is_task(connection: socket.socket) -> bool:
    """Return whether a client is in a cell, to whom the socket was shown with what is around it.

    What it asks for would be done by this process, which can reach more.
    """
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, _, _ = _PEER.unpack(told)
    # 0: further outside than this process; one that has ended may have been anywhere
    return pid != 0 and proc.depth(pid) != proc.depth(os.getpid())


def _imported(folder: str) -> list[str]:
    """Return the modules that a task says it has imported; what it says otherwise is ignored."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(opened(folder, "modules", os.O_RDONLY), encoding="utf-8") as stream:
            told = json.loads(stream.read(_MOST_TOLD))
        return [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
    return []


def _not_begun(request: dict[str, Any], why: str) -> dict[str, Any]:
    ended = {"ev": "ended", "id": request["id"], "status": "died", "detail": why}
    return {**ended, "wall_s": 0.0, "cpu_s": 0.0, "memory_mb": 0.0, "left": NOTHING_LEFT}


def _versions() -> dict[str, str]:
    """Return what the manager compares with its own before it sends a task."""
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    except (OSError, ValueError):
        glibc = ""
    python = sys.version.split()[0]
    return {"hepscale": VERSION, "python": python, "glibc": glibc, "prefix": sys.prefix}


def _kill_strays(tasks: set[int]) -> None:
    """Kill what a task left behind: its orphans become our children."""
    for pid in proc.children(os.getpid()):
        if pid not in tasks:
            with contextlib.suppress(OSError):
                if os.getsid(pid) not in tasks:
                    os.kill(pid, signal.SIGKILL)


def _end_children() -> None:
    """Wait until nothing of ours runs, for a while: what is left then ends as this process does."""
    end_s = time.monotonic() + _LAST_S
    while time.monotonic() < end_s:
        # what they leave becomes ours
        _kill_strays(set())
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _is_local(name: str) -> bool:
    """Return whether a module is the user's, which may be another one in the next run."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None or not spec.has_location or chunks.is_installed(name):
        return False
    return not spec.origin.startswith(os.path.dirname(__file__) + os.sep)
