"""Who owns which module and file: wheels, namespaces, editable projects, what nobody recorded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from site_folder import BELOW, TAG, Prefix, direct_url, finder, targets, write

from hepscale.env import index, interpreter

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def here(tmp_path: Path) -> Prefix:
    return Prefix(tmp_path / "prefix")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the package ``work`` and the module ``tool`` in ``src``."""
    folder = tmp_path / "my project"
    files = ("pyproject.toml", "src/work/__init__.py", "src/tool.py", "src/data/table.txt")
    write(folder, dict.fromkeys(files, ""))
    return folder


@pytest.fixture(scope="module")
def running() -> index.Index:
    return index.load(interpreter.this())


def test_what_runs_these_tests_is_seen_as_the_standard_library_sees_it(
    running: index.Index,
) -> None:
    for one in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        found = running.distributions[name]
        assert found.version == one.version, name
        assert found.requires == tuple(one.requires or ()), name
        points = {(point.group, point.module) for point in one.entry_points}
        assert set(found.entry_points) == points, name
    for module, names in importlib.metadata.packages_distributions().items():
        if module.isidentifier() and importlib.util.find_spec(module):
            known = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
            assert set(running.owners(module)) & known, module


@pytest.mark.parametrize("name", ["packaging", "numpy", "awkward"])
def test_files_of_an_installed_distribution_have_the_digests_that_are_said(
    running: index.Index, name: str
) -> None:
    files = running.files(name)
    listed = {
        str(path.locate()) for path in importlib.metadata.files(name) or () if path.suffix != ".pyc"
    }
    assert {str(Path(file.source).resolve()) for file in files} == {
        str(Path(path).resolve()) for path in listed
    }
    for file in files:
        content = Path(file.source).read_bytes()
        if file.sha256:
            assert hashlib.sha256(content).hexdigest() == file.sha256
            assert file.size_bytes == len(content)
        assert not file.target.startswith(("/", ".."))
    assert sum(bool(file.sha256) for file in files) >= len(files) - 2


