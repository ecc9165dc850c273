"""Runs of whole analyses in a packed environment: it is the one of this process, elsewhere."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import kernels
import nbformat
import packed
import pytest
from analysis import tally
from nbformat.v4 import new_code_cell, new_notebook
from support import ranges, run, script, tally_of

import hepscale
from hepscale.env import interpreter

pytestmark = [pytest.mark.usefixtures("settled", "nothing_left"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def metadata(files):
    """Return what coffea knows of the files, so that runs need no more than what they process."""
    found = {}
    run(tally, files.fileset, metadata_cache=found)
    return found


@pytest.fixture
def go(files, metadata):
    """Return a function that runs in an environment which has what scripts and notebooks need."""

    def go(processor, **options):
        processor.packs = hepscale
        options = {"environment": "packed", "metadata_cache": metadata, **options}
        return run(packed.own(processor), files.fileset, **options)

    return go


def expected(files):
    return tally_of(ranges(files.good))


def test_result_is_that_of_this_process(files, go):
    def process(events):
        return tally(events)

    assert go(process) == go(process, environment=None) == expected(files)


def test_second_run_finds_the_workers_warm(go):
    def parents(events):
        return {os.getppid()}

    (pid,) = go(parents)
    assert go(parents) == {pid}
    assert go(parents, environment=None) != {pid}


def test_everything_is_the_packed_one(go):
    tell = (
        "import sys, coffea, importlib.metadata as found; "
        "print(sys.prefix, coffea.__file__, found.distribution('coffea').locate_file(''))"
    )

    def look(events):
        import importlib.metadata
        import shutil

        import coffea

        started = [
            subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
            for command in ([sys.executable, "-c", tell], ["python", "-c", tell])
        ]
        metadata = importlib.metadata.distribution("coffea")
        found = {
            "prefix": sys.prefix,
            "base": sys.base_prefix,
            "executable": sys.executable,
            "coffea": coffea.__file__,
            "metadata": str(metadata.locate_file("")),
            "version": metadata.version,
            "python": shutil.which("python"),
            "path": "\n".join(sys.path),
        }
        return {**{name: {value} for name, value in found.items()}, "started": {*started}}

    found = {name: values.pop() for name, values in go(look).items() if len(values) == 1}
    prefix = found["prefix"]
    site = f"{prefix}/{interpreter.this().site_below}"
    assert prefix in map(str, packed.unpacked())
    assert found["base"] == prefix
    assert found["executable"] == f"{prefix}/bin/python3"
    assert found["python"] == f"{prefix}/bin/python"
    assert found["coffea"] == f"{site}/coffea/__init__.py"
    assert found["metadata"] == site
    assert found["version"] == importlib.metadata.version("coffea")
    assert found["started"] == f"{prefix} {site}/coffea/__init__.py {site}\n"
    assert sys.prefix not in found["path"]


def test_variables_do_not_lead_back(go, tmp_path, monkeypatch):
    user = tmp_path / ".local/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (user / "site-packages").mkdir(parents=True)
    (user / "site-packages/left_at_home.py").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/on_the_path.py").touch()
    given = {
        "HOME": str(tmp_path),
        "PYTHONPATH": str(tmp_path / "elsewhere"),
        "PYTHONHOME": sys.base_prefix,
        "VIRTUAL_ENV": sys.prefix,
        "CONDA_PREFIX": sys.prefix,
        "TABLES": f"{sys.prefix}/share/tables:{sys.prefix}",
        # folders beside the environment are not part of it
        "DATA": f"{sys.prefix}-data/2018:{sys.prefix}2",
        "COPY": f"/mnt{sys.prefix}/share",
        "YEAR": "2018",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    names = sorted(given)

    def look(events):

        code = "import importlib.util as u; print(u.find_spec('left_at_home'), "
        code += "u.find_spec('on_the_path'))"
        started = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        found = {name: {os.environ.get(name)} for name in names}
        return {**found, "started": {started.stdout}, "prefix": {sys.prefix}}

    found = {name: value for name, (value,) in go(look).items()}
    prefix = found["prefix"]
    assert found["started"] == "None None\n"
    assert found["PYTHONPATH"] is found["PYTHONHOME"] is found["VIRTUAL_ENV"] is None
    assert found["CONDA_PREFIX"] == prefix
    assert found["TABLES"] == f"{prefix}/share/tables:{prefix}"
    assert [found[name] for name in ("DATA", "COPY", "YEAR", "HOME")] == [
        given[name] for name in ("DATA", "COPY", "YEAR", "HOME")
    ]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_a_task_starts(go, method):
    def start(events):
        with ProcessPoolExecutor(2, get_context(method)) as pool:
            roots = [*pool.map(math.isqrt, [4, 9, 16])]
            paths = {*pool.map(os.path.dirname, [sys.executable])}
        return {"n": len(events) * sum(roots), "paths": paths}

    found = go(start, chunksize=30)
    assert found["n"] == 180 * 9
    assert all(Path(path) / "python3" for path in found["paths"])


def test_compiled_packages(go):
    def compute(events):
        import awkward as ak
        import numba
        import numpy as np
        import scipy.special

        @numba.njit
        def double(values):
            total = 0
            for value in values:
                total += 2 * value
            return total

        x = ak.to_numpy(events.x)
        parquet = ak.to_arrow(events.x).to_numpy()
        places = {numba.__file__, np.__file__, scipy.special.__file__}
        places.add(import_module("pyarrow").__file__)
        return {
            "numba": int(double(x)),
            "arrow": int(parquet.sum()),
            "scipy": int(scipy.special.comb(len(x), 1)),
            "inside": {place.startswith(sys.prefix) for place in places},
        }

    found = go(compute, chunksize=60)
    total = sum(sum(1000 * n + at for at in range(60)) for n in range(3))
    assert found == {"numba": 2 * total, "arrow": total, "scipy": 180, "inside": {True}}


# -- local code ------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a local package with a data file; return a function that edits it."""
    folder = tmp_path / "corrections_of_mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .factors import Factor\n")

    def write(offset, factor):
        (folder / "factors.py").write_text(
            "from pathlib import Path\n\nclass Factor:\n    def __call__(self, n):\n"
            "        text = Path(__file__).with_name('factor.txt').read_text()\n"
            f"        return int(text) * n + {offset}\n"
        )
        (folder / "factor.txt").write_text(str(factor))

    write(0, 1)
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.startswith("corrections_of_mine")]:
        del sys.modules[name]


