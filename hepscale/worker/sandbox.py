"""The world of a forkserver: where its tasks find ``/cvmfs``, their environment and their roots.

A forkserver that has to run its tasks in a sandbox enters namespaces of its own before it imports
anything, and starts anew in them: there its root is a copy of the machine's, to which
``/hepscale/environment`` and repositories below ``/cvmfs`` are added, and from which it makes a
root for each task (`cells`). Its processes, network, and place among processes stay the machine's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import sys

from . import Unusable, bubblewrap, cells, parrot, repositories, scratch, syscalls, world

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from .nursery import Nursery

__all__ = ["Sandbox", "arrange", "reason", "tried", "way"]

# says to a forkserver that has started anew what it is in
_INSIDE = "HEPSCALE_WORLD"
_PROBE_S = 30.0
_ENDED = "the system ended what tried it"
# cause and fix where the sandbox that is asked for cannot be had
_ADVICE = {
    "userns": (
        "this machine, or the container that it is, does not let users have one",
        'HepScaleExecutor(interposer="auto") runs without one where there is none',
    ),
    "parrot": (
        "there is no Parrot for this system's C library and kernel, or it cannot do what is asked",
        'HepScaleExecutor(interposer="userns"), which needs no Parrot',
    ),
}


class Sandbox:
    """What the tasks of a forkserver run in.

    Attributes
    ----------
    kind
        "none", "userns" or "parrot".
    why
        Why it is not what was hoped for; empty: it is.
    repositories
        How each one came to be below ``/cvmfs``, see `repositories.Provided`, or "parrot".
    notices
        What is to be said of them.
    nursery
        Makes roots for tasks; None: they have that of the forkserver.
    """

    def __init__(self, kind: str = "none", why: str = "") -> None:
        self.kind, self.why = kind, why
        self.repositories: dict[str, str] = {}
        self.notices: list[str] = []
        self.nursery: Nursery | None = None
        # processes that are no tasks; without one of them there is no sandbox
        self.helpers: set[int] = set()

    def told(self) -> dict[str, Any]:
        """Return what a client is told."""
        told = {"kind": self.kind, "why": self.why, "cvmfs": self.repositories}
        return {**told, "notices": self.notices}

    def add(self, provided: repositories.Provided) -> None:
        """Take over repositories and the processes that serve them."""
        self.repositories, self.notices = provided.ways, provided.notices
        self.helpers |= provided.processes


def arrange(settings: dict[str, Any]) -> Sandbox:
    """Return what tasks run in; comes back only in the process that is to fork them.

    Parameters
    ----------
    settings
        Of the forkserver; of them ``interposer`` (``kind``, ``allow``, ``network``, ``writes``,
        ``parrot``), ``cvmfs`` and ``sys_path``. Without the first: nothing.

    Raises
    ------
    Unusable
        What is required cannot be had.
    """
    wanted = settings.get("interposer") or {"kind": "none"}
    inside = os.environ.pop(_INSIDE, None)
    if inside is not None:
        told = json.loads(inside)
        settings["prefix"] = told["prefix"]
        if not settings.get("since") and (told["kind"] == "parrot" or told["behind"]):
            # the parent is the program that has the number which was the forkserver's
            settings["manager_pid"] = os.getppid()
        if told["kind"] == "parrot":
            sandbox = Sandbox("parrot", told["why"])
            sandbox.repositories = told["cvmfs"]
            settings["listener"] = told["listener"]
            return sandbox
        return _prepared(settings, wanted, repositories.Provided(told["cvmfs"]))
    if wanted["kind"] == "none":
        return _nothing(settings)
    reasons = []
    if wanted["kind"] in ("auto", "userns"):
        begin, why = ([], "") if bubblewrap.is_behind() else way(settings)
        if begin:
            os.execv(begin[0], [*begin, sys.executable, *sys.orig_argv[1:]])
        if not why:
            _start_anew(settings)
        reasons.append(why)
    program = wanted.get("parrot") or parrot.find()
    if wanted["kind"] == "parrot" or (wanted["kind"] == "auto" and program):
        why = parrot.why_not(program, settings, wanted)
        if not why:
            _start_under_parrot(settings, wanted, program, "; ".join(reasons))
        reasons.append(why)
    if wanted["kind"] != "auto":
        raise Unusable(
            f"The sandbox {wanted['kind']!r} cannot be had on {os.uname().nodename}.",
            reasons[-1],
            *_ADVICE[wanted["kind"]],
        )
    return _nothing(settings, "; ".join(reasons))


def _nothing(settings: dict[str, Any], why: str = "") -> Sandbox:
    """Return that there is no sandbox; repositories are those that the machine has."""
    sandbox = Sandbox(why=why)
    sandbox.add(repositories.provide(settings.get("cvmfs"), why_not=why))
    return sandbox


def way(settings: dict[str, Any]) -> tuple[list[str], str]:
    """Try to make a sandbox of namespaces, without staying in it.

    Returns
    -------
    tuple
        The beginning of a command that has to run whoever is to make it, empty if that can be
        anybody; why it cannot be made, empty if it can.
    """
    why = tried(lambda: _rehearse(settings))
    begin = bubblewrap.door() if why else []
    if not begin:
        return [], why
    refused = bubblewrap.why_not(begin, settings)
    return ([], f"{why}; {refused}") if refused else (begin, "")


def tried(function: Callable[[], object]) -> str:
    """Call a function in a process of its own; return why it fails, or nothing."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            os.close(reading)
            function()
        except BaseException as error:
            text = reason(error)
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    try:
        waiter = select.poll()
        waiter.register(reading, select.POLLIN)
        if not waiter.poll(_PROBE_S * 1000):
            os.kill(pid, 9)
            return f"it was not there after {_PROBE_S:.0f} s"
        text = os.read(reading, 1 << 16).decode()
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    return text or ("; ".join([_ENDED, *_circumstances()]) if status else "")


