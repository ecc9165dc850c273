"""Runs on workers of Work Queue: what a user does and sees."""

from __future__ import annotations

import importlib
import os
import stat
import sys
import time
from pathlib import Path

import packed
import pytest
from packed import calculate

import hepscale
from hepscale import HepScaleExecutor, Workers
from hepscale.errors import ChunksFailed, ConfigError, InputError

pytestmark = pytest.mark.usefixtures("few")

WORKERS = Workers("local", cores=2)


@pytest.fixture(scope="module", autouse=True)
def ended():
    yield
    hepscale.shutdown()
    assert WORKERS.alive() == 0


def there(function, items=range(3), **options):
    """Return what a function gives on workers of Work Queue."""
    given = {"engine": "workqueue", "workers": WORKERS, "environment": None, "cores": None}
    return calculate(function, items, **{**given, **options})


def test_tasks_run_in_a_packed_environment():
    def where(item):
        return sys.prefix, os.getppid()

    first = {*there(where)}
    environment = hepscale.last_run().state.environment
    assert (len(environment.workers), environment.workers_sent, environment.packing) == (1, 0, "")
    assert environment.layers - environment.layers_cached <= 3
    assert environment.size_bytes > 1e6
    second = {*there(where)}
    environment = hepscale.last_run().state.environment
    assert 0 < environment.layers == environment.layers_cached
    ((prefix, _),) = first
    assert prefix != sys.prefix
    assert os.path.basename(prefix) in packed.records()
    # the worker is warm
    assert first == second


def test_user_is_shown_his_own_line(tmp_path, monkeypatch):
    (tmp_path / "own_cuts.py").write_text("def cut(x):\n    return 1 / (x - 1)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work(item):
        import own_cuts

        return [own_cuts.cut(item)]

    packed.own(work)
    executor = HepScaleExecutor(engine="workqueue", workers=WORKERS, status=False, retries=0)
    output, error = executor([0, 1, 2], work, None)
    assert sorted(output) == [-1.0, 1.0]
    assert isinstance(error, ChunksFailed)
    (failure,) = error.failed
    assert failure.where == f"{tmp_path}/own_cuts.py:2 in cut: return 1 / (x - 1)"


def test_module_that_a_task_misses(tmp_path, monkeypatch):
    (tmp_path / "missed_cuts.py").write_text("LEAST = 30\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "missed_cuts"
    assert there(lambda item: importlib.import_module(name).LEAST) == [30] * 3


def test_files_are_sent_again_when_they_have_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/more.txt").write_text("more")

    def work(item):
        return Path("weights.txt").read_text() + Path("data/more.txt").read_text()

    for text in ("one ", "other "):
        (tmp_path / "weights.txt").write_text(text)
        assert {*there(work, files=["weights.txt", "data"])} == {f"{text}more"}


def test_credentials_are_sent(tmp_path, monkeypatch):
    (tmp_path / "proxy").write_text("secret")
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "proxy"))
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "nowhere"))

    def work(item):
        path = os.environ.get("X509_USER_PROXY")
        if path is None:
            return None
        return Path(path).read_text(), stat.S_IMODE(os.stat(path).st_mode), path

    ((text, mode, path),) = there(work, [0])
    assert (text, mode) == ("secret", 0o600)
    assert not path.startswith(str(tmp_path))
    monkeypatch.setenv("HEPSCALE_SEND_CREDENTIALS", "false")
    assert there(work, [0]) == [None]


def test_no_more_memory_than_workers_have(told):
    limit_mb = 10**9

    def work(item):
        return item

    assert there(work, memory_mb=limit_mb, status=True) == [0, 1, 2]
    (line,) = [line for line in told() if "MB" in line]
    assert line.startswith("A chunk may use ")
    assert f"not {limit_mb}: no worker here has more" in line


def test_slow_task_gets_a_copy(tmp_path):
    begun = tmp_path / "begun"

    def work(item):
        if item == 3 and not begun.exists():
            begun.touch()
            time.sleep(60)
        return item

    since = time.monotonic()
    assert there(work, range(4)) == [0, 1, 2, 3]
    assert time.monotonic() - since < 30


@pytest.mark.parametrize(
    ("engine", "workers"), [("local", WORKERS), ("local", 2), ("workqueue", 2), (None, "local")]
)
def test_workers_that_cannot_be_used(engine, workers):
    with pytest.raises(ConfigError) as caught:
        HepScaleExecutor(engine=engine, workers=workers)
    assert 'engine="workqueue"' in caught.value.fix


def test_workers_of_a_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hepscale.toml").write_text(
        '[site.here]\nengine = "workqueue"\n[site.here.workers]\ncount = 1\ncores = 1\n'
    )

    def where(item):
        return os.getppid()

    options = {"environment": None, "cores": None, "site": "here"}
    first = {*calculate(where, range(2), **options)}
    assert first == {*calculate(where, range(2), **options)}
    assert len(first) == 1


def test_file_that_workers_do_not_see(tmp_path):
    from hepscale.executor import faults
    from hepscale.executor.task import Chunk, ChunkKey

    (tmp_path / "here.root").touch()
    told = [{"type": "OSError"}, {"type": "FileNotFoundError"}]
    chunk = Chunk(ChunkKey("k"), None, file=str(tmp_path / "here.root"))
    with pytest.raises(InputError, match="does not find a file that is on this machine"):
        faults._refuse_unseen(chunk, told)
    faults._refuse_unseen(chunk, told[:1])
    faults._refuse_unseen(Chunk(ChunkKey("k"), None, file="relative.root"), told)
    faults._refuse_unseen(Chunk(ChunkKey("k"), None, file="/no/such/file"), told)


def test_taskvine_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ndcctools", None)
    with pytest.raises(hepscale.EngineError, match="TaskVine is not installed here") as caught:
        there(lambda item: [item], engine="taskvine")
    assert caught.value.fix == "conda install -c conda-forge ndcctools"
