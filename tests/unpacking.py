"""Environments to be unpacked by `stage0.sh`: small layers, and a place for them."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hepscale.worker

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(hepscale.worker.__file__).parent
# a worker that tells what it is run by
TELLS = """\
import json, os, sys
told = {"prefix": sys.prefix, "argv": sys.argv, "pid": os.getpid(), "isolated": sys.flags.isolated,
        "stdin": sys.stdin.read(), "tar": os.environ.get("TAR_OPTIONS")}
print(json.dumps(told))
"""
# stands for a Python where only stage0.sh is tried
FAKE_PYTHON = """\
#!/bin/sh
echo "unpacking with $0"
"""
NEEDED = """\
import __future__, contextlib, ctypes, enum, errno, fcntl, gc, hashlib, importlib.util, json
import linecache, math, os, pickle, platform, queue, random, resource, selectors, shutil, signal
import site, socket, string, struct, subprocess, sys, tempfile, threading, time, traceback, types
import typing, zlib
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


@functools.cache
def python_files() -> dict[str, bytes]:
    """Return a Python that runs below any folder: that of the tests, with few modules."""
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    command = [base, "-I", "-S", "-c", NEEDED]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    stdlib = Path(sysconfig.get_path("stdlib"))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    paths = {Path(line) for line in told.stdout.splitlines()} | set(stdlib.glob("encodings/*.py"))
    files = {
        f"lib/{version}/{path.relative_to(stdlib)}": path.read_bytes()
        for path in paths
        if path.is_relative_to(stdlib)
    }
    files[f"bin/{version}"] = Path(base).read_bytes()
    library = sysconfig.get_config_var("INSTSONAME") or ""
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/", library)
    if ".so" in library and shared.exists() and not _starts(files[f"bin/{version}"]):
        files[f"lib/{library}"] = shared.read_bytes()
    if sys.version_info < (3, 14):
        decoder = Path(zstd.__file__).parent
        for path in (*decoder.glob("*.py"), *decoder.glob("_zstd*.so")):
            files[f"hepscale/backports/zstd/{path.name}"] = path.read_bytes()
    return files


def _starts(program: bytes) -> bool:
    """Whether a Python finds its library from wherever it lies, which spares us 20 MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "python")
        path.write_bytes(program)
        path.chmod(0o755)
        command = [str(path), "-c", ""]
        # it finds no modules there: what counts is who complains, Python or the loader
        environ = {"PYTHONHOME": sys.base_prefix}
        return (
            subprocess.run(command, env=environ, capture_output=True, check=False).returncode == 0
        )


@functools.cache
def interpreter() -> bytes:
    """Return the interpreter layer of a real Python."""
    return compressed(python_files())


def compressed(files: dict[str, bytes]) -> bytes:
    """Return an interpreter layer of these files."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return gzip.compress(archive(files, {"bin/python3": version}), 1)


def fake_interpreter(script: str = FAKE_PYTHON) -> bytes:
    """Return an interpreter layer whose Python is this script."""
    return gzip.compress(archive({"bin/python3": script.encode(), "ballast": os.urandom(50_000)}))


def packages(files: dict[str, bytes] | None = None) -> bytes:
    """Return a packages layer."""
    ballast = {f"share/data/{n}": os.urandom(100_000) for n in range(20)}
    return zstd.compress(archive({**ballast, **(files or {"share/note": b"packed"})}), 1)


