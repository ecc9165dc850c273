"""Makes cells: the nursery, a small process, and process 1 of each cell, which is a copy of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat

from . import proc, syscalls
from .cells import Cell, CellError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, NoReturn

__all__ = ["CELL", "Nursery"]

# where the root of a task is put together
CELL = "/hepscale/cell"
_QUIET = syscalls.MS_NOSUID | syscalls.MS_NODEV
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
# one file system for all of them, so that one size holds
_SCRATCH = {"tmp": "/tmp", "var": "/var/tmp", "shm": "/dev/shm"}
_ALL_SCRATCH = f"{CELL}/.hepscale-private"
# of the memory that a task may use, what it may fill there
_SCRATCH_SHARE, _LEAST_SCRATCH_MB = 0.5, 16
# empty ones take memory too, which nothing counts: the kernel's own ratio
_FILES_PER_MB = 256
# what a task writes besides its own files
_OUTPUTS = ("frames", "modules")
_MOST_COUNTED = 100_000
_END_S = 10.0


class Nursery:
    """Makes cells; to be started while the forkserver is small.

    Parameters
    ----------
    shown
        Pairs of a path as tasks see it, and where it was made ready.
    links
        Names at the top that are symbolic links, and where they lead.
    network
        Whether tasks have the network of the worker.
    writes
        "folder": a task may write all of its folder; "outputs": only what it has to.
    """

    def __init__(
        self,
        shown: list[tuple[str, str]],
        links: dict[str, str],
        *,
        network: bool,
        writes: str,
    ) -> None:
        # a folder before what is shown in it
        self._shown = sorted(shown, key=lambda one: one[0].count("/"))
        self._links = links
        self._network, self._writes = network, writes
        self._spare: socket.socket | None = None
        self._channel, inner = socket.socketpair()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _alone(inner, parent)
                self._serve()
            finally:
                # never back into the forkserver's program
                os._exit(1)
        inner.close()

    def cell(self, folder: str, shown: Iterable[str], memory_mb: float | None) -> Cell:
        """Make a cell for the task of a folder, which sees the files and folders `shown`.

        Raises
        ------
        CellError
            It cannot be made.
        """
        told = {"folder": folder, "shown": [*shown], "memory_mb": memory_mb}
        spare, self._spare = self._spare, None
        if spare is not None:
            # somebody may have killed it
            with contextlib.suppress(CellError):
                return self._finished(spare, told)
        return self._finished(self._begun(), told)

    def prepare(self) -> None:
        """Begin the next cell, so that a task finds it almost ready."""
        if self._spare is None:
            with contextlib.suppress(CellError):
                self._spare = self._begun()

    def _begun(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._channel, [b"c"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise CellError(str(error)) from None
        return ours

    def _finished(self, begun: socket.socket, told: dict[str, Any]) -> Cell:
        said: dict[str, Any] = {}
        try:
            begun.settimeout(_END_S)
            begun.sendall(json.dumps(told).encode() + b"\n")
            # its number is known to one process, and that it is ready to another
            with begun.makefile("r") as stream:
                while not ("pid" in said and "ready" in said):
                    said |= json.loads(stream.readline() or '{"error": "it ended at once"}')
                    if "error" in said:
                        raise CellError(said["error"])
            return Cell(said["pid"], begun, said["ready"], network=self._network)
        except (OSError, CellError) as error:
            begun.close()
            raise CellError(str(error)) from None

    def close(self) -> None:
        """End it; cells that are in use stay."""
        self._channel.close()
        if self._spare is not None:
            self._spare.close()

    def _serve(self) -> NoReturn:
        channel = socket.socket(fileno=3)
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            except OSError:
                os._exit(1)
            if not data:
                os._exit(0)
            try:
                pid = os.fork()
            except OSError:
                # too many processes: it is heard of by the connection that closes
                pid = -1
            if pid == 0:
                channel.close()
                self._make(socket.socket(fileno=descriptors[0]))
            os.close(descriptors[0])

    def _make(self, connection: socket.socket) -> NoReturn:
        try:
            flags = syscalls.NEW_MOUNTS | syscalls.NEW_PIDS | syscalls.NEW_IPC
            syscalls.unshare(flags | (0 if self._network else syscalls.NEW_NET))
            self._build()
            known, tell = os.pipe()
            pid = os.fork()
            if pid:
                _say(connection, pid=pid)
                os.write(tell, b"k")
            else:
                os.close(tell)
                # whoever was killed before it could tell the number has made a cell for nobody
                if os.read(known, 1):
                    self._live(connection)
        except BaseException as error:
            _say(connection, error=f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)

    def _live(self, connection: socket.socket) -> None:
        """Be process 1 of a cell, until nobody holds the other end of the connection."""
        flags = _QUIET | syscalls.MS_NOEXEC | syscalls.MS_RDONLY
        syscalls.mount("proc", f"{CELL}/proc", "proc", flags)
        if not self._network:
            syscalls.loopback_up()
        with connection.makefile("r") as stream:
            line = stream.readline()
        if not line:
            return
        self._fit(json.loads(line))
        syscalls.change_root(CELL)
        # not those in whose place something else is shown
        private = [one for one in _SCRATCH.values() if os.stat(one).st_dev == self._device]
        _say(connection, ready=private)
        with contextlib.suppress(OSError):
            while connection.recv(1):
                pass
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        files, size = _left(private, self._device)
        _say(connection, files=files, bytes=size)

    # -- putting a root together -------------------------------------------------------------------

    def _build(self) -> None:
        """Do what is the same for all tasks."""
        syscalls.mount("tmpfs", CELL, "tmpfs", _QUIET, "mode=755,size=16m")
        for name, target in self._links.items():
            os.symlink(target, f"{CELL}/{name}")
        os.mkdir(f"{CELL}/proc")
        _add_devices()
        self._device = _add_scratch()
        for path, ready in self._shown:
            _show(ready, path)

    def _fit(self, told: dict[str, Any]) -> None:
        """Do what one task needs, and make its root read-only."""
        if told["memory_mb"] is not None:
            size_mb = max(told["memory_mb"] * _SCRATCH_SHARE, _LEAST_SCRATCH_MB)
            flags = syscalls.MS_REMOUNT | _QUIET
            syscalls.mount(
                None,
                _ALL_SCRATCH,
                None,
                flags,
                f"size={size_mb:.0f}m,nr_inodes={size_mb * _FILES_PER_MB:.0f}",
            )
        syscalls.unmount(_ALL_SCRATCH)
        os.rmdir(_ALL_SCRATCH)
        folder = told["folder"]
        self._add_folder(folder)
        for path in told["shown"]:
            for place in _names(path):
                _show(path, place, writable=False)
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
        syscalls.mount(None, CELL, None, flags | _QUIET)

    def _add_folder(self, folder: str) -> None:
        outputs = []
        if self._writes == "outputs":
            outputs = [f"{folder}/{name}" for name in _OUTPUTS]
            for path in outputs:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            outputs.append(f"{folder}/tmp")
            os.makedirs(outputs[-1], exist_ok=True)
        for place in _names(folder):
            _show(folder, place, writable=not outputs)
        for path in outputs:
            for place in _names(path):
                _show(path, place)


def _alone(channel: socket.socket, parent: int) -> None:
    """Become the nursery: with one descriptor, and until the parent ends."""
    proc.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(channel.fileno(), 3)
    os.closerange(4, 65536)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    # nobody waits for cells: the kernel forgets them at once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    proc.adopt_orphans()


def _say(connection: socket.socket, **what: Any) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(what).encode() + b"\n")


def _names(path: str) -> Iterator[str]:
    """Yield the names that a path is known by: without and with symbolic links."""
    yield from dict.fromkeys((os.path.realpath(path), os.path.normpath(path)))


def _show(source: str, path: str, *, writable: bool = True) -> None:
    """Show something in the cell; what does not exist is left out."""
    try:
        is_folder = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError:
        return
    target = _place(path, is_folder=is_folder)
    if target is None:
        return
    syscalls.bind(source, target)
    if not writable:
        syscalls.read_only(target)


def _place(path: str, *, is_folder: bool) -> str | None:
    """Return where in the cell a path is mounted; None if it can be seen there already."""
    at = CELL
    *parents, name = path.strip("/").split("/")
    for part in parents:
        at = f"{at}/{part}"
        try:
            mode = os.lstat(at).st_mode
        except FileNotFoundError:
            # what a task wrote to it in a private folder would be lost without a word
            os.mkdir(at, 0o555)
        else:
            if stat.S_ISLNK(mode):
                # to where it is shown by its other name
                return None
    at = f"{at}/{name}"
    if os.path.islink(at):
        return None
    if not os.path.exists(at):
        if is_folder:
            os.mkdir(at)
        else:
            os.close(os.open(at, os.O_WRONLY | os.O_CREAT, 0o644))
    return at


def _add_devices() -> None:
    os.makedirs(f"{CELL}/dev/shm")
    for name in DEVICES:
        # they can be written to all the same; root would change their permissions
        _show(f"/dev/{name}", f"/dev/{name}", writable=False)
    for name, target in _LINKS.items():
        os.symlink(f"/proc/self/{target}", f"{CELL}/dev/{name}")


def _add_scratch() -> int:
    """Make the private folders; return the device that they are on."""
    top = _ALL_SCRATCH
    os.mkdir(top)
    syscalls.mount("tmpfs", top, "tmpfs", _QUIET, "mode=755")
    for name, path in _SCRATCH.items():
        os.mkdir(f"{top}/{name}")
        os.chmod(f"{top}/{name}", 0o1777)
        os.makedirs(f"{CELL}{path}", exist_ok=True)
        syscalls.bind(f"{top}/{name}", f"{CELL}{path}")
    return os.stat(top).st_dev


def _left(private: list[str], device: int) -> tuple[int, int]:
    """Return number and size of the files in the private folders."""
    files = size = 0
    waiting = [*private]
    while waiting and files < _MOST_COUNTED:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                # what is mounted there is not the task's
                if found.st_dev != device:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)
                else:
                    files, size = files + 1, size + found.st_size
    return files, size
