"""``hepscale env run``: a command in a packed environment, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import wheels
from support import wait_for

import hepscale

RUN = "from hepscale.cli import main; main()"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def archive(venv: wheels.Venv, script: Path, cache: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_CACHE_DIR", str(cache))
        return hepscale.pack(script, script.parent / "env.tar.gz", python=venv.python).path


def command(*args: object) -> list[str]:
    return [sys.executable, "-c", RUN, "env", *map(str, args)]


def env(cache: Path, *args: object, code: int = 0, **environ: str) -> str:
    done = subprocess.run(
        command(*args),
        env={**os.environ, "HEPSCALE_CACHE_DIR": str(cache), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if not code else done.stderr


def test_command_runs_in_an_archive(cache: Path, archive: Path) -> None:
    told = env(cache, "run", archive, "--", "lamp", PYTHONPATH="/nowhere", PYTHONHOME="")
    prefix = told.splitlines()[0].rpartition(" ")[2]
    assert told == f"lamp 1.0 green warm {prefix}\n60\n"
    assert prefix.startswith(f"{cache}/unpacked/")
    code = "import sys, helper, bolt; print(sys.prefix, sys.argv, sys.stdin.read())"
    line = env(cache, "run", archive, "python", "-c", code, "--flag", "a b")
    assert line == f"{prefix} ['-c', '--flag', 'a b'] \n"


def test_exit_code_is_that_of_the_command(cache: Path, archive: Path) -> None:
    env(cache, "run", archive, "--", "python", "-c", "raise SystemExit(7)", code=7)
    said = env(cache, "run", archive, "--", "no-such-command", code=127)
    assert "no-such-command" in said


@pytest.mark.parametrize("what", ["nowhere.tar.gz", "nowhere.py", "nowhere.txt"])
def test_nothing_to_run_in(cache: Path, what: str) -> None:
    said = env(cache, "run", what, "--", "true", code=1)
    assert said.lstrip().startswith("Error: ")
    assert what in said
    assert "Next: " in said


def test_archive_that_was_cut_short(cache: Path, archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "env.tar.gz"
    copy.write_bytes(archive.read_bytes()[:-1000])
    told = env(cache, "run", copy, "lamp", code=1)
    assert "The archive is damaged." in told
    assert f"hepscale env pack analysis.ipynb -o {copy}" in told
    assert "tasks" not in told


def test_script_brings_its_local_modules(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("import helper, packaging\n")
    (tmp_path / "helper.py").write_text("import sys\nNAME = 'first'\n")
    code = "import helper, packaging, sys; print(helper.NAME, packaging.__file__, helper.__file__)"
    line = ["run", tmp_path / "analysis.py", "--", "python", "-c", code]
    name, installed, local = env(cache, *line).split()
    assert name == "first"
    for path in (installed, local):
        assert path.startswith(f"{cache}/unpacked/")
    (tmp_path / "helper.py").write_text("NAME = 'second'\n")
    assert env(cache, *line).split()[:2] == ["second", installed]


def test_prune_keeps_what_is_in_use(cache: Path, archive: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = f"import time; open({str(begun)!r}, 'x').close(); time.sleep(600)"
    environ = {**os.environ, "HEPSCALE_CACHE_DIR": str(cache)}
    line = command("run", archive, "--", "python", "-c", code)
    with subprocess.Popen(line, env=environ, start_new_session=True) as process:
        try:
            wait_for(begun.exists)
            before = len(list((cache / "unpacked").glob("[0-9a-f]*/bin/python")))
            env(cache, "prune")
            kept = list((cache / "unpacked").glob("[0-9a-f]*/bin/python"))
            assert len(kept) == 1 <= before
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    env(cache, "prune")
    assert not list((cache / "unpacked").glob("[0-9a-f]*/bin"))
    assert env(cache, "run", archive, "--", "lamp").startswith("lamp 1.0")
