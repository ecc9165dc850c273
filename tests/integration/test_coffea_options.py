"""Options, former and present, and what an executor of coffea has to be besides its results."""

from __future__ import annotations

import collections
import dataclasses
import warnings

import equal_analysis as analysis
import numpy as np
import pytest
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner
from coffea.processor.executor import ExecutorBase

import hepscale
from hepscale import ConfigError, HepScaleExecutor, run_uproot_job
from hepscale.demo_events import generate

EVENTS = 2_000


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("sample"), events=EVENTS, files=2)


@pytest.fixture(scope="module")
def want(sample):
    return analyse(sample, executor=IterativeExecutor(status=False))


def analyse(sample, *, executor=None, call=None, **runner):
    executor = executor or HepScaleExecutor(cores=2, status=False)
    options = {"schema": NanoAODSchema, "chunksize": 250, "metadata_cache": {}, **runner}
    made = Runner(executor=executor, **options)
    return made(sample, processor_instance=analysis.Everything(), treename="Events", **(call or {}))


def job(sample, executor=HepScaleExecutor, executor_args=None, **more):
    options = {"schema": NanoAODSchema, "status": False, **(executor_args or {})}
    return run_uproot_job(
        sample, "Events", analysis.Everything(), executor, options, chunksize=250, **more
    )


@pytest.mark.parametrize("compression", [None, 1, 9])
def test_compression(sample, want, compression):
    executor = HepScaleExecutor(cores=2, status=False, compression=compression)
    analysis.same(want, analyse(sample, executor=executor))


def test_processor_that_is_not_compressed(sample, want):
    analysis.same(want, analyse(sample, processor_compression=None))


def test_options_for_uproot(sample, want):
    call = {"uproot_options": {"timeout": 10, "num_workers": 1}}
    analysis.same(want, analyse(sample, call=call))


def test_another_executor_reads_the_metadata(sample, want):
    both = IterativeExecutor(status=False), HepScaleExecutor(cores=1, status=False)
    analysis.same(want, analyse(sample, pre_executor=both[0]))
    analysis.same(want, analyse(sample, pre_executor=both[1]))
    analysis.same(want, analyse(sample, executor=both[0], pre_executor=both[1]))


def test_metadata_is_cached(sample):
    cache: dict[object, object] = {}
    analyse(sample, metadata_cache=cache, maxchunks=1)
    assert len(cache) == 2
    assert sorted(one["numentries"] for one in cache.values()) == [EVENTS // 2] * 2
    seen = []

    class Counting(HepScaleExecutor):
        def __call__(self, items, function, accumulator):
            seen.append(self.desc)
            return super().__call__(items, function, accumulator)

    analyse(sample, executor=Counting(status=False), metadata_cache=cache, maxchunks=1)
    assert seen == ["Processing"]


# -- items of any kind ---------------------------------------------------------------------------


def numbers(function, n=6, start=None, **options):
    executor = HepScaleExecutor(cores=2, status=False, **options)
    return executor(list(range(n)), function, start)


def test_generic_items():
    assert numbers(lambda x: x * x) == (55, 0)
    assert numbers(lambda x: {x}) == ({0, 1, 2, 3, 4, 5}, 0)
    assert numbers(lambda x: {"n": 1, "by": {x % 2: x}}) == ({"n": 6, "by": {0: 6, 1: 9}}, 0)
    assert sorted(numbers(lambda x: [x])[0]) == [0, 1, 2, 3, 4, 5]
    assert numbers(lambda x: 0.5) == (3.0, 0)
    out, error = numbers(lambda x: np.eye(6)[x])
    assert error == 0
    np.testing.assert_array_equal(out, np.ones(6))
    out, error = numbers(lambda x: collections.Counter([x % 3]))
    assert (out, error) == ({0: 2, 1: 2, 2: 2}, 0)


def test_an_accumulator_that_is_there_already():
    assert numbers(lambda x: x, start=100) == (115, 0)
    start = {"n": 1, "old": {"a"}}
    out, error = numbers(lambda x: {"n": x}, start=start)
    assert (out, error) == ({"n": 16, "old": {"a"}}, 0)


def test_no_items():
    assert numbers(lambda x: x, n=0) == (None, 0)
    assert numbers(lambda x: x, n=0, start={"a": 1}) == ({"a": 1}, 0)
    executor = HepScaleExecutor(status=False)
    assert executor(iter(()), len, None) == (None, 0)


def test_items_without_output():
    assert numbers(lambda x: None) == (None, 0)
    assert numbers(lambda x: None if x < 5 else x) == (5, 0)


def test_items_that_are_equal_are_counted_each():
    executor = HepScaleExecutor(cores=2, status=False)
    assert executor([1] * 50, lambda x: x, None) == (50, 0)
    assert executor((n for n in (2, 2, 3)), lambda x: x, None) == (7, 0)


def test_what_was_counted_comes_with_the_exception():
    def fails(x):
        if x == 3:
            raise ZeroDivisionError("three")
        return x

    out, error = numbers(fails, retries=0)
    assert out == 12
    assert isinstance(error, hepscale.ChunksFailed)
    assert isinstance(error, ZeroDivisionError)
    assert error.partial_output == 12


# -- what coffea asks of an executor -------------------------------------------------------------


def test_it_is_a_dataclass_that_is_copied():
    executor = HepScaleExecutor(cores=3, status=False, wall_s=5)
    assert isinstance(executor, ExecutorBase)
    copied = executor.copy(cores=1, desc="Preprocessing", unit="file", compression=None)
    assert type(copied) is HepScaleExecutor
    changed = {"cores": 1, "desc": "Preprocessing", "unit": "file", "compression": None}
    assert dataclasses.asdict(copied) == {**dataclasses.asdict(executor), **changed}
    assert executor.cores == 3
    assert HepScaleExecutor(cores=2) == HepScaleExecutor(cores=2)
    with pytest.raises(TypeError):
        executor.copy(core=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cores", 0),
        ("cores", -1),
        ("cores", 1.5),
        ("memory_mb", 0),
        ("retries", -1),
        ("wall_s", 0),
        ("engine", "lokal"),
    ],
)
def test_options_that_cannot_be_used(name, value):
    with pytest.raises(ConfigError, match=name if name != "engine" else "lokal") as caught:
        HepScaleExecutor(**{name: value})
    assert caught.value.cause
    assert "HepScaleExecutor(" in caught.value.fix


