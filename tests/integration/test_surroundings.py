"""Runs in places that are not as one would like: descriptors, folders, packages, file names."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import analysis
import awkward as ak
import pytest
import support
from coffea.nanoevents import BaseSchema
from coffea.processor import Runner

import hepscale
from hepscale import HepScaleExecutor

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_more_descriptors_than_select_knows(files):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        hepscale.shutdown()
        assert support.run(analysis.tally, files.fileset) == support.tally_of(
            support.ranges(files.good)
        )
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_folder_of_a_warm_worker_is_cleaned_away(files):
    support.run(analysis.tally, files.fileset)
    scratch = Path(os.environ["HEPSCALE_SCRATCH_DIR"])
    for folder in scratch.iterdir():
        shutil.rmtree(folder)
    out = support.run(analysis.tally, files.fileset)
    assert out == support.tally_of(support.ranges(files.good))


def test_inner_dots_in_a_relative_name(files, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    shutil.copy(files.good[0], tmp_path / "a.root")
    monkeypatch.chdir(tmp_path)
    out = support.run(lambda events: {"n": len(events)}, {"data": ["data/../a.root"]})
    assert out == {"n": support.EVENTS}


def test_level_of_compression_that_only_lz4_knows(files):
    out = support.run(
        lambda events: {"text": [str(list(range(1000)))]}, files.fileset, compression=16
    )
    assert len(out["text"]) == 18


class Odd(Exception):
    """Comes back from its pickle as something else, and has a property where we set a field."""

    detail = property(lambda self: "mine")

    def __reduce__(self):
        return str, ("not an exception",)


class Guarded(Exception):
    fact = property(lambda self: "mine")


@pytest.mark.parametrize("kind", [Odd, Guarded])
def test_exceptions_of_an_odd_class(files, kind):
    def process(events):
        if analysis.where(events) == support.first_chunk(files.good):
            raise kind("odd")
        return analysis.tally(events)

    with pytest.raises(hepscale.ChunksFailed, match="odd") as caught:
        support.run(process, files.fileset)
    assert len(caught.value.failed) == 1
    assert caught.value.partial_output["events"] == 3 * support.EVENTS - support.CHUNK


class NeverAgain:
    def __call__(self, events):
        return {"n": len(events)}

    def __getstate__(self):
        return {"x": 1}

    def __setstate__(self, state):
        raise ValueError("not twice")


def test_processor_that_cannot_be_made_again(files):
    with pytest.raises(hepscale.PayloadError, match="not twice"):
        support.run(NeverAgain(), files.fileset)


def test_pages_shared_by_forks_count_once(files):
    def process(events):
        import time

        import numpy as np

        held = np.ones(40_000_000)
        children = []
        for _ in range(5):
            child = os.fork()
            if child == 0:
                time.sleep(0.4)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        return {"n": len(events) + int(held[0]) - 1}

    fileset = {"data": files.good[:1]}
    out = support.run(process, fileset, chunksize=support.EVENTS, memory_mb=1500)
    assert out == {"n": support.EVENTS}


def parquet(path: Path, value: int) -> None:
    ak.to_parquet(ak.Array({"x": [value] * 10}), path)


def total(events):
    return {"sum": int(ak.sum(events.x))}


def test_rewritten_parquet_file_is_not_resumed(tmp_path):
    path = tmp_path / "a.parquet"

    def run():
        runner = Runner(
            executor=HepScaleExecutor(cores=1, status=False, resume=True),
            schema=BaseSchema,
            format="parquet",
            metadata_cache={},
        )
        return runner({"data": [str(path)]}, processor_instance=total, treename="Events")["sum"]

    parquet(path, 1)
    assert run() == 10
    parquet(path, 7)
    assert run() == 70


def test_journals_of_several_runs_are_put_together(files, tmp_path):
    first, second = support.ranges(files.good[:1]), support.ranges(files.good[1:2])
    note = tmp_path / "ran"

    def run(names, **options):
        def process(events):
            with open(note, "a") as stream:
                print(*analysis.where(events), file=stream)
            return analysis.tally(events)

        note.write_text("")
        return support.run(process, {"data": names}, run_dir=tmp_path / "runs", **options)

    assert run(files.good[:1]) == support.tally_of(first)
    assert run(files.good[1:2]) == support.tally_of(second)
    assert run(files.good[:2], resume=True) == support.tally_of(first | second)
    assert note.read_text() == ""


def test_editable_package_behind_an_installed_one(files, tmp_path):
    """An installed package imports an editable one through a finder, as setuptools makes them."""
    site = tmp_path / "lib" / "site-packages"
    editable = tmp_path / "project" / "editable_part"
    editable.mkdir(parents=True)
    site.mkdir(parents=True)
    (site / "installed_part.py").write_text("import editable_part\nvalue = editable_part.value\n")
    (site / "loader.pth").write_text("import _part_finder\n")
    (site / "_part_finder.py").write_text(
        textwrap.dedent(f"""
        import importlib.util, sys
        class Finder:
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name == "editable_part":
                    return importlib.util.spec_from_file_location(
                        name, {str(editable / "__init__.py")!r},
                        submodule_search_locations=[{str(editable)!r}])
        sys.meta_path.append(Finder)
        """)
    )
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import site, sys
        site.addsitedir({str(site)!r})
        import _part_finder
        sys.path.insert(0, {str(Path(support.__file__).parent)!r})
        from pathlib import Path
        import support
        def process(events):
            import sys
            import _part_finder, installed_part
            return {{"values": {{installed_part.value}}}}
        part = Path({str(editable / "__init__.py")!r})
        for value in (1, 22, 333):
            part.write_text(f"value = {{value}}\\n" + "#" * value)
            print(*support.run(process, {{"data": {files.good[:1]!r}}})["values"])
        """)
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.split() == ["1", "22", "333"], done.stderr


def test_folders_are_expanded(monkeypatch, tmp_path):
    from hepscale.config import load_settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEPSCALE_SCRATCH_DIR", "here")
    monkeypatch.setenv("HEPSCALE_RUN_DIR", "~/runs")
    settings = load_settings()
    assert settings.scratch_dir == tmp_path / "here"
    assert settings.run_dir == Path.home() / "runs"
