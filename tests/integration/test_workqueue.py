"""Runs on workers of Work Queue: what a user does and sees."""

from __future__ import annotations

import base64
import importlib
import json
import os
import shlex
import stat
import sys
import time
from pathlib import Path

import crew
import packed
import pytest
import support
from click.testing import CliRunner
from packed import calculate

import hepscale
from hepscale import HepScaleExecutor, Workers
from hepscale.cli import main
from hepscale.errors import ChunksFailed, ConfigError, InputError
from hepscale.executor.engines import manager as managers
from hepscale.executor.engines import workqueue

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
    # a worker of this machine has the variables of whoever starts it
    there(lambda item: item)
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


def test_credentials_are_in_no_log(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HEPSCALE_VIEW", "lines")
    (tmp_path / "proxy").write_text(secret := os.urandom(16).hex())
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "proxy"))

    def work(item):
        return len(Path(os.environ["X509_USER_PROXY"]).read_text())

    assert there(work, status=True, resume=True) == [32] * 3
    folders = [Path(os.environ[f"HEPSCALE_{one}_DIR"]) for one in ("RUN", "SCRATCH")]
    # they go with the task
    support.wait_for(lambda: not [*folders[1].glob("*/worker-*/t.*")])
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"transactions.log", "journal"} <= {path.name for path in found}
    assert not [path for path in found if secret.encode() in path.read_bytes()]
    assert secret not in "".join(capfd.readouterr())


def test_credentials_that_do_not_hold_are_told(tmp_path, monkeypatch, told):
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() - 60}).encode())
    (tmp_path / "token").write_text(f"head.{claims.decode()}.signature")
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    assert there(lambda item: item, status=True) == [0, 1, 2]
    (said,) = [text for text in told() if "bearer token" in text]
    assert "has expired" in said
    assert "To renew it: htgettoken" in said


def test_without_a_worker_the_command_for_one_is_told_once(tmp_path, monkeypatch, told):
    monkeypatch.setattr(workqueue, "_NO_WORKER_S", 0.5)
    advice = []

    def act():
        (manager,) = support.wait_for(lambda: [*managers._pool.values()])
        time.sleep(2)
        advice.append(manager.advice)
        _, *command = shlex.split(manager.advice)
        started.append(CliRunner().invoke(main, command, catch_exceptions=False))

    hepscale.shutdown()
    started = []
    try:
        with crew.meanwhile(act):
            assert there(lambda item: item, workers=None, status=True) == [0, 1, 2]
    finally:
        CliRunner().invoke(main, ["workers", "stop", "--all"], catch_exceptions=False)
    assert [one.exit_code for one in started] == [0]
    said = [text for text in told() if "No worker" in text]
    assert said == [f"No worker has been there for 0 s. To start one: {advice[0]}"]


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
            time.sleep(600)
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


@pytest.mark.parametrize("how", ["with", "idle"])
def test_workers_that_have_ended_are_started_again(how):
    options = {"idle_s": 1 if how == "idle" else 900}
    with Workers("local", **options) as workers:
        assert there(lambda item: item, workers=workers) == [0, 1, 2]
        if how == "idle":
            support.wait_for(lambda: not workers.alive())
    assert workers.alive() == 0
    assert there(lambda item: item, workers=workers) == [0, 1, 2]
    hepscale.shutdown()
    assert workers.alive() == 0


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
