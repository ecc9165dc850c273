"""Tasks that find repositories of CVMFS below ``/cvmfs``, which nobody has mounted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import cvmfs_mounts
import publisher
import pytest
from packed import calculate
from ports import closed
from publisher import File
from web import served

import hepscale
from hepscale import CvmfsConfig, Workers
from hepscale.config import load_settings
from hepscale.errors import HepScaleError
from hepscale.executor import cvmfs, interposer

pytestmark = pytest.mark.usefixtures("few", "nothing_left")

NAME = "demo.example.org"
LIBRARY = Path(str(resources.files("awkward_cpp"))) / "lib" / "libawkward-cpu-kernels.so"
TREE = {
    "README": File(content=b"read me\n"),
    "py": {"cvmfs_tool.py": b"ANSWER = 42\n"},
    "lib": {"libcvmfs_demo.so": LIBRARY.read_bytes()},
}


ENGINES = {
    "local": {},
    "two workers": {"engine": "workqueue", "workers": Workers("local", cores=1, count=2)},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CvmfsConfig]:
    """Serve a repository; yield what is said of it."""
    cvmfs_mounts.needed()
    folder = tmp_path_factory.mktemp("web")
    site = publisher.publish(folder / NAME, NAME, TREE)
    key = folder / "demo.pub"
    key.write_text(site.key)
    with served(folder) as url:
        yield CvmfsConfig(
            repositories=[NAME],
            servers=f"{url}/@fqrn@",
            keys=key,
            proxies="DIRECT",
            cache=str(folder / "cache"),
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_data_files_and_modules(config, monkeypatch, engine):
    monkeypatch.syspath_prepend(f"/cvmfs/{NAME}/py")

    def work(item):
        import cvmfs_tool

        with open("/cvmfs/demo.example.org/README") as file:
            return file.read(), cvmfs_tool.ANSWER, cvmfs_tool.__file__

    file = f"/cvmfs/{NAME}/py/cvmfs_tool.py"
    assert calculate(work, cvmfs=config, **ENGINES[engine]) == [("read me\n", 42, file)] * 3
    assert not Path(f"/cvmfs/{NAME}").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_variables_that_name_paths_there(config, monkeypatch, engine):
    """As the set-up of a release leaves them; libraries are found before anything is mounted."""
    top = f"/cvmfs/{NAME}"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{top}/lib:{top}/lib64")
    monkeypatch.setenv("PATH", f"{top}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("DEMO_DATA", top)

    def work(item):
        import ctypes

        ctypes.CDLL("libcvmfs_demo.so")
        with open(os.path.join(os.environ["DEMO_DATA"], "README")) as file:
            return file.read(), os.environ["PATH"].split(":").index("/cvmfs/demo.example.org/bin")

    assert calculate(work, cvmfs=config, **ENGINES[engine]) == [("read me\n", 1)] * 3


def test_a_repository_that_cannot_be_had_ends_the_run(config):
    def work(item):
        return item

    broken = CvmfsConfig(**{**config.table(), "repositories": ["gone.example.org"]})
    with pytest.raises(HepScaleError, match=r"gone\.example\.org"):
        calculate(work, cvmfs=broken)


CLIENT = """\
import fcntl, json, os, shlex, sys
sys.path.insert(0, {top!r})
from hepscale.worker import repositories
foreground, option, given, name, target = sys.argv[1:]
assert (foreground, option, name) == ("-f", "-o", {name!r}), sys.argv
config, *more = given.removeprefix("config=").split(",")
assert more == ["disable_watchdog"], "its watchdog would be ended with what tasks have left"
lines = (line.strip().partition("=") for line in open(config))
said = {{key: "".join(shlex.split(value)) for key, _, value in lines}}
print("CernVM-FS: loading Fuse module...", flush=True)
# it waits for another that has the same cache
room = said["CVMFS_CACHE_BASE"] + "/" + name
os.makedirs(room, exist_ok=True)
fcntl.flock(os.open(room + "/lock." + name, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
{then}
"""
OFFLINE = """\
with open(said["CVMFS_USYSLOG"], "a") as log:
    log.write(f"Sun Nov 22 16:49:50 2026 ({name}) warning, entering offline mode\\n")
"""
# what stands for the client of CVMFS, where it is not to be had, mounts by way of ours
MOUNTS = """\
found = repositories.Provided()
repositories._run_ours(json.load(open({told!r})), name, found)
os.waitpid(*found.processes, 0)
"""
FAILS = """\
print(f"Sun Nov 22 16:49:50 2026 ({name}) no such tag", file=open(said["CVMFS_USYSLOG"], "a"))
sys.exit("no such tag (22 - history init failure)")
"""
REAL = shutil.which("cvmfs2")


def put_client(folder, config, monkeypatch, *, works, offline=False):
    """Have a client on the PATH: the real one where there is one and it has to work."""
    if works and REAL:
        return
    table = {**config.table(), "repositories": [NAME]}
    told = cvmfs.for_workers(load_settings(cvmfs=table).cvmfs)
    (folder / "told").write_text(json.dumps(told))
    top = str(Path(hepscale.__file__).parents[1])
    then = MOUNTS.format(told=str(folder / "told")) if works else FAILS
    if offline:
        then = OFFLINE + then
    program = folder / "bin" / "cvmfs2"
    program.parent.mkdir(exist_ok=True)
    code = CLIENT.format(top=top, name=NAME, then=then)
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_client_that_the_machine_has(config, monkeypatch, tmp_path, engine):
    put_client(tmp_path, config, monkeypatch, works=True)
    # a warm worker has its repositories already
    hepscale.shutdown()
    ways = []
    monkeypatch.setattr(interposer, "interposed", told_by(ways))

    def work(item):
        import os
        import time

        with open("/cvmfs/demo.example.org/README") as file:
            text = file.read()
        # so that the other worker has something to do
        time.sleep(1)
        return text, os.path.exists("/cvmfs/demo.example.org/py/cvmfs_tool.py")

    only = CvmfsConfig(**{**config.table(), "how": "cvmfs2"})
    options = {"environment": None, **ENGINES[engine]}
    assert calculate(work, range(4), cvmfs=only, **options) == [("read me\n", True)] * 4
    assert set(ways) == {"cvmfs2"}
    hepscale.shutdown()


def test_the_client_that_the_machine_has_and_that_does_not_mount(config, monkeypatch, tmp_path):
    put_client(tmp_path, config, monkeypatch, works=False)
    hepscale.shutdown()
    ways = []
    monkeypatch.setattr(interposer, "interposed", told_by(ways))

    def work(item):
        with open("/cvmfs/demo.example.org/README") as file:
            return file.read()

    assert calculate(work, cvmfs=config, environment=None) == ["read me\n"] * 3
    assert set(ways) == {"client"}
    (note,) = hepscale.last_run().state.notices
    assert f"{NAME}: not mounted by {tmp_path}/bin/cvmfs2: no such tag" in note
    only = CvmfsConfig(**{**config.table(), "how": "cvmfs2"})
    with pytest.raises(HepScaleError, match="cannot be mounted by cvmfs2") as caught:
        calculate(work, cvmfs=only, environment=None)
    assert "no such tag" in str(caught.value)


def told_by(ways):
    real = interposer.interposed

    def interposed(ready, ended):
        ways.append(ready["interposer"]["cvmfs"][NAME])
        return real(ready, ended)

    return interposed


@pytest.mark.parametrize("how", ["client", "cvmfs2"])
def test_an_older_revision_is_told_of(config, tmp_path, monkeypatch, how):
    """Nobody answers: what is in the cache is used, and the run says so."""

    def work(item):
        with open("/cvmfs/demo.example.org/README") as file:
            return file.read()

    for offline in (False, True):
        servers = f"http://{closed()}/@fqrn@" if offline else config.servers
        given = CvmfsConfig(**{**config.table(), "servers": servers, "how": how})
        if how == "cvmfs2":
            put_client(tmp_path, given, monkeypatch, works=True, offline=offline)
        hepscale.shutdown()
        assert calculate(work, cvmfs=given, environment=None) == ["read me\n"] * 3
    (note,) = hepscale.last_run().state.notices
    assert note.startswith(f"{NAME}: ")
    assert "No server" in note or "cache has kept" in note or "offline mode" in note
    assert how == "client" or not REAL or "cvmfs2: failed to download" in note