@pytest.mark.parametrize("module", ["numpy", "numpy.linalg", "awkward._util", "uproot", "yaml"])
def test_module_files_are_those_that_python_finds(running: index.Index, module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert running.module_file(module) == spec.origin


def test_reading_takes_next_to_no_time(tmp_path: Path) -> None:
    found = interpreter.this()

    def seconds(cache: Path | None) -> float:
        begun = time.perf_counter()
        index.load(found, cache)
        return time.perf_counter() - begun

    assert min(seconds(None) for _ in range(3)) <= 1
    index.load(found, tmp_path)
    assert min(seconds(tmp_path) for _ in range(3)) <= 0.06


def test_files_have_their_places_below_the_prefix(here: Prefix) -> None:
    outside = "../../../../elsewhere"
    files = {
        "pkg/__init__.py": "x = 1\n",
        "pkg/__pycache__/__init__.cpython-311.pyc": "x",
        "pkg/old.pyc": "x",
        "pkg/a,b.txt": "x",
        "../../../bin/tool": "#!/bin/sh\n",
        "../../../share/pkg/data.json": "{}",
        "../../../etc/pkg.conf": "",
        outside: "x",
    }
    here.install("Pkg", files, direct_url='{"url": "https://example.org", "archive_info": {}}')
    text = (here.site / "Pkg-1.0.dist-info/RECORD").read_text()
    quoted = text.replace("pkg/a,b.txt", '"pkg/a,b.txt"')
    (here.site / "Pkg-1.0.dist-info/RECORD").write_text(quoted)
    (here.site / "Pkg-1.0.dist-info/REQUESTED").touch()
    found = here.load()
    by_target = {file.target: file for file in found.files("pkg")}
    assert sorted(by_target) == [
        "bin/tool",
        "etc/pkg.conf",
        f"{BELOW}/Pkg-1.0.dist-info/INSTALLER",
        f"{BELOW}/Pkg-1.0.dist-info/METADATA",
        f"{BELOW}/Pkg-1.0.dist-info/RECORD",
        f"{BELOW}/pkg/__init__.py",
        f"{BELOW}/pkg/a,b.txt",
        f"{BELOW}/pkg/old.pyc",
        "share/pkg/data.json",
    ]
    assert list(by_target) == sorted(by_target)
    one = by_target["share/pkg/data.json"]
    assert one.source == str(here.root / "share/pkg/data.json")
    assert (one.sha256, one.size_bytes) == (hashlib.sha256(b"{}").hexdigest(), 2)
    assert (one.placeholder, one.prefix_mode) == ("", "")
    assert by_target[f"{BELOW}/Pkg-1.0.dist-info/RECORD"].sha256 == ""
    assert found.distributions["pkg"].modules == ("pkg",)
    with pytest.raises(KeyError):
        found.files("none")


def test_metadata_are_read_as_far_as_they_matter(here: Prefix) -> None:
    points = (
        "# comment\n[fsspec.specs]\nroot = pkg.fs:Root [xrootd]\n\n"
        "[console_scripts]\n pkg=pkg.cli:main\n[other.group]\nplain = pkg.plain\n"
    )
    wanted = ('awkward>=2; python_version >= "3.8"', "numba[extra]")
    info = here.install("My_Pkg.Core", {"pkg/__init__.py": ""}, "2.1", wanted, entry_points=points)
    one = here.load().distributions["my-pkg-core"]
    assert (one.name, one.version, one.kind) == ("my-pkg-core", "2.1", "wheel")
    assert (one.info, one.site) == (str(info), str(here.site))
    assert one.requires == wanted
    assert one.entry_points == (
        ("console_scripts", "pkg.cli"),
        ("fsspec.specs", "pkg.fs"),
        ("other.group", "pkg.plain"),
    )
    assert one.editable == ""
    assert one.size_bytes == sum(path.stat().st_size for path in info.iterdir()) - (
        (info / "RECORD").stat().st_size
    )


def test_namespace_packages_are_divided_among_their_owners(here: Prefix) -> None:
    here.install("google-auth", {"google/auth/__init__.py": "", "google/auth/deep/more.py": ""})
    here.install("protobuf", {"google/protobuf/__init__.py": "", f"google/_upb.{TAG}.so": ""})
    here.install("google-store", {"google/cloud/store/__init__.py": ""})
    here.install("google-query", {"google/cloud/query.py": ""})
    here.add({"google/mine/__init__.py": "", "google/mine/__pycache__/x.pyc": ""})
    found = here.load()
    owned = {
        "google.auth": "google-auth",
        "google.auth.deep.more": "google-auth",
        "google.auth.anything": "google-auth",
        "google.protobuf.message": "protobuf",
        "google._upb": "protobuf",
        "google.cloud.store": "google-store",
        "google.cloud.query.Client": "google-query",
        "google.mine": "google-mine",
        "google.gone": None,
        "google.cloud.gone": None,
        "gone": None,
    }
    assert {module: found.owner(module) for module in owned} == owned
    assert found.owners("google.cloud") == ("google-query", "google-store")
    assert set(found.owners("google")) == {*found.distributions}
    assert found.owner("google") in found.distributions
    assert found.module_file("google") is None
    assert found.module_file("google.auth") == f"{here.site}/google/auth/__init__.py"
    assert found.module_file("google.cloud.query") == f"{here.site}/google/cloud/query.py"
    assert targets(found, "google-mine") == ["google/mine/__init__.py"]
    assert found.distributions["google-mine"].kind == "folder"


def test_package_that_several_have_a_part_of_is_divided_by_file(here: Prefix) -> None:
    here.install("ours", {"shared/__init__.py": "", "shared/ours.py": "", "single.py": ""})
    here.install("theirs", {"shared/__init__.py": "", "shared/theirs/__init__.py": ""})
    found = here.load()
    modules = ["shared", "shared.ours", "shared.theirs.x", "shared.gone", "single.attribute"]
    owners = [found.owner(module) for module in modules]
    assert owners == ["ours", "ours", "theirs", "ours", "ours"]


def test_module_files_are_chosen_as_python_does(here: Prefix) -> None:
    names = ["pkg/__init__.py", f"pkg/fast.{TAG}.so", "pkg/fast.py", "pkg/fast.cpython-36m-x.so"]
    names += ["pkg/stable.abi3.so", "pkg/plain.so", "pkg/old.pyc", "pkg/old.cpython-36m-x.so"]
    names += ["pkg/both.py", "pkg/both/__init__.py", "pkg/deep/space/one.py", "pkg/typed.pyi"]
    pairs = [f"pkg/pair{number}" for number in range(10)]
    names += [f"{pair}{end}" for pair in pairs for end in (".py", ".pyc", f".{TAG}.so")]
    here.install("pkg", dict.fromkeys(names, ""))
    found = here.load()
    chosen = {pair.replace("/", "."): f"{pair}.{TAG}.so" for pair in pairs}
    chosen |= {
        "pkg": "pkg/__init__.py",
        "pkg.fast": f"pkg/fast.{TAG}.so",
        "pkg.stable": "pkg/stable.abi3.so",
        "pkg.plain": "pkg/plain.so",
        "pkg.old": "pkg/old.pyc",
        "pkg.both": "pkg/both/__init__.py",
        "pkg.deep.space.one": "pkg/deep/space/one.py",
    }
    for module, path in chosen.items():
        assert found.module_file(module) == f"{here.site}/{path}"
    for module in ("pkg.deep", "pkg.typed", "pkg.gone", "pkg.fast.inner", "gone", "gone.inner"):
        assert found.module_file(module) is None


def test_first_site_on_the_path_wins(here: Prefix, tmp_path: Path) -> None:
    behind = Prefix(tmp_path / "base")
    here.install("numpy", {"numpy/__init__.py": "", "numpy/new.py": ""}, "2.0")
    behind.install("numpy", {"numpy/__init__.py": "", "../../../bin/f2py": ""}, "1.0")
    behind.install("scipy", {"scipy/__init__.py": "", "../../../bin/sci": ""})
    behind.install("part", {"space/part/__init__.py": ""})
    here.install("other", {"space/other.py": ""})
    behind.add({"loose.py": "", "numpy.py": ""})
    found = here.load(behind)
    assert found.distributions["numpy"].version == "2.0"
    assert sorted(found.distributions) == ["loose", "numpy", "other", "part", "scipy"]
    assert found.module_file("numpy") == f"{here.site}/numpy/__init__.py"
    assert found.module_file("scipy") == f"{behind.site}/scipy/__init__.py"
    assert found.module_file("space.part") == f"{behind.site}/space/part/__init__.py"
    assert found.owner("space.part") == "part"
    assert "scipy/__init__.py" in targets(found, "scipy")
    assert "bin/sci" in targets(found, "scipy")


def hatch(here: Prefix, project: Path) -> None:
    files = {"_editable_impl_work.pth": str(project / "src")}
    here.install("work", files, requires=["numpy"], direct_url=direct_url(project))


def setuptools_path(here: Prefix, project: Path) -> None:
    files = {"__editable__.work-1.0.pth": f"{project / 'src'}\n"}
    tops = "tool\nwork\n"
    here.install("work", files, requires=["numpy"], direct_url=direct_url(project), top_level=tops)


def setuptools_finder(here: Prefix, project: Path) -> None:
    name = "__editable___work_1_0_finder"
    mapping = {"work": project / "src/work", "tool": project / "src/tool"}
    files = {f"{name}.py": finder(mapping), "__editable__.work-1.0.pth": f"import {name}\n"}
    here.install("work", files, requires=["numpy"], direct_url=direct_url(project))


def without_url(here: Prefix, project: Path) -> None:
    here.install("work", {"work.pth": str(project / "src")}, requires=["numpy"])


def develop(here: Prefix, project: Path) -> None:
    here.add({"work.egg-link": f"{project / 'src'}\n../\n"})
    here.add({"easy-install.pth": f"{project / 'src'}\n"})
    info = {"PKG-INFO": "Name: work\nVersion: 1.0\n", "requires.txt": "numpy\n"}
    info["top_level.txt"] = "tool\nwork\n"
    write(project / "src/work.egg-info", info)


@pytest.mark.parametrize(
    "install", [hatch, setuptools_path, setuptools_finder, without_url, develop]
)
def test_editable_project_is_found_and_its_code_is_left_out(
    here: Prefix, project: Path, install: Callable[[Prefix, Path], None]
) -> None:
    install(here, project)
    found = here.load()
    assert list(found.distributions) == ["work"]
    one = found.distributions["work"]
    assert one.editable == str(project)
    assert one.modules == ("tool", "work")
    assert (one.version, one.requires) == ("1.0", ("numpy",))
    assert found.owner("work.inner") == found.owner("tool") == "work"
    assert found.module_file("work") is None
    files = found.files("work")
    assert files
    assert one.size_bytes == sum(Path(file.source).stat().st_size for file in files)
    for file in files:
        assert file.target.startswith((f"{BELOW}/work-1.0.dist-info/", f"{BELOW}/work.egg-info/"))
        assert str(project).encode() not in Path(file.source).read_bytes()
    names = {Path(file.target).name for file in files}
    assert names & {"METADATA", "PKG-INFO"}
    assert "RECORD" not in names


def test_module_that_an_editable_project_gets_later_is_found(
    here: Prefix, project: Path, tmp_path: Path
) -> None:
    hatch(here, project)
    assert here.load(cache=tmp_path / "cache").owner("later") is None
    write(project / "src", {"later.py": ""})
    assert here.load(cache=tmp_path / "cache").owner("later") == "work"


def test_part_of_a_namespace_package_may_be_editable(here: Prefix, project: Path) -> None:
    here.install("other", {"space/other/__init__.py": ""})
    name = "__editable___space_work_1_0_finder"
    files = {f"{name}.py": finder({"space.work": project}), "x.pth": f"import {name}\n"}
    here.install("space-work", files, direct_url=direct_url(project))
    found = here.load()
    assert found.owner("space.work.inner") == "space-work"
    assert found.owner("space.other") == "other"


def test_editable_project_that_nothing_is_known_of_has_its_name_as_module(
    here: Prefix, project: Path
) -> None:
    files = {"_my_work_editable_loader.py": "", "my-work-editable.pth": "import x\n"}
    here.install("my-work", files, direct_url=direct_url(project))
    found = here.load()
    assert found.owner("my_work") == "my-work"
    assert found.distributions["my-work"].editable == str(project)


def test_path_file_that_nobody_recorded_is_a_link_to_local_code(
    here: Prefix, project: Path
) -> None:
    here.add({"mine.pth": f"# comment\nimport os\n{project / 'src'}\n"})
    found = here.load()
    one = found.distributions["mine"]
    assert (one.kind, one.editable, one.modules) == ("folder", str(project), ("tool", "work"))
    assert found.files("mine") == ()


def test_wheel_whose_own_path_file_leads_outside_is_installed(here: Prefix) -> None:
    (here.root / "share/more").mkdir(parents=True)
    here.install("pkg", {"pkg/__init__.py": "", "pkg.pth": "../../../share/more\n"})
    found = here.load()
    assert found.distributions["pkg"].editable == ""
    assert "pkg/__init__.py" in targets(found, "pkg")
