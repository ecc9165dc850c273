"""Local code: found without being imported, followed through imports, copied and digested."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import types
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hepscale.env.local import LocalModule, closure, find_local, is_installed
from hepscale.env.snapshot import digest, snapshot
from hepscale.errors import PayloadError, RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that goes first on sys.path, like the one of a notebook."""
    base = tmp_path / "work"
    base.mkdir()
    monkeypatch.syspath_prepend(str(base))
    known = set(sys.modules)
    yield base
    for name in set(sys.modules) - known:
        del sys.modules[name]


def write(base: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    importlib.invalidate_caches()


def names(modules: tuple[LocalModule, ...]) -> list[str]:
    return [module.name for module in modules]


def below(module: LocalModule | None) -> list[str]:
    assert module is not None
    return [pair[0] for pair in module.files]


def test_installed_is_what_the_environment_brings(tmp_path: Path) -> None:
    for installed in (np.__file__, json.__file__, os.__file__, pytest.__file__, "built-in"):
        assert is_installed(installed)
    for installed in ("frozen", "<frozen importlib>", "/cvmfs/x.cern.ch/lib/tool.py"):
        assert is_installed(installed)
    assert is_installed("/usr/lib/python3/dist-packages/yaml/__init__.py")
    assert not is_installed(str(tmp_path / "tool.py"))
    assert not is_installed(str(tmp_path))


def test_a_folder_linked_into_site_packages_is_local(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "site-packages"
    write(tmp_path, {"project/tool/__init__.py": "", "cache/linked.py": ""})
    site.mkdir(parents=True)
    (site / "tool").symlink_to(tmp_path / "project" / "tool")
    (site / "linked.py").symlink_to(tmp_path / "cache" / "linked.py")
    assert not is_installed(str(site / "tool" / "__init__.py"))
    assert is_installed(str(site / "linked.py"))


def test_a_flat_module(folder: Path) -> None:
    write(folder, {"flat_tool.py": "x = 1\n"})
    module = find_local("flat_tool")
    assert module == LocalModule("flat_tool", (("flat_tool.py", str(folder / "flat_tool.py")),))
    assert "flat_tool" not in sys.modules
    importlib.import_module("flat_tool")
    assert find_local("flat_tool") == module
    assert find_local("flat_tool.anything") == module


@pytest.mark.parametrize(
    "name", ["__main__", "__mp_main__", "", "numpy", "json", "sys", "zipimport", "no_such_module"]
)
def test_what_is_not_local(name: str) -> None:
    assert find_local(name) is None


def test_a_package_is_taken_whole(folder: Path) -> None:
    write(
        folder,
        {
            "whole/__init__.py": "from . import part\n",
            "whole/part.py": "from .deep.er import thing\n",
            "whole/deep/er.py": "thing = 1\n",
            "whole/data/scale.json": "{}",
            "whole/tests/test_it.py": "",
            "whole/.git/config": "",
            "whole/__pycache__/part.cpython-311.pyc": "",
            "whole/old.pyc": "",
            "whole/.venv/lib/x.py": "",
            "whole/myenv/pyvenv.cfg": "",
            "whole/.ipynb_checkpoints/part.py": "",
        },
    )
    kept = ["__init__.py", "data/scale.json", "deep/er.py", "part.py", "tests/test_it.py"]
    assert below(find_local("whole")) == [f"whole/{name}" for name in kept]
    assert "whole" not in sys.modules


def test_an_editable_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"src/edit_able/__init__.py": "", "src/edit_able/a.txt": "data"})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "src")])
    assert below(find_local("edit_able")) == ["edit_able/__init__.py", "edit_able/a.txt"]


def test_an_editable_install_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"src/__init__.py": "", "single.py": ""})
    places = {"mapped": tmp_path / "src" / "__init__.py", "one": tmp_path / "single.py"}

    class Finder:
        @staticmethod
        def find_spec(
            name: str, path: object = None, target: object = None
        ) -> importlib.machinery.ModuleSpec | None:
            place = places.get(name)
            return place and importlib.util.spec_from_file_location(name, place)

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert below(find_local("mapped")) == ["mapped/__init__.py"]
    assert below(find_local("one")) == ["one.py"]


