"""Mounts a repository in namespaces of its own and does what it is told there.

``python -I -S cvmfs_inside.py WORKER SETTINGS REPOSITORY MOUNTPOINT CLIENT``, where the last is
``client`` for the worker's own or ``cvmfs2`` for the machine's. Each line of standard input is
JSON: code, and names for it; what it leaves in ``result`` comes back as a line. Names stay.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import traceback


def unmounted(place, flags=0):
    """Unmount at once, or not at all."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.umount2(os.fsencode(place), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter(syscalls):
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.NEW_USER | syscalls.NEW_MOUNTS)
    for file, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as stream:
            stream.write(line)


def mount(syscalls, worker, settings, repository, place):
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", worker, "--cvmfs", settings, repository, str(device)],
        pass_fds=[device],
        stdout=subprocess.PIPE,
    )
    said = json.loads(server.stdout.readline() or '{"fact": "the server ended"}')
    if "fact" not in said:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("test", place, "fuse", flags, f"{options},allow_other")
    os.close(device)
    return server, said


def mount_theirs(syscalls, worker, settings, _, place):
    above, name = os.path.split(worker)
    clients = importlib.import_module(f"{name}.clients")
    # or a program that it executes may not mount
    syscalls.keep_privileges()
    with open(settings) as stream:
        told = json.load(stream)
    try:
        server, _ = clients.find(above).mount(told["repositories"][0], told, above, place)
    except clients.Refused as refused:
        print(json.dumps({"fact": str(refused), "pid": 0}))
        sys.exit(1)
    return server, {}


def main(worker, settings, repository, place, client):
    # what commands say goes elsewhere
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    above, name = os.path.split(worker)
    sys.path.insert(0, above)
    syscalls = importlib.import_module(f"{name}.syscalls")
    enter(syscalls)
    how = mount_theirs if client == "cvmfs2" else mount
    server, said = how(syscalls, worker, settings, repository, place)
    os.dup2(2, 1)
    print(json.dumps({**said, "pid": server.pid}), file=answers)
    if "fact" in said:
        sys.exit(server.wait())
    names = {"os": os, "server": server, "unmounted": unmounted, "subprocess": subprocess}
    os.chdir(place)
    for line in sys.stdin:
        told = json.loads(line)
        try:
            names |= {**told["names"], "result": None}
            exec(told["code"], names)
            answer = {"result": names["result"]}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
