"""``hepscale cvmfs run``: a command that finds repositories on a machine without ``/cvmfs``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import as_root
import cvmfs_mounts
import publisher
import pytest
import sandboxes
from as_root import NOBODY, SYSTEM_PYTHON
from cvmfs_mounts import open_to_all
from publisher import File, Link
from support import wait_for
from web import served

import hepscale
from hepscale.worker import proc

NAME = "demo.example.org"
TREE = {
    "README": File(content=b"read me\n"),
    "absolute": Link(target=f"/cvmfs/{NAME}/py/tool.py"),
    "py": {"tool.py": b"print('a tool')\n"},
}
# that of a user may be out of others' sight
PATH = os.pathsep.join([str(Path(hepscale.__file__).parents[1]), sysconfig.get_path("purelib")])
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Serve a repository; yield a folder that everybody may enter, with the settings of it."""
    cvmfs_mounts.needed()
    folder = Path(tempfile.mkdtemp(prefix="hepscale-cvmfs-run-", dir="/var/tmp"))
    folder.chmod(0o777)
    site = publisher.publish(folder / "web" / NAME, NAME, TREE)
    (folder / "demo.pub").write_text(site.key)
    with served(folder / "web") as url:
        (folder / "own.conf").write_text(
            f"CVMFS_SERVER_URL={url}/@fqrn@\n"
            f"CVMFS_HTTP_PROXY=DIRECT\nCVMFS_PUBLIC_KEY={folder}/demo.pub\n"
            f"CVMFS_CACHE_BASE={folder}/$USER\n"
        )
        yield folder
    shutil.rmtree(folder)


def line(place: Path, *args: str, name: str = NAME, python: str = sys.executable) -> list[str]:
    program = "from hepscale.cli import main; main()"
    given = ["cvmfs", "run", "--config", f"{place}/own.conf", name]
    return [python, "-c", program, *given, *args]


@pytest.fixture
def run(place: Path) -> Run:
    def run(*args: str, before: Sequence[str] = (), **options: str) -> object:
        environ = {**os.environ, "USER": "me", "PYTHONPATH": PATH, **options.pop("env", {})}
        return subprocess.run(
            [*before, *line(place, *args, **options)],
            env=environ,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def serving() -> list[str]:
    """Return the processes that serve the repository of these tests."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = one.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--cvmfs" in words and NAME.encode() in words:
            found.append(one.parent.name)
    return found


def gone() -> bool:
    end = time.monotonic() + 10
    while serving() and time.monotonic() < end:
        time.sleep(0.01)
    return not serving()


def test_a_command_finds_the_repository(run):
    text = f"cat /cvmfs/{NAME}/README && {sys.executable} /cvmfs/{NAME}/absolute && id -u"
    done = run("--", "sh", "-c", text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"read me\na tool\n{os.getuid()}\n"
    assert gone()
    assert NAME not in Path("/proc/self/mounts").read_text()
    assert not Path(f"/cvmfs/{NAME}").exists()


def test_exit_codes_are_those_of_the_command(run):
    assert run("--", "sh", "-c", "exit 3").returncode == 3
    assert run("--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    done = run("--", "no-such-program")
    assert (done.returncode, done.stderr) == (
        127,
        "hepscale: no-such-program: No such file or directory\n",
    )


def test_without_a_command_it_is_a_shell(run, tmp_path):
    shell = tmp_path / "shell"
    shell.write_text(f"#!/bin/sh\nls /cvmfs/{NAME}\n")
    shell.chmod(0o755)
    assert run(env={"SHELL": str(shell)}).stdout.split() == ["README", "absolute", "py"]
    # options behind it are the command's
    assert run("--", "printf", "%s", "--config").stdout == "--config"


def test_nothing_can_be_written_there(run):
    done = run("--", "sh", "-c", f"echo x > /cvmfs/{NAME}/new")
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_repositories_that_cannot_be_had(run):
    done = run("--", "true", name="gone.example.org")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Next: " in done.stderr


def test_machines_that_refuse_namespaces(run):
    as_root.needed("becoming somebody else")
    done = run("--", "true", before=sandboxes.without_namespaces())
    assert done.returncode == 1
    assert "Nothing can be mounted on this machine." in done.stderr
    assert "hepscale doctor" in done.stderr


@pytest.mark.parametrize("by", ["itself", "bwrap"])
def test_somebody_without_privileges(run, by):
    drop = sandboxes.as_nobody()
    if by == "bwrap":
        drop += sandboxes.refusing_users()
    home = {"USER": "nobody", "HOME": "/var/tmp", "XDG_CONFIG_HOME": "/var/tmp/none"}
    look = [*drop, SYSTEM_PYTHON, "-c", "import pydantic, click, rich, hepscale"]
    environ = {**os.environ, **home, "PYTHONPATH": PATH}
    if subprocess.run(look, cwd="/", env=environ, check=False, capture_output=True).returncode:
        pytest.skip(f"nobody cannot see what is installed, or it is not for {SYSTEM_PYTHON}")
    text = f"cat /cvmfs/{NAME}/README; id -u; grep CapEff /proc/self/status; ! env | grep _BWRAP"
    with open_to_all():
        done = run("--", "sh", "-c", text, before=drop, env=home, python=SYSTEM_PYTHON)
    assert (done.stdout, done.returncode) == (
        f"read me\n{NOBODY}\nCapEff:\t0000000000000000\n",
        0,
    ), done.stderr


def program_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()


def sleepers(pid):
    found = [one for one in proc.family(pid) if program_of(one) == "sleep"]
    return found if len(found) == 2 else []


def test_nothing_is_left_of_what_is_killed(place, tmp_path):
    environ = {**os.environ, "USER": "me", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        line(place, "--", "sh", "-c", f"setsid sleep 1000 & ls /cvmfs/{NAME}; sleep 1000"),
        env=environ,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"README\n"
        assert serving()
        begun = wait_for(lambda: sleepers(process.pid))
        process.kill()
    assert gone()
    wait_for(lambda: not any(map(program_of, begun)))
    assert not os.listdir(tmp_path)