def test_local_package_that_only_the_pickle_refers_to(go, package):
    factor = import_module("corrections_of_mine").Factor()

    def process(events):
        return {"n": factor(len(events))}

    assert go(process) == {"n": 180}
    package(offset=1, factor=2)
    assert go(process) == {"n": 18 + 2 * 180}


def test_error_in_the_analysis_is_shown_where_it_is(go, package):
    factor = import_module("corrections_of_mine").Factor()
    package(offset="n / 0", factor=2)

    def process(events):
        return {"n": factor(len(events))}

    with pytest.raises(ZeroDivisionError) as caught:
        go(process)
    assert "corrections_of_mine/factors.py:6 in __call__: return int(text) * n + n / 0" in str(
        caught.value
    )


def test_error_in_the_standard_library_is_shown_where_it_is_called(go):
    def process(events):
        return json.loads(f"{len(events)}?")

    with pytest.raises(json.JSONDecodeError) as caught:
        go(process)
    assert "test_packed_run.py" in str(caught.value.failed[0].where)
    assert "json/decoder.py" in str(caught.value)


_SCRIPT = """
import json, os, sys
from pathlib import Path
import awkward as ak
from coffea.nanoevents import BaseSchema
from coffea.processor import ProcessorABC
from hepscale import HepScaleExecutor, run_uproot_job
import beside
import on_the_path

class Processor(ProcessorABC):
    def process(self, events):
        return {"n": beside.factor() * len(events), "sum": on_the_path.total(events),
                "prefixes": {sys.prefix}}

    def postprocess(self, accumulator):
        return accumulator

def go():
    out = run_uproot_job(
        {"data": json.loads(sys.argv[1])}, "Events", Processor(), HepScaleExecutor,
        {"cores": 2, "status": False, "schema": BaseSchema, "environment": "packed",
         "files": ["factor.txt"]}, chunksize=10,
    )
    (prefix,) = out.pop("prefixes")
    return [out["n"], out["sum"], prefix]

told = [go()]
Path("factor.txt").write_text("2")
Path("beside.py").write_text(Path("beside.py").read_text().replace("+ 1", "+ 10"))
told.append(go())
print(json.dumps(told))
"""


