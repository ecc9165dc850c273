"""Processors from every place that they are written in: closures, scripts, cells, local modules."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
import threading

import kernels
import nbformat
import pytest
from analysis import tally, where
from coffea.nanoevents import BaseSchema
from coffea.processor import ProcessorABC
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from support import CHUNK, Gate, as_json, complete, ranges, run, script, tally_of, wait_for

import hepscale
from hepscale import HepScaleExecutor, run_uproot_job

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


def test_lambda_closure_and_partial(files):
    scale = 3

    def closure(events):
        return {**tally(events), "sum": scale * tally(events)["sum"]}

    def with_option(events, factor):
        return {**tally(events), "sum": factor * tally(events)["sum"]}

    out = tally_of(ranges(files.good))
    scaled = {**out, "sum": 3 * out["sum"]}
    assert run(lambda events: tally(events), files.fileset) == out
    assert run(closure, files.fileset) == scaled
    assert run(functools.partial(with_option, factor=3), files.fileset) == scaled


def test_processor_that_holds_what_cannot_be_pickled(files):
    class Processor(ProcessorABC):
        def __init__(self):
            self.tools = {"lock": threading.Lock()}

        def process(self, events):
            return tally(events)

        def postprocess(self, accumulator):
            return accumulator

    with pytest.raises(hepscale.PayloadError) as caught:
        run_uproot_job(
            files.fileset,
            "Events",
            Processor(),
            HepScaleExecutor,
            {"cores": 2, "status": False, "schema": BaseSchema},
            chunksize=CHUNK,
        )
    error = complete(caught.value)
    assert ".tools['lock']" in error.fact
    assert "lock" in str(error)
    assert run(tally, files.fileset) == tally_of(ranges(files.good))


# -- scripts -------------------------------------------------------------------------------------

_SCRIPT = """
import json, sys
import awkward as ak
from coffea.nanoevents import BaseSchema
from coffea.processor import ProcessorABC
from hepscale import HepScaleExecutor, run_uproot_job
from analysis import tally
from support import as_json

with open("ran", "a") as out:
    out.write("once ")

FACTOR = 2

def helper(n):
    return FACTOR * n

class Processor(ProcessorABC):
    def __init__(self, offset):
        self.offset = offset

    def process(self, events):
        out = tally(events)
        return {**out, "sum": helper(out["sum"]) + self.offset}

    def postprocess(self, accumulator):
        return accumulator

out = run_uproot_job(
    {"data": json.loads(sys.argv[1])}, "Events", Processor(1), HepScaleExecutor,
    {"cores": 2, "status": False, "schema": BaseSchema}, chunksize=10,
)
print(json.dumps(as_json(out)))
"""


def test_script_without_a_guard_runs_once(files, tmp_path):
    with script(tmp_path / "a.py", _SCRIPT, json.dumps(files.good)) as started:
        told = started.finish()
    out = tally_of(ranges(files.good))
    assert told == as_json({**out, "sum": 2 * out["sum"] + 18})
    assert (tmp_path / "ran").read_text() == "once "


def test_script_whose_processor_fails(files, tmp_path):
    source = _SCRIPT.replace("return FACTOR * n", "return FACTOR / (n - n)")
    line = 1 + source.splitlines().index("    return FACTOR / (n - n)")
    with script(tmp_path / "a.py", source, json.dumps(files.good)) as started:
        started.finish(code=1)
    assert f"a.py:{line} in helper: return FACTOR / (n - n)" in started.err
    assert f'"a.py", line {line}, in helper' in started.err
    assert f"Next: correct a.py:{line}" in started.err


def test_module_beside_the_script(files, tmp_path):
    (tmp_path / "corrections").mkdir()
    (tmp_path / "corrections" / "__init__.py").write_text("from .data import FACTOR\n")
    (tmp_path / "corrections" / "data.py").write_text(
        "from pathlib import Path\nFACTOR = int(Path(__file__).with_name('f.txt').read_text())\n"
    )
    (tmp_path / "corrections" / "f.txt").write_text("5")
    source = _SCRIPT.replace("FACTOR = 2", "from corrections import FACTOR").replace(
        "    return FACTOR * n", "    from corrections import data\n    return data.FACTOR * n"
    )
    with script(tmp_path / "a.py", source, json.dumps(files.good)) as started:
        told = started.finish()
    out = tally_of(ranges(files.good))
    assert told == as_json({**out, "sum": 5 * out["sum"] + 18})


# -- notebooks -----------------------------------------------------------------------------------


def execute(folder, *cells):
    """Run cells in a kernel of their own; return what the last one printed."""
    notebook = new_notebook(cells=[new_code_cell(one) for one in cells])
    try:
        kernels.execute(notebook, folder, timeout_s=60)
    finally:
        nbformat.write(notebook, folder / "executed.ipynb")
    return notebook.cells[-1].outputs[-1].text


_IMPORTS = """
import json
from coffea.nanoevents import BaseSchema
from coffea.processor import ProcessorABC
from hepscale import HepScaleExecutor, run_uproot_job
FILES = {files!r}

