"""Which distributions are imported along with a module."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sites import Site, reached

from hepscale.env import index, interpreter, reach
from hepscale.env.reach import Plugin, Reached


def test_imports_are_followed_through_distributions_and_told_by_whom(site: Site) -> None:
    site.put("first", {"first/__init__.py": "", "first/a.py": "from . import b", "first/b.py": ""})
    site.put("second", {"second.py": "import third.sub"})
    site.put("third", {"third/__init__.py": "import first.b", "third/sub.py": "import second"})
    site.put("other", {"other.py": ""})
    site.add({"first/b.py": "import os, absent, second"})
    assert reached(site, "first.a") == {
        "first": Reached(""),
        "second": Reached("first.b"),
        "third": Reached("second"),
    }
    assert reached(site, "other", "absent", "os.path") == {"other": Reached("")}


def test_the_packages_above_a_module_are_imported(site: Site) -> None:
    site.put("deep", {"deep/__init__.py": "import found", "deep/a/b.py": ""})
    site.put("found", {"found.py": ""})
    assert set(reached(site, "deep.a.b")) == {"deep", "found"}


def test_guarded_imports_count_if_installed_and_type_checking_does_not(site: Site) -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import typed
try:
    import guarded
except ImportError:
    guarded = None
try:
    import absent
except ImportError:
    pass
class Body:
    import in_class
"""
    site.put("top", {"top.py": source})
    for name in ("typed", "guarded", "in_class"):
        site.put(name, {f"{name}.py": ""})
    assert set(reached(site, "top")) == {"top", "guarded", "in-class"}


def test_functions_lead_to_small_distributions_only(site: Site) -> None:
    source = "def f():\n    import small\n    import large\n    from top import more\n"
    site.put("top", {"top/__init__.py": source, "top/more.py": "import huge, also_small"})
    site.put("small", {"small.py": "def f():\n    import smaller\nimport large2"})
    site.put("smaller", {"smaller.py": ""})
    site.put("also-small", {"also_small.py": ""})
    for name in ("large", "large2", "huge"):
        site.put(name, {f"{name}.py": "import behind"}, large=True)
    site.put("behind", {"behind.py": ""})
    assert reached(site, "top") == {
        "top": Reached(""),
        "small": Reached("top", lazy=True),
        "smaller": Reached("small", lazy=True),
        "also-small": Reached("top.more", lazy=True),
    }


def test_a_function_that_runs_at_import_counts_as_the_module_does(site: Site) -> None:
    source = "def f():\n    g()\ndef g():\n    import large\ndef h():\n    import huge\nx = f()\n"
    site.put("top", {"top.py": source})
    site.put("large", {"large.py": ""}, large=True)
    site.put("huge", {"huge.py": ""}, large=True)
    assert set(reached(site, "top")) == {"top", "large"}


def test_import_module_counts(site: Site) -> None:
    source = 'import importlib\nimportlib.import_module(".a", __package__)\n__import__("large")\n'
    site.put("top", {"top/__init__.py": source, "top/a.py": "import found"})
    site.put("large", {"large.py": ""}, large=True)
    site.put("found", {"found.py": ""}, large=True)
    assert set(reached(site, "top")) == {"top", "large", "found"}


def test_namespace_packages_belong_to_several(site: Site) -> None:
    site.put("space-one", {"space/one.py": ""})
    site.put("space-two", {"space/two/__init__.py": "from space import three"})
    site.put("space-three", {"space/three.py": ""})
    site.put("top", {"top.py": "from space import two, four"})
    assert set(reached(site, "top")) == {"top", "space-two", "space-three"}


ATTACH = """
import lazy_loader as lazy
a, b, c = lazy.attach(__name__, submodules=["sub"], submod_attrs={"deep.er": ["Thing"]})
"""
TABLE = """
import importlib
_WHERE = {"Thing": ".sub", "Other": ".deep.er"}
def __getattr__(name):
    return importlib.import_module(_WHERE[name], __name__)
"""
FUNCTION = """
def __getattr__(name):
    if name in ("Thing", "Other"):
        from . import sub
        from .deep import er
        return sub
"""


@pytest.mark.parametrize(
    "source",
    [
        ATTACH,
        "import lazy_loader as lazy\na, b, c = lazy.attach_stub(__name__, __file__)",
        TABLE,
        FUNCTION,
    ],
    ids=["attach", "attach_stub", "table", "function"],
)
def test_what_a_package_loads_on_demand_is_found(site: Site, source: str) -> None:
    files = {
        "top/__init__.py": source,
        "top/__init__.pyi": "from . import sub\nfrom .deep.er import Thing\n",
        "top/sub.py": "import large",
        "top/deep/__init__.py": "",
        "top/deep/er.py": "import huge",
    }
    site.put("top", files)
    site.put("large", {"large.py": ""}, large=True)
    site.put("huge", {"huge.py": ""}, large=True)
    assert set(reached(site, "top.Thing")) == {"top", "large", "huge"}
    site.put("user", {"user.py": "from top import Thing"})
    assert set(reached(site, "user")) == {"user", "top", "large", "huge"}


def test_what_nobody_asks_a_package_for_is_loaded_on_demand_only(site: Site) -> None:
    source = """
__all__ = ["Thing", "here", "unrelated"]
def __getattr__(name):
    return importlib.import_module({"Thing": ".sub", "Other": ".more"}[name], __name__)
here = 1
"""
    files = {"top/__init__.py": source, "top/sub.py": "import large", "top/more.py": "import small"}
    site.put("top", files)
    site.put("large", {"large.py": ""}, large=True)
    site.put("small", {"small.py": ""})
    site.put("unrelated", {"unrelated.py": ""})
    assert set(reached(site, "top.here")) == {"top", "small"}
    assert set(reached(site, "top.Thing")) == {"top", "small", "large"}


