"""Which files an environment consists of, and what hides what."""

from __future__ import annotations

from pathlib import Path

import lz4.block
import pytest
from site_folder import BELOW, write
from sites import Site

from hepscale.env import contents, plan_cache
from hepscale.env import plan as plan_module
from hepscale.env.contents import Entry
from hepscale.env.local import LocalModule, find_local
from hepscale.env.plan import Need, plan


def by_target(entries: list[Entry]) -> dict[str, Entry]:
    found = {one.target: one for one in entries}
    assert len(found) == len(entries)
    return found


def module(folder: Path, name: str) -> LocalModule:
    found = find_local(name, [str(folder)])
    assert found is not None
    return found


def planned(
    site: Site,
    *modules: LocalModule,
    imported: tuple[str, ...] = (),
    cache: Path | None = None,
) -> dict[str, Entry]:
    need = Need(
        site.interpreter,
        site.index(),
        imported=imported,
        others=(),
        excluded=(),
        standard=frozenset(),
        modules=modules,
    )
    parts = plan(need, cache).parts
    assert [part.kind for part in parts] == ["interpreter", "packages", "packages", "code"]
    return by_target([entry for part in parts[1:] for entry in part.entries])


def test_local_module_hides_an_installed_one(site: Site, tmp_path: Path) -> None:
    site.put("hist", {"hist/__init__.py": "", "hist/axis.py": "", "other.py": ""})
    write(tmp_path / "own", {"hist.py": ""})
    found = planned(site, module(tmp_path / "own", "hist"), imported=("hist",))
    assert {"hist.py", f"{BELOW}/other.py"} < found.keys()
    assert not any(one.startswith(f"{BELOW}/hist/") for one in found)


def test_local_part_of_a_namespace_package_hides_nothing(site: Site, tmp_path: Path) -> None:
    site.put("installed", {"space/installed.py": ""})
    write(tmp_path / "own", {"space/own.py": "", "space/data/x.txt": ""})
    found = planned(site, module(tmp_path / "own", "space"), imported=("installed",))
    assert {"space/own.py", f"{BELOW}/space/installed.py"} < found.keys()


def test_file_of_two_distributions_is_packed_once(site: Site) -> None:
    site.put("one", {"shared/__init__.py": "", "one.py": ""})
    site.put("two", {"shared/__init__.py": "", "two.py": ""})
    found = planned(site, imported=("one", "two"))
    assert {f"{BELOW}/{name}" for name in ("shared/__init__.py", "one.py", "two.py")} < found.keys()


def test_compiled_module_of_a_wheel_is_packed_as_it_is(site: Site) -> None:
    compiled = Path(lz4.block._block.__file__)
    site.put("bolt", {f"bolt/{compiled.name}": compiled.read_bytes()})
    found = planned(site, imported=("bolt",))
    entry = found[f"{BELOW}/bolt/{compiled.name}"]
    assert contents.content(entry).data == compiled.read_bytes()


# -- what was added by hand, and what is kept of a plan --------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep plans in a folder only: as in a new process each time."""
    monkeypatch.setattr(plan_cache, "_MOST_REMEMBERED", 0)
    monkeypatch.setattr(plan_module, "_TICK_S", -10.0)
    return tmp_path / "learnt"


def test_files_that_no_record_lists(site: Site) -> None:
    site.put("one", {"one/__init__.py": "", "one/inner/data.txt": "", "single.py": ""})
    site.put("two", {"shared/two.py": ""})
    site.put("three", {"shared/three.py": ""})
    write(
        Path(site.interpreter.sites[0]),
        {
            "one/patched.py": "",
            "one/more/deep/table.json": "{}",
            "one/inner/.hidden": "",
            "one/__pycache__/patched.cpython-311.pyc": "",
            "shared/nobodys.txt": "",
            "beside.txt": "",
        },
    )
    below = {one.removeprefix(f"{BELOW}/") for one in planned(site, imported=("one", "two"))}
    assert {"one/patched.py", "one/more/deep/table.json", "one/inner/data.txt"} < below
    assert not {"one/inner/.hidden", "shared/nobodys.txt", "beside.txt", "shared/three.py"} & below
    assert not any("__pycache__" in one for one in below)


@pytest.mark.parametrize("remembered", [0, 4])
def test_plan_is_made_anew_when_files_come_or_go(
    site: Site, kept: Path, remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_cache, "_MOST_REMEMBERED", remembered)
    site.put("one", {"one/__init__.py": "", "one/inner/data.txt": ""})
    top = Path(site.interpreter.sites[0])
    first = planned(site, imported=("one",), cache=kept)
    assert planned(site, imported=("one",), cache=kept) == first
    write(top, {"one/inner/more.txt": ""})
    more = planned(site, imported=("one",), cache=kept)
    assert more.keys() - first.keys() == {f"{BELOW}/one/inner/more.txt"}
    (top / "one/inner/data.txt").unlink()
    less = planned(site, imported=("one",), cache=kept)
    assert more.keys() - less.keys() == {f"{BELOW}/one/inner/data.txt"}


def test_plan_is_read_where_nothing_has_changed(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.put("one", {"one/__init__.py": ""})
    first = planned(site, imported=("one",), cache=kept)
    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "_plan_installed", None)
        assert planned(site, imported=("one",), cache=kept) == first
    (file,) = kept.glob("plan-*")
    file.write_bytes(file.read_bytes()[:-9])
    assert planned(site, imported=("one",), cache=kept) == first


def test_plan_that_was_made_while_files_changed_is_not_kept(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "_TICK_S", 60.0)
    site.put("one", {"one/__init__.py": ""})
    planned(site, imported=("one",), cache=kept)
    assert not list(kept.glob("plan-*"))


def test_few_plans_are_kept(site: Site, kept: Path) -> None:
    names = [f"package{number}" for number in range(plan_cache._MOST_KEPT + 2)]
    for name in names:
        site.put(name, {f"{name}.py": ""})
    for name in names:
        planned(site, imported=(name,), cache=kept)
    assert len(list(kept.glob("plan-*"))) == plan_cache._MOST_KEPT
