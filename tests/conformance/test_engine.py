"""What every engine must do, tried on the real one."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest
from queues import where_installed

import hepscale
from hepscale.config import load_settings
from hepscale.env import api
from hepscale.env.environment import Environment, build
from hepscale.executor.engines import warm
from hepscale.executor.engines.base import Engine
from hepscale.executor.engines.local import LocalEngine
from hepscale.executor.engines.manager import Listening
from hepscale.executor.engines.workqueue import WorkQueueEngine
from hepscale.executor.task import (
    Chunk,
    ChunkKey,
    FrameBytes,
    InputFile,
    Resources,
    Task,
    TaskEnded,
    TaskId,
    WorkerJoined,
    WorkerLost,
)
from hepscale.worker.frames import FrameReader, Kind
from hepscale.workers.api import Workers

SLOTS = 2
PRELOAD = ("cloudpickle",)


# one worker and its manager for all tests, as for the runs of a notebook
LISTENING = {
    name: Listening(name, workers=Workers("local", count=1, cores=SLOTS))
    for name in ("workqueue", "taskvine")
}


def engine_of(name: str, environment: Environment | None) -> Engine:
    if name == "local":
        return LocalEngine(SLOTS, load_settings(), PRELOAD, environment)
    return WorkQueueEngine(LISTENING[name], load_settings(), PRELOAD)


class Bench:
    """An engine, and what it has reported."""

    def __init__(self, engine: Engine, folder: Path, environment: Environment | None) -> None:
        self.engine = engine
        self.environment = environment
        self.folder = folder
        self.events: list[object] = []
        self.frames: dict[str, list] = {}
        self.ended: dict[str, TaskEnded] = {}
        self._readers: dict[str, FrameReader] = {}
        self._made = 0

    def submit(self, function, items, *, memory_mb=None, inputs=(), interval_s=0.0) -> TaskId:
        self._made += 1
        task_id = TaskId(f"task-{self._made}")
        payload = self.folder / f"payload-{self._made}"
        merge = lambda outputs, into=None: sum(outputs, into or 0)  # noqa: E731
        payload.write_bytes(
            cloudpickle.dumps({"function": function, "merge": merge, "dumps": cloudpickle.dumps})
        )
        chunks = tuple(Chunk(ChunkKey(f"{task_id}/{n}"), item) for n, item in enumerate(items))
        work = cloudpickle.dumps([(chunk.key, 0, chunk.item) for chunk in chunks])
        self.engine.submit(
            Task(
                id=task_id,
                attempt=1,
                chunks=chunks,
                work=work,
                payload=payload,
                environment=self.environment,
                inputs=tuple(inputs),
                resources=Resources(memory_mb=memory_mb),
                frame_interval_s=interval_s,
            )
        )
        return task_id

    def poll_until(self, condition, limit_s: float = 30.0) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {limit_s} s: {self.events[-5:]}"
            for event in self.engine.poll(0.05):
                self.events.append(event)
                if isinstance(event, FrameBytes):
                    assert event.task_id not in self.ended, "bytes of a task that has ended"
                    reader = self._readers.setdefault(event.task_id, FrameReader())
                    found = self.frames.setdefault(event.task_id, [])
                    found.extend(reader.feed(event.data))
                elif isinstance(event, TaskEnded):
                    assert event.task_id not in self.ended, "reported as ended twice"
                    self.ended[event.task_id] = event

    def wait(self, *task_ids: TaskId) -> None:
        self.poll_until(lambda: all(one in self.ended for one in task_ids))

    def kinds(self, task_id: TaskId) -> list[Kind]:
        return [frame.kind for frame in self.frames.get(task_id, [])]

    def outputs(self, task_id: TaskId) -> list[object]:
        frames = self.frames.get(task_id, [])
        return [pickle.loads(frame.payload) for frame in frames if frame.kind is Kind.OUTPUT]

    def of_type(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Environment:
    """Return an environment that holds little."""
    script = tmp_path_factory.mktemp("analysis") / "analysis.py"
    script.write_text("import cloudpickle\n")
    return build(api.planned(api.analyze(script)), api.store())


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    hepscale.shutdown()


@pytest.fixture(
    params=[
        *("local", "local packed", "workqueue", "workqueue packed"),
        *where_installed("taskvine", "taskvine packed"),
    ]
)
def bench(request, tmp_path, packed) -> Iterator[Bench]:
    name, _, where = request.param.partition(" ")
    environment = packed if where else None
    engine = engine_of(name, environment)
    engine.start()
    try:
        yield Bench(engine, tmp_path, environment)
    finally:
        engine.close()
        warm.shutdown()


def test_it_is_an_engine(bench):
    assert isinstance(bench.engine, Engine)
    assert bench.engine.name


def test_a_worker_joins_with_its_slots(bench):
    bench.poll_until(lambda: bench.of_type(WorkerJoined))
    assert sum(event.slots for event in bench.of_type(WorkerJoined)) == SLOTS


def test_frames_come_whole_in_order_and_before_the_end(bench):
    task = bench.submit(lambda item: item + 1, [1, 2, 3])
    bench.wait(task)
    assert bench.kinds(task)[0] is Kind.HELLO
    assert bench.kinds(task)[-1] is Kind.DONE
    assert [frame.sequence for frame in bench.frames[task]] == list(range(len(bench.frames[task])))
    assert sum(bench.outputs(task)) == 9
    assert bench.ended[task].status == "done"
    assert bench.ended[task].usage.wall_s > 0


def test_frames_come_while_the_task_runs(bench, tmp_path):
    gate = tmp_path / "gate"

    def wait_for_the_second(item):
        deadline = time.monotonic() + 30
        while item == 2 and not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return item

    task = bench.submit(wait_for_the_second, [1, 2])
    bench.poll_until(lambda: Kind.OUTPUT in bench.kinds(task))
    assert task not in bench.ended
    assert bench.outputs(task) == [1]
    gate.touch()
    bench.wait(task)
    assert bench.outputs(task) == [1, 2]


def test_more_tasks_than_slots(bench):
    tasks = [bench.submit(lambda item: item, [n]) for n in range(5 * SLOTS)]
    bench.wait(*tasks)
    assert [bench.outputs(task) for task in tasks] == [[n] for n in range(5 * SLOTS)]


def test_no_more_tasks_at_a_time_than_slots(bench, tmp_path):
    def count(item):
        mine = tmp_path / f"running-{item}"
        mine.touch()
        running = len(list(tmp_path.glob("running-*")))
        time.sleep(0.2)
        mine.unlink()
        return running

    tasks = [bench.submit(count, [n]) for n in range(4 * SLOTS)]
    bench.wait(*tasks)
    assert max(bench.outputs(task)[0] for task in tasks) == SLOTS


def test_a_task_that_dies_is_reported_with_the_signal(bench):
    task = bench.submit(lambda item: os.kill(os.getpid(), signal.SIGSEGV), [1])
    bench.wait(task)
    assert bench.ended[task].status == "died"
    assert "SIGSEGV" in bench.ended[task].detail
    assert Kind.DONE not in bench.kinds(task)
    assert bench.kinds(task)[-1] is Kind.BEGIN


def test_a_task_that_leaves_quietly_has_no_last_frame(bench):
    task = bench.submit(lambda item: os._exit(0), [1])
    bench.wait(task)
    assert bench.ended[task].status == "done"
    assert Kind.DONE not in bench.kinds(task)


def test_memory(bench):
    def grow(item):
        held = []
        while True:
            held.append(b"x" * 10_000_000)
            time.sleep(0.005)

    task = bench.submit(grow, [1], memory_mb=300)
    bench.wait(task)
    stopped_inside = bench.kinds(task)[-2:] == [Kind.FAILED, Kind.DONE]
    assert bench.ended[task].status == "memory" or stopped_inside
    assert bench.ended[task].usage.memory_mb > 250


def test_cancel_ends_the_task_and_its_children(bench, tmp_path):
    def sleep_with_child(item):
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        (tmp_path / "child.tmp").write_text(str(child))
        (tmp_path / "child.tmp").rename(tmp_path / "child")
        time.sleep(600)

    task = bench.submit(sleep_with_child, [1])
    bench.poll_until((tmp_path / "child").exists)
    bench.engine.cancel(task)
    bench.wait(task)
    assert bench.ended[task].status == "cancelled"
    assert_gone(int((tmp_path / "child").read_text()))


def test_cancel_of_a_task_that_waits(bench):
    running = [bench.submit(time.sleep, [600]) for _ in range(SLOTS)]
    waiting = bench.submit(lambda item: item, [1])
    bench.engine.cancel(waiting)
    bench.wait(waiting)
    assert bench.ended[waiting].status == "cancelled"
    assert not set(running) & set(bench.ended)
    bench.engine.cancel(TaskId("never heard of"))


def test_input_files_are_found_by_their_names(bench, tmp_path):
    source = tmp_path / "numbers.txt"
    source.write_text("42")
    inputs = [InputFile(name, source) for name in ("data/n.txt", "../n.txt", "../../x/n.txt")]
    task = bench.submit(
        lambda name: int(Path(name).read_text()), [one.name for one in inputs], inputs=inputs
    )
    bench.wait(task)
    assert sum(bench.outputs(task)) == 3 * 42, bench.ended[task]


def test_what_a_task_prints_comes_back_at_its_end(bench):
    task = bench.submit(lambda item: print("the last words") or 0, [1])
    bench.wait(task)
    assert "the last words" in bench.ended[task].output_tail


def test_large_frames(bench):
    task = bench.submit(lambda item: os.urandom(30_000_000), [1])
    bench.wait(task)
    (output,) = bench.outputs(task)
    assert len(output) == 30_000_000


def test_worker_killed_in_mid_task(bench, tmp_path):
    def tell_parent(item):
        (tmp_path / "parent.tmp").write_text(str(os.getppid()))
        (tmp_path / "parent.tmp").rename(tmp_path / "parent")
        time.sleep(600)

    task = bench.submit(tell_parent, [1])
    bench.poll_until((tmp_path / "parent").exists)
    os.kill(int((tmp_path / "parent").read_text()), signal.SIGKILL)
    bench.wait(task)
    if bench.engine.name != "local":
        # of its worker this is a part, which is started anew
        assert bench.ended[task].status == "died"
    else:
        assert bench.ended[task].status == "lost"
        assert bench.of_type(WorkerLost)
    again = bench.submit(lambda item: item, [7])
    bench.wait(again)
    assert bench.outputs(again) == [7]


def test_close_ends_what_runs_and_may_be_called_twice(bench, tmp_path):
    def tell(item):
        (tmp_path / "pid.tmp").write_text(str(os.getpid()))
        (tmp_path / "pid.tmp").rename(tmp_path / "pid")
        time.sleep(600)

    bench.submit(tell, [1])
    bench.poll_until((tmp_path / "pid").exists)
    bench.engine.close()
    bench.engine.close()
    assert_gone(int((tmp_path / "pid").read_text()))


def assert_gone(pid: int, limit_s: float = 5.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} still runs after {limit_s} s")
