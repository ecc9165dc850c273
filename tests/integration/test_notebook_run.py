from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from rich.console import Console

from hepscale.errors import ConfigError, InputError, NotebookError
from hepscale.notebook_run import run_file


class Screen:
    """Two consoles, as the command line has them."""

    def __init__(self):
        self.console = Console(file=io.StringIO(), width=100)
        self.progress = Console(file=io.StringIO(), width=100)

    def run(self, path, **options):
        run_file(path, self.console, self.progress, **options)

    @property
    def stdout(self):
        return self.console.file.getvalue()

    @property
    def stderr(self):
        return self.progress.file.getvalue()


@pytest.fixture
def screen():
    return Screen()


def write(path, *sources):
    cells = [new_markdown_cell("# Analysis"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def hepscale(*args, **options):
    command = [sys.executable, "-c", "from hepscale.cli import main; main()", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_kernel_is_reached_by_sockets_where_there_is_room_for_their_names(
    tmp_path, screen, monkeypatch, transport
):
    if transport == "tcp":
        (tmp_path / ("x" * 80)).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    ask = "import json\nfrom ipykernel.connect import get_connection_file as file\n"
    path = write(tmp_path / "a.ipynb", f"{ask}print(json.load(open(file()))['transport'], file())")
    screen.run(path)
    used, file = screen.stdout.split()
    assert used == transport
    assert not Path(file).exists()


def test_notebook(tmp_path, screen):
    path = write(
        tmp_path / "a.ipynb",
        "import sys\nfrom pathlib import Path",
        "print(Path.cwd().name)\nprint('careful', file=sys.stderr)",
        "",
        "import local_helper\nlocal_helper.answer",
    )
    before = path.read_bytes()
    (tmp_path / "local_helper.py").write_text("answer = 42")
    screen.run(path)
    assert screen.stdout == f"{tmp_path.name}\n"
    assert "Cell 1 of 3: import sys\n" in screen.stderr
    assert "careful\n" in screen.stderr
    assert "3 cells in " in screen.stderr
    assert path.read_bytes() == before


def test_output_is_written(tmp_path, screen):
    path = write(tmp_path / "a.ipynb", "6 * 7")
    screen.run(path, out=tmp_path / "b.ipynb")
    cell = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[1]
    assert cell.outputs[0].data["text/plain"] == "42"
    assert sorted(os.listdir(tmp_path)) == ["a.ipynb", "b.ipynb"]


def test_output_in_place(tmp_path, screen):
    path = write(tmp_path / "a.ipynb", "6 * 7")
    screen.run(path, out=path)
    assert nbformat.read(path, as_version=4).cells[1].outputs


def test_text_arrives_while_the_cell_runs(tmp_path):
    arrived = []

    class Stream(io.StringIO):
        def write(self, text):
            arrived.append((time.monotonic(), text))
            return len(text)

    source = "import time\nprint('first', flush=True)\ntime.sleep(1)\nprint('second')"
    run_file(
        write(tmp_path / "a.ipynb", source), Console(file=Stream()), Console(file=io.StringIO())
    )
    times = {text.strip(): at for at, text in arrived}
    assert times["second"] - times["first"] > 0.5


def test_progress_of_runs_is_passed_on_as_lines(tmp_path, screen, monkeypatch):
    path = write(tmp_path / "a.ipynb", "import os\nprint(os.environ['HEPSCALE_VIEW'])")
    monkeypatch.delenv("HEPSCALE_VIEW", raising=False)
    screen.run(path)
    monkeypatch.setenv("HEPSCALE_VIEW", "off")
    screen.run(path)
    assert screen.stdout == "lines\noff\n"


def test_failing_cell(tmp_path, screen):
    path = write(tmp_path / "a.ipynb", "x = 0", "print('so far', end='')\n1 / x", "print('no')")
    with pytest.raises(
        NotebookError, match=r"Cell 2 of 3 of a\.ipynb failed: ZeroDivisionError"
    ) as caught:
        screen.run(path, out=tmp_path / "b.ipynb")
    assert caught.value.fix == f"correct it, then: hepscale run {path}"
    assert screen.stdout == "so far\n"
    assert "Cell 2 of 3 failed" in screen.stderr
    assert "2 1 / x" in screen.stderr
    assert "ZeroDivisionError: division by zero" in screen.stderr
    assert nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[2].outputs[1].ename
    assert sorted(os.listdir(tmp_path)) == ["a.ipynb", "b.ipynb"]


def test_failing_cell_on_the_command_line(tmp_path):
    done = hepscale("run", write(tmp_path / "a.ipynb", "1 / 0"))
    assert done.returncode == 1
    what, _, then = done.stderr.rstrip().rpartition("\n")
    assert what.endswith("failed: ZeroDivisionError: division by zero")
    assert then == f"Next: correct it, then: hepscale run {tmp_path}/a.ipynb"
    assert "nbclient" not in done.stderr


def test_cell_that_may_fail(tmp_path, screen):
    notebook = new_notebook(cells=[new_code_cell("1 / 0"), new_code_cell("print('on')")])
    notebook.cells[0].metadata["tags"] = ["raises-exception"]
    nbformat.write(notebook, tmp_path / "a.ipynb")
    screen.run(tmp_path / "a.ipynb")
    assert screen.stdout == "on\n"
    assert "failed" not in screen.stderr


def test_kernel_that_dies(tmp_path, screen):
    path = write(tmp_path / "a.ipynb", "import os", "os.kill(os.getpid(), 9)")
    with pytest.raises(NotebookError, match=r"Cell 2 of 2 .* the kernel died"):
        screen.run(path)


def test_timeout(tmp_path, screen):
    path = write(tmp_path / "a.ipynb", "import time", "time.sleep(600)")
    with pytest.raises(NotebookError, match=r"Cell 2 of 2 .* stopped after 1 s"):
        screen.run(path, timeout_s=1)


def test_ctrl_c_interrupts_the_cell_and_keeps_its_output(tmp_path):
    source = "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(600)\n"
    source += "finally:\n    print('saved')"
    path = write(tmp_path / "a.ipynb", source)
    command = [sys.executable, "-c", "from hepscale.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "run", str(path), "-o", str(tmp_path / "b.ipynb")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "saved\n")
    assert stderr.endswith("Interrupted.\n")
    outputs = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[1].outputs
    assert outputs[0].text == "ready\nsaved\n"


BROKEN = {
    "empty": b"",
    "cut off": b'{"cells": [',
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "no cells": b"{}",
    "no metadata": b'{"nbformat": 4, "nbformat_minor": 5, "cells": [{"cell_type": "code"}]}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_notebook(tmp_path, screen, content):
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as caught:
        screen.run(tmp_path / "a.ipynb")
    assert caught.value.cause
    assert caught.value.fix


def test_notebook_without_cell_ids(tmp_path, screen):
    (tmp_path / "a.ipynb").write_text(
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code",'
        ' "metadata": {}, "source": "print(1)", "outputs": [], "execution_count": null}]}'
    )
    screen.run(tmp_path / "a.ipynb")
    assert screen.stdout == "1\n"


def test_missing_file(tmp_path, screen):
    with pytest.raises(InputError, match="no such file"):
        screen.run(tmp_path / "a.ipynb")


def test_wrong_suffix(tmp_path, screen):
    with pytest.raises(InputError, match="takes a notebook"):
        screen.run(tmp_path / "a.root")


def test_missing_kernel(tmp_path, screen):
    path = write(tmp_path / "a.ipynb", "1")
    with pytest.raises(ConfigError, match="no Jupyter kernel 'cobol'") as caught:
        screen.run(path, kernel="cobol")
    assert "python3" in caught.value.items


@pytest.mark.parametrize("out", ["no/such/folder/b.ipynb", "."])
def test_output_that_cannot_be_written_is_said_before_anything_runs(tmp_path, screen, out):
    path = write(tmp_path / "a.ipynb", "print('ran')")
    with pytest.raises(ConfigError, match="cannot be written"):
        screen.run(path, out=tmp_path / out)
    assert screen.stdout == ""


def test_script(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "beside.py").write_text("answer = 42")
    (tmp_path / "folder" / "a.py").write_text(
        "import os, sys, beside\nprint(beside.answer, os.getcwd(), __name__)"
    )
    done = hepscale("run", "folder/a.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"42 {tmp_path} __main__\n")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "a.py failed with exit code 1"),
        ("raise SystemExit(7)", "a.py failed with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "a.py was ended by SIGKILL"),
    ],
)
def test_failing_script(tmp_path, source, says):
    (tmp_path / "a.py").write_text(source)
    done = hepscale("run", tmp_path / "a.py")
    assert done.returncode == 1
    assert f"Error: {says}" in done.stderr
    if source == "1 / 0":
        assert done.stderr.startswith("Traceback (most recent call last):")
        assert "ZeroDivisionError" in done.stderr
    assert "notebook_run" not in done.stderr


def test_ctrl_c_lets_a_script_save_what_it_has(tmp_path):
    (tmp_path / "a.py").write_text(
        "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(600)\n"
        "finally:\n    time.sleep(1)\n    print('saved')\n"
    )
    command = [sys.executable, "-c", "from hepscale.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "run", str(tmp_path / "a.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "saved\n")
    assert stderr.endswith("Interrupted.\n")


def test_script_that_takes_too_long(tmp_path, screen):
    (tmp_path / "a.py").write_text("import time; time.sleep(600)")
    with pytest.raises(NotebookError, match="stopped after 1 s"):
        screen.run(tmp_path / "a.py", timeout_s=1)


@pytest.mark.parametrize("option", [{"out": "b.ipynb"}, {"kernel": "python3"}])
def test_options_of_notebooks_do_not_go_with_scripts(tmp_path, screen, option):
    (tmp_path / "a.py").write_text("")
    with pytest.raises(ConfigError, match="is for notebooks"):
        screen.run(tmp_path / "a.py", **option)