def test_script(files, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/on_the_path.py").write_text(
        "import awkward as ak\ndef total(events):\n    return int(ak.sum(events.x))\n"
    )
    (tmp_path / "beside.py").write_text(
        "def factor():\n    return int(open('factor.txt').read()) + 1\n"
    )
    (tmp_path / "factor.txt").write_text("1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    with script(tmp_path / "a.py", _SCRIPT, json.dumps(files.good)) as started:
        first, second = started.finish()
    total = expected(files)["sum"]
    assert first[:2] == [2 * 180, total]
    assert second[:2] == [12 * 180, total]
    assert first[2] == second[2]
    assert first[2] in map(str, packed.unpacked())


# -- notebooks -------------------------------------------------------------------------------------

_CELLS = """
import json, sys
import awkward as ak
from coffea.nanoevents import BaseSchema
from coffea.processor import ProcessorABC
from hepscale import HepScaleExecutor, run_uproot_job
# next cell
import local_weights
# next cell
%%time
class Processor(ProcessorABC):
    def process(self, events):
        return {"n": local_weights.weight() * len(events), "in": {sys.prefix}}
    def postprocess(self, accumulator):
        return accumulator
# next cell
def go():
    return run_uproot_job(
        {"data": FILES}, "Events", Processor(), HepScaleExecutor,
        {"cores": 2, "status": True, "schema": BaseSchema, "environment": "packed"},
        chunksize=10)
first = go()
# next cell
from pathlib import Path
Path("local_weights.py").write_text("def weight():\\n    return 1000\\n")
second = go()
print(json.dumps([first["n"], second["n"], *(first["in"] | second["in"])]))
"""


@pytest.fixture
def notebook(files, tmp_path, monkeypatch):
    """Write a notebook and the module beside it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    cells = [one.strip() for one in _CELLS.split("# next cell")]
    cells.insert(0, f"FILES = {files.good!r}")
    path = tmp_path / "analysis.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(one) for one in cells]), path)
    (tmp_path / "local_weights.py").write_text("def weight():\n    return 10\n")
    return path


def check(told):
    assert told[:2] == [1800, 180_000]
    assert told[2:] == [prefix for prefix in map(str, packed.unpacked()) if prefix in told]
    assert len(told) == 3


def test_notebook_in_a_kernel(notebook):
    made = nbformat.read(notebook, as_version=4)
    kernels.execute(made, notebook.parent, timeout_s=120)
    check(json.loads(made.cells[-1].outputs[-1].text))


def test_notebook_on_the_command_line(notebook, monkeypatch):
    monkeypatch.delenv("HEPSCALE_VIEW")
    command = [sys.executable, "-c", "from hepscale.cli import main; main()", "run"]
    done = subprocess.run(
        [*command, notebook.name], cwd=notebook.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout.splitlines()[-1]))
    assert "Processing: 18 of 18 chunks, 180 events" in done.stderr
    assert "0 of 0" not in done.stderr


# -- a slim environment ----------------------------------------------------------------------------


def test_module_that_a_slim_environment_lacks(files, go, monkeypatch, capsys):
    name = "correctionlib"
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")

    def process(events):
        return {**tally(events), "from": {Path(import_module(name).__file__).parts[-2]}}

    def run_slim():
        found = go(process, closure="imports", status=True)
        return found, capsys.readouterr().err.count(f"{name}: imported in a way")

    wanted = {**expected(files), "from": {name}}
    assert run_slim() == (wanted, 1)
    assert run_slim() == (wanted, 0)
