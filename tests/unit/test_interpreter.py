"""Interpreters are described without being changed: the running one and others."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from packaging.markers import default_environment

from hepscale.env import interpreter
from hepscale.errors import ConfigError

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def make_venv(folder: Path, **options: bool) -> Path:
    venv.EnvBuilder(symlinks=True, **options).create(folder)
    return folder / "bin" / "python"


def program(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def said_by(python: Path, code: str) -> str:
    command = [str(python), "-I", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_running_interpreter_says_the_same_when_it_is_run() -> None:
    here, there = interpreter.this(), interpreter.of(sys.executable)
    assert dataclasses.replace(here, path=(), sites=()) == dataclasses.replace(
        there, path=(), sites=()
    )
    assert set(there.sites) <= set(here.sites)
    assert here.version.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert here.prefix == sys.prefix
    assert sysconfig.get_path("purelib") in here.sites
    assert here.path == tuple(os.path.abspath(path) for path in sys.path if path)


def test_markers_are_those_of_packaging() -> None:
    assert dict(interpreter.this().markers) == dict(default_environment())


def test_standard_library_is_that_of_the_base() -> None:
    found = interpreter.this()
    assert Path(found.stdlib, "os.py").is_file()
    assert Path(found.platstdlib, "lib-dynload").is_dir()
    assert {"os", "sys", "_json", "zlib"} <= found.stdlib_names
    assert "numpy" not in found.stdlib_names
    # of which `sys.stdlib_module_names` says nothing, and some distributions leave it out
    has_tests = Path(found.stdlib, "test", "__init__.py").is_file()
    assert ("test" in found.stdlib_names) == has_tests
    assert not Path(found.base_executable).is_symlink()
    assert os.access(found.base_executable, os.X_OK)


def test_machine() -> None:
    assert interpreter.this().machine == os.uname().machine


def test_venv_has_one_site_and_the_library_of_its_base(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "own")
    found = interpreter.of(python)
    assert found.executable == str(python)
    assert found.prefix == str(tmp_path / "own")
    assert found.base_prefix == interpreter.this().base_prefix
    assert found.platstdlib == interpreter.this().platstdlib
    assert found.sites == (f"{tmp_path}/own/lib/{PYTHON}/site-packages",)


def test_venv_that_sees_the_base_has_its_sites_behind_its_own(tmp_path: Path) -> None:
    found = interpreter.of(make_venv(tmp_path / "both", system_site_packages=True))
    base = interpreter.of(found.base_executable)
    assert found.sites == (f"{tmp_path}/both/lib/{PYTHON}/site-packages", *base.sites)
    assert base.sites
    assert found.site_below == base.site_below


def test_one_folder_under_two_names_is_one_site(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "own")
    site = tmp_path / f"own/lib/{PYTHON}/site-packages"
    (tmp_path / "own/lib-other").symlink_to("lib")
    other = tmp_path / f"own/lib-other/{PYTHON}/site-packages"
    (site / "other.pth").write_text(f"{other}\n")
    assert str(other) in said_by(python, "import sys; print(sys.path)")
    assert interpreter.of(python).sites == (str(site),)


def test_packed_interpreter_looks_where_it_is_said(tmp_path: Path) -> None:
    found = interpreter.this()
    code = f"import site; print(site.getsitepackages([{str(tmp_path)!r}]))"
    told = said_by(Path(found.base_executable), code)
    assert repr(f"{tmp_path}/{found.site_below}") in told


def test_debian_looks_in_dist_packages_in_a_venv_too(tmp_path: Path) -> None:
    debian = Path("/usr/bin/python3")
    if not Path("/usr/lib/python3/dist-packages").is_dir() or not debian.exists():
        pytest.skip("there is no Python of Debian here")
    if said_by(debian, "import sys; print(sys.version_info >= (3, 11))") != "True":
        pytest.skip("Debian's Python is too old here")
    found = interpreter.of(debian)
    assert "/usr/lib/python3/dist-packages" in found.sites
    assert found.site_below == "lib/python3/dist-packages"
    assert found.stdlib.startswith("/usr/lib/python3.")
    command = [str(debian), "-m", "venv", "--without-pip", str(tmp_path / "own")]
    subprocess.run(command, check=True, capture_output=True)
    inner = interpreter.of(tmp_path / "own/bin/python")
    assert inner.sites[0].endswith("/site-packages")
    assert inner.site_below == "lib/python3/dist-packages"


def test_conda_prefix_is_known_by_its_records(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "own")
    assert not interpreter.of(python).conda
    (tmp_path / "own/conda-meta").mkdir()
    assert interpreter.of(python).conda


def test_what_start_up_prints_is_passed_over(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "own")
    site = tmp_path / f"own/lib/{PYTHON}/site-packages"
    (site / "noise.pth").write_text("import sys; print('{noise}')\n")
    assert interpreter.of(python).sites == (str(site),)


def test_nothing_around_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('wrong json')\n")
    (tmp_path / "platform.py").write_text("raise SystemExit('wrong platform')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert str(tmp_path) not in interpreter.of(sys.executable).path


def test_command_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = make_venv(tmp_path / "own")
    monkeypatch.setenv("PATH", str(python.parent))
    assert interpreter.of("python").prefix == str(tmp_path / "own")


def test_old_python_is_named_with_its_version(tmp_path: Path) -> None:
    mark = interpreter._MARK
    old = program(tmp_path, f"""echo '{mark}{{"version": "3.10.13"}}'""")
    with pytest.raises(ConfigError, match=r"Python 3\.10\.13 is too old") as caught:
        interpreter.of(old)
    assert caught.value.items == (str(old),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo no such thing >&2; exit 3", "no such thing"),
        ("exit 0", "exit code 0"),
        (f"echo '{interpreter._MARK}{{'", "its answer is damaged"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_program_that_is_no_python_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used as a Python interpreter") as caught:
        interpreter.of(program(tmp_path, text))
    assert said in caught.value.items
    assert str(tmp_path) in caught.value.fix


def test_file_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        interpreter.of(tmp_path / "none")
    assert caught.value.items == (os.strerror(2),)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ConfigError, match="cannot be used"):
        interpreter.of(tmp_path / "text")


def test_program_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_MOST_SECONDS", 0.2)
    with pytest.raises(ConfigError) as caught:
        interpreter.of(program(tmp_path, "exec sleep 30"))
    assert caught.value.items == ("no answer within 0.2 s",)
