"""Shared libraries that are taken along: found as the loader finds them, and used after a move."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import conda
import pytest

from hepscale.env import native
from hepscale.env.native import Elf, closure, read, rpath_patches

if TYPE_CHECKING:
    pass
from libraries import INTERPRETER, handmade, library, said_rpath

# Debian's and Red Hat's glibc both have it, and neither gives anything else that begins with it
SYSTEM_LIBRARY = "libgcc_s.so.1"


# -- what is taken along ---------------------------------------------------------------------------


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


# -- the cache -------------------------------------------------------------------------------------


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
