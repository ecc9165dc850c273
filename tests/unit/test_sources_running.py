"""Sources of code that is running: of a script, a module, a kernel."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import kernels
import pytest
from support import python

from hepscale.env.sources import running

if TYPE_CHECKING:
    from collections.abc import Iterator


FIXTURES = Path(__file__).parents[1] / "fixtures" / "imports"

TELL = """
import json
from hepscale.env.sources import running
found = running()
units = [[one.label, one.source.strip().partition("\\n")[0], one.certain] for one in found.units]
told = dict(units=units, folder=str(found.folder), notes=[one.text for one in found.notes])
"""


def test_a_script_that_runs(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text(TELL + "print(json.dumps(told))")
    (tmp_path / "elsewhere").mkdir()
    told = json.loads(python("../analysis.py", cwd=tmp_path / "elsewhere"))
    assert told == {
        "units": [["analysis.py", "import json", True]],
        "folder": str(tmp_path),
        "notes": [],
    }


def test_a_module_of_a_package_that_runs(tmp_path: Path) -> None:
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__main__.py").write_text(TELL + "print(json.dumps(told))")
    told = json.loads(python("-m", "mypackage", cwd=tmp_path))
    assert told["units"] == [["__main__.py", "import json", True]]
    assert told["folder"] == str(tmp_path)


def test_neither_notebook_nor_script(tmp_path: Path) -> None:
    told = json.loads(python("-c", TELL + "print(json.dumps(told))", cwd=tmp_path))
    assert told == {
        "units": [],
        "folder": "None",
        "notes": ["neither a notebook nor a script's file is running, so no imports are known"],
    }


def test_an_installed_program_is_not_the_analysis() -> None:
    # pytest, which runs this
    sources = running()
    assert sources.units == ()
    assert [note.fix for note in sources.notes] == ['extra_packages=["NAME"]']


def test_a_script_whose_file_has_gone(tmp_path: Path) -> None:
    program = "import os\nos.remove(__file__)\n" + TELL + "print(json.dumps(told))"
    (tmp_path / "analysis.py").write_text(program)
    assert json.loads(python("analysis.py", cwd=tmp_path))["units"] == []


def test_ipython_without_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    program = f"""
import os, shutil
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
def cell(source):
    shell.run_cell(source, store_history=True)
cell("import math")
cell("%%time\\nimport no_such_module")
cell("x =")
cell("")
cell("%run helper.py")
cell("  import math\\n")
cell("import no_such_module")
cell({TELL!r})
before = shell.user_ns["told"]
os.chdir("gone")
shutil.rmtree({str(folder)!r})
cell({TELL!r})
import json
os.chdir("/")
print(); print(json.dumps([before, shell.user_ns["told"]]))
"""
    (tmp_path / "helper.py").write_text("import json\n")
    environ = {"IPYTHONDIR": str(tmp_path / "profile"), "NO_COLOR": "1"}
    before, after = json.loads(python("-c", program, cwd=tmp_path, **environ).splitlines()[-1])
    assert before == {
        "units": [
            ["In [5]", "import math", True],
            ["In [2]", "%%time", False],
            ["In [3]", "x =", False],
            ["In [4]", "%run helper.py", True],
            ["In [6]", "import no_such_module", False],
            ["In [7]", "import json", True],
            ["helper.py", "import json", True],
        ],
        "folder": str(tmp_path),
        "notes": [],
    }
    assert after["folder"] == "None"
    assert ["In [5]", "import math", True] in after["units"]


class Kernel:
    """A kernel as a notebook server starts it, in the notebook's folder."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def cell(self, source: str) -> str:
        """Execute a cell; return what it printed."""
        told: list[str] = []

        def collect(message: Any) -> None:
            if message["msg_type"] == "stream":
                told.append(message["content"]["text"])

        self.client.execute_interactive(source, timeout=30, output_hook=collect)
        return "".join(told)

    def running(self) -> Any:
        return json.loads(self.cell(TELL + "print(json.dumps(told))").splitlines()[-1])


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    shutil.copy(FIXTURES / "analysis.ipynb", tmp_path)
    # A server joins the kernel's folder and the notebook's path, in which that folder is as well.
    environ = {
        "IPYTHONDIR": str(tmp_path / "profile"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JPY_SESSION_NAME": str(tmp_path / tmp_path.name / "analysis.ipynb"),
    }
    with kernels.started(tmp_path, **environ) as client:
        yield Kernel(client)


def test_a_kernel_whose_notebook_is_known(kernel: Kernel, tmp_path: Path) -> None:
    kernel.cell("import numpy as np\nimport hist")
    kernel.cell("%%time\nimport uproot\n")
    kernel.cell("import not_saved_yet\n")
    kernel.cell("import json")
    kernel.cell("import vector\nx = 1 / 0")
    told = kernel.running()
    assert told["units"] == [
        ["cell 1", "import numpy as np", True],
        ["cell 2", "%%time", True],
        ["cell 3", "x =", False],
        ["cell 4", "import demonstrated", False],
        ["cell 5", "import vector", False],
        ["In [3]", "import not_saved_yet", False],
        ["In [4]", "import json", True],
        ["In [5]", "import vector", False],
        ["In [6]", "import json", True],
    ]
    assert told["folder"] == str(tmp_path)
    assert told["notes"] == []
    # VS Code tells it in a variable, and the server's word is old if the notebook was renamed.
    (tmp_path / "analysis.ipynb").rename(tmp_path / "renamed.ipynb")
    assert kernel.running()["units"][0] == ["In [1]", "import numpy as np", True]
    kernel.cell(f"__vsc_ipynb_file__ = {str(tmp_path / 'renamed.ipynb')!r}")
    assert kernel.running()["units"][0] == ["cell 1", "import numpy as np", True]
    (tmp_path / "renamed.ipynb").write_text("{")
    told = kernel.running()
    assert told["units"][0] == ["In [1]", "import numpy as np", True]
    (note,) = told["notes"]
    assert note.startswith("renamed.ipynb: The notebook cannot be read. Expecting property name")


class Odd:
    """A shell that has other things where IPython has its history."""

    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


@pytest.mark.parametrize(
    "shell",
    [
        Odd(),
        Odd(history_manager=None, user_ns={}),
        Odd(history_manager=Odd(input_hist_raw=None), user_ns={"__vsc_ipynb_file__": 3}),
        Odd(history_manager=Odd(input_hist_raw=[""], exceptions=None), user_ns={}),
        Odd(history_manager=Odd(input_hist_raw=[None, 3]), user_ns=None),
    ],
)
def test_odd_shells_raise_nothing(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    sources = running()
    assert sources.units == ()


def test_what_goes_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise ValueError("broken")

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=broken))  # type: ignore[arg-type]
    (note,) = running().notes
    assert note.text == "the running code cannot be read: broken"
    assert "ValueError" in caplog.text
