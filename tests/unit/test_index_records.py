"""What is read of eggs, of conda's records, of damaged ones and of no records; what is kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import conda
import pytest
from site_folder import BELOW, TAG, Prefix, targets, write

from hepscale.env import index, interpreter

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def here(tmp_path: Path) -> Prefix:
    return Prefix(tmp_path / "prefix")


def no_metadata(info: Path) -> None:
    (info / "METADATA").unlink()


def no_text(info: Path) -> None:
    (info / "METADATA").write_bytes(b"\xff\xfe\0Name")
    (info / "entry_points.txt").write_bytes(b"[a\xff\n= x\n[]\nb = \xfe\n")


def no_url(info: Path) -> None:
    (info / "direct_url.json").write_text('{"dir_info": {"editable": tr')


def other_url(info: Path) -> None:
    (info / "direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "http://[x"}')


def list_for_url(info: Path) -> None:
    (info / "direct_url.json").write_text("[" * 100_000)


def folder_for_metadata(info: Path) -> None:
    no_metadata(info)
    (info / "METADATA").mkdir()


def odd_rows(info: Path) -> None:
    with (info / "RECORD").open("ab") as record:
        record.write(
            b'\n\npkg/short\npkg/gone.py,md5=x,y\npkg/\xff.dat,sha256=?,-1,more\n"pkg/open'
        )


def files_gone(info: Path) -> None:
    with (info / "RECORD").open("a") as record:
        record.write("pkg/gone.py,,10\ngone/__init__.py,,\n../../../../../x,,\n/etc/hostname,,\n")


@pytest.mark.parametrize(
    "damage",
    [
        no_metadata,
        no_text,
        no_url,
        other_url,
        list_for_url,
        folder_for_metadata,
        odd_rows,
        files_gone,
    ],
)
def test_damaged_metadata_do_not_hide_the_files(
    here: Prefix, damage: Callable[[Path], None]
) -> None:
    here.install("sound", {"sound.py": ""})
    damage(here.install("pkg", {"pkg/__init__.py": "x = 1\n"}, "1.5"))
    found = here.load()
    assert found.owner("pkg") == "pkg"
    assert found.owner("sound") == "sound"
    assert found.distributions["pkg"].version == "1.5"
    assert found.distributions["pkg"].editable == ""
    listed = found.files("pkg")
    assert f"{BELOW}/pkg/__init__.py" in {file.target for file in listed}
    assert all(Path(file.source).is_file() for file in listed)
    assert all(file.target.startswith(f"{BELOW}/pkg") for file in listed)


def test_file_names_that_are_no_text_are_kept(here: Prefix) -> None:
    info = here.install("pkg", {"pkg/__init__.py": ""})
    name = os.fsdecode(b"pkg/\xff.dat")
    here.add({name: "x"})
    with (info / "RECORD").open("ab") as record:
        record.write(b"pkg/\xff.dat,,1\n")
    assert name in targets(here.load(), "pkg")


def test_folder_without_metadata_and_record_is_no_distribution(here: Prefix) -> None:
    here.add({"pkg-1.0.dist-info/INSTALLER": "pip\n", "pkg/__init__.py": ""})
    found = here.load()
    assert found.distributions["pkg"].kind == "folder"
    assert targets(found, "pkg") == ["pkg/__init__.py"]


def test_leftovers_of_pip_are_passed_over(here: Prefix) -> None:
    here.install("pkg", {"pkg/__init__.py": ""})
    (here.site / "pkg").rename(here.site / "~kg")
    (here.site / "pkg-1.0.dist-info").rename(here.site / "~kg-1.0.dist-info")
    assert list(here.load().distributions) == []


def test_newer_of_two_is_taken(here: Prefix) -> None:
    old = here.install("pkg", {"pkg/__init__.py": "", "pkg_old.py": ""}, "2.0")
    os.utime(old / "RECORD", ns=(0, 0))
    here.install("pkg", {"pkg/__init__.py": ""}, "1.0")
    found = here.load()
    assert found.distributions["pkg"].version == "1.0"
    assert found.owner("pkg_old") == "pkg-old"


def test_wheel_without_a_record_has_what_its_names_say(here: Prefix) -> None:
    here.install(
        "my-yaml", {"yaml/__init__.py": "x", f"_yaml.{TAG}.so": ""}, top_level="yaml\n_yaml"
    )
    here.install("My_Tool", {"my_tool.py": "xx", "other.py": ""}, direct_url='{"url": ""}')
    for info in here.site.glob("*.dist-info"):
        (info / "RECORD").unlink()
    found = here.load()
    owned = {"yaml.x": "my-yaml", "_yaml": "my-yaml", "my_tool": "my-tool", "other": "other"}
    assert {module: found.owner(module) for module in owned} == owned
    assert targets(found, "my-tool") == [
        "My_Tool-1.0.dist-info/INSTALLER",
        "My_Tool-1.0.dist-info/METADATA",
        "my_tool.py",
    ]
    (size,) = (file.size_bytes for file in found.files("my-tool") if file.target.endswith(".py"))
    assert size == 2


def test_eggs_of_distributors_are_found_without_a_record(here: Prefix) -> None:
    info = {"PKG-INFO": "Name: PyWhole\nVersion: 3\n", "top_level.txt": "whole\n"}
    info["requires.txt"] = "numpy>=1\n\n[fast]\nnumba\n"
    info["entry_points.txt"] = "[a.group]\nx = whole.x\n"
    write(here.site / "PyWhole-3.egg-info", info)
    here.add({"single-2.egg-info": "Name: single\nVersion: 2\nRequires-Dist: whole\n"})
    here.add({"whole/__init__.py": "", "whole/data.txt": "", "single.py": "", "cairo/a.py": ""})
    listed = {"PKG-INFO": "Name: listed\nVersion: 1\n"}
    listed["installed-files.txt"] = "../named/__init__.py\n../../../../bin/named\nPKG-INFO\n"
    write(here.site / "listed-1.egg-info", listed)
    write(here.root, {f"{BELOW}/named/__init__.py": "xyz", "bin/named": ""})
    found = here.load()
    whole = found.distributions["pywhole"]
    assert (whole.version, whole.kind, whole.modules) == ("3", "egg", ("whole",))
    assert whole.requires == ("numpy>=1", 'numba; extra == "fast"')
    assert whole.entry_points == (("a.group", "whole.x"),)
    assert "whole/data.txt" in targets(found, "pywhole")
    assert "PyWhole-3.egg-info/requires.txt" in targets(found, "pywhole")
    assert found.distributions["single"].requires == ("whole",)
    assert targets(found, "single") == ["single-2.egg-info", "single.py"]
    assert targets(found, "listed") == [
        "bin/named",
        "listed-1.egg-info/PKG-INFO",
        "named/__init__.py",
    ]
    assert found.distributions["listed"].size_bytes >= 3
    assert found.owner("cairo.a") == "cairo"


def test_egg_folder_is_laid_out_as_if_it_was_a_wheel(here: Prefix) -> None:
    egg = here.site / "old-1.0-py3.11.egg"
    write(egg, {"old/__init__.py": "", "EGG-INFO/PKG-INFO": "Name: old\nVersion: 1.0\n"})
    here.add({"easy-install.pth": f"./{egg.name}\n"})
    found = here.load(eggs=[str(egg)])
    assert found.distributions["old"].kind == "egg"
    assert targets(found, "old") == ["old-1.0-py3.11.egg-info/PKG-INFO", "old/__init__.py"]
    assert found.owner("old.x") == "old"
    assert found.module_file("old") == f"{egg}/old/__init__.py"
    assert here.load().owner("old") is None


def test_what_nobody_recorded_is_found(here: Prefix, tmp_path: Path) -> None:
    here.install("pkg", {"pkg/__init__.py": "", "data/table.txt": ""})
    here.add({"loose.py": "xx", "my_mod/__init__.py": "", "my_mod/__pycache__/x.pyc": ""})
    here.add(
        {"my_mod.libs/lib.so": "", f"_fast.{TAG}.so": "", "README.txt": "", "only/data.txt": ""}
    )
    here.add({"__pycache__/loose.pyc": "", "start.pth": "import os\n", "not-a-module/x.py": ""})
    write(tmp_path / "project", {"work/__init__.py": ""})
    (here.site / "work").symlink_to(tmp_path / "project/work")
    found = here.load()
    assert {name: one.kind for name, one in found.distributions.items()} == {
        "fast": "folder",
        "loose": "folder",
        "my-mod": "folder",
        "pkg": "wheel",
        "start": "folder",
    }
    assert targets(found, "my-mod") == ["my_mod.libs/lib.so", "my_mod/__init__.py"]
    assert targets(found, "start") == ["start.pth"]
    assert found.distributions["loose"].size_bytes == 2
    owned = {"loose": "loose", "my_mod.x": "my-mod", "_fast": "fast", "work": None, "only": None}
    assert {module: found.owner(module) for module in owned} == owned


def test_module_with_the_name_of_a_distribution_has_another(here: Prefix) -> None:
    here.install("tool", {"provided/__init__.py": ""})
    here.add({"tool.py": ""})
    found = here.load()
    assert found.owner("tool") == "tool-folder"
    assert found.owner("provided") == "tool"


def test_link_to_a_folder_is_packed_as_the_files_in_it(here: Prefix) -> None:
    here.install("pkg", {"pkg/__init__.py": "", "pkg/real/x.txt": ""})
    (here.site / "pkg/link").symlink_to("real")
    (here.site / "pkg/broken").symlink_to("gone")
    with (here.site / "pkg-1.0.dist-info/RECORD").open("a") as record:
        record.write("pkg/link,,\npkg/broken,,\n")
    found = targets(here.load(), "pkg")
    assert "pkg/link/x.txt" in found
    assert "pkg/broken" not in found


def conda_python(here: Prefix, name: str, **options: list[str]) -> list[str]:
    """Write the Python files of a conda package, and return their paths below the prefix."""
    info = here.install(
        name, {f"{name}/__init__.py": ""}, direct_url='{"url": "file:///x"}', **options
    )
    paths = [*info.iterdir(), here.site / name / "__init__.py"]
    return [str(path.relative_to(here.root)) for path in paths]


def test_packages_of_conda_bear_the_names_that_python_gives_them(here: Prefix) -> None:
    paths = conda_python(here, "torch", requires=["numpy; extra == 'np'"])
    depends = [
        "python >=3.11",
        "zstd 1.*",
        "conda-forge::tzdata",
        "python-tzdata",
        "__glibc >=2.17",
    ]
    here.conda("pytorch", paths, "2.0", depends)
    here.conda("python-tzdata", conda_python(here, "tzdata"), "2")
    write(here.root, {"share/zoneinfo/UTC": "", "lib/libzstd.so.1": "", "bin/python3": ""})
    here.conda("tzdata", ["share/zoneinfo/UTC"])
    here.conda("zstd", ["lib/libzstd.so.1", "lib/gone.so"])
    here.conda("torch", [], depends=["pytorch"])
    here.conda("python", ["bin/python3"], "3.11.7", ["zstd", "tzdata"])
    here.install("wheeled", {"wheeled.py": ""}, requires=["torch"])
    found = here.load()
    kinds = {name: one.kind for name, one in found.distributions.items()}
    assert kinds.pop("wheeled") == "wheel"
    assert sorted(kinds) == ["conda-tzdata", "python", "torch", "tzdata", "zstd"]
    assert set(kinds.values()) == {"conda"}
    torch = found.distributions["torch"]
    assert torch.requires == ("numpy; extra == 'np'", "zstd", "conda-tzdata")
    assert (torch.version, torch.modules) == ("1.0", ("torch",))
    assert torch.info == str(here.root / "conda-meta/pytorch-2.0-0.json")
    assert torch.size_bytes == 10 * len(found.files("torch"))
    assert found.distributions["python"].requires == ("zstd", "conda-tzdata")
    assert found.owner("torch.nn") == "torch"
    assert targets(found, "zstd") == ["lib/libzstd.so.1"]
    assert not any(name.endswith("direct_url.json") for name in targets(found, "torch"))


def test_second_distribution_of_a_conda_package_leads_to_it(here: Prefix) -> None:
    paths = conda_python(here, "first") + conda_python(here, "second", requires=["numpy"])
    here.conda("second", paths)
    found = here.load()
    assert found.distributions["first"].requires == ("second",)
    assert found.files("first") == ()
    assert len(found.files("second")) == len(paths) - 2
    assert found.owner("first") == "second"


def test_package_of_conda_that_pip_has_replaced_is_pips(here: Prefix) -> None:
    write(here.root, {"lib/libpkg.so": "", f"{BELOW}/pkg_old.py": ""})
    gone = [
        f"{BELOW}/pkg-0.9.dist-info/METADATA",
        f"{BELOW}/pkg/__init__.py",
        f"{BELOW}/pkg_old.py",
    ]
    here.conda("pkg", [*gone, "lib/libpkg.so"], "0.9")
    here.conda("plain", [f"{BELOW}/plain-1.dist-info/METADATA", f"{BELOW}/plain.py"], "1")
    here.install("pkg", {"pkg/__init__.py": ""}, "1.0")
    here.install("plain", {"plain.py": ""}, "2")
    found = here.load()
    one = found.distributions["pkg"]
    assert (one.version, one.kind) == ("1.0", "wheel")
    assert targets(found, "conda-pkg") == ["lib/libpkg.so"]
    assert found.owner("pkg_old") == "pkg-old"
    assert sorted(found.distributions) == ["conda-pkg", "pkg", "pkg-old", "plain"]


def test_files_of_conda_are_described_as_its_records_do(here: Prefix) -> None:
    paths = [
        {"_path": "etc/a", "sha256": "a" * 64},
        {
            "_path": "etc/b",
            "sha256": "b" * 64,
            "sha256_in_prefix": "c" * 64,
            "file_mode": "text",
            "prefix_placeholder": "/opt/built",
        },
        {"_path": "etc/c", "sha256": "b" * 64, "file_mode": "binary", "prefix_placeholder": "/opt"},
        {"_path": "bin/d", "path_type": "unix_python_entry_point", "sha256": "d" * 64},
        {"_path": "lib/e", "path_type": "softlink", "sha256": "a" * 64},
        {"_path": "lib", "path_type": "directory"},
        {"_path": "/etc/hostname"},
        {"_path": "../outside"},
    ]
    write(here.root, dict.fromkeys(["etc/a", "etc/b", "etc/c", "bin/d"], "") | {"lib/e": ""})
    here.conda("pkg", paths)
    old = here.conda("old", ["etc/a"])
    record = json.loads(old.read_text())
    del record["paths_data"]
    old.write_text(json.dumps(record))
    found = here.load()
    described = [
        (file.target, file.sha256[:1], file.placeholder, file.prefix_mode)
        for file in found.files("pkg")
    ]
    assert described == [
        ("bin/d", "", "", "unknown"),
        ("etc/a", "a", "", ""),
        ("etc/b", "c", "/opt/built", "text"),
        ("etc/c", "", "/opt", "binary"),
        ("lib/e", "", "", ""),
    ]
    assert [(file.target, file.prefix_mode) for file in found.files("old")] == [
        ("etc/a", "unknown")
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"name": 3, "files": 4, "depends": 5}', '{"name": ""}']
)
def test_damaged_record_of_conda_is_passed_over(here: Prefix, text: str) -> None:
    here.conda("sound")
    here.conda("damaged").write_text(text)
    assert "sound" in here.load().distributions


def test_real_conda_prefix_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    prefix = conda.shared(tmp_path_factory)
    found = index.load(interpreter.of(prefix / "bin/python"))
    kinds = {name: one.kind for name, one in found.distributions.items()}
    assert kinds.pop("wheeled") == "wheel"
    assert set(kinds.values()) == {"conda"}
    assert {"python", "packaging", "click", "lz4", "greeter", "placed"} <= set(kinds)
    for name, module in {"lz4": "lz4.block", "greeter": "greeter", "wheeled": "wheeled"}.items():
        assert found.owner(module) == name
        file = found.module_file(module)
        assert file in {one.source for one in found.files(name)}
    placed = {file.target: file for file in found.files("placed")}
    assert {file.placeholder for file in placed.values()} == {conda.PLACEHOLDER}
    assert placed["share/placed.dat"].prefix_mode == "binary"
    assert {"bin/wheeled", "wheeled.py"} <= set(targets(found, "wheeled"))
    (script,) = (file for file in found.files("greeter") if file.target == "bin/greet")
    assert (script.prefix_mode, script.sha256) == ("unknown", "")
    assert f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/os.py" in {
        file.target for file in found.files("python")
    }
