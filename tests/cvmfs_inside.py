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

_NEWNS, _NEWUSER = 0x20000, 0x10000000
_READ_ONLY, _NOSUID, _NODEV = 1, 2, 4
_LIBRARY = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(_LIBRARY, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def enter():
    uid, gid = os.getuid(), os.getgid()
    call("unshare", _NEWUSER | _NEWNS)
    for file, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as stream:
            stream.write(line)


def mount(worker, settings, repository, place):
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", worker, "--cvmfs", settings, repository, str(device)],
        pass_fds=[device],
        stdout=subprocess.PIPE,
    )
    said = json.loads(server.stdout.readline() or '{"fact": "the server ended"}')
    if "fact" not in said:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        flags = _READ_ONLY | _NOSUID | _NODEV
        call("mount", b"test", place.encode(), b"fuse", flags, f"{options},allow_other".encode())
    os.close(device)
    return server, said


def mount_theirs(worker, settings, _, place):
    above, name = os.path.split(worker)
    sys.path.insert(0, above)
    clients = importlib.import_module(f"{name}.clients")
    # or a program that it executes may not mount
    importlib.import_module(f"{name}.syscalls").keep_privileges()
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
    enter()
    how = mount_theirs if client == "cvmfs2" else mount
    server, said = how(worker, settings, repository, place)
    os.dup2(2, 1)
    print(json.dumps({**said, "pid": server.pid}), file=answers)
    if "fact" in said:
        sys.exit(server.wait())
    names = {"os": os, "server": server, "call": call, "subprocess": subprocess}
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
