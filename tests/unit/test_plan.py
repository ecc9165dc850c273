"""Which files an environment consists of, and what hides what."""

from __future__ import annotations

from pathlib import Path

import lz4.block
import pytest
from site_folder import BELOW, write
from sites import Site

from hepscale.env import contents
from hepscale.env.contents import Entry
from hepscale.env.local import LocalModule, find_local
from hepscale.env.plan import Need, plan


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "prefix")


def by_target(entries: list[Entry]) -> dict[str, Entry]:
    found = {one.target: one for one in entries}
    assert len(found) == len(entries)
    return found


def module(folder: Path, name: str) -> LocalModule:
    found = find_local(name, [str(folder)])
    assert found is not None
    return found


def planned(site: Site, *modules: LocalModule, imported: tuple[str, ...] = ()) -> dict[str, Entry]:
    need = Need(
        site.interpreter,
        site.index(),
        imported=imported,
        others=(),
        excluded=(),
        standard=frozenset(),
        modules=modules,
    )
    parts = plan(need).parts
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
