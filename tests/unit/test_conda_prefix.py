"""The conda prefix that tests pack is like one that conda makes, and works."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import conda
import pytest
from conda_pack import CondaEnv

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conda.shared(tmp_path_factory)


def told(*command: object) -> list[str]:
    """Run a command with next to no variables, and return the lines that it prints."""
    done = subprocess.run(
        list(map(str, command)),
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.splitlines()


def record(prefix: Path, name: str) -> dict[str, Any]:
    (path,) = (prefix / "conda-meta").glob(f"{name}-*.json")
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def test_python_runs_with_the_libraries_of_the_prefix(prefix: Path) -> None:
    code = (
        "import sys, bz2, ctypes, lzma, sqlite3, ssl, zlib, lz4.block, packaging, click\n"
        "print(sys.prefix, lz4.block.__file__, ssl.__file__, sep='\\n')\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libcrypto' in line})"
    )
    home, compiled, standard, library = told(prefix / "bin/python", "-I", "-c", code)
    assert home == str(prefix)
    assert compiled.startswith(f"{prefix}/{conda.SITE}/lz4/")
    assert standard == f"{prefix}/lib/{conda.PYTHON}/ssl.py"
    assert library == f"{prefix}/lib/libcrypto.so.3"


def test_placeholders_have_become_the_prefix(prefix: Path) -> None:
    assert told(prefix / "bin/placed") == [str(prefix), f"{prefix}/share", f"{prefix}:{prefix}/lib"]
    paths = {path["_path"]: path for path in record(prefix, "placed")["paths_data"]["paths"]}
    modes = {path: described["file_mode"] for path, described in paths.items()}
    assert modes == {"bin/placed": "text", "etc/placed.conf": "text", "share/placed.dat": "binary"}
    for described in paths.values():
        assert described["prefix_placeholder"] == conda.PLACEHOLDER
        assert described["sha256_in_prefix"] != described["sha256"]
    data = (prefix / "share/placed.dat").read_bytes()
    assert len(data) == paths["share/placed.dat"]["size_in_bytes"]


def test_entry_points_work(prefix: Path) -> None:
    assert told(prefix / "bin/greet") == ["hello"]
    kinds = {path["path_type"] for path in record(prefix, "greeter")["paths_data"]["paths"]}
    assert kinds == {"hardlink", "unix_python_entry_point"}


def test_a_wheel_lies_beside_the_packages(prefix: Path) -> None:
    assert told(prefix / "bin/wheeled") == ["from a wheel"]
    names = {path.name.split("-")[0] for path in (prefix / "conda-meta").glob("*.json")}
    assert names == {"python", "packaging", "click", "lz4", "greeter", "placed"}
    assert (prefix / "conda-meta/history").is_file()


def test_what_conda_pack_says_of_it(prefix: Path) -> None:
    files = {file.target: file for file in CondaEnv.from_prefix(str(prefix)).files}
    for target, mode in {"bin/placed": "text", "share/placed.dat": "binary"}.items():
        file = files[target]
        assert (file.is_conda, file.file_mode) == (True, mode)
        assert file.prefix_placeholder == conda.PLACEHOLDER
        # conda's cache, where the placeholder still stands
        assert not file.source.startswith(str(prefix))
    assert files[f"{conda.SITE}/lz4/__init__.py"].file_mode is None
    assert files["bin/greet"].file_mode == "unknown"
    wheeled = files[f"{conda.SITE}/wheeled.py"]
    assert (wheeled.is_conda, wheeled.file_mode) == (False, "unknown")
