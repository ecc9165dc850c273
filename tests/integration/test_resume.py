"""A run that was cut short, and the next one that counts what is left: nothing twice."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import uproot
from analysis import tally, where
from support import BAD, CHUNK, as_json, failing, ranges, run, script, tally_of, wait_for

pytestmark = pytest.mark.usefixtures("settled", "nothing_left")


@pytest.fixture(autouse=True)
def journals(tmp_path, monkeypatch):
    """Give each test a run directory of its own."""
    monkeypatch.setenv("HEPSCALE_RUN_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def ran(tmp_path):
    """Return a function that says which chunks have run since it was last called."""
    path = tmp_path / "ran"

    def take():
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(lines)

    take.path = path
    return take


def names(chunks):
    return sorted(map(str, chunks))


def recorder(path, flag, factor=1):
    """Return a processor that notes each chunk, and fails in one while the file `flag` exists."""

    def process(events):
        with open(path, "a") as out:
            out.write(f"{where(events)}\n")
        if where(events) == BAD and os.path.exists(flag):
            raise RuntimeError("no luck")
        out = tally(events)
        return {**out, "sum": factor * out["sum"]}

    return process


@pytest.fixture
def unfinished(files, tmp_path, ran):
    """Return the processor of a run in which all chunks but one were counted."""
    flag = tmp_path / "flag"
    flag.touch()
    processor = recorder(ran.path, flag)
    failing(processor, files.fileset)
    assert ran() == names(ranges(files.good))
    flag.unlink()
    return processor


def test_only_the_rest_is_run(files, ran, unfinished):
    assert run(unfinished, files.fileset, resume=True) == tally_of(ranges(files.good))
    assert ran() == [str(BAD)]


def test_finished_run_is_read_again(files, ran, unfinished):
    run(unfinished, files.fileset, resume=True)
    ran()
    assert run(unfinished, files.fileset, resume=True) == tally_of(ranges(files.good))
    assert ran() == []


def test_without_resume_nothing_is_reused(files, ran, unfinished):
    assert run(unfinished, files.fileset) == tally_of(ranges(files.good))
    assert ran() == names(ranges(files.good))


def test_edited_processor_reuses_nothing(files, tmp_path, ran, unfinished):
    edited = recorder(ran.path, tmp_path / "flag", factor=2)
    out = tally_of(ranges(files.good))
    assert run(edited, files.fileset, resume=True) == {**out, "sum": 2 * out["sum"]}
    assert ran() == names(ranges(files.good))


def test_more_files_run_only_those(files, tmp_path, ran):
    processor = recorder(ran.path, tmp_path / "flag")
    run(processor, {"data": files.good[:2]})
    ran()
    assert run(processor, files.fileset, resume=True) == tally_of(ranges(files.good))
    assert ran() == names(ranges(files.good[2:]))


def test_other_chunks_reuse_nothing(files, ran, unfinished):
    assert run(unfinished, files.fileset, resume=True, chunksize=20) == tally_of(
        ranges(files.good, 20)
    )
    assert ran() == names(ranges(files.good, 20))
    assert run(unfinished, {"other": files.good}, resume=True) == tally_of(ranges(files.good))
    assert ran() == names(ranges(files.good))


def test_changed_metadata_reuse_nothing(files, tmp_path, ran):
    # coffea's cache of metadata holds those of the user too, so that it would not see the change
    expected = tally_of(ranges(files.good))
    processor = recorder(ran.path, tmp_path / "flag")
    for metadata in ({"xsec": 1.0, "year": 2017}, {"xsec": 1.5, "year": 2017}):
        fileset = {"data": {"files": files.good, "metadata": metadata}}
        assert run(processor, fileset, resume=True, metadata_cache={}) == expected
        assert ran() == names(ranges(files.good))
    # in another order they are the same
    fileset = {"data": {"files": files.good, "metadata": {"year": 2017, "xsec": 1.5}}}
    assert run(processor, fileset, resume=True, metadata_cache={}) == expected
    assert ran() == []


def test_overwritten_file_is_run_again(files, tmp_path, ran):
    def write(first):
        with uproot.recreate(tmp_path / "good_5.root") as out:
            out["Events"] = {"x": np.arange(first, first + 2 * CHUNK)}

    processor = recorder(ran.path, tmp_path / "flag")
    fileset = {"data": [*files.good, str(tmp_path / "good_5.root")]}
    write(5000)
    run(processor, fileset, metadata_cache={})
    ran()
    write(0)
    out = run(processor, fileset, resume=True, metadata_cache={})
    assert out["sum"] == tally_of(ranges(files.good))["sum"] + sum(range(20))
    again = ran()
    # and what shares a frame with them
    assert {"('good_5.root', 0, 10)", "('good_5.root', 10, 20)"} <= set(again)
    assert len(again) < 20


def journal_of(journals):
    (path,) = journals.glob("*/journal")
    return path


def test_truncated_journal_loses_its_tail_only(files, tmp_path, ran, journals):
    def process(events):
        with open(path, "a") as out:
            out.write(f"{where(events)}\n")
        return {**tally(events), "pad": os.urandom(4000)[:0]}

    path = str(ran.path)
    run(process, files.fileset, cores=1)
    ran()
    whole = journal_of(journals).read_bytes()
    journal_of(journals).write_bytes(whole[:-10])
    out = run(process, files.fileset, resume=True, cores=1)
    again = ran()
    assert 0 < len(again) < len(ranges(files.good))
    assert {key: out[key] for key in ("events", "sum", "chunks")} == tally_of(ranges(files.good))


def test_damaged_journal(files, tmp_path, ran, unfinished, journals):
    data = bytearray(journal_of(journals).read_bytes())
    data[len(data) // 2] ^= 0xFF
    journal_of(journals).write_bytes(data)
    assert run(unfinished, files.fileset, resume=True) == tally_of(ranges(files.good))
    again = ran()
    assert str(BAD) in again
    assert len(again) > 1


@pytest.mark.parametrize("content", [b"", b"HSF1", b"no journal at all\n" * 100])
def test_useless_journal(files, ran, unfinished, journals, content):
    journal_of(journals).write_bytes(content)
    assert run(unfinished, files.fileset, resume=True) == tally_of(ranges(files.good))
    assert ran() == names(ranges(files.good))


def test_split_chunks_are_resumed(files, tmp_path, ran):
    flag = tmp_path / "flag"
    flag.touch()

    def process(events):
        with open(path, "a") as out:
            out.write(f"{where(events)}\n")
        if len(events) > 5:
            raise MemoryError
        if where(events) == ("good_1.root", 20, 25) and os.path.exists(flag):
            raise RuntimeError("no luck")
        return tally(events)

    path = str(ran.path)
    error = failing(process, files.fileset)
    assert error.partial_output == tally_of(ranges(files.good, 5) - {("good_1.root", 20, 25)})
    ran()
    flag.unlink()
    assert run(process, files.fileset, resume=True) == tally_of(ranges(files.good, 5))
    assert ran() == ["('good_1.root', 20, 25)"]
    # and once more: what was resumed is in the new journal too
    assert run(process, files.fileset, resume=True) == tally_of(ranges(files.good, 5))
    assert ran() == []


def test_two_resumes_in_a_row(files, tmp_path, ran, unfinished, monkeypatch):
    (tmp_path / "flag").touch()
    error = failing(unfinished, files.fileset, resume=True)
    assert error.partial_output == tally_of(ranges(files.good) - {BAD})
    assert ran() == [str(BAD)]
    (tmp_path / "flag").unlink()
    assert run(unfinished, files.fileset, resume=True) == tally_of(ranges(files.good))
    assert ran() == [str(BAD)]


def test_old_journals_are_removed(files, journals, monkeypatch):
    monkeypatch.setenv("HEPSCALE_KEEP_RUNS", "2")
    for _ in range(4):
        run(tally, {"data": files.good[:1]})
    assert len(list(journals.glob("*/journal"))) == 2


# -- another process -----------------------------------------------------------------------------

_SCRIPT = """
import json, os, sys, time
from pathlib import Path
import hepscale
from analysis import tally, where
from local_part import factor
from support import as_json, run

