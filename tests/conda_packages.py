"""Packages for a conda prefix that is packed, beside those of `conda`: what is odd about conda's.

- ``python`` has what tasks do not need, ``lib/python3.1``, a link to its own library, and depends
  on ``tk`` and ``pip``,
- ``sharer``, compiled, finds libraries by its own ``$ORIGIN`` paths: ``libshare``, on which its
  package depends, and ``libforgotten``, on which it does not,
- ``libshare``, without Python, has a library, links, a script for activation and settings with the
  prefix, and depends on ``_under``, ``data_files`` and ``empty``,
- ``tool`` has a RECORD, a script and the metadata of conda-forge's packages,
- ``replaced`` has been replaced by a wheel,
- ``lone`` is needed by nobody.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import conda
import libraries
import wheels
from conda import PLACEHOLDER, Package
from site_folder import row

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LIBRARY = f"lib/{conda.PYTHON}"
_OF_PYTHON = (
    f"{LIBRARY}/test/test_x.py",
    f"{LIBRARY}/json/tests/x.py",
    f"{LIBRARY}/idlelib/idle.py",
    f"{LIBRARY}/tkinter/__init__.py",
    f"{LIBRARY}/turtle.py",
    f"{LIBRARY}/lib-dynload/_tkinter{SUFFIX}",
    f"{LIBRARY}/config-3-linux/libpython.a",
    "bin/idle3",
)
UNWANTED = (*_OF_PYTHON, "lib/libtk8.6.so", f"{conda.SITE}/pip.py")
# a module that needs glibc only, of which others are made
_SHARER = """\
from sharer import _version
from sharer.inner import _version as other

def libraries():
    with open("/proc/self/maps") as maps:
        paths = {line.rstrip().split(maxsplit=5)[-1] for line in maps}
    return sorted(path for path in paths if "/lib/lib" in path)
"""


def write_channel(folder: Path) -> None:
    """Write the packages into ``folder/channel``, and the wheels beside it."""
    packages = [
        _python(folder / "python"),
        Package("tk", "8.6", files={"lib/libtk8.6.so": b"", "lib/tk8.6/tk.tcl": b""}),
        conda.wheel_as_conda("lz4", noarch=False),
        conda.placed(),
        *_sharing(),
        _tool(),
        _as_conda_forge(Package("replaced", "0.9", ["python", "lone"], noarch=True)),
        _as_conda_forge(Package("pip", "1.0", ["python"], noarch=True)),
        Package("lone", "1.0", files={"share/lone/data.txt": b"lone\n"}),
    ]
    if sys.version_info < (3, 14):
        packages.append(conda.wheel_as_conda("backports.zstd", noarch=False))
    conda.write_channel(folder, packages)
    (folder / "names").write_text(" ".join(package.name for package in packages))
    wheels.wheel(folder, "replaced", {"replaced.py": "BY = 'pip'\n"})
    wheels.wheel(
        folder,
        "wheeled",
        {
            "wheeled/__init__.py": "import sys\n\ndef main():\n    print('wheeled', sys.prefix)\n",
            "wheeled-1.0.data/data/etc/wheeled.ini": "[wheeled]\n",
        },
        requires=["replaced"],
        scripts={"wheeled": "wheeled:main"},
    )


def install(folder: Path, prefix: Path) -> Path:
    """Install all of it, the wheels last, and return the interpreter."""
    conda.install(folder, prefix, (folder / "names").read_text().split())
    wheels.install(wheels.Venv(prefix, folder), sorted(folder.glob("*.whl")))
    return prefix / "bin/python"


def installed(channel: Path, top: Path, prefix: Path) -> Path:
    """Install all packages; rattler's own files are left in ``top/rattler``."""
    shutil.copytree(channel, top / "rattler")
    return install(top / "rattler", prefix)


def _python(folder: Path) -> Package:
    package = conda.python(folder)
    package.depends = ["tk", "pip", "empty"]
    package.files |= dict.fromkeys(_OF_PYTHON, b"")
    package.links["lib/python3.1"] = conda.PYTHON
    return package


