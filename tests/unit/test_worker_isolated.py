"""The worker package is shipped as it stands: it runs with the standard library alone."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import operator
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hepscale
import hepscale.worker
from hepscale.worker import cvmfs, proc
from hepscale.worker.frames import FrameReader, Kind

FOLDER = Path(hepscale.worker.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py")
)
# what packages offer beside their modules
OFFERED = {*hepscale.worker.__all__, "cvmfs", *(f"cvmfs.{name}" for name in cvmfs.__all__)}
# what reads layers: it is in the packed interpreter, which brings it along
DECODER = {"decode": {"backports", "compression"}}


def imports(path, package=()):
    """Return the names of the modules that a file imports, those of ours as ``.name``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(package) + 1, "nothing above the package"
            below = package[: len(package) + 1 - node.level]
            names = [node.module] if node.module else [one.name for one in node.names]
            yield from (f".{'.'.join((*below, name))}" for name in names)


@pytest.mark.parametrize("name", MODULES)
def test_it_imports_the_standard_library_and_siblings(name):
    *package, stem = name.split(".")
    for module in imports(FOLDER.joinpath(*package, f"{stem}.py"), tuple(package)):
        if module.startswith("."):
            assert module[1:] in {*MODULES, *OFFERED}
        else:
            allowed = sys.stdlib_module_names | DECODER.get(name, set())
            assert module.partition(".")[0] in allowed


def test_its_version_is_that_of_the_manager():
    assert hepscale.__version__ == hepscale.worker.VERSION


