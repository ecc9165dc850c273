"""Run a list of chunks in this process, merge their output, emit frames, trap everything.

Called in the child that the forkserver forked for one task. The task's folder holds ``task.json``
(the settings) and ``work`` (the pickled chunks), and receives ``frames`` and ``modules``.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from . import absent, proc
from .frames import Kind, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

__all__ = ["is_installed", "run_task"]

# streaming may cost a task one twentieth of its time
_STREAM_SHARE = 0.05
# and what it streams fills the manager's disk at no more than this rate
_STREAM_MB_S = 2.0
# output that waits for the next frame may hold this much memory
_PENDING_MB = 256.0
# they start threads or devices when imported, which a fork does not survive
_NEVER_PRELOAD = {"ROOT", "XRootD", "cupy", "dask", "distributed", "jax", "tensorflow", "torch"}
_LONGEST_MESSAGE = 10_000


class _Emitter:
    """Appends frames to the task's frame file."""

    def __init__(self, path: str, spec: dict[str, Any]) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._ids = {"task": spec["task"], "attempt": spec["attempt"]}
        self._level = spec["compression"]
        self._sequence = 0
        self._size = 0

    def emit(self, kind: Kind, payload: bytes = b"", /, **meta: Any) -> int:
        """Append a frame; return its size in bytes."""
        data = encode(kind, self._sequence, {**self._ids, **meta}, payload, self._level)
        view = memoryview(data)
        try:
            while view.nbytes:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._sequence += 1
        self._size += len(data)
        return len(data)


class _Pending:
    """The merged output of the chunks since the last frame."""

    def __init__(self, merge: Callable[..., Any]) -> None:
        self._merge = merge
        self.keys: list[str] = []
        self.entries: list[int] = []
        self.spent_s = 0.0
        self.read_bytes = 0
        self.output: Any = None
        self._owned = False

    def add(self, key: str, entries: int, cost: tuple[float, int], output: Any) -> None:
        if output is not None:
            if self.output is None:
                self.output = output
            elif self._owned:
                self.output = self._merge([output], self.output)
            else:
                # the first merge makes a new object: what a processor returned may be its own
                self.output = self._merge([self.output, output])
                self._owned = True
        self.keys.append(key)
        self.entries.append(entries)
        self.spent_s += cost[0]
        self.read_bytes += cost[1]

    def clear(self) -> None:
        self.keys, self.entries, self.spent_s, self.read_bytes = [], [], 0.0, 0
        self.output, self._owned = None, False