def test_lazy_loader_may_have_been_told_to_load_at_once(site: Site) -> None:
    site.put("top", {"top/__init__.py": ATTACH, "top/sub.py": "import large"})
    site.put("large", {"large.py": ""}, large=True)
    assert set(reached(site, "top")) == {"top", "large"}


def test_a_compiled_module_counts_with_all_that_is_required(site: Site) -> None:
    site.put("native", {"native/__init__.py": "from . import _core", "native/_core.abi3.so": b""})
    site.put("large", {"large.py": "import behind"}, large=True)
    site.put("behind", {"behind.py": ""})
    site.put("libs", {"libs/libx.so": b""}, large=True)
    site.put("unused", {"unused.py": ""})
    requires = {"native": ["large"], "large": ["libs"]}
    found = reached(site, "native", requires=lambda name: requires.get(name, []))
    assert set(found) == {"native", "large", "libs", "behind"}
    # without the compiled module, what is required is not what is imported
    site.add({"native/__init__.py": ""})
    assert set(reached(site, "native", requires=lambda name: requires.get(name, []))) == {"native"}


def test_a_compiled_module_with_its_source_is_read(site: Site) -> None:
    site.put("made", {"made/__init__.py": "import found", "made/__init__.abi3.so": b""})
    site.put("found", {"found.py": ""})
    site.put("large", {"large.py": ""}, large=True)
    assert set(reached(site, "made", requires=lambda _: ["large"])) == {"made", "found"}


@pytest.mark.parametrize("source", ["this is no Python", b"\xff\xfe", "x = 1\0"])
def test_a_module_that_cannot_be_read_counts_like_a_compiled_one(
    site: Site, source: str | bytes
) -> None:
    site.put("new", {"new.py": source})
    site.put("large", {"large.py": ""}, large=True)
    found = reached(site, "new", requires=lambda name: ["large"] if name == "new" else [])
    assert set(found) == {"new", "large"}


def test_plugins_count_where_their_host_does(site: Site) -> None:
    site.put("host", {"host.py": "def f(): import plugged"})
    site.put("plugged", {"plugged.py": "import small, large2\ndef f(): import last"}, large=True)
    site.put("onto-plugged", {"onto_plugged.py": ""})
    site.put("small", {"small.py": ""})
    site.put("large2", {"large2.py": ""}, large=True)
    site.put("other", {"other.py": ""})
    site.put("last", {"last.py": ""})
    plugins = [
        Plugin("plugged", "onto-plugged", "onto_plugged"),
        Plugin("host", "plugged", "plugged"),
    ]
    assert reached(site, "host", plugins=plugins) == {
        "host": Reached(""),
        "plugged": Reached("host", lazy=True),
        "onto-plugged": Reached("plugged", lazy=True),
        "small": Reached("plugged", lazy=True),
        "last": Reached("plugged", lazy=True),
    }
    assert set(reached(site, "other", plugins=plugins)) == {"other"}


def test_what_is_excluded_is_not_followed(site: Site) -> None:
    site.put("top", {"top.py": "import out, kept"})
    site.put("out", {"out.py": "import behind"})
    site.put("behind", {"behind.py": ""})
    site.put("kept", {"kept.py": ""})
    plugins = [Plugin("top", "out", "out")]
    assert set(reached(site, "top", exclude=["out"], plugins=plugins)) == {"top", "kept"}


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before(site: Site, enabled: bool) -> None:
    site.put("top", {"top.py": ""})
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        reached(site, "top")
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            reach.at_import((1 / zero for zero in [0]), site.index())  # type: ignore[misc]
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


# -- reality -------------------------------------------------------------------------------------

ANALYSIS = """
import json, sys
before = set(sys.modules)
import coffea.processor, coffea.nanoevents, hist, cloudpickle, lz4.frame

class Processor(coffea.processor.ProcessorABC):
    def process(self, events):
        muons = events.Muon[events.Muon.pt > 20]
        histogram = hist.Hist.new.Reg(10, 0, 200, name="pt").Weight()
        pt = muons.pt[:, :1]
        histogram.fill(pt=[one[0] for one in pt.to_list() if one])
        return {"pt": histogram, "events": len(events)}

    def postprocess(self, accumulator):
        return accumulator

executor = coffea.processor.IterativeExecutor(status=False)
runner = coffea.processor.Runner(executor, schema=coffea.nanoevents.NanoAODSchema, chunksize=100)
output = runner(json.loads(sys.argv[1]), Processor(), treename="Events")
assert output["events"] == 400
cloudpickle.loads(lz4.frame.decompress(lz4.frame.compress(cloudpickle.dumps(output))))
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_nothing_that_an_analysis_really_imports_is_left_out(tmp_path: Path) -> None:
    from hepscale.demo_events import generate

    fileset = generate(tmp_path / "events", events=400, files=2)
    done = subprocess.run(
        [sys.executable, "-c", ANALYSIS, json.dumps(fileset)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    installed = index.load(interpreter.of(sys.executable))
    roots = ["coffea.processor", "coffea.nanoevents", "hist", "cloudpickle", "lz4.frame"]
    modules = json.loads(done.stdout.splitlines()[-1])
    really = {name for module in modules if (name := installed.owner(module))}
    found = reach.at_import(roots, installed)
    assert {"coffea", "awkward", "uproot", "numpy", "hist", "numba"} <= really
    assert not really - found.keys()
    # and it is worth the trouble
    sizes = {name: one.size_bytes for name, one in installed.distributions.items()}
    too_much = sum(sizes[name] for name in found.keys() - really)
    assert too_much < 0.2 * sum(sizes[name] for name in found)