def _sharing() -> list[Package]:
    sharer = Package("sharer", "1.0", ["python", "libshare"])
    below = f"{conda.SITE}/sharer"
    sharer.files = {
        f"{below}/__init__.py": _SHARER.encode(),
        f"{below}/inner/__init__.py": b"",
        f"{below}/_version{SUFFIX}": library(
            "_version", "libshare.so.1", "libforgotten.so.1", rpath="$ORIGIN/../../.."
        ),
        f"{below}/inner/_version{SUFFIX}": library(
            "_version", "libshare.so.1", runpath="$ORIGIN/../../../.."
        ),
    }
    share = Package("libshare", "1.2", ["_under", "data_files >=1", "empty", "__glibc >=2.17"])
    share.files = {
        "lib/libshare.so.1.2": library("libshare.so.1", "libunder.so.1", runpath="$ORIGIN/."),
        "lib/libshare.json": f'{{"prefix": "{PLACEHOLDER}"}}\n'.encode(),
        "libexec/share-tool": f"#!{PLACEHOLDER}/bin/python\nprint('{PLACEHOLDER}')\n".encode(),
        "etc/conda/activate.d/share.sh": b'export SHARE_HOME="$CONDA_PREFIX/share"\n',
        "etc/conda/deactivate.d/share.sh": b"unset SHARE_HOME\n",
    }
    share.text = {"lib/libshare.json", "libexec/share-tool"}
    share.executable = {"lib/libshare.so.1.2", "libexec/share-tool"}
    share.links = {
        "lib/libshare.so.1": "libshare.so.1.2",
        "lib/libshare.so": "libshare.so.1",
        "share/shared": "data_files",
    }
    under = Package("_under", "1.0", files={"lib/libunder.so.1": library("libunder.so.1")})
    under.files["share/under.txt"] = b"under\n"
    data = Package("data_files", "1.0", files={"share/data_files/table.txt": b"1 2 3\n"})
    forgotten = Package("forgotten", "1.0", files={"share/forgotten.txt": b"forgotten\n"})
    forgotten.files["lib/libforgotten.so.1"] = library("libforgotten.so.1")
    return [sharer, share, under, data, forgotten, Package("empty", "1.0")]


def _tool() -> Package:
    package = Package("tool-kit", "2.0", ["python", "data_files"], noarch=True)
    package.files = {
        "site-packages/tool/__init__.py": b"import sys\n\ndef main():\n    print(sys.prefix)\n",
        "site-packages/etc_tool.ini": f"home = {PLACEHOLDER}/etc\n".encode(),
        "etc/conda/activate.d/tool.sh": b"export TOOL=kit\n",
    }
    package.text = {"site-packages/etc_tool.ini"}
    package.entry_points = ["tool = tool:main"]
    return _as_conda_forge(package)


def _as_conda_forge(package: Package) -> Package:
    """Add what pip leaves when conda-build runs it."""
    info = f"site-packages/{package.name.replace('-', '_')}-{package.version}.dist-info"
    place = b'{"dir_info": {}, "url": "file:///home/conda/feedstock_root/build/work"}'
    about = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    module = f"site-packages/{package.name}.py"
    package.files |= {
        **({} if package.text else {module: b"BY = 'conda'\n"}),
        f"{info}/METADATA": about.encode(),
        f"{info}/INSTALLER": b"conda\n",
        f"{info}/REQUESTED": b"",
        f"{info}/direct_url.json": place,
    }
    rows = [
        row(path.removeprefix("site-packages/"), content)
        for path, content in package.files.items()
        if path.startswith("site-packages/")
    ]
    record = f"{info.removeprefix('site-packages/')}/RECORD"
    package.files[f"{info}/RECORD"] = "".join([*rows, f"{record},,\n"]).encode()
    return package


def library(soname: str, *needs: str, rpath: str = "", runpath: str = "") -> bytes:
    """Return a shared library: a real one, that a process can load."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "library")
        libraries.library(path, needs, soname=soname, rpath=rpath, runpath=runpath)
        return path.read_bytes()
