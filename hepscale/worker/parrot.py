"""Parrot, where a machine has it and it works: it shows its processes what it is told to.

All tasks of a forkserver run under one Parrot, so they share its private ``/tmp``, and see each
other's folders. What is not shown is not there: a mount list of Parrot counts from its end on.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from . import clients, proc, repositories, scratch, world
from .cvmfs import own_folder
from .nursery import DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = ["command", "end_with_child", "find", "served", "why_not"]

_PROGRAM = "parrot_run"
_PROBE_S = 20.0
# to look into repositories, from servers that may have to be given up first
_REPOSITORIES_S = 60.0
# how often it is looked whether its first process lives, also until it has begun; how long that may
# take, and how long it may outlive it
_LOOK_S, _FIRST_LOOK_S = 0.5, 0.02
_START_S, _LAST_S = 10.0, 2.0
_MOUNTS = "parrot-mounts"
_READY = "hepscale-parrot-works"
_PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")
_DEVICES = (*DEVICES, "ptmx", "pts", "fd", "stdin", "stdout", "stderr")


def find() -> str:
    """Return the path of ``parrot_run``; empty: there is none."""
    return shutil.which(_PROGRAM) or ""


def served(cvmfs: dict[str, Any] | None) -> list[str]:
    """Return the repositories that Parrot has to serve: the machine has not mounted them."""
    return repositories.missing_of(cvmfs)


def why_not(program: str, settings: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Run a dynamically linked program and an import as tasks would; return why it is no use.

    An import of a module written in C: it has to load a library. Parameters as of `command`.
    """
    if not program:
        return f"there is no {_PROGRAM} on the PATH of this machine"
    why = _beyond_it(settings, wanted)
    if why:
        return why
    names = served(settings.get("cvmfs"))
    if names and _said([program, "--check-driver", "cvmfs"], os.environ, "enabled"):
        return f"{program} was built without CVMFS"
    begin, environ = command(program, settings, wanted)
    code = f"import ctypes, os; [os.listdir('/cvmfs/' + one) for one in {names!r}]"
    tried = ["sh", "-c", f"echo {_READY}"]
    for one in (tried, [sys.executable, "-I", "-S", "-c", f"{code}; print({_READY!r})"]):
        allowed_s = _PROBE_S if one is tried or not names else _REPOSITORIES_S
        why = _said([*begin, *one], {**os.environ, **environ}, _READY, allowed_s)
        if why:
            return f"{program}: {one[0]} {why}"
    return ""


