"""Workers that are killed, stopped, or turned away in mid-run: every item is counted once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import crew as crews
import packed
import pytest
import queues
import support
from crew import meanwhile

import hepscale
from hepscale import Workers
from hepscale.config import load_settings
from hepscale.executor.engines import manager as managers
from hepscale.executor.engines.queue_open import library_protocol
from hepscale.workers import records

pytestmark = [queues.needs_worker, pytest.mark.usefixtures("few")]


# -- kill -9 ---------------------------------------------------------------------------------------


def test_one_of_three_workers_is_killed_and_replaced(crew, told):
    def act():
        gone = crews.busy_workers(3)[1]
        crews.kill(gone)
        support.wait_for(lambda: len({*crews.workers()} - {gone}) == 3)

    workers = Workers(count=3)
    with meanwhile(act):
        crew.run(count=100, workers=workers, status=True)
    # at most what the killed one was at
    assert sum(crew.times().values()) <= 100 + 8
    crew.run(count=5, workers=workers, status=True)
    assert len([text for text in told() if "A worker of this machine was killed" in text]) == 1


def test_the_parent_of_the_workers_is_killed(crew, told):
    def act():
        crews.busy_workers(2)
        (group,) = records.every(load_settings())
        crews.kill(group.supervisor.pid)

    with meanwhile(act):
        crew.run(count=60, status=True)
    assert sum(crew.times().values()) <= 60 + 2 * 8
    assert len([text for text in told() if "2 are started again (1 of 3 times)" in text]) == 1


def test_a_worker_is_killed_while_it_unpacks(crew):
    with meanwhile(lambda: crews.kill(crews.begun_worker())):
        crew.run(count=30)
    support.wait_for(lambda: len(crews.workers()) == 2)


def test_all_workers_are_killed_and_new_ones_come(crew):
    started = []

    def act():
        for worker in crews.busy_workers(2):
            crews.kill(worker)
        started.append(crews.more(2))

    try:
        with meanwhile(act):
            crew.run()
    finally:
        for one in started:
            one.stop()


# -- SIGSTOP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stopped_s", "patience_s"), [(4, 1), (20, None)])
def test_a_worker_is_stopped_and_goes_on(crew, monkeypatch, stopped_s, patience_s):
    if patience_s is not None:
        monkeypatch.setattr(managers, "_SILENT_S", patience_s)
        monkeypatch.setattr(managers, "_ANSWER_S", patience_s)
    stopped = []

    def act():
        stopped.append(crews.busy_workers(2)[0])
        os.kill(stopped[0], signal.SIGSTOP)
        time.sleep(stopped_s)
        os.kill(stopped[0], signal.SIGCONT)

    with meanwhile(act):
        crew.run(count=30 * stopped_s)
    # its tasks were given to the other one if it was away for longer than its manager waits
    assert patience_s is None or sum(crew.times().values()) > 30 * stopped_s


# -- who is not let in -----------------------------------------------------------------------------


def test_a_worker_with_another_password_is_refused(crew, tmp_path, told):
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("wrong")
    started = []

    def act():
        crews.busy_workers(1)
        started.append(crews.more(password=wrong))

    try:
        with meanwhile(act):
            crew.run(workers=Workers(), status=True)
    finally:
        started[0].stop()
    said = [text for text in told() if "refused" in text]
    assert said == ["A worker at 127.0.0.1 was refused: it has another password, or none."]


@pytest.mark.usefixtures("plain")
def test_a_worker_of_another_protocol_is_told(crew, told):
    name, protocol = crews.engine.encode(), library_protocol(load_settings(), crews.engine)

    def newer(data):
        return data.replace(b"%s %d " % (name, protocol), b"%s %d " % (name, protocol + 2))

    started = []

    def act():
        crews.busy_workers(1)
        started.append(crews.Relay(lambda: newer))
        started.append(crews.more(at=started[0].address))

    try:
        with meanwhile(act):
            crew.run(workers=Workers(), status=True)
    finally:
        for one in reversed(started):
            one.stop()
    said = [text for text in told() if "refused" in text]
    about = f"it speaks protocol {protocol + 2}, and this process {protocol}"
    assert said == [f"A worker at 127.0.0.1 was refused: {about}."]


# -- ports and names -------------------------------------------------------------------------------


def test_port_that_is_taken(crew):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(hepscale.EngineError, match=f"Port {port} is taken") as caught:
            crew.run(port=port)
    assert f"process {os.getpid()}: " in support.complete(caught.value).items[0]
    assert crews.workers() == []
    crew.run(count=5, port=port)


def test_catalog_server_that_is_absent(crew, monkeypatch):
    monkeypatch.setenv("CATALOG_HOST", "127.0.0.1")
    monkeypatch.setenv("CATALOG_PORT", "1")
    crew.run(count=20, name="no-catalog")


# -- again -----------------------------------------------------------------------------------------


def test_the_same_cell_twice_is_warm(crew):
    def where(item):
        return os.getppid(), sys.prefix, os.stat(sys.prefix).st_ctime_ns

    one = Workers()
    first, second = (
        set(packed.calculate(where, engine=crews.engine, workers=one)) for _ in range(2)
    )
    assert len(first) == 1
    assert second == first
