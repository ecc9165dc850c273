"""Inputs, filesets, options and folders that cannot be used: each a clear error, nothing lost."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import pytest
import uproot
from analysis import tally, where
from as_root import mounted
from coffea.nanoevents import BaseSchema
from coffea.processor import IterativeExecutor, Runner
from support import CHUNK, EVENTS, broken, complete, failing, ranges, run, tally_of

import hepscale
from hepscale import HepScaleExecutor, run_uproot_job

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


def works(files):
    assert run(tally, files.fileset) == tally_of(ranges(files.good))


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "also", "reason", "fix"),
    [
        ("missing", FileNotFoundError, "No such file or directory", "ls -l {path};"),
        ("not_root", ValueError, "not a ROOT file", "file {path};"),
        ("truncated", OSError, "received 0 bytes", "copy the file again"),
        ("no_tree", uproot.KeyInFileError, "Events", "uproot.open('{path}').keys()"),
    ],
)
def test_file_that_cannot_be_read(files, bad, also, reason, fix):
    path = getattr(files, bad)
    error = failing(tally, files.with_bad(bad), metadata_cache={})
    assert isinstance(error, also)
    assert error.__cause__ is not None
    assert error.fact == "1 of 4 files cannot be read."
    assert error.partial_output is None
    assert path in str(error)
    # which functions of coffea and uproot came upon it is of no use to anybody
    assert len(str(error).splitlines()) < 10
    assert reason in error.failed[0].reason
    assert fix.format(path=path) in error.fix
    assert error.cause
    assert [one.file for one in error.failed] == [path]
    works(files)


def test_file_whose_end_is_missing(files):
    error = failing(tally, files.with_bad("cut_short"), chunksize=1500)
    assert isinstance(error, OSError)
    assert broken(error) == {("good_9.root", 3000, 4500), ("good_9.root", 4500, 6000)}
    assert error.partial_output == tally_of(
        {("good_9.root", 0, 1500), ("good_9.root", 1500, 3000), *ranges(files.good, EVENTS)}
    )
    assert "copy the file again" in error.fix


def test_file_that_goes_away_between_metadata_and_events(files, tmp_path):
    path = tmp_path / "good_7.root"
    with uproot.recreate(path) as out:
        out["Events"] = {"x": np.arange(20)}
    runner = Runner(
        executor=HepScaleExecutor(cores=2, retries=0, status=False),
        schema=BaseSchema,
        chunksize=CHUNK,
        metadata_cache={},
    )
    chunks = list(runner.preprocess({"data": [*files.good, str(path)]}, treename="Events"))
    path.unlink()
    with pytest.raises(hepscale.ChunksFailed) as caught:
        runner(chunks, processor_instance=tally, treename="Events")
    error = complete(caught.value)
    assert isinstance(error, FileNotFoundError)
    assert {one.file for one in error.failed} == {str(path)}
    assert error.partial_output == tally_of(ranges(files.good))


def test_bad_files_can_be_skipped(files):
    runner = Runner(
        executor=HepScaleExecutor(cores=2, retries=0, status=False),
        schema=BaseSchema,
        chunksize=CHUNK,
        skipbadfiles=True,
    )
    fileset = {"data": [*files.good, files.missing, files.no_tree]}
    skipping = Runner(
        executor=HepScaleExecutor(cores=2, retries=0, status=False),
        schema=BaseSchema,
        chunksize=CHUNK,
        skipbadfiles=(OSError, uproot.KeyInFileError),
    )
    assert skipping(fileset, processor_instance=tally, treename="Events") == tally_of(
        ranges(files.good)
    )
    with pytest.raises(uproot.KeyInFileError):
        runner(fileset, processor_instance=tally, treename="Events")


def test_empty_tree_is_a_result(files):
    fileset = {"data": files.good[:1], "nothing": [files.empty]}
    iterative = Runner(IterativeExecutor(status=False), schema=BaseSchema, chunksize=CHUNK)
    expected = iterative(fileset, processor_instance=tally, treename="Events")
    assert run(tally, fileset) == expected
    alone = {"nothing": [files.empty]}
    expected = iterative(alone, processor_instance=tally, treename="Events")
    assert run(tally, alone) == expected
    assert expected["events"] == 0


# -- filesets and options ------------------------------------------------------------------------


def job(files, fileset=None, **options):
    fileset = files.fileset if fileset is None else fileset
    options = {"cores": 2, "status": False, **options}
    return run_uproot_job(
        fileset, "Events", tally, HepScaleExecutor, options, chunksize=CHUNK, metadata_cache={}
    )


@pytest.mark.parametrize(
    ("fileset", "item"), [({}, "is empty"), ({"dy": []}, "dy"), ({"tt": {"files": []}}, "tt")]
)
def test_empty_fileset(files, fileset, item):
    with pytest.raises(hepscale.InputError, match=item) as caught:
        job(files, fileset)
    assert isinstance(complete(caught.value), ValueError)
    works(files)


def test_fileset_that_is_not_there(files):
    with pytest.raises(hepscale.InputError, match=r"nowhere\.json") as caught:
        job(files, "nowhere.json")
    assert isinstance(complete(caught.value), FileNotFoundError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cores", 0),
        ("cores", -1),
        ("cores", 1.5),
        ("cores", "2"),
        ("cores", True),
        ("memory_mb", 0),
        ("retries", -1),
        ("wall_s", 0),
        ("wall_s", float("nan")),
        ("wall_s", "1 h"),
        ("engine", "slurm"),
    ],
)
def test_option_that_cannot_be_used(files, option, value):
    with pytest.raises(hepscale.ConfigError) as caught:
        job(files, **{option: value})
    error = complete(caught.value)
    assert option in error.fact
    assert repr(value) in error.fact
    assert f"HepScaleExecutor({option}=" in error.fix


@pytest.mark.parametrize(
    ("given", "meant"),
    [("memory", "memory_mb"), ("core", "cores"), ("skip_bad_files", "skipbadfiles")],
)
def test_unknown_option_names_the_nearest(files, given, meant):
    with pytest.raises(hepscale.ConfigError, match=repr(given)) as caught:
        job(files, **{given: 1})
    assert f'"{meant}": 1' in complete(caught.value).fix


def test_unknown_option_that_is_like_no_other(files):
    with pytest.raises(hepscale.ConfigError, match="'zzz'") as caught:
        job(files, zzz=1)
    assert "cores" in complete(caught.value).fix


def test_former_options_only_warn(files):
    with pytest.warns(UserWarning, match="tailtimeout"):
        assert job(files, tailtimeout=5) == tally_of(ranges(files.good))


def test_setting_that_cannot_be_used(files, monkeypatch):
    monkeypatch.setenv("HEPSCALE_IDLE_S", "soon")
    with pytest.raises(hepscale.ConfigError, match="HEPSCALE_IDLE_S='soon'") as caught:
        job(files)
    assert "unset HEPSCALE_IDLE_S" in complete(caught.value).fix


# -- folders -------------------------------------------------------------------------------------


def fill(path):
    """Write a file until there is no room left."""
    with open(path, "wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(b"x" * 4096)


def unusable(path, variable, fact, files):
    error = failing(tally, files.fileset, hepscale.RunDirectoryError)
    assert str(path) in str(error)
    assert fact in error.fact
    assert f"export {variable}=" in error.fix
    return error


@pytest.mark.parametrize(
    ("variable", "fact"),
    [("HEPSCALE_RUN_DIR", "journals"), ("HEPSCALE_SCRATCH_DIR", "scratch folder")],
)
def test_folder_that_cannot_be_made(files, tmp_path, variable, fact):
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, str(tmp_path / "file" / "below"))
        unusable(tmp_path / "file" / "below", variable, fact, files)
    works(files)


@pytest.mark.root
@pytest.mark.parametrize(
    ("variable", "fact"),
    [("HEPSCALE_RUN_DIR", "journals"), ("HEPSCALE_SCRATCH_DIR", "scratch folder")],
)
def test_read_only_folder(files, tmp_path, variable, fact):
    with mounted(tmp_path / "ro", "ro") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, str(folder))
        assert "Read-only" in str(unusable(folder, variable, fact, files))
    works(files)


@pytest.mark.root
@pytest.mark.parametrize(
    ("variable", "fact"),
    [("HEPSCALE_RUN_DIR", "journals"), ("HEPSCALE_SCRATCH_DIR", "scratch folder")],
)
def test_full_folder(files, tmp_path, variable, fact):
    with mounted(tmp_path / "full", "size=16k") as folder, pytest.MonkeyPatch.context() as patch:
        fill(folder / "ballast")
        patch.setenv(variable, str(folder))
        assert "No space left" in str(unusable(folder, variable, fact, files))
        assert os.listdir(folder) == ["ballast"]
    works(files)


def noisy(events):
    begin = events.metadata["entrystart"]
    return {**tally(events), "noise": np.random.default_rng(begin).integers(0, 1 << 60, 5_000)}


@pytest.mark.root
def test_run_directory_that_fills_up_in_mid_run(files, tmp_path, capsys):
    chunks = ranges(files.good)
    with mounted(tmp_path / "small", "size=100k") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_VIEW", "lines")
        out = run(noisy, files.fileset, run_dir=folder, status=True)
        noise = [np.random.default_rng(begin).integers(0, 1 << 60, 5_000) for _, begin, _ in chunks]
        assert (out.pop("noise") == sum(noise)).all()
        assert out == tally_of(chunks)
        shown = "".join(capsys.readouterr())
        assert shown.count("This run cannot be resumed: No space left on device") == 1


@pytest.mark.root
def test_scratch_folder_that_fills_up_in_mid_run(files, tmp_path):
    with mounted(tmp_path / "small", "size=8m") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_SCRATCH_DIR", str(folder))

        def fills(events):
            out = noisy(events)
            if where(events) == ("good_1.root", 20, 30):
                fill(folder / "ballast")
            return out

        # another task that ends at that moment would make room
        options = {"compression": None, "cores": 1}
        error = failing(fills, files.fileset, hepscale.RunDirectoryError, **options)
        assert f"{folder}: No space left" in str(error)
        out = error.partial_output
        out.pop("noise")
        assert out == tally_of(out["chunks"])
        assert 0 < len(out["chunks"]) < len(ranges(files.good))
        os.unlink(folder / "ballast")
        hepscale.shutdown()
        assert os.listdir(folder) == []
    works(files)


@pytest.mark.root
def test_chunk_that_writes_more_than_there_is_room_for(files, tmp_path):
    with mounted(tmp_path / "small", "size=8m") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_SCRATCH_DIR", str(folder))

        def fills(events):
            if where(events) == ("good_1.root", 20, 30):
                fill("own")
            return noisy(events)

        error = failing(fills, files.fileset, compression=None, retries=1, cores=1)
        assert broken(error) == {("good_1.root", 20, 30)}
        assert "its folder is full" in error.failed[0].reason
        assert "HEPSCALE_SCRATCH_DIR" in error.fix
        error.partial_output.pop("noise")
        assert error.partial_output == tally_of(ranges(files.good) - broken(error))
        hepscale.shutdown()
        assert os.listdir(folder) == []
    works(files)
