"""Repositories of CVMFS below ``/cvmfs``: by the machine, by its own client, or by ours.

In this order, unless one way is asked for. What is not mounted yet is mounted in the world of a
forkserver (`world`), where that is allowed to any user, and goes with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

from . import Unusable, clients, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Provided", "names", "provide", "rehearse"]

_TOP = "/cvmfs"
_BEGUN, _TRIED = "/hepscale/cvmfs", "/hepscale/cvmfs-tried"
_DEVICE = "/dev/fuse"
_ONLY_TASKS = "it is only asked for what tasks need"
_FLAGS = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV


class Provided:
    """How repositories came to be below ``/cvmfs``.

    Attributes
    ----------
    ways
        "mounted" by the machine, "cvmfs2", its client (`clients`), or "client", ours; by
        repository.
    notices
        What is to be said of them.
    processes
        What serves them.
    """

    def __init__(self, told: dict[str, Any] | None = None) -> None:
        told = told or {}
        self.ways: dict[str, str] = told.get("ways", {})
        self.notices: list[str] = told.get("notices", [])
        self.processes: set[int] = set(told.get("processes", ()))

    def told(self) -> dict[str, Any]:
        """Return all of it for another program, which makes another of these from it."""
        return {**vars(self), "processes": sorted(self.processes)}


def names(cvmfs: dict[str, Any] | None) -> list[str]:
    """Return the repositories that settings name."""
    return [one["name"] for one in (cvmfs or {}).get("repositories", ())]


def provide(
    cvmfs: dict[str, Any] | None, *, folder: str = "", why_not: str | None = None
) -> Provided:
    """See to it that repositories are below ``/cvmfs``.

    Parameters
    ----------
    cvmfs
        The settings of CVMFS.
    folder
        For the files of the machine's own client; empty: it is not used.
    why_not
        Why this process can mount nothing; None: it can.

    Raises
    ------
    Unusable
        One of them cannot be had.
    """
    found, how = Provided(), (cvmfs or {}).get("how", "auto")
    missing = missing_of(cvmfs)
    found.ways = dict.fromkeys((one for one in names(cvmfs) if one not in missing), "mounted")
    if not missing:
        return found
    if how == "mounted" or why_not is not None:
        raise _absent(missing[0], why_not or "")
    assert cvmfs is not None
    _make_room(missing)
    theirs = clients.find(folder) if folder and how in ("auto", clients.PROGRAM) else None
    for one in cvmfs["repositories"]:
        name = one["name"]
        if name not in missing:
            continue
        why = clients.NONE if folder else _ONLY_TASKS
        if theirs:
            why = _run_theirs(theirs, one, cvmfs, folder, found)
        if not why:
            found.ways[name] = clients.PROGRAM
        elif how == clients.PROGRAM:
            raise _without_theirs(name, why)
        else:
            _run_ours(cvmfs, name, found)
            found.ways[name] = "client"
            if theirs:
                found.notices.append(f"{name}: not mounted by {theirs.program}: {why}")
    return found


def rehearse(cvmfs: dict[str, Any] | None) -> None:
    """Try to mount a file system that nobody serves, where repositories have to be mounted.

    Raises
    ------
    OSError
        This process may not, or there is no FUSE.
    """
    if not missing_of(cvmfs) or (cvmfs or {}).get("how") == "mounted":
        return
    os.mkdir(_TRIED)
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        syscalls.mount("hepscale", _TRIED, "fuse", _FLAGS, _options(device))
        syscalls.unmount(_TRIED)
    finally:
        os.close(device)


def missing_of(cvmfs: dict[str, Any] | None) -> list[str]:
    """Return the repositories that the machine has not mounted, or is not wanted to have."""
    how = (cvmfs or {}).get("how", "auto")
    return [one for one in names(cvmfs) if how not in ("auto", "mounted") or not _is_mounted(one)]


def _is_mounted(name: str) -> bool:
    # one that the machine mounts on demand shows when it is looked into
    with contextlib.suppress(OSError):
        return bool(os.listdir(f"{_TOP}/{name}"))
    return False


def _absent(name: str, why: str) -> Unusable:
    return Unusable(
        f"The repository {name} is not there.",
        f"{_TOP}/{name} on {os.uname().nodename}" + (f": {why}" if why else ""),
        "this machine has not mounted it, and nothing else was asked for or could be done",
        'HepScaleExecutor(interposer="userns") mounts it, on workers that allow user namespaces',
    )


def _make_room(missing: list[str]) -> None:
    """Make room below ``/cvmfs``, which may be the machine's own, for more repositories."""
    os.mkdir(_BEGUN)
    for name in {*os.listdir(_TOP), *missing}:
        there = f"{_TOP}/{name}"
        if name in missing:
            os.mkdir(f"{_BEGUN}/{name}")
        elif os.path.isdir(there):
            os.mkdir(f"{_BEGUN}/{name}")
            syscalls.bind(there, f"{_BEGUN}/{name}")
    syscalls.bind(_BEGUN, _TOP)


