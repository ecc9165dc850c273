"""The bindings to Work Queue and TaskVine, with their real workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from queues import Site, alive, bindings, needs_worker

from hepscale.config import load_settings
from hepscale.errors import EngineError
from hepscale.executor.engines.queue import (
    QueueFile,
    QueueTask,
    QueueTaskPlaced,
    QueueWorkerJoined,
    QueueWorkerLeft,
    QueueWorkerRefused,
    apart,
)
from hepscale.executor.engines.queue_open import library_protocol
from hepscale.workers.version import worker_version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# what a task inherits includes its worker's connection, which must close with the worker


@pytest.fixture(params=bindings())
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(request.param, tmp_path)
    made.open()
    yield made
    made.close()


def lingering(site: Site, name: str = "pid") -> tuple[QueueTask, Path]:
    """A task that tells its pid, and stays."""
    here = site.folder / name
    output = QueueFile(here, "pid", watch=True)
    command = apart("sh -c 'echo $$ > pid; kill -CHLD $PPID; exec sleep 300'")
    return QueueTask(command, outputs=(output,)), here


def pid(site: Site, here: Path) -> int:
    site.until(lambda: here.exists() and here.read_text().endswith("\n"))
    return int(here.read_text())


def test_task_runs(site: Site) -> None:
    site.worker()
    (site.folder / "in.txt").write_text("some input\n")
    task = QueueTask(
        "cat sub/in.txt; echo $GREETING; cp sub/in.txt out.txt; exit 3",
        inputs=(QueueFile(site.folder / "in.txt", "sub/in.txt"),),
        outputs=(QueueFile(site.folder / "out.txt", "out.txt"),),
        environment=(("GREETING", "good day"),),
    )
    number = site.queue.submit(task)
    ended = site.result(number)
    assert (ended.status, ended.exit_code) == ("done", 3)
    assert ended.output == "some input\ngood day\n"
    assert (site.folder / "out.txt").read_text() == "some input\n"
    joined = site.of(QueueWorkerJoined)[0]
    assert isinstance(joined, QueueWorkerJoined)
    assert (joined.cores, joined.worker) == (1, ended.worker)
    assert joined.memory_mb > 0
    assert joined.disk_mb > 0
    assert site.of(QueueTaskPlaced) == [QueueTaskPlaced(number, ended.worker)]


def test_cached_input_is_sent_once_to_each_worker(site: Site) -> None:
    big = site.folder / "layer"
    big.write_bytes(bytes(1_000_000))
    site.worker()
    kept = QueueTask("wc -c < layer", inputs=(QueueFile(big, "layer", cache=True),))
    outputs = [site.result(site.queue.submit(kept)).output for _ in range(3)]
    assert outputs == ["1000000\n"] * 3
    assert site.queue.stats().sent_bytes == 1_000_000
    fresh = QueueTask("wc -c < layer", inputs=(QueueFile(big, "layer"),))
    for _ in range(2):
        site.result(site.queue.submit(fresh))
    assert site.queue.stats().sent_bytes == 3_000_000


def test_watched_output_grows_while_the_task_runs(site: Site) -> None:
    site.worker()
    here, go = site.folder / "frames", site.folder / "go"
    command = (
        f"echo one > frames; kill -CHLD $PPID; while ! test -e {go}; do sleep 0.05; done; "
        "echo two >> frames"
    )
    task = QueueTask(command, outputs=(QueueFile(here, "frames", watch=True),))
    number = site.queue.submit(task)
    started = time.monotonic()
    site.until(lambda: here.exists() and here.read_text() == "one\n")
    # without the signal it would be five seconds
    assert time.monotonic() - started < 3
    assert not site.ended
    go.touch()
    assert site.result(number).exit_code == 0
    assert here.read_text() == "one\ntwo\n"


@pytest.mark.parametrize(("code", "fetched"), [(0, False), (75, True)])
def test_watched_output_is_fetched_again_only_on_failure(
    site: Site, code: int, fetched: bool
) -> None:
    site.worker()
    here, go = site.folder / "frames", site.folder / "go"
    command = (
        f"echo one > frames; kill -CHLD $PPID; while ! test -e {go}; do sleep 0.05; done; "
        f"echo unseen >> frames; exit {code}"
    )
    frames = QueueFile(here, "frames", watch=True, failure_only=True)
    number = site.queue.submit(QueueTask(command, outputs=(frames,)))
    site.until(here.exists)
    go.touch()
    assert site.result(number).status == "done"
    # the worker does not look once more when the task ends
    assert here.read_text() == ("one\nunseen\n" if fetched else "one\n")


def test_removed_output_is_missing(site: Site) -> None:
    site.worker()
    output = QueueFile(site.folder / "out", "out")
    assert site.result(site.queue.submit(QueueTask("true", outputs=(output,)))).status == (
        "output_missing"
    )


def test_cancel_kills_the_process(site: Site) -> None:
    site.worker()
    task, here = lingering(site)
    number = site.queue.submit(task)
    process = pid(site, here)
    assert alive(process)
    assert site.queue.cancel(number)
    assert not site.queue.cancel(number)
    site.until(lambda: not alive(process))
    # the slot is free again, and a cancelled task is not reported
    assert site.result(site.queue.submit(QueueTask("true"))).exit_code == 0
    assert [ended.id for ended in site.ended] == [number + 1]


def test_killed_worker_loses_its_task_and_it_is_not_run_again(site: Site) -> None:
    first = site.worker()
    task, here = lingering(site)
    number = site.queue.submit(task)
    process = pid(site, here)
    site.worker()
    killed = time.monotonic()
    first.kill()
    try:
        ended = site.result(number)
    finally:
        os.kill(process, signal.SIGKILL)
    # its connection was closed with it: nothing had to time out; TaskVine's stays open in a process
    # that outlives it for a moment
    assert time.monotonic() - killed < (5 if site.binding == "taskvine" else 2.5)
    assert ended.status == "lost"
    places = site.of(QueueTaskPlaced)
    left = site.of(QueueWorkerLeft)
    assert len(places) == 1
    assert [event.worker for event in left] == [places[0].worker]  # type: ignore[attr-defined]
    assert "lost" in left[0].reason  # type: ignore[union-attr]
    assert site.result(site.queue.submit(QueueTask("true"))).exit_code == 0


def test_stopped_worker_is_given_up(site: Site) -> None:
    site.queue.close()
    site.open(keepalive_interval_s=1, keepalive_timeout_s=2)
    worker = site.worker()
    task, here = lingering(site)
    number = site.queue.submit(task)
    process = pid(site, here)
    stopped = time.monotonic()
    worker.send_signal(signal.SIGSTOP)
    assert site.result(number).status == "lost"
    assert time.monotonic() - stopped < 10
    # when it goes on it finds its connection closed, and ends its tasks
    worker.send_signal(signal.SIGCONT)
    site.until(lambda: not alive(process))


def test_close_sends_workers_away(site: Site) -> None:
    worker = site.worker()
    site.queue.close()
    assert worker.wait(20) == 0
    assert not site.workspace(worker).exists()
    site.queue.close()
    with pytest.raises(EngineError, match="closed"):
        site.queue.submit(QueueTask("true"))


@pytest.mark.parametrize("binding", bindings())
def test_password(binding: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("open sesame\n")
    wrong.write_text("open barley\n")
    site = Site(binding, tmp_path)
    site.open(password_file=right)
    try:
        for options in ([], ["--password", str(wrong)]):
            refused = len(site.of(QueueWorkerRefused))
            worker = site.worker(*options, joins=False)
            site.until(lambda refused=refused: len(site.of(QueueWorkerRefused)) > refused)
            worker.kill()
            worker.wait()
        assert not site.of(QueueWorkerJoined)
        assert "another password" in site.of(QueueWorkerRefused)[0].reason  # type: ignore[union-attr]
        site.worker("--password", str(right))
        assert site.result(site.queue.submit(QueueTask("true"))).exit_code == 0
    finally:
        site.close()


@pytest.mark.parametrize("binding", bindings())
def test_port_taken(binding: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    one, other = Site(binding, first), Site(binding, second)
    port = one.open().port
    try:
        with pytest.raises(EngineError, match=f"Port {port} is taken") as caught:
            other.open(port=port)
        assert f"process {os.getpid()}" in str(caught.value)
        assert other.open(port=(port, port + 50)).port > port
        other.close()
    finally:
        one.close()


def test_many_workers_may_knock_at_once(site: Site) -> None:
    with contextlib.ExitStack() as held:
        # nobody admits them; when no more can be kept waiting the system gives no answer
        for _ in range(40):
            address = ("127.0.0.1", site.queue.port)
            held.enter_context(socket.create_connection(address, timeout=0.5))


@needs_worker
def test_project_name_without_a_catalog_server(tmp_path: Path) -> None:
    site = Site("cffi", tmp_path)
    site.open(name="hepscale-test", catalog="127.0.0.1:9")
    try:
        site.worker()
        assert site.result(site.queue.submit(QueueTask("true"))).exit_code == 0
    finally:
        site.close()


@needs_worker
def test_versions_agree() -> None:
    worker = worker_version()
    assert worker.protocol == library_protocol(load_settings())
    assert str(worker.path).endswith("work_queue_worker")


def test_worker_that_says_nothing(tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text(
        f"#!{sys.executable}\nimport socket, sys\n"
        "socket.create_connection((sys.argv[-2], int(sys.argv[-1])))\n"
    )
    mute.chmod(0o755)
    with pytest.raises(EngineError, match="does not run on this machine"):
        worker_version(mute)
    with pytest.raises(EngineError, match="does not run on this machine"):
        worker_version(tmp_path / "absent")


WAITS = """
import sys
from pathlib import Path
from hepscale.config import load_settings
from hepscale.executor.engines.queue import QueueOptions, QueueTask
from hepscale.executor.engines.queue_cffi import CffiQueue
queue = CffiQueue(QueueOptions(Path(sys.argv[1])), load_settings())
queue.submit(QueueTask("true"))
try:
    print("ready", flush=True)
    while True:
        queue.wait(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    queue.close()
"""


@needs_worker
def test_interrupt_ends_a_wait(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - sent < 2
        assert process.wait(20) == 0


@needs_worker
def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    program = (
        "from hepscale.config import load_settings\n"
        "from hepscale.executor.engines.queue_build import load\n"
        "print(load(load_settings()).lib.work_queue_task_create)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "built-in method" in said
    # nothing but the one module is left
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["_hepscale_work_queue.so"]
