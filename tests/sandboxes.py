"""Forkservers that run small programs in sandboxes: as this user, as another, in a chroot."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import operator
import os
import pickle
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import as_root
import pytest
from as_root import NOBODY, SYSTEM_PYTHON

import hepscale.worker
from hepscale.worker import proc, scratch
from hepscale.worker.frames import FrameReader, Kind

FOLDER = Path(hepscale.worker.__file__).parent
_WAIT_S = 30
# tries to write in many places; says where it could
WRITE = """
import os
result = {}
for folder in %r:
    try:
        open(os.path.join(folder, "written"), "w").close()
        result[folder] = "written"
    except OSError as error:
        result[folder] = error.errno
"""

# a root that is no mount point, as that of a chroot; the mounts go with their namespace
_CHROOT = """
top=$1; shift
mount -t tmpfs none "$top"
root="$top/root"
mkdir -p "$root" && cd "$root"
mkdir usr proc dev etc tmp home root; chmod 1777 tmp
echo secret > home/secret; echo secret > root/secret
for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
for one in usr proc dev etc; do mount --rbind "/$one" "$one"; done
mkdir -p "$root$SHARED"; mount --bind "$SHARED" "$root$SHARED"
exec chroot "$root" "$@"
"""


def as_nobody():
    """Return the command that runs others as user nobody."""
    as_root.needed("becoming somebody else")
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]


# loads the number of the system call; compares; allows, or acts
_FILTER = """
import ctypes, os, platform, struct, sys
numbers = {"x86_64": (272, 165), "aarch64": (97, 40)}[platform.machine()]
lines = [(0x20, 0, 0, 0), (0x15, 2, 0, numbers[0]), (0x15, 1, 0, numbers[1])]
lines += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, int(sys.argv[1]))]
if sys.argv[2] == "users":
    # loads the flags, too; is that of a namespace of users among them?
    lines[1:3] = [(0x15, 0, 2, numbers[0]), (0x20, 0, 0, 16), (0x45, 1, 0, 0x10000000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in lines))