def test_the_check_sees_what_it_should(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    import numpy.linalg\n    from .frames import x\n")
    assert list(imports(path)) == ["numpy.linalg", ".frames"]


class Server:
    """A forkserver without site-packages, started from a copy of the package alone."""

    def __init__(self, folder):
        worker = folder / "anywhere"
        shutil.copytree(FOLDER, worker, ignore=shutil.ignore_patterns("__pycache__"))
        self.folder = folder / "server"
        self.folder.mkdir()
        settings = self.folder / "settings.json"
        told = {
            "dir": str(self.folder),
            "manager_pid": os.getpid(),
            "idle_s": 60,
            "preload": ["fractions", "no_such_module"],
            "sys_path": [],
            "known": ["left_out"],
        }
        command = [sys.executable, "-I", "-S", str(worker), str(settings)]
        path = [os.path.dirname(os.__file__), os.path.dirname(os.__file__) + "/lib-dynload"]
        settings.write_text(json.dumps({**told, "sys_path": path}))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder
        )
        self.socket = self._connect()
        self.lines = self.socket.makefile("r")

    def _connect(self):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        here = os.open(self.folder, os.O_RDONLY)
        end = time.monotonic() + 30
        while True:
            try:
                client.connect(f"/proc/self/fd/{here}/s")
            except OSError:
                assert self.process.poll() is None, self.process.stderr.read().decode()
                assert time.monotonic() < end
                time.sleep(0.01)
            else:
                os.close(here)
                return client

    def event(self):
        return json.loads(self.lines.readline())

    def run(self, name, payload, work, interval_s=0.0):
        """Run a task, and return its end and its frames."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "payload").write_bytes(payload)
        (folder / "work").write_bytes(pickle.dumps(work))
        spec = {
            "task": name,
            "attempt": 1,
            "payload": str(folder / "payload"),
            "code": None,
            "cwd": str(folder),
            "isolate": False,
            "frame_interval_s": interval_s,
            "compression": 1,
        }
        (folder / "task.json").write_text(json.dumps(spec))
        (self.folder / "environ").write_text(json.dumps({"GREETING": "hello"}))
        request = {"op": "run", "id": name, "dir": str(folder), "memory_mb": None}
        request["environ"] = str(self.folder / "environ")
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        ended = self.event()
        reader = FrameReader()
        frames = list(reader.feed((folder / "frames").read_bytes()))
        assert (reader.dropped, reader.broken, reader.pending) == (0, "", 0)
        return ended, frames

    def close(self):
        self.socket.close()
        self.process.stdin.close()
        assert self.process.wait(30) == 0, self.process.stderr.read()
        said = self.process.stderr.read().decode()
        self.process.stderr.close()
        return said


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("isolated"))
    try:
        yield one
        with contextlib.closing(one.lines):
            assert one.close() == ""
        assert not one.folder.exists()
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def payload_of(function):
    """Pickle a function of the standard library, and what adds up its outputs."""
    merge = functools.partial(functools.reduce, operator.add)
    return pickle.dumps({"function": function, "merge": merge, "dumps": pickle.dumps})


def test_frames_of_a_task(server):
    ready = server.event()
    assert ready["ev"] == "ready"
    assert ready["hepscale"] == hepscale.__version__
    assert ready["python"] == sys.version.split()[0]
    assert ready["glibc"] == os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    assert ready["prefix"] == sys.base_prefix
    work = [(f"key-{n}", n, n) for n in (9, 16, 25)]
    payload = payload_of(float)
    ended, frames = server.run("floats", payload, work[:1])
    assert (ended["ev"], ended["id"], ended["status"]) == ("ended", "floats", "done")
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.BEGIN, Kind.OUTPUT, Kind.DONE]
    assert [one.sequence for one in frames] == [0, 1, 2, 3]
    assert frames[2].meta["chunks"] == ["key-9"]
    assert frames[2].meta["entries"] == [9]
    assert pickle.loads(frames[2].payload) == 9.0
    assert frames[3].meta["stopped"] == ""
    for one in frames:
        assert (one.meta["task"], one.meta["attempt"]) == ("floats", 1)


def test_a_failure_is_told_without_any_package(server):
    payload = payload_of(json.loads)
    ended, frames = server.run("json", payload, [("bad", 1, "{no"), ("good", 1, "[1]")])
    assert ended["status"] == "done"
    (failed,) = [one for one in frames if one.kind is Kind.FAILED]
    assert failed.meta["key"] == "bad"
    assert failed.meta["exceptions"][0]["type"] == "json.decoder.JSONDecodeError"
    assert isinstance(pickle.loads(pickle.loads(failed.payload)[0]), json.JSONDecodeError)
    (output,) = [one for one in frames if one.kind is Kind.OUTPUT]
    assert pickle.loads(output.payload) == [1]


def test_no_installed_package_is_found_there(server):
    payload = payload_of(__import__)
    _, frames = server.run("import", payload, [("numpy", 1, "numpy")])
    (failed,) = [one for one in frames if one.kind is Kind.FAILED]
    assert failed.meta["exceptions"][0]["type"] == "ModuleNotFoundError"


def test_a_module_that_was_left_out_ends_the_task(server):
    payload = payload_of(__import__)
    ended, frames = server.run("absent", payload, [("a", 1, "left_out"), ("b", 1, "json")])
    assert ended["status"] == "done"
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.BEGIN, Kind.DONE]
    assert (frames[2].meta["stopped"], frames[2].meta["missing"]) == ("absent", ["left_out"])


def test_a_task_that_cannot_be_loaded_says_so(server):
    ended, frames = server.run("broken", b"no pickle", [("a", 1, 1)])
    assert ended["status"] == "done"
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.FAILED, Kind.DONE]
    assert frames[1].meta["key"] == ""
    assert frames[2].meta["stopped"] == "broken"


def test_a_task_has_the_variables_and_the_folder_that_it_was_given(server):
    payload = payload_of(os.getenv)
    _, frames = server.run("variables", payload, [("a", 1, "GREETING")])
    assert pickle.loads(frames[2].payload) == "hello"
    payload = payload_of(os.path.abspath)
    _, frames = server.run("folder", payload, [("a", 1, "x")])
    assert pickle.loads(frames[2].payload) == str(server.folder / "folder" / "x")


def test_outputs_are_merged_into_one_frame(server):
    work = [(f"key-{n}", n, n) for n in range(1, 6)]
    _, frames = server.run("merge", payload_of(float), work, interval_s=1000.0)
    (output,) = [one for one in frames if one.kind is Kind.OUTPUT]
    assert pickle.loads(output.payload) == 15.0
    assert output.meta["chunks"] == [key for key, _, _ in work]
    assert output.meta["entries"] == [1, 2, 3, 4, 5]
    assert [one.meta["key"] for one in frames if one.kind is Kind.BEGIN] == output.meta["chunks"]


def test_a_task_that_ends_its_process(server):
    ended, frames = server.run("exit", payload_of(os._exit), [("a", 1, 7)])
    assert (ended["status"], ended["detail"]) == ("died", "exit code 7")
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.BEGIN]


def test_what_was_read_is_counted(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000))
    before = proc.read_bytes()
    (tmp_path / "file").read_bytes()
    assert 100_000 <= proc.read_bytes() - before < 200_000
