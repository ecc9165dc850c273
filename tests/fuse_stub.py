"""``python fuse_stub.py PACKAGE FOLDER``: a world with a repository that is one empty folder.

What serves it says no more than a kernel needs to stat the folder. Prints what a task sees.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys

_INIT, _GETATTR, _OPENDIR = 26, 3, 27
_FORGET, _DESTROY = (2, 42, 36), 38
_NO_SUCH, _NO_CALL = -2, -38


def serve(device):
    """Answer the kernel until the mount is gone."""
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError:
            os._exit(0)
        _, code, unique = struct.unpack_from("=IIQ", request)
        error, body = 0, b""
        if code == _INIT:
            body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 65536, 1, 1, 0, 0)
        elif code == _GETATTR:
            body = struct.pack("=QII", 3600, 0, 0)
            body += struct.pack("=6Q3I7I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
        elif code in _FORGET:
            continue
        else:
            error = _NO_CALL if code != 1 else _NO_SUCH
        os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def start(name, device):
    """Start what serves a repository."""
    pid = os.fork()
    if pid == 0:
        serve(device)
    user = f"user_id={os.getuid()},group_id={os.getgid()}"
    return f"fd={device},rootmode=40000,{user},allow_other", pid


def main(package, folder):
    """Enter a world and look at it from a cell."""
    sys.path.insert(0, os.path.dirname(package))
    worker = os.path.basename(package)
    sandbox = importlib.import_module(f"{worker}.sandbox")
    world = importlib.import_module(f"{worker}.world")
    name = "stub.example.org"
    settings = {"dir": folder, "sys_path": sys.path, "cvmfs": {"repositories": [{"name": name}]}}
    world.enter()
    made = sandbox._prepared(settings, {}, start)
    cell = made.nursery.cell(folder, (), None)
    pid = cell.fork()
    if pid == 0:
        cell.enter()
        there = os.stat(f"/cvmfs/{name}")
        flags = os.statvfs("/cvmfs").f_flag
        told = [oct(there.st_mode), os.listdir("/cvmfs"), bool(flags & os.ST_RDONLY)]
        print(json.dumps([*told, made.told()]), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    cell.close()
    made.nursery.close()
    for one in made.helpers:
        os.kill(one, 9)


if __name__ == "__main__":
    main(*sys.argv[1:])