# -- run_uproot_job ------------------------------------------------------------------------------


def test_a_class_or_an_instance(sample, want):
    analysis.same(want, job(sample))
    executor = HepScaleExecutor(cores=1)
    analysis.same(want, job(sample, executor, {"cores": 2}))
    assert executor.cores == 1


def test_workers_is_cores(sample, want, monkeypatch):
    seen = []
    call = HepScaleExecutor.__call__
    monkeypatch.setattr(
        HepScaleExecutor,
        "__call__",
        lambda self, *args: seen.append(self.cores) or call(self, *args),
    )
    analysis.same(want, job(sample, executor_args={"workers": 2}, metadata_cache={}))
    assert seen == [2, 2]


def test_a_separate_pre_executor(sample, want):
    for pre, args in (
        (IterativeExecutor, {"status": False}),
        (IterativeExecutor(status=False), {}),
        (HepScaleExecutor, {"cores": 1, "status": False}),
        (HepScaleExecutor, None),
    ):
        analysis.same(want, job(sample, pre_executor=pre, pre_args=args, metadata_cache={}))


def test_former_options_warn(sample, want):
    for name in ("mmap", "tailtimeout", "use_dataframes", "worker_affinity"):
        with pytest.warns(UserWarning, match=f"'{name}' has no effect") as caught:
            out = job(sample, executor_args={name: True}, maxchunks=1)
        assert caught[0].filename == __file__
        assert len(out["chunks"]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job(sample, executor_args={"xrootdtimeout": 10, "skipbadfiles": False}, maxchunks=1)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("skipbadfile", "skipbadfiles"),
        ("shema", "schema"),
        ("core", "cores"),
        ("memory", "memory_mb"),
        ("save_metrics", "savemetrics"),
        ("align_cluster", "align_clusters"),
    ],
)
def test_an_unknown_option_names_the_nearest(sample, given, near):
    with pytest.raises(ConfigError) as caught:
        job(sample, executor_args={given: 1})
    assert given in caught.value.fact
    assert near in caught.value.cause
    assert f'"{near}": 1' in caught.value.fix


def test_an_option_like_no_other(sample):
    with pytest.raises(ConfigError) as caught:
        job(sample, executor_args={"zzzzzz": 1})
    assert "skipbadfiles" in caught.value.fix
    assert "cores" in caught.value.fix


@pytest.mark.parametrize(
    "fileset", [{}, {"data": []}, {"data": {"files": []}}, {"a": ["x.root"], "b": {"files": {}}}]
)
def test_empty_filesets(fileset):
    with pytest.raises(hepscale.InputError) as caught:
        job(fileset)
    assert isinstance(caught.value, ValueError)


def test_a_fileset_that_is_not_there(tmp_path):
    with pytest.raises(hepscale.InputError, match=r"no such fileset") as caught:
        job(str(tmp_path / "fileset.json"))
    assert isinstance(caught.value, FileNotFoundError)


def test_metrics_and_maxchunks(sample):
    out, metrics = job(sample, executor_args={"savemetrics": True}, maxchunks=2)
    assert metrics["chunks"] == len(out["chunks"]) == 4
    assert metrics["entries"] == sum(out["events"].values()) == 1000
