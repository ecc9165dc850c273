"""A venv that pip has filled with wheels which are written here, without network.

It holds

- ``lamp``, pure Python, with the script ``bin/lamp``, the data file ``share/lamp/settings.ini``,
  the script ``bin/lamp-old`` of the kind without entry point, and a requirement,
- ``shade``, which ``lamp`` requires,
- ``bolt``, with a compiled module (that of lz4),
- ``projector``, an editable project in a folder beside the venv,
- ``idle``, which nobody needs,
- ``backports.zstd``, as it is installed for the tests, where the standard library has no zstd.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.block
from site_folder import row, write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"lib/python{VERSION}/site-packages"

_LAMP = """\
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import shade


def settings():
    return (Path(sys.prefix) / "share/lamp/settings.ini").read_text().strip()


def main():
    print("lamp", version("lamp"), shade.COLOR, settings(), sys.prefix)
    print((files("lamp") / "watts.txt").read_text().strip())
"""

_ANALYSIS = """\
import bolt
import lamp
import projector

import helper
from tool.shape import corners

import ssl, sqlite3, ctypes, bz2, lzma, zlib
from importlib.metadata import version

assert bolt.decompress(bolt.compress(b"x" * 99)) == b"x" * 99
print(lamp.settings(), projector.RANGE, helper.HELP, corners(), version("lamp"))
"""
TOLD = "warm 7 yes 4 1.0\n"

_SHAPE = """\
from importlib.resources import files

def corners():
    return int((files("tool") / "data/n.txt").read_text())
"""
_SECRETS = (".env", "id_rsa", "proxy.pem", ".git/config", ".ssh/id_ed25519")


@dataclass(frozen=True)
class Venv:
    """A venv, its Python and the folder of the editable project."""

    prefix: Path
    project: Path

    @property
    def python(self) -> Path:
        return self.prefix / "bin/python"

    @property
    def site(self) -> Path:
        return self.prefix / SITE


def wheel(
    folder: Path,
    name: str,
    files: Mapping[str, str | bytes],
    *,
    requires: Sequence[str] = (),
    scripts: Mapping[str, str] = {},
) -> Path:
    """Write a wheel; `scripts` are console scripts and what they call."""
    info = f"{name}-1.0.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"]
    lines += [f"Requires-Dist: {one}\n" for one in requires]
    every = {
        **files,
        f"{info}/METADATA": "".join(lines),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        listed = [f"{script} = {call}\n" for script, call in scripts.items()]
        every[f"{info}/entry_points.txt"] = "".join(["[console_scripts]\n", *listed])
    rows = [row(path, content) for path, content in every.items()]
    every[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for target, content in every.items():
            entry = zipfile.ZipInfo(target)
            entry.external_attr = (0o100755 if "/scripts/" in target else 0o100644) << 16
            archive.writestr(entry, content)
    return path


def make(folder: Path, *more: Path) -> Venv:
    """Make the venv ``folder/own``; `more` are wheels that are installed as well."""
    made = Venv(folder / "own", folder / "project")
    package = made.project / "src/projector"
    package.mkdir(parents=True)
    (made.project / "pyproject.toml").touch()
    (package / "__init__.py").write_text("from projector.beam import RANGE\n")
    (package / "beam.py").write_text("RANGE = 7\n")
    venv.EnvBuilder(symlinks=True).create(made.prefix)
    compiled = Path(lz4.block._block.__file__)
    wheels = [
        wheel(
            folder,
            "lamp",
            {
                "lamp/__init__.py": _LAMP,
                "lamp/watts.txt": "60\n",
                "lamp-1.0.data/data/share/lamp/settings.ini": "warm\n",
                "lamp-1.0.data/scripts/lamp-old": "#!python\nimport lamp\nlamp.main()\n",
            },
            requires=["shade", 'bolt; python_version < "3"'],
            scripts={"lamp": "lamp:main"},
        ),
        wheel(folder, "shade", {"shade/__init__.py": "COLOR = 'green'\n", "shade/py.typed": ""}),
        wheel(
            folder,
            "bolt",
            {
                "bolt/__init__.py": "from bolt._block import compress, decompress\n",
                f"bolt/{compiled.name}": compiled.read_bytes(),
            },
        ),
        wheel(folder, "idle", {"idle.py": ""}),
        wheel(folder, "projector", {"__editable__.projector-1.0.pth": f"{package.parent}\n"}),
        *_zstd(folder),
        *more,
    ]
    install(made, wheels)
    url = {"dir_info": {"editable": True}, "url": made.project.as_uri()}
    (made.site / "projector-1.0.dist-info/direct_url.json").write_text(json.dumps(url))
    return made


def install(made: Venv, wheels: Sequence[Path]) -> None:
    """Have pip install wheels, which compiles them and notes where they came from."""
    pip = [sys.executable, "-m", "pip", "--python", str(made.python)]
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    options.append("--root-user-action=ignore")
    subprocess.run([*pip, "install", *options, *map(str, wheels)], check=True)


def _zstd(folder: Path) -> list[Path]:
    if sys.version_info >= (3, 14):
        return []
    found = importlib.metadata.distribution("backports.zstd")
    code = [file for file in found.files or () if file.parts[0] == "backports"]
    files = {str(file): Path(file.locate()).read_bytes() for file in code if file.suffix != ".pyc"}
    return [wheel(folder, "backports.zstd", files)]


def analysis(folder: Path) -> Path:
    """Write an analysis that uses all of it, and prints `TOLD`, and return its script.

    Beside it are local modules, data of theirs, and what has to stay where it is.
    """
    files = {
        "analysis.py": _ANALYSIS,
        "helper.py": "HELP = 'yes'\n",
        "tool/__init__.py": "",
        "tool/shape.py": _SHAPE,
        "tool/data/n.txt": "4\n",
        "other.py": "",
        **{f"tool/{name}": "SECRET" for name in _SECRETS},
    }
    write(folder, files)
    return folder / "analysis.py"
