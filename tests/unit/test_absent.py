"""Modules that an environment was made without: in this process, and in forked tasks."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
import textwrap
import warnings
from contextlib import suppress

import pytest

from hepscale.worker import absent, chunks
from hepscale.worker.absent import ModuleAbsent
from hepscale.worker.frames import FrameReader, Kind

LEFT_OUT = "left_out_of_this_environment"


@pytest.fixture
def finder():
    """Watch in this process, as a forkserver does, and stop it afterwards."""
    before = list(sys.meta_path)
    absent.watch([LEFT_OUT, "json"])
    try:
        yield
    finally:
        absent.watch([])
        assert sys.meta_path == before


# -- the finder ------------------------------------------------------------------------------------


def test_before_a_task_it_looks_like_any_missing_module(finder):
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{LEFT_OUT}'"):
        __import__(LEFT_OUT)
    assert importlib.util.find_spec(LEFT_OUT) is None
    assert absent.missed() == [LEFT_OUT]


@pytest.mark.parametrize("caught", [ImportError, Exception])
@pytest.mark.parametrize(
    "look",
    [
        lambda: __import__(LEFT_OUT),
        lambda: __import__(f"{LEFT_OUT}.below.it"),
        lambda: importlib.import_module(LEFT_OUT),
        lambda: importlib.util.find_spec(LEFT_OUT),
    ],
)
def test_in_a_task_it_passes_what_catches_exceptions(finder, look, caught):
    absent.enter_task()
    with pytest.raises(ModuleAbsent, match=LEFT_OUT), suppress(caught):
        look()
    assert absent.missed() == [LEFT_OUT]


def test_other_modules_are_found_or_missed_as_ever(finder):
    absent.enter_task()
    assert importlib.import_module("json") is json
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import no_such_module  # noqa: F401
    # names below a package that is there are the package's business
    with pytest.raises(ModuleNotFoundError):
        __import__(f"json.{LEFT_OUT}")
    assert importlib.util.find_spec("no_such_module") is None
    assert absent.missed() == []


def test_who_finds_it_comes_first(finder, tmp_path, monkeypatch):
    class Late:
        def find_spec(self, name, path=None, target=None):
            if name == LEFT_OUT:
                return importlib.util.spec_from_loader(name, loader=None, is_package=True)
            return None

    late = Late()
    # added while modules were imported, after ours
    sys.meta_path.append(late)
    try:
        absent.enter_task()
        assert importlib.util.find_spec(LEFT_OUT) is not None
    finally:
        sys.meta_path.remove(late)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{LEFT_OUT}.py").write_text("here = True")
    assert importlib.import_module(LEFT_OUT).here
    del sys.modules[LEFT_OUT]
    assert absent.missed() == []


def test_nothing_is_watched_without_names():
    before = list(sys.meta_path)
    absent.watch([])
    absent.enter_task()
    assert sys.meta_path == before
    assert absent.missed() == []


# -- tasks -----------------------------------------------------------------------------------------

ANALYSIS = f"""
    import functools, operator, pickle

    merge = functools.partial(functools.reduce, operator.add)

    def raises(item):
        import {LEFT_OUT}

    def guarded(item):
        try:
            import {LEFT_OUT}
        except ImportError:
            return -1.0

    def swallowed(item):
        try:
            import {LEFT_OUT}
        except:
            return -1.0

    def turned(item):
        try:
            import {LEFT_OUT}
        except BaseException as error:
            raise RuntimeError("another way") from error

    def looked(item):
        import importlib.util
        return float(importlib.util.find_spec("{LEFT_OUT}") is None)

    def in_thread(item):
        import threading
        threading.excepthook = lambda _: None
        thread = threading.Thread(target=raises, args=(item,))
        thread.start()
        thread.join()
        return 1.0

    def at_three(way, item):
        return way(item) if item == 3 else float(item)

    def merges(outputs, into=0.0):
        if 3.0 in outputs:
            raises(None)
        return merge(outputs, into)

    def swallows(outputs, into=0.0):
        return swallowed(None) if 3.0 in outputs else merge(outputs, into)

    def confused(outputs, into=0.0):
        return turned(None) if 3.0 in outputs else merge(outputs, into)

    def dumps(way, output):
        return pickle.dumps(way(None) if output == 6.0 else output)
