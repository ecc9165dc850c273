"""`HepScaleExecutor` gives what coffea's `IterativeExecutor` gives, bin by bin."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import awkward as ak
import equal_analysis as analysis
import pytest
import uproot
from coffea import processor
from coffea.nanoevents import BaseSchema, NanoAODSchema
from coffea.processor import Err, IterativeExecutor, Ok, Runner
from real_files import real

import hepscale
from hepscale import HepScaleExecutor, run_uproot_job
from hepscale.demo import ZMuMuProcessor
from hepscale.demo_events import generate

EVENTS = 4_000
CHUNK = 300


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("sample"), events=EVENTS, files=5)


def executors(**options):
    """Neither repeats a chunk that raised: coffea warns of it in this process."""
    options = {"retries": 0, **options}
    iterative = IterativeExecutor(status=False, retries=options["retries"])
    return iterative, HepScaleExecutor(cores=2, status=False, **options)


def both(fileset, instance, *, options=None, call=None, **runner):
    """Run with either executor, each with a metadata cache of its own."""
    runner = {"schema": NanoAODSchema, "chunksize": CHUNK, **runner}
    call = {"treename": "Events", **(call or {})}
    found = []
    for executor in executors(**(options or {})):
        made = Runner(executor=executor, metadata_cache={}, **runner)
        found.append(made(fileset, processor_instance=instance, **call))
    return found


@pytest.mark.parametrize("instance", [ZMuMuProcessor(), analysis.Everything()])
def test_generated_events(sample, instance):
    want, got = both(sample, instance)
    analysis.same(want, got)
    if isinstance(instance, analysis.Everything):
        assert sum(got["events"].values()) == EVENTS
        assert len(got["chunks"]) == len(got["list"]) > EVENTS / CHUNK
        assert got["counts"].sum() > 1000


def test_the_comparison_tells_outputs_apart(sample):
    one, other = (both(sample, analysis.Everything(pt), maxchunks=1)[0] for pt in (25, 26))
    with pytest.raises(AssertionError):
        analysis.same(one, other)
    one, other = both(sample, analysis.Everything(), maxchunks=1)
    analysis.same(one, other)
    other["weighted"].view()["variance"] *= 1 + 1e-11
    with pytest.raises(AssertionError, match="weighted"):
        analysis.same(one, other)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:coffea.nanoevents")
@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("nano_dy.root", 40),
        ("nano_dimuon.root", 40),
        ("nanoAOD_2015_CMS_Open_Data_ttbar.root", 200),
    ],
)
def test_real_events(name, events):
    want, got = both({"real": [str(real(name))]}, ZMuMuProcessor(), chunksize=events // 4)
    analysis.same(want, got)
    assert got["cutflow"]["real"]["all events"] == events


def test_former_signature(sample):
    outputs = [
        run_uproot_job(
            sample,
            "Events",
            analysis.Everything(),
            executor,
            {"schema": NanoAODSchema, "status": False, **args},
            chunksize=CHUNK,
            metadata_cache={},
        )
        for executor, args in (
            (IterativeExecutor, {}),
            (HepScaleExecutor, {"cores": 2}),
            (HepScaleExecutor(cores=2), {}),
            (HepScaleExecutor, {"workers": 2}),
        )
    ]
    for got in outputs[1:]:
        analysis.same(outputs[0], got)


def test_metrics(sample):
    (want, before), (got, metrics) = both(sample, analysis.Everything(), savemetrics=True)
    analysis.same(want, got)
    assert metrics.keys() == before.keys()
    for name in ("entries", "chunks"):
        assert metrics[name] == before[name], name
    # coffea has them from a set
    assert sorted(metrics["columns"]) == sorted(before["columns"])
    assert metrics["entries"] == EVENTS
    assert metrics["bytesread"] == before["bytesread"] > 0
    assert metrics["processtime"] > 0


def test_result_types(sample, tmp_path):
    options = {"skipbadfiles": (OSError,), "use_result_type": True}
    want, got = both(sample, analysis.Everything(), **options)
    assert isinstance(got, Ok)
    analysis.same(want.unwrap(), got.unwrap())
    missing = {"data": [*sample["DYJets"], str(tmp_path / "missing.root")]}
    want, got = both(missing, analysis.Everything(), **options)
    for one in (want, got):
        assert isinstance(one, Err)
        assert isinstance(one.exception, FileNotFoundError)
    assert isinstance(got.exception, hepscale.HepScaleError)


def test_a_failing_chunk_is_an_err_beside_the_others(sample):
    files = dict(sample)
    broken = files["DYJets"][0]

    def fails(events):
        if events.metadata["filename"] == broken and events.metadata["entrystart"] == 0:
            raise OSError("disk gone")
        return {"events": len(events)}

    want, got = both(files, fails, skipbadfiles=(OSError,), use_result_type=True)
    for one in (want, got):
        assert isinstance(one, Err)
    assert isinstance(got.exception, hepscale.ChunksFailed)
    assert isinstance(got.exception, OSError)
    (failed,) = got.exception.failed
    assert (failed.file, failed.start) == (broken, 0)
    assert got.exception.partial_output["out"] == {"events": EVENTS - failed.entries}


def test_checkpoints(sample, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpointer = analysis.Checkpoints(str(folder))
    want = both(sample, analysis.Everything())[0]
    executor = executors()[1]
    for loaded in (False, True):
        runner = Runner(executor, schema=NanoAODSchema, chunksize=CHUNK, checkpointer=checkpointer)
        got = runner(sample, processor_instance=analysis.Everything(), treename="Events")
        analysis.same(want, got)
        saved = list(folder.rglob("*.coffea"))
        assert len(saved) == len(want["chunks"])
        marks = [path.read_text() for path in folder.glob("loaded-*")]
        assert marks == ["x"] * (len(saved) if loaded else 0)


@pytest.mark.parametrize("maxchunks", [1, 3])
def test_first_chunks(sample, maxchunks):
    want, got = both(sample, analysis.Everything(), maxchunks=maxchunks)
    analysis.same(want, got)
    assert len(got["chunks"]) == maxchunks * len(sample)


@pytest.mark.parametrize("skip", [True, (OSError, ValueError)])
def test_bad_files_are_skipped(sample, tmp_path, skip):
    page = tmp_path / "page.root"
    page.write_text("<html>404</html>" * 10)
    extra = [str(tmp_path / "missing.root"), *([] if skip is True else [str(page)])]
    fileset = {**sample, "TTbar": [*sample["TTbar"], *extra]}
    runner = {"skipbadfiles": skip, "schema": NanoAODSchema, "chunksize": CHUNK}
    want, _ = both(sample, analysis.Everything())
    executor = HepScaleExecutor(cores=2, status=False, retries=0)
    got = Runner(executor, metadata_cache={}, **runner)(
        fileset, processor_instance=analysis.Everything(), treename="Events"
    )
    analysis.same(want, got)


def test_trees_named_in_the_fileset(sample, tmp_path):
    named = {name: {"treename": "Events", "files": files} for name, files in sample.items()}
    want, got = both(named, analysis.Everything(), call={"treename": None})
    analysis.same(want, got)
    other = str(tmp_path / "other.root")
    with uproot.recreate(other) as out:
        out["Other"] = {"x": list(range(1000))}
    per_file = {"data": {"files": {sample["DYJets"][0]: "Events", other: "Other"}}}
    want, got = both(per_file, analysis.entries, schema=BaseSchema, call={"treename": None})
    analysis.same(want, got)
    assert got["tree"] == {"Events", "Other"}


def test_a_fileset_in_a_file(sample, tmp_path):
    path = tmp_path / "fileset.json"
    path.write_text(json.dumps(sample))
    analysis.same(*both(str(path), analysis.Everything()))


def test_user_metadata(sample):
    fileset = {
        name: {"files": files, "metadata": {"scale": scale, "tags": ["a", {"b": name}]}}
        for scale, (name, files) in enumerate(sample.items(), 2)
    }
    want, got = both(fileset, analysis.Everything())
    analysis.same(want, got)
    assert got["scales"] == {2, 3}


def test_clusters(tmp_path):
    path = str(tmp_path / "clusters.root")
    with uproot.recreate(path) as out:
        out.mktree("Events", {"x": "int64"})
        for size in (70, 5, 130, 45):
            out["Events"].extend({"x": list(range(size))})
    want, got = both(
        {"data": [path]}, analysis.entries, schema=BaseSchema, chunksize=60, align_clusters=True
    )
    analysis.same(want, got)
    assert {chunk[2] for chunk in got["chunks"]} <= {0, 70, 75, 205, 250}
    assert got["events"] == 250


def test_functions_and_closures_in_place_of_processors(sample):
    threshold = 30

    def count(events):
        return {"hard": int(ak.sum(ak.num(events.Muon[events.Muon.pt > threshold])))}

    for instance in (count, lambda events: {"n": len(events)}, analysis.entries):
        want, got = both(sample, instance)
        analysis.same(want, got)


def test_postprocess_runs_once(sample):
    want, got = both(sample, analysis.Finished(), maxchunks=2)
    analysis.same(want, got)
    assert got.get("finished") == want.get("finished") == 1


def test_the_same_file_twice(sample):
    file = sample["DYJets"][0]
    want, got = both({"one": [file, file], "other": [file]}, analysis.Everything())
    analysis.same(want, got)
    assert got["events"]["one"] == 2 * got["events"]["other"]


def test_parquet(sample, tmp_path):
    files = []
    for n in range(2):
        files.append(str(tmp_path / f"events_{n}.parquet"))
        muons = ak.Array([[{"pt": 10.0 * k + i} for k in range(i % 4)] for i in range(100)])
        columns = {"nMuon": ak.values_astype(ak.num(muons), "int32"), "Muon_pt": muons.pt}
        ak.to_parquet(ak.Array({**columns, "run": [n] * 100}), files[-1], extensionarray=False)

    def hard(events):
        return {"n": len(events), "hard": float(ak.sum(events.Muon_pt)), "runs": {events.run[0]}}

    want, got = both({"data": files}, hard, format="parquet", schema=BaseSchema, chunksize=30)
    analysis.same(want, got)
    assert got["n"] == 200


def test_chunks_made_beforehand(sample):
    runner = Runner(executors()[0], schema=NanoAODSchema, chunksize=CHUNK)
    chunks = list(runner.preprocess(sample, treename="Events"))
    outputs = [
        Runner(executor, schema=NanoAODSchema, chunksize=CHUNK).run(
            chunks, processor_instance=analysis.Everything()
        )["out"]
        for executor in executors()
    ]
    analysis.same(*outputs)
    assert sum(outputs[1]["events"].values()) == EVENTS


@pytest.mark.parametrize("kind", [str, Path])
def test_relative_names(sample, tmp_path, monkeypatch, kind):
    here = tmp_path / "work" / "notebooks"
    here.mkdir(parents=True)
    names = []
    for n, (place, file) in enumerate(
        zip(("here.root", "sub/below.root", "../beside.root", "../../data/far.root"),
            [*sample["DYJets"], *sample["TTbar"]], strict=False)
    ):  # fmt: skip
        target = here / place
        target.parent.mkdir(exist_ok=True)
        target.resolve().symlink_to(file) if n % 2 else target.resolve().hardlink_to(file)
        names.append(kind(place))
    monkeypatch.chdir(here)
    want, got = both({"data": names}, analysis.Everything())
    analysis.same(want, got)
    assert len(names) == 4
    assert got["set"] == {"here.root", "below.root", "beside.root", "far.root"}


def test_a_relative_name_means_another_file_in_another_folder(tmp_path, monkeypatch):
    for n in (1, 2):
        here = tmp_path / f"place{n}" / "work" / "notebooks"
        here.mkdir(parents=True)
        (tmp_path / f"place{n}" / "data").mkdir()
        with uproot.recreate(tmp_path / f"place{n}" / "data" / "far.root") as out:
            out["Events"] = {"x": [n] * 10 * n}
        monkeypatch.chdir(here)
        want, got = both({"data": ["../../data/far.root"]}, analysis.entries, schema=BaseSchema)
        analysis.same(want, got)
        assert got["events"] == 10 * n


def test_a_processor_reads_its_own_chunk_only(sample):
    """No chunk is seen twice or in part, whatever task it was in."""
    got = both(sample, analysis.entries)[1]
    assert len(got["chunks"]) == len(set(got["chunks"]))
    by_file = {}
    for _, file, start, stop in got["chunks"]:
        by_file.setdefault(file, []).append((start, stop))
    for ranges in by_file.values():
        edges = [0, *(stop for _, stop in sorted(ranges))]
        assert [start for start, _ in sorted(ranges)] == edges[:-1]


def test_classes_of_the_notebook(sample):
    """A class that no module has is sent by value, and its state with it."""
    name = f"Local{uuid.uuid4().hex}"
    made = type(name, (analysis.Everything,), {"__module__": "__main__"})
    want, got = both(sample, made(40.0), maxchunks=1)
    analysis.same(want, got)
    assert isinstance(got["counts"], type(want["counts"]))


def test_accumulators_that_come_as_classes(sample):
    def work(events):
        return processor.dict_accumulator(
            {
                "n": processor.value_accumulator(int, len(events)),
                "names": processor.set_accumulator({events.metadata["dataset"]}),
                "by": processor.defaultdict_accumulator(float, {"x": 0.5}),
            }
        )

    want, got = both(sample, work)
    analysis.same(want, got)
    assert got["n"].value == EVENTS