def _beyond_it(settings: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return what is asked of Parrot that it cannot do."""
    cvmfs = settings.get("cvmfs") or {}
    names = served(cvmfs)
    if not wanted.get("network", True) or wanted.get("writes", "folder") != "folder":
        return "Parrot neither cuts the network nor keeps a task from writing in its own folder"
    if names and cvmfs.get("how", "auto") not in ("auto", "parrot"):
        return f"under Parrot {names[0]} can come from Parrot only"
    for one in cvmfs.get("repositories", ()):
        if one["name"] in names and (one.get("root_hash") or one.get("tag")):
            return f"Parrot cannot pin a revision of {one['name']}"
    odd = [path for path, _ in _shown(settings, wanted) if re.search(r"\s", path)]
    return f"Parrot cannot be told of {odd[0]!r}: a space is in it" if odd else ""


def _said(command: list[str], environ: Any, expected: str, allowed_s: float = _PROBE_S) -> str:
    """Run a command; return why its output does not end in what is expected, or nothing."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        return f"does not start under it: {error.strerror}"
    # its end is waited for, and not that of its output, which somebody else may hold
    with process:
        try:
            output, errors = process.communicate(timeout=allowed_s)
        except subprocess.TimeoutExpired:
            return f"hangs under it: it was not there after {allowed_s:.0f} s"
        finally:
            # with what it runs
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if output.decode(errors="replace").strip().endswith(expected) and not process.returncode:
        return ""
    lines = dict.fromkeys(errors.decode(errors="replace").rstrip().splitlines())
    # of kernels and system calls that it does not know it says that each time; what is indented
    # are places in our code
    said = [line for line in lines if line.strip() == line and " notice: " not in line]
    said = [line for line in said if not line.startswith("Traceback ")][-2:]
    reason = "; ".join(said) or f"exit code {process.returncode}"
    return f"does not run under it: {reason}"


def command(
    program: str, settings: dict[str, Any], wanted: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return the beginning of a command that runs the rest under Parrot, and its variables.

    Parameters
    ----------
    program
        ``parrot_run``.
    settings
        Of the forkserver: its folder ``dir``, ``since``, ``sys_path``, ``cvmfs``.
    wanted
        What its tasks may see: ``allow``.
    """
    folder = settings["dir"]
    private, own = os.path.join(folder, "parrot-tmp"), os.path.join(folder, "parrot-own")
    for one in (private, own):
        os.makedirs(one, mode=0o700, exist_ok=True)
    mounts = os.path.join(folder, _MOUNTS)
    with open(mounts, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.writelines(f"{line}\n" for line in _mounts(settings, private, wanted))
    # its own files go with the folder, and a terminal stays with whom it belongs to
    begin = [program, "--no-set-foreground", "-t", own, "-m", mounts]
    cvmfs = settings.get("cvmfs") or {}
    names = served(cvmfs)
    if not names:
        return [*begin, "--"], {}
    told = [
        _repository(one, cvmfs, folder) for one in cvmfs["repositories"] if one["name"] in names
    ]
    environ = {**cvmfs.get("variables", {}), "PARROT_CVMFS_REPO": " ".join(told)}
    alien = os.path.expandvars(cvmfs.get("alien_cache") or "")
    if not alien and cvmfs.get("cache"):
        # it opens to others the folder that it is given, and ours wants that to be private
        own = f"{own_folder(cvmfs)}/parrot"
        alien = own if clients.is_private(own) else ""
    if alien:
        environ["PARROT_CVMFS_ALIEN_CACHE"] = alien
    environ["HTTP_PROXY"] = cvmfs["proxies"]
    # 7.0 looks at the option only
    return [*begin, "-p", cvmfs["proxies"], "--"], environ


def end_with_child() -> None:
    """Have Parrot, which this process is about to become, end with its first process.

    It goes on for as long as anything runs under it, and what runs there cannot kill it: a process
    of its own does. With Parrot all ends that runs under it.
    """
    parrot = os.getpid()
    since = proc.since(parrot)
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            # locks among them
            os.closerange(0, 65536)
            _attend(parrot, since)
    finally:
        os._exit(0)


def _attend(parrot: int, since: str) -> None:
    until_s, look_s = time.monotonic() + _START_S, _FIRST_LOOK_S
    while proc.since(parrot) == since:
        if proc.children(parrot):
            until_s, look_s = time.monotonic() + _LAST_S, _LOOK_S
        elif time.monotonic() > until_s:
            os.kill(parrot, signal.SIGKILL)
        time.sleep(look_s)


# -- what is shown ---------------------------------------------------------------------------------


def _mounts(settings: dict[str, Any], private: str, wanted: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a mount list."""
    shown = dict(_shown(settings, wanted))
    yield "/ ENOENT"
    yield from (f"{path} {private}" for path in _PRIVATE)
    # above what is shown one may pass, and not look around; to remove a folder takes the right to
    # write in what it lies in
    above = dict.fromkeys(one for path in shown for one in _above(path))
    above = {path: "x" for path in above if not _inside(path, shown)}
    if (parent := os.path.dirname(settings["dir"])) in above:
        above[parent] = "wx"
    yield from (f"{_only(path)} LOCAL {rights}" for path, rights in above.items())
    yield f"{_only('/')} LOCAL rx"
    yield f"{world.ENVIRONMENT} {sys.prefix} rx"
    for path, rights in shown.items():
        is_its = path == "/cvmfs" and served(settings.get("cvmfs"))
        yield f"{path} {path if is_its else 'LOCAL'} {rights}"


def _shown(settings: dict[str, Any], wanted: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what tasks see, and what they may do there; what comes later counts first."""
    yield from ((f"/{name}", "rx") for name in world.SYSTEM if os.path.islink(f"/{name}"))
    yield from ((path, "rx") for path in world.visible(settings) if path != world.ENVIRONMENT)
    yield "/proc", "rwx"
    yield from ((f"/dev/{name}", "rwx") for name in _DEVICES)
    for path, writable in world.allowed(wanted):
        yield path, "rwx" if writable else "rx"
    folder = settings["dir"]
    parent = os.path.dirname(folder)
    if settings.get("since"):
        # of a worker: the folders of its tasks are beside ours
        yield os.path.dirname(parent), "rwx"
    else:
        # of runs: what they send to tasks
        yield f"{parent}/{scratch.prefix()}*", "rx"
        yield folder, "rwx"


def _above(path: str) -> Iterator[str]:
    while (path := os.path.dirname(path)) != "/":
        yield path


def _inside(path: str, shown: Iterable[str]) -> bool:
    return path in _PRIVATE or any(f"{path}/".startswith(f"{one}/") for one in shown)


def _only(path: str) -> str:
    """Return the pattern of a path that does not mean what is in it, too."""
    return re.sub(r"([*?[\\])", r"\\\1", path[:-1]) + "\\" + path[-1]


# -- CVMFS -----------------------------------------------------------------------------------------


def _repository(one: dict[str, Any], cvmfs: dict[str, Any], folder: str) -> str:
    """Return how Parrot is told of a repository: ``NAME:pubkey=...,url=...``."""
    keys = os.path.join(folder, "parrot-keys")
    options = {
        "pubkey": ":".join(clients.write_keys(one, keys)),
        "blacklist": clients.write_blacklist(one, keys),
        "url": ";".join(one["servers"]),
        "timeout": str(max(round(cvmfs["timeout_s"]), 1)),
        "timeout_direct": str(max(round(cvmfs["direct_timeout_s"]), 1)),
    }
    # libcvmfs takes a comma for the next option, Parrot a space for the next repository
    parts = (f"{key}=" + re.sub(r"([,\\])", r"\\\1", value) for key, value in options.items())
    return f"{one['name']}:" + re.sub(r"([\s*\\])", r"\\\1", ",".join(parts))