"""
WAYS = ["raises", "guarded", "swallowed", "turned", "looked", "in_thread"]


def analysis(**parts):
    """Return a pickled payload whose parts are expressions with `a`, the module of the analysis."""
    given = {"merge": "a.merge", "dumps": "a.pickle.dumps", **parts}
    source = ", ".join(f"{key}={value}" for key, value in given.items())
    return pickle.dumps(Expression(f"(lambda a: dict({source}))(__import__('the_analysis'))"))


class Expression:
    """Is what the expression gives where it is unpickled."""

    def __init__(self, source):
        self.source = source

    def __reduce__(self):
        return eval, (self.source,)


@pytest.fixture
def task(finder, tmp_path, monkeypatch):
    """Return what runs a task in a forked child of this process and returns its frames."""
    (tmp_path / "the_analysis.py").write_text(textwrap.dedent(ANALYSIS))
    monkeypatch.syspath_prepend(tmp_path)

    def run(payload, items=(1, 2, 3, 4), interval_s=0.0, isolate=False):
        folder = tmp_path / "task"
        folder.mkdir()
        (folder / "payload").write_bytes(payload)
        (folder / "work").write_bytes(pickle.dumps([(f"key-{n}", n, n) for n in items]))
        spec = {"task": "t", "attempt": 1, "payload": str(folder / "payload"), "isolate": isolate}
        spec |= {"frame_interval_s": interval_s, "compression": 0}
        (folder / "task.json").write_text(json.dumps(spec))
        with warnings.catch_warnings():
            # threads of libraries that the tests have loaded, and which nothing here waits for
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                chunks.run_task(str(folder))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        reader = FrameReader()
        frames = list(reader.feed((folder / "frames").read_bytes()))
        assert (reader.dropped, reader.broken, reader.pending) == (0, "", 0)
        assert [one.kind for one in frames].count(Kind.DONE) == 1
        return frames

    return run


def counted(frames):
    """Return the sums and keys that frames hold."""
    outputs = [one for one in frames if one.kind is Kind.OUTPUT]
    keys = [key for one in outputs for key in one.meta["chunks"]]
    return sum(pickle.loads(one.payload) for one in outputs), keys


def ended_absent(frames):
    assert Kind.FAILED not in [one.kind for one in frames]
    assert frames[-1].kind is Kind.DONE
    assert frames[-1].meta["stopped"] == "absent"
    assert frames[-1].meta["missing"] == [LEFT_OUT]


@pytest.mark.parametrize("interval_s", [0.0, 1000.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_chunk_that_misses_a_module_ends_the_task(task, way, interval_s):
    function = f"a.functools.partial(a.at_three, a.{way})"
    frames = task(analysis(function=function), interval_s=interval_s)
    ended_absent(frames)
    # what was done before is sent and counts; what was left is not begun
    assert counted(frames) == (3.0, ["key-1", "key-2"])
    assert [one.meta["key"] for one in frames if one.kind is Kind.BEGIN][-1] == "key-3"


@pytest.mark.parametrize("merge", ["merges", "swallows", "confused"])
def test_what_is_missed_while_outputs_are_merged(task, merge):
    frames = task(analysis(function="float", merge=f"a.{merge}"), interval_s=1000.0)
    ended_absent(frames)
    assert counted(frames) == (0, [])


@pytest.mark.parametrize("way", ["raises", "swallowed", "turned"])
def test_what_is_missed_while_an_output_is_pickled(task, way):
    dumps = f"a.functools.partial(a.dumps, a.{way})"
    frames = task(analysis(function="float", dumps=dumps), items=(1, 2, 6, 4), isolate=True)
    ended_absent(frames)
    assert counted(frames) == (3.0, ["key-1", "key-2"])


@pytest.mark.parametrize("way", WAYS[:-1])
def test_what_is_missed_while_the_task_is_loaded(task, way):
    frames = task(analysis(function=f"[float, a.{way}(0)][0]"))
    ended_absent(frames)
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.DONE]


def test_what_was_missed_before_the_task(task):
    with pytest.raises(ModuleNotFoundError):
        __import__(LEFT_OUT)
    frames = task(analysis(function="float"))
    ended_absent(frames)
    assert [one.kind for one in frames] == [Kind.HELLO, Kind.DONE]


def test_a_task_that_misses_nothing(task):
    frames = task(analysis(function="float"))
    assert frames[-1].meta["stopped"] == ""
    assert "missing" not in frames[-1].meta
    assert counted(frames) == (10.0, ["key-1", "key-2", "key-3", "key-4"])
    assert absent.missed() == []


def test_a_module_that_is_missing_everywhere_is_a_failure(task):
    frames = task(analysis(function="lambda item: __import__('no_such_module')"), items=(1, 2))
    failed = [one for one in frames if one.kind is Kind.FAILED]
    assert [one.meta["key"] for one in failed] == ["key-1", "key-2"]
    assert frames[-1].meta["stopped"] == ""
