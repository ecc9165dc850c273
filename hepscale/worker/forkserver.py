"""The warm interpreter of a worker: imports what the analysis imports, forks one child per task.

It is started with its folder, the process that it belongs to (its parent, or one that is known by
when it began), and the modules to import first; in
an environment that is not whole also with the names of those that it lacks (`absent`). A client
connects to the socket ``s`` in its folder and sends one JSON object a line::

    {"op": "run", "id": ..., "dir": ..., "memory_mb": ... or null, "environ": PATH}
    {"op": "kill", "id": ...}

and receives ``{"ev": "ready", "pid": ..., "hepscale": ..., "python": ..., "glibc": ..., "prefix":
...}`` once, then for each task ``{"ev": "ended", "id": ..., "status": "done" | "died" | "memory" |
"cancelled", "detail": ..., "cpu_s": ..., "wall_s": ..., "memory_mb": ...}``. The tasks of a client
die with its connection; the forkserver ends with its manager or when it was idle for long; all its
folders go with it.
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
import sys
import time
from typing import TYPE_CHECKING, Any

from . import VERSION, absent, child, chunks, proc, scratch

if TYPE_CHECKING:
    import resource

__all__ = ["main"]

_WATCH_S = 0.05
_IDLE_LOOK_S = 1.0
# so long after the end of a task its worker is told of it once more: it may miss the kernel's word,
# and would look seconds later
_REMIND_S = (0.05, 0.5)
# more of what a task prints is not kept
_MOST_OUTPUT_BYTES = 1_000_000
# a task that fails with less room than this on its disk fails for want of it
_LEAST_ROOM_BYTES = 1 << 16


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


class _TaskProcess:
    """The child that runs one task."""

    def __init__(self, pid: int, client: _Client, request: dict[str, Any]) -> None:
        self.pid = pid
        self.client = client
        self.id: str = request["id"]
        self.dir: str = request["dir"]
        self.memory_mb: float | None = request["memory_mb"]
        self.started = time.monotonic()
        # what is imported before a task begins counts as its own
        self.begun_mb = proc.rss_mb(os.getpid())
        self.peak_mb = 0.0
        self.stopped, self.detail = "", ""

    def kill(self, why: str) -> None:
        self.stopped = self.stopped or why
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def watch(self) -> None:
        family = proc.family(self.pid)
        used_mb = sum(map(proc.rss_mb, family))
        if len(family) > 1 and self.memory_mb is not None and used_mb > self.memory_mb:
            # pages that processes share are there once; to find out takes longer
            used_mb = sum(map(proc.pss_mb, family))
        self.peak_mb = max(self.peak_mb, used_mb)
        if self.memory_mb is not None and used_mb > self.memory_mb:
            self.kill("memory")
            self.detail = f"it had {used_mb:.0f} MB, {self.begun_mb:.0f} MB of that from the start"
        for name in ("stdout", "stderr"):
            _cut_output(os.path.join(self.dir, name))

    def ended(self, code: int, used: resource.struct_rusage) -> dict[str, Any]:
        self.peak_mb = max(self.peak_mb, used.ru_maxrss / 1e3)
        status, detail = "done", self.detail
        if self.stopped:
            status = self.stopped
        elif code:
            status = "died"
            detail = f"exit code {code}" if code > 0 else f"signal {-code} ({_signal_name(-code)})"
            if code > 0 and _is_full(self.dir):
                detail += ", its folder is full"
        return {
            "ev": "ended",
            "id": self.id,
            "status": status,
            "detail": detail,
            "wall_s": time.monotonic() - self.started,
            "cpu_s": used.ru_utime + used.ru_stime,
            "memory_mb": self.peak_mb,
        }


class _Forkserver:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.root: str = settings["dir"]
        self.tasks: dict[int, _TaskProcess] = {}
        self.selector = selectors.DefaultSelector()
        self.listener = _listen(self.root)
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
        for task in self.tasks.values():
            task.kill("cancelled")
        _kill_strays(set())
        for pid in self.tasks:
            # what is not gone could still write
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
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
        client = _Client(connection)
        self.clients += 1
        self.selector.register(connection, selectors.EVENT_READ, lambda _: self._serve(client))
        client.send({"ev": "ready", "pid": os.getpid(), **_versions()})

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
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.selector.close()
                child.become_task(request, self.settings["pid"])
                chunks.run_task(request["dir"])
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                child.leave(code)
        self.tasks[pid] = _TaskProcess(pid, client, request)

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
        for task in self.tasks.values():
            task.watch()
        _kill_strays(set(self.tasks))

    def _reap(self, task: _TaskProcess, code: int, used: resource.struct_rusage) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(task.pid, signal.SIGKILL)
        modules = os.path.join(task.dir, "modules")
        with contextlib.suppress(OSError, ValueError), open(modules, encoding="utf-8") as stream:
            self.to_preload += json.load(stream)
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
    # a packed interpreter knows its own
    if settings.get("sys_path") is not None:
        sys.path[:] = settings["sys_path"]
    sys.path += settings.get("more_path", ())
    absent.watch(settings.get("known", ()))
    in_use = scratch.hold_environment(sys.prefix)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    proc.adopt_orphans()
    server = _Forkserver(settings)
    signal.signal(signal.SIGTERM, server.end)
    try:
        server.serve()
    finally:
        # a forked task never comes here: it leaves by os._exit
        server.close()
        if in_use >= 0:
            os.close(in_use)


def _listen(folder: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    # by a relative name: the path of a socket may have 107 bytes only
    os.chdir(folder)
    listener.bind("s")
    os.chdir(here)
    listener.listen(64)
    return listener


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


def _is_local(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None or not spec.has_location or chunks.is_installed(name):
        return False
    return bool(os.path.dirname(spec.origin) != os.path.dirname(__file__))


def _is_full(folder: str) -> bool:
    with contextlib.suppress(OSError):
        there = os.statvfs(folder)
        return there.f_bavail * there.f_frsize < _LEAST_ROOM_BYTES
    return False


def _cut_output(path: str) -> None:
    with contextlib.suppress(OSError):
        if os.stat(path).st_size > _MOST_OUTPUT_BYTES:
            with open(path, "r+b") as stream:
                stream.truncate(0)
                stream.write(b"[more output than is kept was dropped here]\n")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
