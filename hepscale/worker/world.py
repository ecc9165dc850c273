"""The world of a forkserver: a root of its own, and what its tasks see of it."""

from __future__ import annotations

import contextlib
import os
import stat
import sys

from . import bubblewrap, nursery, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["ENVIRONMENT", "SYSTEM", "allowed", "enter", "start_nursery", "visible"]

ENVIRONMENT = "/hepscale/environment"
_READY = "/hepscale/shown"
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "nix", "gnu")
_CONTROL_GROUPS = "/proc/sys/user/max_cgroup_namespaces"
# a folder that is there on any machine, and not at the top: the new root is put together on it
_WORKSHOPS = ("/usr/share", "/usr/bin", "/var/tmp")


def enter() -> None:
    """Have namespaces of one's own for users and mounts, and a root that one may change."""
    here = os.getcwd()
    if _own_namespaces():
        syscalls.propagate("/", syscalls.MS_SLAVE)
    else:
        _own_mounts()
    new = next(filter(os.path.isdir, _WORKSHOPS))
    syscalls.mount("tmpfs", new, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755")
    # or the copy of what it lies in would hold it too
    syscalls.mount(None, new, None, syscalls.MS_UNBINDABLE)
    for name in set(os.listdir("/")) - {"hepscale"}:
        _copy(f"/{name}", f"{new}/{name}")
    os.makedirs(f"{new}/cvmfs", exist_ok=True)
    for path in (ENVIRONMENT, _READY, nursery.CELL):
        os.makedirs(new + path)
    # whoever does not pack has several folders for it: they are shown where they are, too
    syscalls.bind(sys.prefix, new + ENVIRONMENT)
    syscalls.change_root(new)
    syscalls.mount(None, "/", None, syscalls.MS_PRIVATE)
    with contextlib.suppress(OSError):
        os.chdir(here)


def _own_namespaces() -> bool:
    """Enter new namespaces for users and mounts; False: this is root, whom users are refused."""
    uid, gid = os.geteuid(), os.getegid()
    if bubblewrap.is_behind():
        # which has made that of users
        syscalls.unshare(syscalls.NEW_MOUNTS)
        _close_control_groups()
        return True
    try:
        syscalls.unshare(syscalls.NEW_USER | syscalls.NEW_MOUNTS)
    except OSError:
        if not syscalls.has_capability():
            raise
        syscalls.unshare(syscalls.NEW_MOUNTS)
        return False
    # before groups are mapped, or those who are not in a group could leave it
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)
    _close_control_groups()
    return True


def _close_control_groups() -> None:
    """Allow no namespaces of control groups in this one of users.

    Through one a task could mount the control groups that it is in together with its worker, and
    change them if they are its user's; where this is read-only, as in containers, it stays so.
    """
    with contextlib.suppress(OSError), open(_CONTROL_GROUPS, "w", encoding="ascii") as stream:
        stream.write("0")


def _own_mounts() -> None:
    """Keep what is mounted from here on to ourselves, also in a chroot.

    There the mount that the root lies in has no name: it is reached by entering the namespace
    once more, which leads to its very top.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    space = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.join(space, syscalls.NEW_MOUNTS)
        syscalls.propagate("/", syscalls.MS_SLAVE)
    finally:
        os.fchdir(root)
        os.chroot(".")
        os.close(space)
        os.close(root)


def _copy(source: str, target: str) -> None:
    """Show a file or folder of the old root in the new one."""
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o644))
    syscalls.bind(source, target)


# -- what tasks see of it --------------------------------------------------------------------------


def start_nursery(settings: dict[str, Any], wanted: dict[str, Any]) -> nursery.Nursery:
    """Start what makes roots for tasks; to be called in the world.

    Parameters
    ----------
    settings
        Of the forkserver.
    wanted
        Of them, what the sandbox is to be: ``allow``, ``network``, ``writes``.
    """
    links: dict[str, str] = {}
    shown: list[tuple[str, str]] = []
    for path in visible(settings):
        ready = f"{_READY}/{len(shown)}"
        if _make_ready(path, ready):
            # a mount that the machine makes later comes along
            syscalls.read_only(ready)
            if path != "/cvmfs":
                syscalls.propagate(ready, syscalls.MS_PRIVATE)
            shown.append((path, ready))
    for name in SYSTEM:
        if os.path.islink(f"/{name}"):
            links[name] = os.readlink(f"/{name}").lstrip("/")
    for name, writable in allowed(wanted):
        ready = f"{_READY}/{len(shown)}"
        if _make_ready(name, ready):
            if not writable:
                syscalls.read_only(ready)
            shown.append((name, ready))
    return nursery.Nursery(
        shown,
        links,
        network=wanted.get("network", True),
        writes=wanted.get("writes", "folder"),
    )


def visible(settings: dict[str, Any]) -> list[str]:
    """Return what every task sees: system, environment, this package, repositories."""
    here = os.path.dirname(os.path.abspath(__file__))
    wanted = [f"/{name}" for name in SYSTEM if not os.path.islink(f"/{name}")]
    wanted += [ENVIRONMENT, "/cvmfs", here, sys.prefix, sys.base_prefix, sys.exec_prefix]
    wanted += settings.get("sys_path") or sys.path
    # programs ask for it by its name in /etc, which may be a link to elsewhere
    wanted.append("/etc/resolv.conf")
    # a packed environment holds the path that it was unpacked to
    wanted.append(settings.get("prefix", ""))
    found: list[str] = []
    for path in wanted:
        for name in dict.fromkeys((os.path.realpath(path), os.path.normpath(path))):
            inside = any(name == one or name.startswith(one + "/") for one in found)
            if path.startswith("/") and name != "/" and not inside:
                found.append(name)
    return found


def allowed(wanted: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield the paths that tasks see besides, under each of their names, and whether to write."""
    for text in wanted.get("allow", ()):
        path = text.removesuffix(":rw")
        for name in dict.fromkeys((os.path.realpath(path), os.path.normpath(path))):
            yield name, text != path


def _make_ready(path: str, ready: str) -> bool:
    """Bind what tasks see to where it is changed for them; False: there is no such thing."""
    if os.path.isdir(path):
        os.mkdir(ready)
    elif os.path.exists(path):
        os.close(os.open(ready, os.O_WRONLY | os.O_CREAT, 0o644))
    else:
        return False
    syscalls.bind(path, ready)
    return True