def archive(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            # another's, as in an archive that was not made for this machine
            info.uid = info.gid = 12345
            info.mode = 0o755 if name.startswith("bin/") or content[:4] == b"\x7fELF" else 0o444
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


class Place:
    """The four things that `stage0.sh` is given, in folders whose names hold spaces."""

    def __init__(self, folder: Path, shell: str, layers: dict[str, bytes], **facts: str) -> None:
        self.shell = shell
        self.folder = folder / "a place"
        self.layers = self.folder / "all layers"
        self.store = self.folder / "the store"
        self.worker = self.folder / "its worker"
        self.environment = self.folder / "environ ment"
        self.bin = self.folder / "bin"
        for one in (self.layers, self.worker, self.bin):
            one.mkdir(parents=True)
        for name in ("stage0.sh", "unpack.py", "relocate.py", "decode.py"):
            shutil.copy(FOLDER / name, self.worker)
        (self.worker / "__main__.py").write_text(TELLS)
        self.facts = {
            "hepscale-environment": "1",
            "digest": "a" * 64,
            "hepscale": "0.1.0",
            "python": sys.version.split()[0],
            "glibc": "2.17",
            "machine": os.uname().machine,
            "relocate": "0",
            **facts,
        }
        self.contents = layers
        self.write()

    def write(self, **facts: str) -> None:
        """Write the layers and the environment file."""
        self.facts.update(facts)
        lines = [f"{key} {value}" for key, value in self.facts.items() if key != "relocate"]
        for name, content in self.contents.items():
            (self.layers / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            kind = "interpreter" if name.endswith(".gz") else "packages"
            lines.append(f"layer {kind} {digest} {len(content)} {name}")
        lines.append(f"relocate {self.facts['relocate']}")
        self.environment.write_text("\n".join(lines) + "\n")

    @property
    def prefix(self) -> Path:
        return self.store / self.facts["digest"]

    def command(self, *args: str) -> list[str]:
        shell = [shutil.which("busybox"), "sh"] if self.shell == "busybox" else ["/bin/sh"]
        given = (self.environment, self.layers, self.store, self.worker)
        return [*shell, str(self.worker / "stage0.sh"), *map(str, given), *args]

    def environ(self, **environ: str) -> dict[str, str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        if self.shell == "busybox":
            # its own tar and gzip as well, and nothing else
            path = f"{self.bin}:{busybox(self.folder / 'busybox')}"
        return {"PATH": path, "LC_ALL": "de_DE.UTF-8", **environ}

    def start(self, *args: str, said: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            env=self.environ(**environ),
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextlib.contextmanager
    def started(self, *args: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
        """Start in a session of its own, of which nothing is left behind the block."""
        process = subprocess.Popen(
            self.command(*args),
            env=self.environ(**environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def program(self, name: str, script: str) -> None:
        """Put a shell script first on PATH."""
        path = self.bin / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    def real(self, name: str) -> str:
        """Return a command that does what a program replaced by `program` does."""
        return f"busybox {name}" if self.shell == "busybox" else str(shutil.which(name))

    def count_tar(self) -> Path:
        """Make tar note each call in a file, which is returned."""
        log = self.folder / "calls"
        log.touch()
        self.program("tar", f"echo called >>'{log}'\nexec {self.real('tar')} \"$@\"\n")
        return log

    def left(self) -> list[str]:
        """Return what lies in the store besides the environment."""
        there = os.listdir(self.store) if self.store.is_dir() else []
        return sorted(name for name in there if name != self.facts["digest"])

    def works(self, *args: str, **environ: str) -> dict[str, object]:
        """Start, which has to leave the environment and nothing else; return what it told."""
        done = self.start(*args, **environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert self.left() == []
        assert (self.prefix / ".hepscale-ready").exists()
        told: dict[str, object] = json.loads(done.stdout)
        assert told["prefix"] == str(self.prefix)
        return told

    def refused(self, code: int, *texts: str, **environ: str) -> str:
        """Start, which has to fail in this way and to leave nothing."""
        done = self.start(**environ)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("HepScale: ")
        for text in ("\nLikely cause: ", "\nNext: ", *texts):
            assert text in done.stderr
        assert len(done.stderr.splitlines()) in (3, 4), done.stderr
        assert self.left() == []
        assert not self.prefix.exists()
        return done.stderr


def busybox(folder: Path) -> Path:
    """Make a folder with programs that are all busybox."""
    if not folder.exists():
        folder.mkdir()
        for name in ("busybox", "date", "gzip", "mkdir", "mv", "rm", "sleep", "tar", "uname", "wc"):
            (folder / name).symlink_to(str(shutil.which("busybox")))
    return folder


@contextlib.contextmanager
def connected(folder: Path) -> Iterator[socket.socket]:
    """Connect to the forkserver whose folder this is."""
    here = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        try:
            client.connect(f"/proc/self/fd/{here}/s")
        finally:
            os.close(here)
        yield client


SHELLS = ["sh", "busybox"]


def need(shell: str) -> str:
    if shell == "busybox" and shutil.which("busybox") is None:
        pytest.skip("busybox is not installed; apt-get install busybox-static to see this one")
    return shell


def flipped(content: bytes) -> bytes:
    """Return the bytes with one bit changed in their middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