# -- the world -------------------------------------------------------------------------------------


def _start_anew(settings: dict[str, Any]) -> NoReturn:
    """Execute this very program again, in a world of its own."""
    world.enter()
    # before: the loader looks once whether a folder of libraries is there
    provided = repositories.provide(settings.get("cvmfs"), folder=settings["dir"])
    syscalls.keep_privileges()
    python = sys.executable
    # a packed interpreter knows where it lies
    if settings.get("sys_path") is None and python.startswith(sys.prefix + os.sep):
        python = world.ENVIRONMENT + python[len(sys.prefix) :]
    # tasks reach it as /proc/self/exe, wherever it is shown to them
    program = os.path.realpath(python)
    syscalls.bind(program, program)
    syscalls.read_only(program)
    told = {
        "kind": "userns",
        "behind": bubblewrap.is_behind(),
        "prefix": sys.prefix,
        "cvmfs": provided.told(),
    }
    environ = {**os.environ, _INSIDE: json.dumps(told)}
    environ.pop(bubblewrap.BEHIND, None)
    os.execve(python, [python, *sys.orig_argv[1:]], environ)


def _start_under_parrot(
    settings: dict[str, Any], wanted: dict[str, Any], program: str, why: str
) -> NoReturn:
    command, environ = parrot.command(program, settings, wanted)
    cvmfs = settings.get("cvmfs")
    ways = dict.fromkeys(repositories.names(cvmfs), "mounted")
    ways |= dict.fromkeys(parrot.served(cvmfs), "parrot")
    listener = scratch.listen(settings["dir"]).detach()
    os.set_inheritable(listener, True)
    told = {
        "kind": "parrot",
        "why": why,
        "prefix": sys.prefix,
        "cvmfs": ways,
        "listener": listener,
    }
    command += [sys.executable, *sys.orig_argv[1:]]
    parrot.end_with_child()
    os.execve(program, command, {**os.environ, **environ, _INSIDE: json.dumps(told)})


# -- what tasks see of it --------------------------------------------------------------------------


def _prepared(
    settings: dict[str, Any], wanted: dict[str, Any], provided: repositories.Provided
) -> Sandbox:
    """Return the sandbox, in the world: with its repositories, and a nursery."""
    sandbox = Sandbox("userns")
    syscalls.keep_to_self()
    sandbox.add(provided)
    sandbox.nursery = world.start_nursery(settings, wanted)
    sandbox.nursery.prepare()
    sandbox.helpers.add(sandbox.nursery.pid)
    return sandbox


def _rehearse(settings: dict[str, Any]) -> None:
    wanted = settings.get("interposer") or {}
    world.enter()
    repositories.rehearse(settings.get("cvmfs"))
    nursery = world.start_nursery(settings, wanted)
    cell = nursery.cell(settings["dir"], (), None)
    pid = cell.fork()
    if pid == 0:
        code = 1
        try:
            cell.enter()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    cell.close()
    nursery.close()
    if status:
        raise cells.CellError("a process could not enter it")


# -- why not ---------------------------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """Return why there is no sandbox, as a person would say it."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.strerror:
        said = ": ".join(str(one) for one in (error.filename, error.strerror) if one)
    return "; ".join([said, *_circumstances(error)])


def _circumstances(error: BaseException | None = None) -> Iterator[str]:
    number = error.errno if isinstance(error, OSError) else None
    if _read("/proc/sys/user/max_user_namespaces") == "0" or number == errno.ENOSPC:
        yield "user namespaces are switched off (user.max_user_namespaces), or used up"
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        yield "user namespaces are switched off (kernel.unprivileged_userns_clone)"
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        yield "AppArmor refuses them (kernel.apparmor_restrict_unprivileged_userns)"
    if "\nSeccomp:\t2" in _read("/proc/self/status"):
        yield "a seccomp filter is in force, as in containers"
    if "proc" in str(error) and "mount" in str(error):
        yield "a part of /proc is covered here, as in containers"
    if number == errno.EPERM and "unshare" in str(error) and _is_chroot():
        yield "the kernel refuses user namespaces in a chroot"


def _is_chroot() -> bool:
    """Return whether the root is no mount point."""
    lines = _read("/proc/self/mountinfo").splitlines()
    return not any(line.split()[4] == "/" for line in lines)


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read().strip()
    return ""