# -- our client ------------------------------------------------------------------------------------


def _options(device: int) -> str:
    uid, gid = os.getuid(), os.getgid()
    return f"fd={device},rootmode=40000,user_id={uid},group_id={gid},allow_other"


def _run_ours(cvmfs: dict[str, Any], name: str, found: Provided) -> None:
    """Start what serves a repository, and mount it once it has been opened.

    Raises
    ------
    Unusable
        It cannot be opened, or there is no FUSE here.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    # a file would stay if this process were killed
    command = [sys.executable, "-I", "-S", package, "--cvmfs", "/proc/self/fd/0", name]
    server = None
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_fuse(name, error) from None
    try:
        server = subprocess.Popen(
            [*command, str(device)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(device,),
        )
        assert server.stdin is not None
        assert server.stdout is not None
        # one that has ended says why, or that it was killed
        with contextlib.suppress(BrokenPipeError), server.stdin as stream:
            stream.write(json.dumps(cvmfs).encode())
        with server.stdout as stream:
            told = json.loads(stream.readline() or "{}")
        if not told.get("ok"):
            server.wait()
            raise _unopened(name, told)
        syscalls.mount("hepscale", f"{_TOP}/{name}", "fuse", _FLAGS, _options(device))
    except OSError as error:
        if server is not None:
            server.kill()
            server.wait()
        raise _no_fuse(name, error) from None
    finally:
        # or nobody would notice the end of the server
        os.close(device)
    found.processes.add(server.pid)
    if told.get("notice"):
        found.notices.append(f"{name}: {told['notice']}")


def _unopened(name: str, told: dict[str, Any]) -> Unusable:
    return Unusable(
        told.get("fact") or f"The client of the repository {name} has ended before it was open.",
        f"{told.get('item', '')} ({name}, on {os.uname().nodename})".strip(),
        told.get("cause") or "it was killed, by a limit of memory or of processes perhaps",
        told.get("fix") or f"hepscale cvmfs ls {name} /",
    )


def _no_fuse(name: str, error: OSError) -> Unusable:
    return Unusable(
        f"The repository {name} cannot be mounted on {os.uname().nodename}.",
        f"{_TOP}/{name}: {error}",
        "there is no /dev/fuse on this machine, or it is not for all users",
        "ls -l /dev/fuse there; or ask for workers that have /cvmfs",
    )


# -- the node's client -----------------------------------------------------------------------------


def _run_theirs(
    client: clients.Client, one: dict[str, Any], cvmfs: dict[str, Any], folder: str, found: Provided
) -> str:
    """Mount a repository by the client that the machine has; return why it did not, or nothing."""
    try:
        process, notice = client.mount(one, cvmfs, folder, f"{_TOP}/{one['name']}")
    except clients.Refused as refused:
        return str(refused)
    found.processes.add(process.pid)
    if notice:
        found.notices.append(f"{one['name']}: {notice}")
    return ""


def _without_theirs(name: str, why: str) -> Unusable:
    return Unusable(
        f"The repository {name} cannot be mounted by {clients.PROGRAM} on {os.uname().nodename}.",
        why,
        "the client of CVMFS is not installed there, or found no server",
        'CvmfsConfig(how="client") takes the client that HepScale brings',
    )
