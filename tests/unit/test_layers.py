from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from site_folder import BELOW, PYTHON, direct_url, write
from sites import Site

from hepscale.env import contents, interpreter, layers, native
from hepscale.env.contents import Entry
from hepscale.env.interpreter import Interpreter
from hepscale.env.local import find_local

LIBRARY = [
    "os.py",
    "json/__init__.py",
    "json/tool.py",
    "lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so",
    "turtle.py",
    "tkinter/__init__.py",
    "turtledemo/clock.py",
    "lib-dynload/_tkinter.cpython-311-x86_64-linux-gnu.so",
    "idlelib/help.py",
    "idlelib/idle_test/test_help.py",
    "test/__init__.py",
    "test/support/__init__.py",
    "unittest/__init__.py",
    "unittest/test/test_case.py",
    "lib2to3/tests/data/bom.py",
    "lib-dynload/_testcapi.cpython-311-x86_64-linux-gnu.so",
    "lib-dynload/_ctypes_test.cpython-311-x86_64-linux-gnu.so",
    "lib-dynload/xxlimited.cpython-311-x86_64-linux-gnu.so",
    "__pycache__/os.cpython-311.pyc",
    "json/__pycache__/tool.cpython-311.pyc",
    "site-packages/numpy.py",
    "dist-packages/apt.py",
    "config-3.11-x86_64-linux-gnu/Makefile",
    "EXTERNALLY-MANAGED",
    "testing.py",
    "tests_of_mine/data.txt",
]
TKINTER = {
    "turtle.py",
    "tkinter/__init__.py",
    "turtledemo/clock.py",
    "lib-dynload/_tkinter.cpython-311-x86_64-linux-gnu.so",
}
IDLE = {"idlelib/help.py"}
TEST = {
    "test/__init__.py",
    "test/support/__init__.py",
    "lib-dynload/_testcapi.cpython-311-x86_64-linux-gnu.so",
    "lib-dynload/_ctypes_test.cpython-311-x86_64-linux-gnu.so",
    "lib-dynload/xxlimited.cpython-311-x86_64-linux-gnu.so",
}
ALWAYS = {
    "os.py",
    "json/__init__.py",
    "json/tool.py",
    "lib-dynload/_ssl.cpython-311-x86_64-linux-gnu.so",
    "unittest/__init__.py",
    "testing.py",
    "tests_of_mine/data.txt",
}


def python(root: Path, site: Site, library: str = f"lib/{PYTHON}", **given: object) -> Interpreter:
    """Write an interpreter's files, which were installed to `root`, and describe it."""
    write(root / library, dict.fromkeys(LIBRARY, f"# {root}\n"))
    write(root, {f"bin/{PYTHON}": ""})
    facts = {
        "base_executable": str(root / f"bin/{PYTHON}"),
        "base_prefix": str(root),
        "stdlib": str(root / library),
        "platstdlib": str(root / library),
        **given,
    }
    return dataclasses.replace(site.interpreter, **facts)


def library_of(entries: list[Entry], below: str = f"lib/{PYTHON}") -> set[str]:
    start = f"{below}/"
    return {
        one.target.removeprefix(start)
        for one in entries
        if one.target.startswith(start) and not one.target.startswith(f"{BELOW}/")
    }


def by_target(entries: list[Entry]) -> dict[str, Entry]:
    found = {one.target: one for one in entries}
    assert len(found) == len(entries)
    return found


# -- interpreter ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imported", "more"),
    [
        (set(), set()),
        ({"json", "os"}, set()),
        ({"tkinter"}, TKINTER),
        ({"turtle"}, TKINTER),
        ({"_tkinter"}, TKINTER),
        ({"idlelib"}, IDLE),
        ({"test"}, TEST),
        ({"test", "turtledemo", "idlelib"}, TEST | TKINTER | IDLE),
    ],
)
def test_standard_library(tmp_path: Path, site: Site, imported: set[str], more: set[str]) -> None:
    found = python(tmp_path / "base", site)
    entries = layers.interpreter(found, site.index(), imported)
    taken = library_of(entries)
    assert taken - {"idlelib/idle_test/test_help.py"} == ALWAYS | more
    targets = by_target(entries)
    program = targets[f"bin/{PYTHON}"]
    assert (program.source, program.treat) == (found.base_executable, "program")
    assert targets["bin/python"].link == targets["bin/python3"].link == PYTHON
    assert b"def replace_prefix" in targets["hepscale/prefixes.py"].data
    others = {target for target in targets if not target.startswith("lib/")}
    assert others == {f"bin/{PYTHON}", "bin/python", "bin/python3", "hepscale/prefixes.py"}