def go(processor):
    return run_uproot_job(
        {{"data": FILES}}, "Events", processor, HepScaleExecutor,
        {{"cores": 2, "status": False, "schema": BaseSchema, "retries": 0}}, chunksize=10,
    )
"""
_CELL = """
class Processor(ProcessorABC):
    def process(self, events):
        return {"n": FACTOR * len(events)}
    def postprocess(self, accumulator):
        return accumulator
"""


@pytest.fixture
def kernel_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delenv("PYTHONPATH")


@pytest.mark.usefixtures("kernel_path")
def test_cells(files, tmp_path):
    (tmp_path / "local_helper.py").write_text("def weight():\n    return 10\n")
    told = execute(
        tmp_path,
        _IMPORTS.format(files=files.good),
        "FACTOR = 1" + _CELL,
        "found = [go(Processor())['n']]",
        # what a later cell changes counts for the next run, without running the class again
        "FACTOR = 2\nfound.append(go(Processor())['n'])",
        "import local_helper\n"
        "def process(events):\n    return {'n': local_helper.weight() * len(events)}",
        "found.append(go(process)['n'])",
        "from pathlib import Path\n"
        "Path('local_helper.py').write_text('def weight():\\n    return 1000\\n')\n"
        "found.append(go(process)['n'])",
        "print(json.dumps(found))",
    )
    # an edit of the module counts for the next run, though the kernel has imported it before
    assert json.loads(told) == [180, 360, 1800, 180_000]


@pytest.mark.usefixtures("kernel_path")
def test_failing_cell(files, tmp_path):
    with pytest.raises(CellExecutionError) as caught:
        execute(
            tmp_path,
            _IMPORTS.format(files=files.good),
            "def process(events):\n    nothing = 0\n    return {'n': len(events) / nothing}",
            "go(process)",
        )
    text = str(caught.value)
    assert "ZeroDivisionError: division by zero" in text
    assert "Cell In[2]:3 in process: return {'n': len(events) / nothing}" in text
    assert "Next: correct Cell In[2]:3" in text


@pytest.mark.usefixtures("kernel_path")
def test_rest_of_a_failed_run_in_a_cell(files, tmp_path):
    told = execute(
        tmp_path,
        _IMPORTS.format(files=files.good),
        "def process(events):\n"
        "    if events.metadata['entrystart'] == 20 and 'good_1' in events.metadata['filename']:\n"
        "        raise ValueError('bad')\n"
        "    return {'n': len(events)}\n"
        "try:\n    go(process)\nexcept ValueError as error:\n    kept = error",
        "print(json.dumps([kept.partial_output['n'], len(kept.failed)]))",
    )
    assert json.loads(told) == [170, 1]


# -- local modules -------------------------------------------------------------------------------


@pytest.fixture
def local_module(tmp_path, monkeypatch):
    """Return a function that writes a module beside the analysis and says where it is."""
    monkeypatch.syspath_prepend(tmp_path)
    name = "local_corrections"

    def write(factor):
        path = tmp_path / f"{name}.py"
        path.write_text(f"FACTOR = {factor}\n\ndef factor():\n    return FACTOR\n")
        importlib.invalidate_caches()
        return path

    write(1)
    yield write
    sys.modules.pop(name, None)


def test_edit_between_two_runs_takes_effect(files, local_module):
    def process(events):
        import local_corrections

        return {"n": local_corrections.factor() * len(events)}

    assert run(process, files.fileset)["n"] == 180
    local_module(7)
    assert run(process, files.fileset)["n"] == 7 * 180


def test_edit_during_a_run_does_not_change_it(files, local_module, tmp_path):
    gate = Gate(tmp_path / "gate")

    def process(events):
        if where(events) == ("good_0.root", 0, 10):
            gate.wait()
        import local_corrections

        return {"n": local_corrections.factor() * len(events)}

    found = {}
    thread = threading.Thread(target=lambda: found.update(run(process, files.fileset, cores=1)))
    thread.start()
    wait_for(gate.came)
    local_module(1000)
    gate.open()
    thread.join()
    assert found == {"n": 180}


def test_module_that_is_missing_on_the_worker(files):
    def process(events):
        import no_such_module

        return no_such_module.tally(events)

    with pytest.raises(ModuleNotFoundError) as caught:
        run(process, files.fileset)
    error = complete(caught.value)
    assert "import no_such_module" in str(error)
    assert "pip install" in error.fix


def test_module_that_starts_a_run_when_it_is_imported(files, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from coffea.nanoevents import BaseSchema\n"
        "from hepscale import HepScaleExecutor, run_uproot_job\n"
        "from coffea.processor import ProcessorABC\n"
        "class Count(ProcessorABC):\n"
        "    def process(self, events):\n"
        "        return {'n': len(events)}\n"
        "    def postprocess(self, accumulator):\n"
        "        return accumulator\n"
        "options = {'cores': 2, 'status': False, 'schema': BaseSchema}\n"
        f"run_uproot_job({files.fileset!r}, 'Events', Count(), HepScaleExecutor, options)\n"
    )
    # in place of tasks that start runs without end
    done = subprocess.run(
        [sys.executable, "-c", "import mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "The analysis starts a run when it is loaded on a worker." in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
