from __future__ import annotations

import io
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from as_root import mounted
from coffea import processor
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from queues import where_installed
from real_files import real
from rich.console import Console

import hepscale
from hepscale import demo, demo_events
from hepscale.demo import ZMuMuProcessor, draw_mass, generate, run_demo
from hepscale.errors import ConfigError, RunDirectoryError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("CACHE", "RUN"):
        monkeypatch.setenv(f"HEPSCALE_{name}_DIR", str(tmp_path / name.lower()))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("events"), events=40_000)


def iterative(fileset, chunksize=10_000, schema=NanoAODSchema):
    executor = processor.IterativeExecutor(status=False)
    runner = processor.Runner(executor=executor, schema=schema, chunksize=chunksize)
    return runner(fileset, processor_instance=ZMuMuProcessor(), treename="Events")


def columns(fileset):
    for dataset, files in fileset.items():
        for file in files:
            with uproot.open(file) as opened:
                yield dataset, opened["Events"].arrays()


def identical(one, other):
    return all(
        ak.array_equal(mine, yours, equal_nan=True)
        for (_, mine), (_, yours) in zip(columns(one), columns(other), strict=True)
    )


def test_the_same_seed_gives_the_same_events(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_events, "_BASKET", 500)
    first, again, other = (
        generate(tmp_path / name, events=3_001, files=3, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert identical(first, again)
    assert not identical(first, other)


def test_no_part_of_the_events_is_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_events, "_BASKET", 500)
    fileset = generate(tmp_path, events=4_000)
    met = np.concatenate([np.asarray(events["MET_pt"]) for _, events in columns(fileset)])
    assert len(met) == 4_000
    assert len(np.unique(met)) > 3_990


def test_number_of_events_and_files(tmp_path):
    fileset = generate(tmp_path, events=11, files=5)
    assert list(fileset) == ["DYJets", "TTbar"]
    assert [len(files) for files in fileset.values()] == [3, 2]
    counts = [len(events) for _, events in columns(fileset)]
    assert (sum(counts), min(counts), max(counts)) == (11, 2, 3)


def test_nanoaod_schema_finds_all_that_it_looks_for(sample):
    # warnings are errors here
    for files in sample.values():
        events = NanoEventsFactory.from_root({files[0]: "Events"}, schemaclass=NanoAODSchema)
        muons = events.events().Muon
        assert ak.all(ak.is_none(muons.matched_jet, axis=1))


def test_events_are_plausible(sample):
    (_, drell_yan), _, (_, ttbar), _ = columns(sample)
    for events in (drell_yan, ttbar):
        assert set(range(4)) <= set(np.unique(events["nMuon"]))
        assert ak.all(np.isfinite(events["Muon_pt"]))
        assert ak.all(abs(events["Muon_eta"]) < 2.4)
        assert ak.all(abs(events["Muon_phi"]) <= np.pi)
        assert ak.all(abs(events["Muon_charge"]) == 1)
        assert ak.all(events["Muon_pt"][:, :-1] >= events["Muon_pt"][:, 1:])
        assert ak.all(events["Jet_pt"][:, :-1] >= events["Jet_pt"][:, 1:])
        assert ak.all(events["Jet_mass"] > 0)
        assert set(np.unique(events["genWeight"])) == {-1, 1}
    assert str(ak.type(drell_yan["Muon_charge"])).endswith("var * int32")
    assert ak.mean(ttbar["nJet"]) > ak.mean(drell_yan["nJet"]) + 2
    assert ak.mean(ttbar["MET_pt"]) > 2 * ak.mean(drell_yan["MET_pt"])


def test_events_are_found_again(cache):
    fileset = generate(events=100)
    folder = Path(fileset["TTbar"][0]).parent
    assert folder.parent == cache / "demo"
    times = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    assert generate(events=100) == fileset
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == times
    assert generate(events=100, seed=1) != fileset
    assert len(list((cache / "demo").iterdir())) == 2


def test_incomplete_events_are_made_again(cache):
    fileset = generate(events=100)
    whole = list(columns(fileset))
    os.truncate(fileset["DYJets"][1], 1000)
    generate(events=100)
    Path(fileset["TTbar"][0]).unlink()
    generate(events=100)
    (Path(fileset["TTbar"][0]).parent / "complete.json").write_text("[")
    generate(events=100)
    assert all(
        ak.array_equal(mine, yours)
        for (_, mine), (_, yours) in zip(columns(fileset), whole, strict=True)
    )


def test_events_of_a_process_that_was_quicker_are_taken(cache, monkeypatch):
    slow, written = demo_events._write_file, []

    def write_file(path, *args):
        slow(path, *args)
        if not written:
            written.append(path)
            generate(events=100)

    monkeypatch.setattr(demo_events, "_write_file", write_file)
    fileset = generate(events=100)
    assert len(list(columns(fileset))) == 4
    assert len(list((cache / "demo").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [({"events": 3}, "3 events"), ({"files": 1}, "files=1"), ({"seed": -1}, "seed=-1")],
)
def test_numbers_that_are_too_small(tmp_path, given, says):
    with pytest.raises(ConfigError, match=says) as caught:
        generate(tmp_path, **given)
    assert caught.value.fix


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written") as caught:
        generate(tmp_path / "file", events=100)
    assert "HEPSCALE_CACHE_DIR" in caught.value.fix


@pytest.mark.root
def test_full_disk(tmp_path):
    with mounted(tmp_path, "size=1m"):
        with pytest.raises(RunDirectoryError, match="cannot be written") as caught:
            generate(tmp_path, events=100_000)
        assert "No space left" in caught.value.cause
        assert "free 17 MB" in caught.value.fix
        assert list(tmp_path.iterdir()) == []


def test_the_z_boson_is_found(sample):
    output = iterative(sample)
    for dataset, cutflow in output["cutflow"].items():
        counts = list(cutflow.values())
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == 20_000
        for name in ("mass", "met", "jets"):
            variances = output[name][{"dataset": dataset}].variances(flow=True)
            # weights are 1 and -1
            assert variances.sum() == counts[-1]
    mass = output["mass"]
    peak = mass.axes["mass"].centers[mass[{"dataset": "DYJets"}].values().argmax()]
    assert 89 < peak < 93
    flat = mass[{"dataset": "TTbar"}].values()
    assert flat.max() < 4 * flat.mean()


@pytest.mark.parametrize(
    ("name", "events", "selected"),
    [
        ("nano_dy.root", 40, 4),
        ("nano_dimuon.root", 40, 3),
        ("nanoAOD_2015_CMS_Open_Data_ttbar.root", 200, 0),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:coffea.nanoevents")
def test_real_files(name, events, selected):
    output = iterative({"real": [str(real(name))]}, chunksize=events // 2)
    counts = list(output["cutflow"]["real"].values())
    assert counts[0] == events
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == selected
    for name in ("mass", "met", "jets"):
        if selected:
            assert output[name].sum(flow=True).variance > 0


class Bare(NanoAODSchema):
    """Leaves out what an older or another NanoAOD does not have."""

    def __init__(self, form, *args, **kwargs):
        away = {"genWeight", "MET_pt", "MET_phi"}
        kept = [
            (name, content)
            for name, content in zip(form["fields"], form["contents"], strict=True)
            if name not in away and not name.startswith(("Jet_", "nJet"))
        ]
        fields, contents = zip(*kept, strict=True)
        super().__init__({**form, "fields": list(fields), "contents": list(contents)})


@pytest.mark.filterwarnings("ignore::RuntimeWarning:coffea.nanoevents")
def test_files_without_weights_jets_and_met(sample):
    output = iterative(sample, schema=Bare)
    selected = output["cutflow"]["DYJets"]["60 < m < 120 GeV"]
    assert output["mass"][{"dataset": "DYJets"}].values().sum() == selected
    assert output["jets"][{"dataset": "DYJets", "jets": 0}].value == selected
    assert output["met"].sum(flow=True).value == 0


@pytest.mark.parametrize("engine", ["local", "workqueue", *where_installed("taskvine")])
def test_demo_on_workers(tmp_path, engine):
    text = io.StringIO()
    console, out = Console(file=text, width=100), tmp_path / "new" / "folder"
    result = run_demo(console, events=20_000, out=out, cores=2, engine=engine)
    hepscale.shutdown()
    expected = iterative(generate(events=20_000), chunksize=50_000)
    assert result.output["cutflow"] == expected["cutflow"]
    for name in ("mass", "met", "jets"):
        for dataset in ("DYJets", "TTbar"):
            mine, theirs = (one[name][{"dataset": dataset}] for one in (result.output, expected))
            np.testing.assert_allclose(mine.values(), theirs.values(), rtol=1e-12)
    assert result.picture == out / "hepscale-demo.png"
    assert result.picture.read_bytes().startswith(PNG)
    shown = text.getvalue()
    assert "60 < m < 120 GeV" in shown
    assert "Dimuon mass [GeV]" in shown
    assert f"Picture: {result.picture}" in shown
    assert "\x1b" not in shown


def test_demo_takes_another_executor(cache, tmp_path):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    executor = processor.IterativeExecutor(status=False)
    result = run_demo(console, events=4, out=tmp_path, executor=executor)
    assert result.output["cutflow"]["DYJets"]["all events"] == 2
    assert result.picture.is_file()
    assert "\x1b[" in console.file.getvalue()


def test_picture_that_cannot_be_written_is_said_before_anything_runs(cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="picture") as caught:
        run_demo(Console(file=io.StringIO()), events=4, out=tmp_path / "file")
    assert "--out" in caught.value.fix
    assert not cache.exists()


def test_picture_of_other_datasets(sample, tmp_path):
    output = iterative({"2018 $data": sample["DYJets"][:1]})
    draw_mass(output["mass"], tmp_path / "mass.png", "caption")
    assert (tmp_path / "mass.png").read_bytes().startswith(PNG)
    with pytest.raises(RunDirectoryError, match="picture"):
        draw_mass(output["mass"], tmp_path / "nowhere" / "mass.png")
    assert demo._TITLES.keys() == set(demo_events.DATASETS)