@pytest.mark.parametrize("library", ["lib64/python3.11", "lib/python3.13t", "lib/python3.12"])
def test_library_is_where_this_python_looks_for_it(
    tmp_path: Path, site: Site, library: str
) -> None:
    found = python(tmp_path / "base", site, library)
    assert library_of(layers.interpreter(found, site.index(), ()), library) == ALWAYS


def test_library_in_two_places(tmp_path: Path, site: Site) -> None:
    write(tmp_path / "base/lib64/python3.11", {"lib-dynload/_x.so": "", "os.py": ""})
    found = python(tmp_path / "base", site, platstdlib=str(tmp_path / "base/lib64/python3.11"))
    entries = layers.interpreter(found, site.index(), ())
    assert library_of(entries) == ALWAYS
    assert library_of(entries, "lib64/python3.11") == {"lib-dynload/_x.so", "os.py"}
    by_target(entries)


def test_links_in_the_library(tmp_path: Path, site: Site) -> None:
    # as Debian has them: one that leads elsewhere, and one whose file was removed
    write(tmp_path, {"etc/sitecustomize.py": "x = 1\n"})
    found = python(tmp_path / "base", site)
    (Path(found.stdlib) / "sitecustomize.py").symlink_to(tmp_path / "etc/sitecustomize.py")
    (Path(found.stdlib) / "gone.py").symlink_to(tmp_path / "etc/gone.py")
    targets = by_target(layers.interpreter(found, site.index(), ()))
    entry = targets[f"lib/{PYTHON}/sitecustomize.py"]
    assert contents.content(entry).data == b"x = 1\n"
    assert f"lib/{PYTHON}/gone.py" not in targets


