"""The folder of a task: links to its inputs, and nothing written where they lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepscale.executor.engines import task_folder
from hepscale.executor.task import InputFile, Task, TaskId


@pytest.fixture
def made(tmp_path):
    """Return a function that makes the folder of a task with these inputs, by their names."""

    def make(**inputs: Path) -> Path:
        files = tuple(InputFile(name, source) for name, source in inputs.items())
        task = Task(TaskId("t"), 1, (), b"", tmp_path / "payload", inputs=files)
        task_folder.write(tmp_path / "folder", task)
        return tmp_path / "folder" / "work.d"

    return make


def test_nothing_is_made_in_a_folder_that_is_linked(made, tmp_path):
    data, other = tmp_path / "data", tmp_path / "other.root"
    data.mkdir()
    (data / "known.root").write_text("known")
    other.write_text("other")
    cwd = made(**{"data/new.root": other, "data/deep/new.root": other, "data": data})
    assert [one.name for one in data.iterdir()] == ["known.root"]
    assert (cwd / "data/known.root").read_text() == "known"


def test_files_in_folders(made, tmp_path):
    (tmp_path / "x").write_text("x")
    cwd = made(**{"a/b/x": tmp_path / "x", "a/y": tmp_path / "x"})
    assert (cwd / "a/b/x").read_text() == (cwd / "a/y").read_text() == "x"
