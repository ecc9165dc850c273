"""A conda prefix: made by py-rattler of packages that are written here, without conda or network.

It holds

- ``python``, made of the interpreter that runs the tests, with the libraries that it needs,
- ``packaging`` and ``click`` (``noarch: python``) and ``lz4`` (compiled), made of installed wheels,
- ``greeter`` (``noarch: python``), with the entry point ``bin/greet``,
- ``placed``, whose files hold the prefix: ``bin/placed`` and ``etc/placed.conf`` as text,
  ``share/placed.dat`` as NUL-terminated strings between other bytes,
- ``wheeled``, a wheel that pip has installed beside them, with the script ``bin/wheeled``.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rattler
from rattler.index import index_fs

from hepscale.env import interpreter, native

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACEHOLDER = "/opt/placeholder" + "_placeholder" * 20
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"lib/{PYTHON}/site-packages"
_VERSION = ".".join(map(str, sys.version_info[:3]))
_NO_NEED = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"}
    | {"site-packages", "dist-packages", "__pycache__"}
)
_NO_NEED_PREFIXES = ("config-", "_tkinter.", "_test", "_ctypes_test", "xxlimited", "_xxtest")

_PLACED = """\
import pathlib

prefix = pathlib.Path(__file__).parent.parent
conf = (prefix / "etc/placed.conf").read_text().partition("=")[2].strip()
_, first, second, _ = (prefix / "share/placed.dat").read_bytes().split(b"|")
print(conf)
print(first.rstrip(b"\\0").decode())
print(second.rstrip(b"\\0").decode())
"""

_WHEEL = {
    "wheeled.py": "def main():\n    print('from a wheel')\n",
    "wheeled-1.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: wheeled\nVersion: 1.0\nRequires-Dist: packaging\n"
    ),
    "wheeled-1.0.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ),
    "wheeled-1.0.dist-info/entry_points.txt": "[console_scripts]\nwheeled = wheeled:main\n",
}


@dataclass
class Package:
    """A conda package; `files` are contents, or where links lead to."""

    name: str
    version: str
    depends: list[str] = field(default_factory=list)
    noarch: bool = False
    entry_points: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    executable: set[str] = field(default_factory=set)
    text: set[str] = field(default_factory=set)
    binary: set[str] = field(default_factory=set)

    def write(self, channel: Path) -> None:
        """Write it into a channel."""
        stem = f"{self.name}-{self.version}-0"
        folder = channel / self._subdir()
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{stem}.conda", "w") as archive:
            archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
            for kind, files in (("pkg", self.files), ("info", self._info())):
                content = zstd.compress(self._tar(files, self.links if kind == "pkg" else {}), 1)
                archive.writestr(f"{kind}-{stem}.tar.zst", content)

    def _subdir(self) -> str:
        return "noarch" if self.noarch else str(rattler.Subdir.current())

    def _tar(self, files: dict[str, bytes], links: dict[str, str]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for path, content in sorted(files.items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                entry.mode = 0o755 if path in self.executable else 0o644
                tar.addfile(entry, io.BytesIO(content))
            for path, target in sorted(links.items()):
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
        return out.getvalue()

    def _info(self) -> dict[str, bytes]:
        index: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "build": "0",
            "build_number": 0,
            "depends": self.depends,
            "subdir": self._subdir(),
            "timestamp": 1_700_000_000_000,
        }
        link: dict[str, Any] = {"package_metadata_version": 1}
        if self.noarch:
            index["noarch"] = "python"
            link["noarch"] = {"type": "python", "entry_points": self.entry_points}
        paths = [self._path(path) for path in sorted({*self.files, *self.links})]
        info = {
            "index.json": index,
            "link.json": link,
            "paths.json": {"paths": paths, "paths_version": 1},
            "about.json": {},
        }
        return {f"info/{name}": json.dumps(content).encode() for name, content in info.items()}

    def _path(self, path: str) -> dict[str, Any]:
        content = self.files.get(path, b"")
        described: dict[str, Any] = {
            "_path": path,
            "path_type": "softlink" if path in self.links else "hardlink",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_in_bytes": len(content),
        }
        if path in self.text | self.binary:
            described["file_mode"] = "text" if path in self.text else "binary"
            described["prefix_placeholder"] = PLACEHOLDER
        return described


def copy_interpreter(target: Path, python: str = sys.executable) -> None:
    """Copy an interpreter with its libraries into the folder `target`, so that it can be moved.

    The tests of the standard library, tkinter and what else takes space are left out.
    """
    code = "import os, sys, sysconfig as s; paths = s.get_path('stdlib'), s.get_path('platstdlib')"
    code += "; print(os.path.realpath(sys._base_executable), *paths, sep='\\n')"
    told = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True)
    executable, *standard = told.stdout.splitlines()
    taken = [executable]
    standard = list(dict.fromkeys(map(os.path.realpath, standard)))
    for folder in standard:
        name = os.path.basename(folder)
        for top, folders, names in os.walk(folder):
            folders[:] = sorted(one for one in folders if not _is_no_need(one))
            below = target / "lib" / name / os.path.relpath(top, folder)
            below.mkdir(parents=True, exist_ok=True)
            for one in names:
                if not _is_no_need(one):
                    taken.append(os.path.join(top, one))
                    shutil.copyfile(taken[-1], below / one)
    needed = native.closure(taken)
    places = {os.path.join(folder, ""): os.path.basename(folder) for folder in standard}
    copies = {path: target / "lib" / soname for soname, path in needed.libraries}
    for path, copy in copies.items():
        shutil.copyfile(path, copy)
    for path in needed.relink:
        for folder, name in places.items():
            if path.startswith(folder):
                copies[path] = target / "lib" / name / path.removeprefix(folder)
        _patch(copies[path], native.rpath_patches(path))
    (target / "bin").mkdir()
    copied = target / "bin" / os.path.basename(executable)
    shutil.copy(executable, copied)
    native.set_rpath(copied)
    for link in ("python3", "python"):
        (target / "bin" / link).symlink_to(copied.name)


def _is_no_need(name: str) -> bool:
    return name in _NO_NEED or name.startswith(_NO_NEED_PREFIXES)


def _patch(path: Path, patches: tuple[tuple[int, bytes], ...]) -> None:
    with path.open("r+b") as file:
        for offset, content in patches:
            file.seek(offset)
            file.write(content)


def python(folder: Path) -> Package:
    """Return conda's Python: the interpreter that runs the tests, which is copied to `folder`.

    Tests are skipped where that is Debian's, which has packages in places that no other has.
    """
    if interpreter.this().site_below.endswith("dist-packages"):
        pytest.skip("conda's Python is not made of Debian's: run with another, such as pyenv's")
    copy_interpreter(folder)
    package = Package("python", _VERSION)
    base = sysconfig.get_config_var("installed_base").encode()
    built = str(sysconfig.get_config_var("abs_builddir")).encode()
    # conda's is built where nobody's home is; the last part may be part of another string
    above = {one.rpartition(b"/")[0] for one in (base, built)} - {b"", b"/usr"}
    for path in folder.rglob("*"):
        below = str(path.relative_to(folder))
        if path.is_symlink():
            package.links[below] = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
            # as in conda's own python, whose build knows of no other prefix than the placeholder
            if path.name.startswith("_sysconfigdata") and base in content:
                content = content.replace(base, PLACEHOLDER.encode())
                package.text.add(below)
            for one in above:
                other = b"/nowhere".ljust(len(one), b"/")[: len(one)]
                content = content.replace(one + b"/", other + b"/")
            if path.parent.name == "bin":
                # what follows the last section is ignored
                content += f"\0{PLACEHOLDER}/lib\0".encode()
                package.executable.add(below)
                package.binary.add(below)
            package.files[below] = content
    package.files[f"{SITE}/README.txt"] = b"packages go here\n"
    return package


def wheel_as_conda(name: str, *, noarch: bool) -> Package:
    """Return a conda package with the files of an installed wheel."""
    found = importlib.metadata.distribution(name)
    package = Package(name, found.version, [f"python {_VERSION}.*"], noarch=noarch)
    top = "site-packages" if noarch else SITE
    for file in found.files or ():
        if ".." in file.parts or file.suffix == ".pyc" or file.name in {"RECORD", "REQUESTED"}:
            continue
        content = b"conda\n" if file.name == "INSTALLER" else file.read_binary()
        package.files[f"{top}/{file}"] = content
    return package


def greeter() -> Package:
    """Return a package with an entry point."""
    package = Package("greeter", "1.0", ["python", "click"], noarch=True)
    package.entry_points = ["greet = greeter:main"]
    package.files["site-packages/greeter/__init__.py"] = b"def main():\n    print('hello')\n"
    package.files["site-packages/greeter-1.0.dist-info/METADATA"] = (
        b"Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\nRequires-Dist: click\n"
    )
    return package


def placed() -> Package:
    """Return a package whose files hold the prefix."""
    package = Package("placed", "1.0", ["python"])
    strings = f"|{PLACEHOLDER}/share\0|{PLACEHOLDER}:{PLACEHOLDER}/lib\0|".encode()
    package.files = {
        "bin/placed": f"#!{PLACEHOLDER}/bin/python\n{_PLACED}".encode(),
        "etc/placed.conf": f"prefix = {PLACEHOLDER}\n".encode(),
        "share/placed.dat": b"\x7fDAT\0\1" + strings + b"\xff\0",
    }
    package.executable = {"bin/placed"}
    package.text = {"bin/placed", "etc/placed.conf"}
    package.binary = {"share/placed.dat"}
    return package


def write_channel(folder: Path, packages: Sequence[Package]) -> None:
    """Write packages into ``folder/channel``."""
    channel = folder / "channel"
    (channel / "noarch").mkdir(parents=True)
    for package in packages:
        package.write(channel)
    asyncio.run(index_fs(channel, write_zst=False, write_shards=False))


def install(folder: Path, prefix: Path, names: Sequence[str]) -> None:
    """Install packages of ``folder/channel``; their own files are left in ``folder/cache/pkgs``."""
    asyncio.run(_install(folder / "channel", folder / "cache", prefix, list(names)))


async def _install(channel: Path, cached: Path, prefix: Path, names: list[str]) -> None:
    records = await rattler.solve(
        [rattler.Channel(channel.as_uri())],
        names,
        gateway=rattler.Gateway(cache_dir=cached / "repodata"),
        virtual_packages=rattler.VirtualPackage.detect(),
    )
    await rattler.install(
        records, target_prefix=prefix, cache_dir=cached / "pkgs", show_progress=False
    )


def make(folder: Path) -> Path:
    """Make the prefix as ``folder/prefix`` and return it.

    The packages' own files, with the placeholder, are in ``folder/cache/pkgs``.
    """
    prefix = folder / "prefix"
    packages = [
        python(folder / "python"),
        wheel_as_conda("packaging", noarch=True),
        wheel_as_conda("click", noarch=True),
        wheel_as_conda("lz4", noarch=False),
        greeter(),
        placed(),
    ]
    write_channel(folder, packages)
    install(folder, prefix, [package.name for package in packages])
    install_wheel(prefix, folder)
    return prefix


def install_wheel(prefix: Path, folder: Path) -> None:
    """Write a wheel into `folder` and have pip install it into the prefix."""
    wheel = folder / "wheeled-1.0-py3-none-any.whl"
    record = "wheeled-1.0.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in _WHEEL.items():
            archive.writestr(path, content)
        archive.writestr(record, "".join(f"{path},,\n" for path in (*_WHEEL, record)))
    pip = [sys.executable, "-m", "pip", "--python", str(prefix / "bin" / "python")]
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    options.append("--root-user-action=ignore")
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)


_made: list[Path] = []


def shared(factory: pytest.TempPathFactory) -> Path:
    """Return a prefix that all tests of a session use, and none may change."""
    if not _made:
        _made.append(make(factory.mktemp("conda")))
    return _made[0]
