"""What looking for imports costs: what is imported for it, and time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures" / "imports"


def in_new_process(code: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_ipython_is_imported_for_magics_only() -> None:
    code = """
import sys
from hepscale.env.imports import examine
from hepscale.env.sources import Unit, from_file
for name in sys.argv[1:]:
    for unit in from_file(name).units:
        examine(unit)
examine(Unit("cell 1", "%%time\\nimport numpy", is_cell=True))
assert "IPython" not in sys.modules and "nbformat" not in sys.modules
examine(Unit("cell 1", "%time import numpy", is_cell=True))
print("IPython" in sys.modules, "numpy" in sys.modules)
"""
    # A notebook exported as a script holds magics in calls of get_ipython().
    scripts = [str(one) for one in FIXTURES.glob("*.py") if one.name != "exported.py"]
    assert in_new_process(code, *scripts).split() == ["True", "False"]


def test_a_notebook_of_forty_cells_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    body = "".join(f"def f{n}(events):\n    return events.x[events.y > {n}]\n" for n in range(15))
    cells = [f"%time x = {n}\n!ls\nimport module_{n}\n{body}?x\n" for n in range(40)]
    notebook = {
        "nbformat": 4,
        "metadata": {},
        "cells": [{"cell_type": "code", "source": one} for one in cells],
    }
    path = tmp_path / "forty.ipynb"
    path.write_text(json.dumps(notebook))
    code = """
import sys, time
from hepscale.env.imports import examine
from hepscale.env.sources import from_file
begin = time.process_time()
found = [one.name for unit in from_file(sys.argv[1]).units for one in examine(unit).imports]
print(len(found), time.process_time() - begin)
"""
    count, seconds = in_new_process(code, str(path)).split()
    assert int(count) == 40
    assert float(seconds) < 0.5
