"""A conda prefix that is packed, and what is unpacked elsewhere when the prefix is gone."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import conda
import conda_packages
import pytest
from bare import told
from conda_pack.prefixes import replace_prefix
from conda_packages import LIBRARY, SUFFIX, UNWANTED

import hepscale
from hepscale.config import load_settings
from hepscale.env import api, archive, environment, pack
from hepscale.env.environment import Environment, Packed
from hepscale.executor.engines import warm
from hepscale.worker import VERSION

EXTRA = ["placed"]
SECRET = "HUSH-HUSH"
ANALYSIS = """\
import os, sys
import lz4.block, replaced, sharer, tool, wheeled
import bz2, ctypes, lzma, sqlite3, ssl, zlib

assert lz4.block.decompress(lz4.block.compress(b"x" * 99)) == b"x" * 99
print(sys.prefix, replaced.BY, os.environ.get("SHARE_HOME"), os.environ.get("TOOL"))
print(*sharer.libraries(), sep="\\n")
"""
# where files hold the prefix, and how conda has filled it in
TEXT = ("etc/placed.conf", "lib/libshare.json", f"{conda.SITE}/etc_tool.ini")
PROGRAM = f"bin/{conda.PYTHON}"
BINARY = ("share/placed.dat", PROGRAM)
# what finds its libraries by itself
COMPILED = ("lib/libshare.so.1.2", f"{conda.SITE}/sharer/inner/_version{SUFFIX}")
Members: TypeAlias = "dict[str, tuple[tarfile.TarInfo, bytes]]"


@dataclass(frozen=True)
class Made:
    """What was packed of a prefix that is not there any more."""

    prefix: Path
    top: Path
    script: Path
    packed: Packed
    environment: Environment
    originals: dict[str, bytes]
    names: frozenset[str]


@dataclass(frozen=True)
class Unpacked:
    """A folder that an archive was unpacked in."""

    prefix: Path

    def run(self, *command: object, activate: bool = True) -> str:
        """Run a command in a shell that knows nothing else, activated or not."""
        line = shlex.join(map(str, command))
        if activate:
            line = f"source {shlex.quote(str(self.prefix))}/bin/activate && {line}"
        return told(["bash", "-c", line])


def make(channel: Path, top: Path, below: str = "conda/prefix", *, hard: bool = True) -> Made:
    """Make the prefix ``top/below``, pack it, and remove it and what it was made from.

    Parameters
    ----------
    hard
        Whether it shares its files with a cache.
    """
    prefix = top / below
    python = conda_packages.installed(channel, top, prefix)
    cached = top / "rattler/cache/pkgs"
    originals = {name: original(cached, name) for name in (*TEXT, *BINARY, *COMPILED)}
    if not hard:
        as_on_another_disk(prefix)
    keep_secrets(prefix)
    shutil.rmtree(top / "rattler")
    script = top / "own/analysis.py"
    script.parent.mkdir()
    script.write_text(ANALYSIS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_CACHE_DIR", str(top / "cache"))
        found = hepscale.analyze(script, python=python, extra_packages=EXTRA)
        assert found.missing == ()
        packed = hepscale.pack(script, top / "env.tar.gz", python=python, extra_packages=EXTRA)
        built = environment.build(api.planned(found), api.store())
    names = frozenset(one.name for one in found.distributions)
    prefix.rename(top / "gone")
    return Made(prefix, top, script, packed, built, originals, names)


def original(cached: Path, name: str) -> bytes:
    """Return a file as it is in its package."""
    names = dict.fromkeys((name, name.removeprefix(f"{LIBRARY}/")))
    (path,) = (path for one in names for path in cached.glob(f"*/{one}"))
    return path.read_bytes()


def as_on_another_disk(prefix: Path) -> None:
    """Make a prefix what it is where it cannot share files with a cache, and at another time."""
    for record in (prefix / "conda-meta").glob("*.json"):
        known = json.loads(record.read_text())
        known["link"]["type"] = 3
        known["requested_spec"] = f"{prefix.as_uri()}/pkgs/{record.stem}.conda"
        record.write_text(json.dumps(dict(reversed(known.items()))))
    for at, path in enumerate(sorted(prefix.rglob("*"))):
        if not path.is_symlink():
            os.utime(path, (1_000_000_000 + at, 1_000_000_000 + at))


def keep_secrets(prefix: Path) -> None:
    """Put into a prefix what users keep there, and conda."""
    for name in (".condarc", "conda-meta/state", "etc/conda/activate.d/own.sh", "pkgs/x/info.json"):
        (prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (prefix / name).write_text(f"export TOKEN={SECRET}\n")


@pytest.fixture(scope="module")
def first(channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(channel, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make the same in a folder whose name is too long for a shebang, and has a blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        top = tmp_path_factory.mktemp("second")
        return make(channel, top, f"a folder/{'deep' * 25}/prefix", hard=False)


@pytest.fixture(scope="module")
def members(first: Made) -> Members:
    with tarfile.open(first.packed.path) as tar:
        return {
            one.name: (one, tar.extractfile(one).read() if one.isfile() else b"") for one in tar
        }


@pytest.fixture(scope="module")
def unpacked(first: Made, tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """Unpack the archive as a user does."""
    found = Unpacked(tmp_path_factory.mktemp("un packed") / "env")
    found.prefix.mkdir()
    subprocess.run(["tar", "-C", found.prefix, "-xf", first.packed.path], check=True)
    assert found.run("conda-unpack") == ""
    return found


# -- the archive -----------------------------------------------------------------------------------


def test_analysis_runs_in_it(first: Made, unpacked: Unpacked) -> None:
    prefix = unpacked.prefix
    facts, *loaded = unpacked.run("python", first.script).splitlines()
    assert facts == f"{prefix} pip {prefix}/share kit"
    assert not first.prefix.exists()
    # found by $ORIGIN paths of their own, among them one of a package that nobody asks for
    names = {f"lib/lib{name}" for name in ("share.so.1.2", "under.so.1", "forgotten.so.1")}
    ours = {os.path.relpath(path, prefix) for path in loaded if path.startswith(f"{prefix}/")}
    assert names <= ours
    # and none of them is loaded from here as well
    assert len({os.path.basename(path) for path in loaded}) == len(loaded)


def filled_in(made: Made, prefix: Path) -> dict[str, bytes]:
    """Return the files that hold the prefix as conda would install them there."""
    modes = {**dict.fromkeys(TEXT, "text"), **dict.fromkeys(BINARY, "binary")}
    return {
        name: replace_prefix(made.originals[name], mode, conda.PLACEHOLDER, str(prefix))
        for name, mode in modes.items()
    }


def test_placeholders_stand_for_the_prefix(
    first: Made, unpacked: Unpacked, members: Members
) -> None:
    wanted = filled_in(first, unpacked.prefix)
    # conda-unpack leaves the program alone that runs it
    wanted[PROGRAM] = first.originals[PROGRAM]
    for name in wanted:
        before = first.originals[name]
        assert conda.PLACEHOLDER.encode() in before
        assert members[name][1] == before
        assert (unpacked.prefix / name).read_bytes() == wanted[name]
    assert len(wanted["share/placed.dat"]) == len(first.originals["share/placed.dat"])
    spared = len(conda.PLACEHOLDER) - len(str(unpacked.prefix))
    assert b"/share\0" + bytes(spared) + b"|" in wanted["share/placed.dat"]


def test_scripts_run(unpacked: Unpacked) -> None:
    prefix = unpacked.prefix
    assert unpacked.run("tool") == f"{prefix}\n"
    assert unpacked.run("wheeled") == f"wheeled {prefix}\n"
    assert unpacked.run("placed").splitlines() == [
        str(prefix),
        f"{prefix}/share",
        f"{prefix}:{prefix}/lib",
    ]
    assert unpacked.run(prefix / "libexec/share-tool") == f"{prefix}\n"
    assert unpacked.run("command", "-v", "python") == f"{prefix}/bin/python\n"
    # and by its path alone
    code = "import sys, sharer; print(sys.prefix)"
    assert unpacked.run(prefix / "bin/python", "-c", code, activate=False) == f"{prefix}\n"


def test_metadata_of_both_installers(unpacked: Unpacked) -> None:
    code = (
        "from importlib.metadata import distributions, entry_points, files, version\n"
        "print(sorted((one.name, one.version, one.read_text('INSTALLER').strip())"
        " for one in distributions()))\n"
        "print(entry_points(name='wheeled')['wheeled'].load().__module__)\n"
        "missing = [str(one) for name in ('tool-kit', 'wheeled', 'replaced')"
        " for one in files(name) if not one.locate().exists()]\n"
        "print(missing)\n"
    )
    listed, loaded, missing = unpacked.run("python", "-c", code).splitlines()
    found = {name: (version, by) for name, version, by in ast.literal_eval(listed)}
    assert found.pop("lz4")[1] == "conda"
    assert found == {
        "tool-kit": ("2.0", "conda"),
        "wheeled": ("1.0", "pip"),
        "replaced": ("1.0", "pip"),
    }
    assert loaded == "wheeled"
    assert missing == "[]"


def test_records_of_conda(first: Made, members: Members) -> None:
    records = {
        name.removeprefix("conda-meta/").rsplit("-", 2)[0]: json.loads(data)
        for name, (_, data) in members.items()
        if re.fullmatch("conda-meta/.*[.]json", name)
    }
    needed = {"sharer", "libshare", "_under", "data_files", "empty", "placed", "lz4", "tool-kit"}
    assert set(records) == {"python", *needed}
    assert {record["name"] for record in records.values()} == set(records)
    assert "conda-meta/history" in members
    # what they list is there, unless it was left out of the standard library, or tells of a place
    for name, record in records.items():
        listed = {one for one in record["files"] if not one.endswith("/direct_url.json")}
        assert name == "python" or listed <= set(members)
    spec = first.packed.spec.distributions
    assert spec["tool-kit"].version == "2.0"
    assert spec["replaced"].version == "1.0"
    assert archive.spec(first.packed.path) == first.packed.spec
    # Python has no names like these
    called = {"_under": "under", "data_files": "data-files"}
    assert {*(called.get(one, one) for one in needed), "wheeled", "replaced"} == first.names


def test_what_is_needed_comes_along_and_nothing_else(members: Members) -> None:
    assert {"share/under.txt", "share/data_files/table.txt", "etc/wheeled.ini"} <= set(members)
    assert {f"etc/conda/{one}.d/share.sh" for one in ("activate", "deactivate")} <= set(members)
    # a library that only its user asks for comes without its package
    assert "lib/libforgotten.so.1" in members
    kept_out = {*UNWANTED, "share/lone/data.txt", "share/forgotten.txt", "lib/tk8.6/tk.tcl"}
    assert kept_out.isdisjoint(members)
    parts = {part for name in members for part in name.split("/")}
    assert parts.isdisjoint({"__pycache__", "direct_url.json", "replaced-0.9.dist-info"})


def test_links_stay_links(first: Made, members: Members) -> None:
    links = {name: one.linkname for name, (one, _) in members.items() if one.issym()}
    assert links == {
        "bin/python": conda.PYTHON,
        "bin/python3": conda.PYTHON,
        "lib/libshare.so": "libshare.so.1",
        "lib/libshare.so.1": "libshare.so.1.2",
        "lib/python3.1": conda.PYTHON,
        "share/shared": "data_files",
    }
    assert not any(name.startswith(tuple(f"{link}/" for link in links)) for name in members)
    # so they are found as before, and nothing has to be patched
    assert [members[name][1] == first.originals[name] for name in COMPILED] == [True, True]


@pytest.mark.parametrize("which", ["archive", "layers"])
def test_nothing_of_the_machine_is_in_it(first: Made, second: Made, which: str) -> None:
    home, ours = os.path.expanduser("~"), {sys.prefix, sys.base_prefix} - {"/usr", "/usr/local"}
    for made in (first, second):
        paths = [made.packed.path]
        if which == "layers":
            paths = [one.path for one in made.environment.layers]
            assert made.environment.code is None
        for path in paths:
            data = whole(path)
            assert SECRET.encode() not in data
            for place in {str(made.top), made.top.as_uri(), home, *ours}:
                found = [
                    data[one.start() - 100 : one.end() + 100]
                    for one in re.finditer(re.escape(place.encode()), data)
                    # builders have such folders too, in places of theirs
                    if not re.match(rb"[\w.-]", data[one.start() - 1 : one.start()])
                ]
                assert found == [], (path, place)


def whole(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else pack.zstd().decompress(data)


def test_same_prefix_in_two_folders_gives_the_same_bytes(first: Made, second: Made) -> None:
    assert first.packed.path.read_bytes() == second.packed.path.read_bytes()
    assert first.packed.spec == second.packed.spec
    assert first.environment.describe(VERSION) == second.environment.describe(VERSION)


# -- on a worker -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """A worker with a folder for environments, and one environment."""

    environment: Environment
    cache: Path

    @property
    def prefix(self) -> Path:
        return self.cache / "unpacked" / self.environment.digest

    def command(self, *command: object) -> list[str]:
        settings = load_settings().model_copy(update={"cache_dir": self.cache})
        arguments = ["--", *map(str, command)]
        return warm.from_layers(self.environment, settings, self.cache.parent / "about", arguments)

    def run(self, *command: object) -> str:
        return told(self.command(*command))


@pytest.fixture(scope="module", params=["layers", "archive"])
def worker(
    request: pytest.FixtureRequest, first: Made, tmp_path_factory: pytest.TempPathFactory
) -> Worker:
    folder = tmp_path_factory.mktemp("a worker")
    if request.param == "layers":
        return Worker(first.environment, folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_CACHE_DIR", str(folder / "manager"))
        return Worker(archive.take(first.packed.path, api.store()), folder / "cache")


def test_worker_relocates(first: Made, worker: Worker) -> None:
    python = worker.prefix / "bin/python"
    assert worker.run(python, "-c", "import sys; print(sys.prefix)") == f"{worker.prefix}\n"
    wanted = filled_in(first, worker.prefix)
    if worker.environment.whole:
        wanted[PROGRAM] = first.originals[PROGRAM]
    assert {name: (worker.prefix / name).read_bytes() for name in wanted} == wanted
    facts, *loaded = worker.run(python, first.script).splitlines()
    assert facts.startswith(f"{worker.prefix} pip ")
    assert f"{worker.prefix}/lib/libshare.so.1.2" in loaded
    assert sorted(os.listdir(worker.cache / "unpacked")) == [worker.environment.digest]


def test_worker_whose_folder_is_too_deep(first: Made, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 150) / ("y" * 150)
    deep.mkdir(parents=True)
    worker = Worker(first.environment, deep)
    command = worker.command("true")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 89, done.stderr
    assert "The path of the folder for unpacked environments is too long." in done.stderr
    assert f"{len(str(worker.prefix))} bytes, {len(conda.PLACEHOLDER)} fit into" in done.stderr
    assert "\nNext: give the worker a folder with a shorter path" in done.stderr
    assert os.listdir(deep / "unpacked") == []