program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
library = ctypes.CDLL(None, use_errno=True)
assert library.prctl(38, 1, 0, 0, 0) == 0 and library.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[3], sys.argv[3:])
"""

_BARE_DEVICES = """
mount -t tmpfs none /dev
for one in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 666 /dev/${one%:*} c 1 ${one#*:}
done
exec "$@"
"""


def in_chroot(folder):
    """Return the command that runs others as root in a chroot, which shares `folder` with us."""
    as_root.needed("making a chroot")
    top = folder / "top"
    top.mkdir()
    set_shared = ["env", f"SHARED={folder / 'shared'}"]
    return [*set_shared, "unshare", "--mount", "sh", "-ec", _CHROOT, "sh", str(top)]


def without_namespaces():
    """Return the command that runs others where the kernel gives no user namespaces any more."""
    off = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
    return ["unshare", "--user", "--map-root-user", "sh", "-ec", off, "sh", *drop]


REFUSES, KILLS = 0x50000 | errno.EPERM, 0x80000000


def filtered(action, what="all"):
    """Return the command that runs others under a seccomp filter, as containers have one.

    What would unshare or mount is refused, or killed; "users": only what would unshare that of
    users. Bubblewrap clones it, as programs do that AppArmor knows.
    """
    return [SYSTEM_PYTHON, "-I", "-S", "-c", _FILTER, str(action), what]


def refusing_users():
    """Return the command that runs others where only Bubblewrap makes namespaces of users."""
    if shutil.which("bwrap") is None:
        pytest.skip("this machine has no Bubblewrap: apt-get install bubblewrap")
    return filtered(REFUSES, "users")


def without_fuse():
    """Return the command that runs others where there is no ``/dev/fuse``."""
    as_root.needed("hiding /dev/fuse")
    return ["unshare", "--mount", "sh", "-ec", _BARE_DEVICES, "sh"]


def without_parrot(folder):
    """Return the variables of programs that find no Parrot which works, whatever this machine has.

    The one that they find lies in `folder`.
    """
    program = folder / "no-parrot" / "parrot_run"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


class Place:
    """A folder for everything of a test, which others than this user can enter too."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="hepscale-sandbox-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self.shared = self.folder / "shared"
        self.shared.mkdir(mode=0o777)
        self.shared.chmod(0o777)
        shutil.copytree(
            FOLDER, self.shared / "worker", ignore=shutil.ignore_patterns("__pycache__")
        )

    def remove(self):
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def place():
    """A place, which stays there if what is checked at its end does not hold."""
    if not os.path.exists(SYSTEM_PYTHON):
        pytest.skip("this system has no Python of its own")
    one = Place()
    yield one
    one.remove()


class Server:
    """A forkserver with a sandbox.

    With `worker`, a process, it belongs to that one, as on a worker of Work Queue; its folder is
    then one that `scratch.sweep` removes when nobody holds its lock.
    """

    def __init__(self, place, within=(), name="server", worker=None, cvmfs=None, **wanted):
        python, lock = SYSTEM_PYTHON, []
        if worker is None:
            self.folder = place.shared / name
            self.folder.mkdir()
        else:
            folder, *lock = scratch.make(str(place.shared))
            self.folder = Path(folder)
        self.folder.chmod(0o777)
        lib = subprocess.run(
            [python, "-I", "-S", "-c", "import os; print(os.path.dirname(os.__file__))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        told = {
            "dir": str(self.folder),
            "manager_pid": os.getpid(),
            "idle_s": 60,
            "preload": ["fractions"],
            "sys_path": [lib, f"{lib}/lib-dynload"],
            "interposer": {"kind": "userns", **wanted},
            "cvmfs": cvmfs,
        }
        if worker is not None:
            told |= {"manager_pid": worker, "since": proc.since(worker)}
        settings = self.folder / "settings.json"
        settings.write_text(json.dumps(told))
        self.log = (place.folder / f"{name}.log").open("w+b")
        self.process = subprocess.Popen(
            [*within, python, "-I", "-S", str(place.shared / "worker"), str(settings)],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            cwd=place.shared,
            env=without_parrot(place.folder),
            pass_fds=lock,
            start_new_session=True,
        )
        for one in lock:
            os.close(one)
        self.socket = None
        self.waiting = {}

    def connect(self):
        """Connect to it; return what it says of its sandbox, or None if it has ended."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(_WAIT_S)
        here = os.open(self.folder, os.O_RDONLY)
        try:
            end = time.monotonic() + _WAIT_S
            while True:
                try:
                    client.connect(f"/proc/self/fd/{here}/s")
                    break
                except OSError:
                    if self.process.poll() is not None:
                        client.close()
                        return None
                    assert time.monotonic() < end
                    time.sleep(0.005)
        finally:
            os.close(here)
        self.socket, self.lines = client, client.makefile("r")
        self.ready = self.event()
        return self.ready["interposer"]

    @property
    def said(self):
        self.log.flush()
        return Path(self.log.name).read_text()

    def event(self):
        line = self.lines.readline()
        return json.loads(line) if line else None

    def begin(self, name, source, memory_mb=None, environ=None, **spec):
        """Begin a task that runs `source`, which sets `result`."""
        folder = self.folder / name
        folder.mkdir()
        folder.chmod(0o777)
        merge = functools.partial(functools.reduce, operator.add)
        payload = {"function": eval, "merge": merge, "dumps": pickle.dumps}
        (folder / "payload").write_bytes(pickle.dumps(payload))
        text = f"exec({source!r}, (g := {{}})) or [g['result']]"
        (folder / "work").write_bytes(pickle.dumps([("key", 1, text)]))
        told = {
            "task": name,
            "attempt": 1,
            "payload": str(folder / "payload"),
            "code": None,
            "cwd": str(folder),
            "isolate": False,
            "frame_interval_s": 0.0,
            "compression": 1,
            **spec,
        }
        (folder / "task.json").write_text(json.dumps(told))
        (folder / "environ").write_text(json.dumps({"PATH": os.defpath, **(environ or {})}))
        request = {"op": "run", "id": name, "dir": str(folder), "memory_mb": memory_mb}
        request["environ"] = str(folder / "environ")
        self.send(request)
        return folder

    def send(self, request):
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def run(self, name, source, **options):
        """Run a task; return how it ended, and its result or what it raised."""
        folder = self.begin(name, source, **options)
        ended = self.event()
        result = None
        for frame in FrameReader().feed((folder / "frames").read_bytes()):
            if frame.kind is Kind.OUTPUT:
                (result,) = pickle.loads(frame.payload)
            elif frame.kind is Kind.FAILED:
                result = frame.meta["exceptions"]
        if ended["status"] != "done":
            print((folder / "stderr").read_text() if (folder / "stderr").exists() else "")
        return ended, result

    def close(self):
        """End it as its manager does: by going away."""
        if self.socket is not None:
            self.lines.close()
            self.socket.close()
        self.process.stdin.close()
        try:
            self.process.wait(_WAIT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.log.close()
        return self.process.returncode


@contextlib.contextmanager
def server(place, *args, **options):
    """A forkserver that is ready; afterwards nothing is left of it."""
    one = Server(place, *args, **options)
    try:
        assert one.connect() is not None, one.said
        yield one
    finally:
        one.close()
    assert not one.folder.exists()


def alive(marker):
    """Return the processes whose variables or command line hold a text."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
                if marker.encode() in told:
                    found[int(folder.name)] = told[-200:]
    return found