def test_places_of_an_interpreter_that_was_built_here(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = python(tmp_path / "base", site)
    assert layers.private(found) == (str(tmp_path / "base"),)
    data = Path(found.stdlib) / "_sysconfigdata__linux_x86_64-linux-gnu.py"
    data.write_text("build_time_vars = {'a': 1,\n 'abs_builddir': '/tmp/build.1/Python-3.11'}\n")
    assert layers.private(found) == (str(tmp_path / "base"), "/tmp/build.1/Python-3.11")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert layers.private(found)[2:] == (f"{tmp_path}/",)
    entries = layers.interpreter(found, site.index(), ())
    for entry in entries:
        if entry.source:
            assert entry.private == layers.private(found)
    entry = by_target(entries)[f"lib/{PYTHON}/os.py"]
    assert str(tmp_path).encode() not in contents.content(entry).data


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local"])
def test_places_that_everybody_has(tmp_path: Path, site: Site, prefix: str) -> None:
    found = python(tmp_path / "base", site, base_prefix=prefix)
    assert layers.private(found) == ()
    assert layers.private(dataclasses.replace(found, base_prefix="/opt/conda", conda=True)) == ()


def test_real_interpreter_says_nothing_of_its_place(site: Site) -> None:
    found = site.interpreter
    places = layers.private(found)
    entries = layers.interpreter(found, site.index(), ())
    entries, needed = layers.libraries(entries, places=places)
    by_target(entries)
    assert needed.glibc
    tells = [one.encode() for one in places if one.count("/") > 1]
    for entry in entries:
        assert not any(one in contents.content(entry).data for one in tells), entry.target


# -- decoder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.11.7", "3.14.0"])
def test_decoder(tmp_path: Path, site: Site, version: str) -> None:
    found = dataclasses.replace(site.interpreter, version=version)
    assert layers.decoder(found, site.index()) == []
    assert layers.has_zstd(found, site.index()) == (version == "3.14.0")
    files = {
        "backports/zstd/__init__.py": "",
        "backports/zstd/_x.so": "",
        "backports/zstd/x.pyi": "",
    }
    site.put("backports.zstd", files)
    expected = {"hepscale/backports/zstd/__init__.py", "hepscale/backports/zstd/_x.so"}
    decoder = layers.decoder(found, site.index())
    assert {one.target for one in decoder} == (expected if version == "3.11.7" else set())
    assert layers.has_zstd(found, site.index())


# -- packages ------------------------------------------------------------------------------------


def taken(site: Site, *names: str, hidden: tuple[str, ...] = ()) -> dict[str, Entry]:
    return by_target(layers.packages(names, site.index(), site.interpreter, hidden))


def test_files_of_a_wheel(site: Site) -> None:
    info = site.put(
        "pure", {"pure/__init__.py": "x", "pure/data.bin": b"\0", "../../../bin/p": "x"}
    )
    found = taken(site, "pure")
    code = found[f"{BELOW}/pure/__init__.py"]
    assert code.treat == ""
    assert (len(code.sha256), code.recorded_bytes) == (64, 1)
    assert code.installed_ns == (info / "RECORD").stat().st_mtime_ns
    assert found[f"{BELOW}/pure-1.0.dist-info/RECORD"].treat == "record"
    assert (found["bin/p"].treat, found["bin/p"].prefix) == ("script", str(site.root))
    assert f"{BELOW}/pure-1.0.dist-info/METADATA" in found


def test_settings_that_hold_the_prefix(site: Site) -> None:
    place = {"../../../share/kernel.json": f'["{site.root}/bin/python"]\n'}
    site.put("kernel", {"kernel.py": f"# {site.root}\n", **place})
    found = taken(site, "kernel")
    made = contents.content(found["share/kernel.json"])
    assert str(site.root).encode() not in made.data
    assert made.relocation is not None
    # what a wheel has brought is packed as it is
    assert contents.content(found[f"{BELOW}/kernel.py"]).relocation is None


def test_records_of_copies_inside_a_package(site: Site) -> None:
    copied = {
        "aaa/_vendor/b.py": "",
        "aaa/_vendor/b-1.0.dist-info/RECORD": "b.py,,\n__pycache__/b.pyc,,\n",
    }
    site.put("zzz", {"aaa/__init__.py": "", **copied})
    found = taken(site, "zzz")
    assert found[f"{BELOW}/zzz-1.0.dist-info/RECORD"].treat == "record"
    copy = found[f"{BELOW}/aaa/_vendor/b-1.0.dist-info/RECORD"]
    assert copy.treat == ""
    assert copy.sha256


def test_editable_project_gives_its_metadata(site: Site, tmp_path: Path) -> None:
    site.put(
        "project",
        {"__editable__.project-1.0.pth": f"{tmp_path}\n"},
    )
    info = site.site / "project-1.0.dist-info"
    (info / "direct_url.json").write_text(direct_url(tmp_path))
    found = taken(site, "project")
    assert f"{BELOW}/project-1.0.dist-info/METADATA" in found
    assert not [one for one in found if one.endswith((".pth", "direct_url.json", "RECORD"))]


def test_package_that_no_installer_knows(site: Site) -> None:
    site.add({"loose/__init__.py": f"HOME = '{site.root}'\n", "loose/__pycache__/x.pyc": ""})
    found = taken(site, "loose")
    assert list(found) == [f"{BELOW}/loose/__init__.py"]
    made = contents.content(found[f"{BELOW}/loose/__init__.py"])
    assert made.relocation is not None
    assert str(site.root).encode() not in made.data


def test_what_local_modules_have_taken_stays_behind(site: Site) -> None:
    names = ["hist/__init__.py", "hist.py", "hist.cpython-311-x86_64-linux-gnu.so", "hist.abi3.so"]
    site.put("one", {**dict.fromkeys(names, ""), "history.py": "", "other/hist.py": ""})
    found = {one.removeprefix(f"{BELOW}/") for one in taken(site, "one", hidden=("hist",))}
    assert {one for one in found if "dist-info" not in one} == {"history.py", "other/hist.py"}
    assert taken(site, "one").keys() > {f"{BELOW}/{name}" for name in names}


def test_links_to_neighbours_stay_links(site: Site, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    site.put("linked", {"../../../lib/libx.so.1.2": "x", "linked.py": ""})
    library = site.root / "lib"
    (library / "libx.so.1").symlink_to("libx.so.1.2")
    (library / "libx.so").symlink_to(library / "libx.so.1.2")
    (library / "far.so").symlink_to(tmp_path / "outside")
    (library / "near.so").symlink_to("../../outside")
    with (site.site / "linked-1.0.dist-info/RECORD").open("a") as record:
        for name in ("libx.so.1", "libx.so", "far.so", "near.so"):
            record.write(f"../../{name},,\n")
    found = taken(site, "linked")
    assert found["lib/libx.so.1"].link == "libx.so.1.2"
    # by an absolute path, or to a place outside: what they lead to is packed
    assert {found[f"lib/{name}"].link for name in ("libx.so", "far.so", "near.so")} == {""}
    assert contents.content(found["lib/libx.so"]).data == b"x"
    assert contents.content(found["lib/far.so"]).data == b"outside"


def test_packages_of_the_base_interpreter(tmp_path: Path) -> None:
    # a venv that sees what is installed for its base
    own, base = Site(tmp_path / "own"), Site(tmp_path / "base")
    base.put("based", {"based.py": "", "../../../bin/based": f"#!{base.root}/bin/python\nx\n"})
    base.put("told", {"told.py": "", "../../../etc/told": f"{base.root}/etc\n"})
    found = dataclasses.replace(
        own.interpreter,
        base_prefix=str(base.root),
        sites=(str(own.site), str(base.site)),
        path=(str(own.site), str(base.site)),
    )
    index = own.load(base)
    targets = by_target(layers.packages(["based", "told"], index, found))
    assert contents.content(targets["bin/based"]).data == b"#!/usr/bin/env python\nx\n"
    assert str(base.root).encode() not in contents.content(targets["etc/told"]).data


def test_packages_of_the_system(site: Site) -> None:
    # "/usr" stands in every second script, for other things than the prefix
    text = "#!/usr/bin/python3\nopen('/usr/share/dict/words')\n"
    site.put("system", {"system.py": "", "../../../bin/system": text})
    found = dataclasses.replace(site.interpreter, prefix="/usr", base_prefix="/usr")
    (entry,) = [
        one
        for one in layers.packages(["system"], site.index(), found)
        if one.target == "bin/system"
    ]
    made = contents.content(entry)
    assert made == (text.replace("#!/usr/bin/", "#!/usr/bin/env ").encode(), None)


# -- libraries -----------------------------------------------------------------------------------


def test_libraries_that_are_packed_with_what_needs_them(tmp_path: Path) -> None:
    found = interpreter.this()
    modules = sorted(Path(found.platstdlib).glob("lib-dynload/*.so"))
    own = [Entry("bin/python", found.base_executable)]
    own += [Entry(f"lib/{path.name}", str(path)) for path in modules]
    entries, needed = layers.libraries(own, places=("/private",))
    assert [(one.target, one.source) for one in entries[: len(own)]] == [
        (one.target, one.source) for one in own
    ]
    names = {one.target: one for one in entries[len(own) :]}
    assert {f"lib/{soname}" for soname, _ in needed.libraries} == names.keys()
    assert {one.private for one in names.values() if not one.link} <= {("/private",)}
    assert [one for one in names if "libc.so" in one or "ld-linux" in one] == []
    # what the layer below has is not packed again
    again, _ = layers.libraries(own[1:], entries)
    assert [one.target for one in again] == [one.target for one in own[1:]]


def test_library_with_two_names_is_packed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = (("liba.so", "/x/liba.so.1"), ("liba.so.1", "/x/liba.so.1"), ("libb.so", "/x/b"))
    needed = native.Native(pairs, "2.30", (), ("/x/b", "/own"))
    monkeypatch.setattr(native, "closure", lambda files, cache: needed)
    entries, told = layers.libraries([Entry("own.so", "/own")])
    assert told is needed
    assert [(one.target, one.source, one.link, one.relink) for one in entries] == [
        ("own.so", "/own", "", True),
        ("lib/liba.so", "/x/liba.so.1", "", False),
        ("lib/liba.so.1", "", "liba.so", False),
        ("lib/libb.so", "/x/b", "", True),
    ]


# -- local code -----------------------------------------------------------------------------------


def test_code(tmp_path: Path) -> None:
    write(tmp_path, {"tool/__init__.py": "", "tool/data/x.txt": "", "tool/.env": "SECRET"})
    one = find_local("tool", [str(tmp_path)])
    assert one is not None
    assert [entry.target for entry in layers.code([one])] == ["tool/__init__.py", "tool/data/x.txt"]
    assert [entry.target for entry in layers.code([one], "lib/x")] == [
        "lib/x/tool/__init__.py",
        "lib/x/tool/data/x.txt",
    ]