class _TaskStopped(Exception):
    """The rest of the task is handed back; ``why`` goes into the last frame."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Runner:
    def __init__(self, spec: dict[str, Any], payload: dict[str, Any], emitter: _Emitter) -> None:
        self.function = payload["function"]
        self.dumps = payload["dumps"]
        self.emitter = emitter
        self.pending = _Pending(payload["merge"])
        self.isolate = spec["isolate"]
        self.interval_s: float = spec["frame_interval_s"]
        self.pid = os.getpid()
        self.last_s = time.monotonic()
        self.frame_cost_s = 0.0
        self.frame_mb = 0.0
        self.rss_mb = proc.rss_mb(self.pid)
        self.clock = {"process": 0.0, "merge": 0.0, "stream": 0.0}

    def run(self, work: list[tuple[str, int, Any]]) -> None:
        for key, entries, item in work:
            self.emitter.emit(Kind.BEGIN, key=key)
            begun, read = time.monotonic(), proc.read_bytes()
            try:
                output = self.function(item)
            except BaseException as error:
                self._leave_if_forked()
                self._end_if_absent()
                self._failed(key, error)
                continue
            self._leave_if_forked()
            self._end_if_absent()
            spent_s = time.monotonic() - begun
            self.clock["process"] += spent_s
            self._keep(key, entries, (spent_s, proc.read_bytes() - read), output)
            if self._is_due():
                self.flush()
        self.flush()

    def _leave_if_forked(self) -> None:
        # a copy that the analysis forked and let run on must not report the chunk twice
        if os.getpid() != self.pid:
            os._exit(0)

    def _end_if_absent(self) -> None:
        # a chunk that went another way than in the whole environment must not count; that is not
        # seen by the exception, which the analysis may have swallowed
        if absent.missed():
            self.flush()
            raise _TaskStopped("absent")

    def _keep(self, key: str, entries: int, cost: tuple[float, int], output: Any) -> None:
        begun = time.monotonic()
        try:
            self.pending.add(key, entries, cost, output)
        except Exception as error:
            raise _TaskStopped("isolate") from error
        if absent.missed():
            raise _TaskStopped("absent")
        self.clock["merge"] += time.monotonic() - begun

    def _is_due(self) -> bool:
        if self.isolate or proc.rss_mb(self.pid) - self.rss_mb > _PENDING_MB:
            return True
        wait_s = max(
            self.interval_s, self.frame_cost_s / _STREAM_SHARE, self.frame_mb / _STREAM_MB_S
        )
        return time.monotonic() - self.last_s >= wait_s

    def flush(self) -> None:
        pending = self.pending
        if not pending.keys:
            return
        begun, known = time.monotonic(), absent.missed()
        try:
            payload = b"" if pending.output is None else self.dumps(pending.output)
        except Exception as error:
            if absent.missed() != known:
                raise _TaskStopped("absent") from error
            if len(pending.keys) > 1:
                raise _TaskStopped("isolate") from error
            self._failed(pending.keys[0], error, kind="output", path=_find_culprit(self, pending))
        else:
            if absent.missed() != known:
                raise _TaskStopped("absent")
            size = self.emitter.emit(
                Kind.OUTPUT,
                payload,
                chunks=pending.keys,
                entries=pending.entries,
                spent_s=pending.spent_s,
                read_bytes=pending.read_bytes,
            )
            self.frame_mb = size / 1e6
        pending.clear()
        self.last_s = time.monotonic()
        self.frame_cost_s = self.last_s - begun
        self.clock["stream"] += self.frame_cost_s
        self.rss_mb = proc.rss_mb(self.pid)

    def _failed(
        self, key: str, error: BaseException, kind: str = "exception", path: str = ""
    ) -> None:
        chain = list(_chain(error))
        if any(isinstance(one, MemoryError) for one in chain):
            kind = "memory"
        described = [_describe(one) for one in chain]
        picklable = [self._dump_exception(one) for one in chain]
        # what failed must not keep its arrays alive through the traceback
        del error, chain
        if kind == "memory":
            self.flush()
        payload = pickle.dumps(picklable)
        self.emitter.emit(Kind.FAILED, payload, key=key, kind=kind, exceptions=described, path=path)
        if kind == "memory":
            raise _TaskStopped("memory")

    def _dump_exception(self, error: BaseException) -> bytes | None:
        try:
            data: bytes = self.dumps(error)
            again = pickle.loads(data)
        except Exception:
            return None
        return data if isinstance(again, BaseException) else None


def run_task(folder: str) -> None:
    """Run the task whose folder is `folder` (an absolute path), and write its frames.

    What goes wrong becomes a frame.

    Raises
    ------
    OSError
        If frames cannot be written; the file then ends with a whole one.
    """
    started = time.monotonic()
    before = set(sys.modules)
    with open(os.path.join(folder, "task.json"), encoding="utf-8") as stream:
        spec = json.load(stream)
    emitter = _Emitter(os.path.join(folder, "frames"), spec)
    python, code = sys.version.split()[0], spec.get("code")
    emitter.emit(Kind.HELLO, pid=os.getpid(), python=python, code=code)
    absent.enter_task()
    stopped, clock = _work(spec, folder, emitter)
    _note_modules(folder, set(sys.modules) - before)
    told: dict[str, Any] = {"stopped": stopped}
    if missing := absent.missed():
        told = {"stopped": "absent", "missing": missing}
    wall_s = time.monotonic() - started
    emitter.emit(Kind.DONE, **told, wall_s=wall_s, cpu_s=_cpu_s(), clock=clock)


def _work(spec: dict[str, Any], folder: str, emitter: _Emitter) -> tuple[str, dict[str, float]]:
    """Load and run the chunks; return why the task stopped, if it did, and what took how long."""
    started = time.monotonic()
    try:
        with open(spec["payload"], "rb") as file:
            payload = pickle.load(file)
        with open(os.path.join(folder, "work"), "rb") as file:
            work = pickle.load(file)
        runner = _Runner(spec, payload, emitter)
    except BaseException as error:
        if not absent.missed():
            # neither function nor chunks could be loaded here: a fact about the task, not a chunk
            chain = [_describe(one) for one in _chain(error)]
            emitter.emit(Kind.FAILED, key="", kind="exception", exceptions=chain, path="")
        return "broken", {}
    stopped, load_s = "", time.monotonic() - started
    try:
        if not absent.missed():
            runner.run(work)
    except _TaskStopped as stop:
        stopped = stop.why
    except absent.ModuleAbsent:
        # while outputs were merged or pickled: what is not sent yet is not to be trusted
        stopped = "absent"
    return stopped, {"load": load_s, **runner.clock}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _describe(error: BaseException) -> dict[str, Any]:
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    kind = type(error)
    module = kind.__module__
    name = (
        kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"
    )
    return {
        "type": name,
        "message": message[:_LONGEST_MESSAGE],
        "frames": list(_frames(error.__traceback__)),
    }


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, int, str]]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename != __file__:
            yield code.co_filename, traceback.tb_lineno, code.co_name
        traceback = traceback.tb_next


def _find_culprit(runner: _Runner, pending: _Pending) -> str:
    """Return where in the output the object stands that cannot be pickled, as ``['a']['b']``."""
    path, value = "", pending.output
    while isinstance(value, dict):
        for key, part in value.items():
            try:
                runner.dumps(part)
            except Exception:
                path, value = f"{path}[{key!r}]", part
                break
        else:
            break
    return path


def _note_modules(folder: str, names: set[str]) -> None:
    """Write down what this task had to import and the forkserver may import for the next ones."""
    if any(name.partition(".")[0] in _NEVER_PRELOAD for name in names):
        return
    # in the order in which they were imported
    installed = [name for name in sys.modules if name in names and is_installed(name)]
    if installed:
        path = os.path.join(folder, "modules")
        # in place: in a sandbox it may be all that can be written; a part of it says nothing
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(installed, stream)


def is_installed(name: str) -> bool:
    """Whether a module that is imported belongs to the environment, not to the user."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    origin = getattr(spec, "origin", None) or ""
    stdlib = os.path.dirname(os.__file__)
    return (
        f"{os.sep}site-packages{os.sep}" in origin
        or f"{os.sep}dist-packages{os.sep}" in origin
        or origin.startswith((stdlib + os.sep, "/cvmfs/"))
    )


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