files, folder = json.loads(sys.argv[1]), sys.argv[2]

def process(events):
    if where(events)[0] == "good_2.root" and os.path.exists(folder + "/held-up"):
        open(f"{folder}/held-up/{os.getpid()}", "w").close()
        time.sleep(600)
    with open(folder + "/ran", "a") as out:
        out.write(f"{where(events)}\\n")
    out = tally(events)
    return {**out, "sum": factor() * out["sum"]}

try:
    print(json.dumps(as_json(run(process, {"data": files}, resume=True))))
except hepscale.RunInterrupted as error:
    print(json.dumps(as_json(error.partial_output)))
"""


@pytest.mark.parametrize("end", ["interrupt", "kill"])
def test_new_process_runs_the_rest(files, tmp_path, ran, end):
    given = (tmp_path / "a.py", _SCRIPT, json.dumps(files.good), tmp_path)
    (tmp_path / "local_part.py").write_text("def factor():\n    return 1\n")
    (tmp_path / "held-up").mkdir()
    with script(*given) as started:
        wait_for(lambda: os.listdir(tmp_path / "held-up"))
        if end == "kill":
            started.kill()
        else:
            started.interrupt()
            counted = {tuple(one) for one in started.finish()["chunks"]}
            assert 0 < len(counted) <= 12
    assert 0 < len(ran()) <= 12
    os.rename(tmp_path / "held-up", tmp_path / "not-held-up")
    with script(*given) as started:
        assert started.finish() == as_json(tally_of(ranges(files.good)))
    rest = ran()
    assert set(names(ranges(files.good[2:]))) <= set(rest)
    assert len(rest) < len(ranges(files.good))
    if end == "interrupt":
        assert rest == names(ranges(files.good) - counted)
    # an edited local module changes what chunks give
    (tmp_path / "local_part.py").write_text("def factor():\n    return 3\n")
    with script(*given) as started:
        out = tally_of(ranges(files.good))
        assert started.finish() == as_json({**out, "sum": 3 * out["sum"]})
    assert ran() == names(ranges(files.good))