def test_a_namespace_package_has_several_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = "lib/site-packages/name_space/third.py"
    files = {"a/name_space/one.py": "1", "b/name_space/sub/two.py": "", site: ""}
    write(tmp_path, {**files, "a/name_space/big.root": "", "b/name_space/one.py": "hidden"})
    for base in ("lib/site-packages", "b", "a"):
        monkeypatch.syspath_prepend(str(tmp_path / base))
    module = find_local("name_space")
    assert below(module) == ["name_space/one.py", "name_space/sub/two.py"]
    assert module is not None
    assert module.files[0][1] == str(tmp_path / "a" / "name_space" / "one.py")
    importlib.import_module("name_space")
    assert find_local("name_space") == module
    del sys.modules["name_space"]


def test_a_folder_without_sources_is_no_module(folder: Path) -> None:
    write(folder, {"just_data/x.root": ""})
    assert find_local("just_data") is None


def test_an_extension_module_is_taken_as_a_file(folder: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    write(folder, {f"fast_ext{suffix}": "\x7fELF", "uses_ext.py": "import fast_ext\n"})
    assert below(find_local("fast_ext")) == [f"fast_ext{suffix}"]
    assert names(closure(["uses_ext"])) == ["fast_ext", "uses_ext"]


def test_modules_made_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, {"shadowed.py": "", "without_spec.py": ""})
    for name in ("synthetic", "shadowed", "without_spec"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["without_spec"].__file__ = str(folder / "without_spec.py")
    assert find_local("synthetic") is None
    assert below(find_local("shadowed")) == ["shadowed.py"]
    assert below(find_local("without_spec")) == ["without_spec.py"]
    monkeypatch.setitem(sys.modules, "blocked", None)
    assert find_local("blocked") is None


def test_closure_follows_imports_of_all_kinds(folder: Path) -> None:
    write(
        folder,
        {
            "start.py": "import numpy, json\nimport kind_plain.sub as s\nfrom kind_from import x\n"
            "def f():\n    import kind_inside\n    class A:\n        import kind_class\n"
            "try:\n    import kind_guarded\nexcept ImportError:\n    import not_there\n"
            "import importlib\nfrom importlib import import_module\n"
            "importlib.import_module('kind_dynamic.sub')\nimport_module('kind_function')\n"
            "a = [__import__('kind_builtin')]\nimportlib.import_module('.relative', 'start')\n"
            "importlib.import_module(name)\n",
            "kind_plain/__init__.py": "",
            "kind_plain/sub.py": "from .kind_relative import y\nfrom . import kind_relative\n"
            "from ..up import kind_relative\nimport kind_deep\n",
            **{f"kind_{n}.py": "" for n in ("from", "inside", "class", "guarded", "dynamic")},
            **{f"kind_{n}.py": "" for n in ("function", "builtin", "deep", "relative")},
        },
    )
    found = names(closure(["start", "numpy"]))
    wanted = "builtin class deep dynamic from function guarded inside plain"
    assert found == [*(f"kind_{n}" for n in wanted.split()), "start"]
    assert not {"start", *found} & set(sys.modules)


def test_closure_survives_cycles_and_broken_files(folder: Path) -> None:
    write(
        folder,
        {
            "ring_a.py": "import ring_b, ring_broken\n",
            "ring_b.py": "import ring_a\n",
            "ring_broken/__init__.py": "import ring_c\nx = '\\d'\n",
            "ring_broken/python2.py": "print 'x'\nimport never\n",
            "ring_broken/nul.py": "\0",
            "ring_c.py": "# -*- coding: no-such-codec -*-\n",
            "never.py": "",
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = closure(["ring_a"])
    assert names(found) == ["ring_a", "ring_b", "ring_broken", "ring_c"]
    assert "ring_broken/python2.py" in below(found[2])


def test_closure_of_code_objects(folder: Path) -> None:
    write(folder, {"code_a.py": "import code_b\n", "code_b.py": "", "code_c.py": "", "json.py": ""})
    source = (
        "def f():\n  def g():\n    from code_a import x\n  return lambda: __import__('code_c')\n"
    )
    code = compile(source, "<cell>", "exec")
    assert names(closure([], [code])) == ["code_a", "code_b", "code_c"]
    assert closure([], []) == ()


def test_closure_sees_an_edit(folder: Path) -> None:
    write(folder, {"edit_a.py": "", "edit_b.py": ""})
    assert names(closure(["edit_a"])) == ["edit_a"]
    write(folder, {"edit_a.py": "import edit_b\n"})
    assert names(closure(["edit_a"])) == ["edit_a", "edit_b"]


def test_snapshot_copies_contents_that_import(folder: Path, tmp_path: Path) -> None:
    write(
        folder,
        {
            "snap/__init__.py": "from .part import value\n",
            "snap/part.py": "from pathlib import Path\nimport snap_flat\n"
            "value = Path(__file__).with_name('data.txt').read_text() + snap_flat.x\n",
            "snap/data.txt": "data",
            "snap_flat.py": "x = '!'\n",
            "elsewhere/linked.txt": "linked",
        },
    )
    (folder / "snap" / "link.txt").symlink_to(folder / "elsewhere" / "linked.txt")
    (folder / "snap" / "links").symlink_to(folder / "elsewhere")
    (folder / "snap" / "round").symlink_to(folder / "snap")
    (folder / "snap" / ".#part.py").symlink_to("nobody@nowhere")
    modules = closure(["snap"])
    target = tmp_path / "deep" / "target"
    assert snapshot(modules, target) == digest(modules)
    copied = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert copied == sorted(name for module in modules for name in below(module))
    assert {"snap/link.txt", "snap/links/linked.txt"} <= set(copied)
    assert not [path for path in target.rglob("*") if path.is_symlink()]
    program = f"import sys; sys.path.insert(0, {str(target)!r}); import snap; print(snap.value)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "data!\n"


def test_digest_is_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    write(folder, {"dig/__init__.py": "", "dig/a.txt": "1", "dig/b.txt": "2"})
    before = digest(closure(["dig"]))
    assert len(before) == 64
    os.utime(folder / "dig" / "a.txt", (1, 1))
    moved = tmp_path / "moved"
    write(moved, {"dig/__init__.py": "", "dig/a.txt": "1", "dig/b.txt": "2"})
    pairs = tuple((name, str(moved / name)) for name in below(find_local("dig")))
    assert digest(closure(["dig"])) == digest([LocalModule("dig", pairs)]) == before
    write(folder, {"dig/a.txt": "3"})
    edited = digest(closure(["dig"]))
    write(folder, {"dig/a.txt": "1", "dig/c.txt": ""})
    assert len({before, edited, digest(closure(["dig"]))}) == 3


def test_snapshot_digests_what_was_copied(folder: Path, tmp_path: Path) -> None:
    write(folder, {"late.py": "x = 1\n"})
    modules = closure(["late"])
    before = digest(modules)
    write(folder, {"late.py": "x = 2\n"})
    assert snapshot(modules, tmp_path / "t") == digest(modules) != before
    assert (tmp_path / "t" / "late.py").read_text() == "x = 2\n"


def test_a_large_package_is_refused(folder: Path) -> None:
    write(folder, {"large/__init__.py": "", "large/small.txt": "x"})
    for size in (40, 70):
        with open(folder / "large" / f"{size}.root", "wb") as out:
            out.truncate(size * 1_000_000)
    with pytest.raises(PayloadError, match="large holds 110 MB in 4 files") as caught:
        closure(["large"])
    assert "70.0 MB" in caught.value.items[0]
    assert "40.root" in caught.value.items[1]
    assert "move" in caught.value.fix


def test_a_file_that_vanishes_or_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    write(folder, {"gone.py": ""})
    modules = closure(["gone"])
    (folder / "gone.py").unlink()
    for read in (digest, lambda found: snapshot(found, tmp_path / "t")):
        with pytest.raises(PayloadError, match="cannot be read: No such file") as caught:
            read(modules)
        assert caught.value.items == (str(folder / "gone.py"),)
    if os.geteuid() != 0:
        write(folder, {"secret.py": ""})
        (folder / "secret.py").chmod(0)
        with pytest.raises(PayloadError, match="Permission denied"):
            closure(["secret"])


def test_a_target_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    write(folder, {"fine.py": ""})
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        snapshot(closure(["fine"]), tmp_path / "file" / "target")
