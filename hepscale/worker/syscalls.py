"""System calls of namespaces and mounts that Python 3.11 does not know.

Each raises `OSError` with the name of the call: which one was refused tells why.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct

__all__ = [
    "ALL_CAPABILITIES",
    "NEW_IPC",
    "NEW_MOUNTS",
    "NEW_NET",
    "NEW_PIDS",
    "NEW_USER",
    "OWN_DESCRIPTORS",
    "bind",
    "change_root",
    "drop_privileges",
    "has_capability",
    "join",
    "keep_privileges",
    "loopback_up",
    "mount",
    "propagate",
    "read_only",
    "unmount",
    "unshare",
]

NEW_MOUNTS, NEW_IPC, NEW_USER = 0x20000, 0x8000000, 0x10000000
NEW_PIDS, NEW_NET = 0x20000000, 0x40000000
OWN_DESCRIPTORS = 0x400

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 0x20
MS_BIND, MS_REC = 0x1000, 0x4000
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE = 1 << 17, 1 << 18, 1 << 19
_MNT_DETACH = 2
# a bind mount that is remounted loses what is not said again
_OPTIONS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 0x200000,
}

# the number of pivot_root; mount_setattr has the same one everywhere
_GENERIC = 41
_PIVOT_ROOT = {"x86_64": 155, "ppc64le": 203, "s390x": 217}
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = -100, 0x8000, 1

_CAP_SYS_ADMIN = 21
_MOST_CAPABILITIES = 64
ALL_CAPABILITIES = (1 << 41) - 1
_CAPABILITY_VERSION = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR = 47, 2, 4

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str, path: str = "") -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path or None)


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    """Give this thread namespaces, or descriptors, of its own.

    A namespace of processes is for its children.
    """
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def join(descriptor: int, flag: int) -> None:
    """Enter the namespace of a descriptor; one of processes is entered by the next child."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flag)), "setns")


# -- mounts ----------------------------------------------------------------------------------------


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount a file system, or change how one is mounted: see mount(2)."""
    flag = ctypes.c_ulong(flags)
    result = _libc.mount(
        _encoded(source), os.fsencode(target), _encoded(kind), flag, data.encode() or None
    )
    _check(result, "mount", target)


def unmount(target: str) -> None:
    """Take a mount out of sight; it goes when nobody uses it."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), "umount", target)


def bind(source: str, target: str) -> None:
    """Show a file or folder, with what is mounted below, in another place too."""
    # not one mount alone: what came from a more privileged namespace must not be uncovered
    mount(source, target, None, MS_BIND | MS_REC)


def propagate(target: str, kind: int) -> None:
    """Say whether mounts of others show up below `target`."""
    mount(None, target, None, MS_REC | kind)


def read_only(target: str) -> None:
    """Refuse writing to the mount at `target` and to those below; other options stay."""
    try:
        _set_read_only(target)
    except OSError as error:
        # kernels before 5.12, and filters that do not know it
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        for place, flags in _mounts_below(target):
            mount(None, place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def _set_read_only(target: str) -> None:
    attributes = struct.pack("=QQQQ", _ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, "mount_setattr", target)


def _mounts_below(target: str) -> list[tuple[str, int]]:
    """Return the mounts that can be seen at and below a path, and their flags."""
    top = os.path.realpath(target)
    found = {}
    with open("/proc/self/mountinfo", "rb") as stream:
        for line in stream:
            fields = line.split()
            # a later mount at the same place covers the earlier one
            place = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
            if place == top or place.startswith(top.rstrip("/") + "/"):
                options = fields[5].decode().split(",")
                found[place] = sum(_OPTIONS.get(one, 0) for one in options)
    return sorted(found.items())


def change_root(new: str) -> None:
    """Make the mount point `new` the root, of which the current folder becomes the top."""
    os.chdir(new)
    number = _PIVOT_ROOT.get(platform.machine(), _GENERIC)
    try:
        _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root", new)
    except OSError as error:
        # the root is no mount point, but a folder: a chroot; or it is the kernel's first one
        if error.errno != errno.EINVAL:
            raise
        os.chroot(".")
    else:
        # the old root lies on top of the new one
        unmount(".")
    os.chdir("/")


# -- privileges ------------------------------------------------------------------------------------


def _prctl(option: int, *values: int) -> int:
    arguments = [ctypes.c_ulong(one) for one in (*values, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(ctypes.c_int(option), *arguments))


def has_capability(number: int = _CAP_SYS_ADMIN) -> bool:
    """Return whether this process has a capability in effect."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        effective = next((line for line in stream if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) >> number & 1)


def _set_capabilities(effective: int, inheritable: int) -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    low, high = 0xFFFFFFFF, 32
    halves = [
        (effective >> shift & low, effective >> shift & low, inheritable >> shift & low)
        for shift in (0, high)
    ]
    data = struct.pack("=6I", *halves[0], *halves[1])
    _check(_libc.capset(header, data), "capset")


def keep_privileges() -> None:
    """Let what this process executes have its capabilities too, whatever its user is."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        permitted = next(int(line.split()[1], 16) for line in stream if line.startswith("CapPrm"))
    _set_capabilities(permitted, permitted)
    for number in range(_MOST_CAPABILITIES):
        if permitted >> number & 1:
            _check(_prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number), "prctl")


def keep_to_self() -> None:
    """Undo `keep_privileges` for what this process executes from now on."""
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)


def drop_privileges() -> None:
    """Give up all capabilities for good, also those that a program could bring."""
    for number in range(_MOST_CAPABILITIES):
        # beyond the last one that the kernel knows
        if _prctl(_PR_CAPBSET_DROP, number) < 0:
            break
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)
    _set_capabilities(0, 0)
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl")


def loopback_up() -> None:
    """Let a new network namespace reach itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(one, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
