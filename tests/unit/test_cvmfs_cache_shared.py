"""The cache of a node, of which many processes read and write at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from caches import PLAIN, left, objects, put, read
from objects import silent
from support import wait_for

from hepscale.worker.cvmfs import ObjectError, store
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.check import check
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Name

READERS = """
import os, random, sys
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Name

folder, url, count, *names = sys.argv[1:]
children = []
for i in range(int(count)):
    children.append(os.fork())
    if not children[-1]:
        random.seed(i)
        random.shuffle(names)
        cache, fetcher = Cache(folder, quota_bytes=1 << 30), Fetcher([url], "DIRECT", retries=0)
        for name in names:
            with open(cache.open(Name.parse(name), fetcher), "rb") as stream:
                assert stream.read().startswith(b"object ")
        os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def run(code, *arguments, **options):
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=root, **options)


def test_fifty_processes_on_a_cold_cache(server, folder):
    names = [put(server, b"object %d " % i * 2000) for i in range(30)]

    def slow(handler, path):
        time.sleep(0.01)
        return False

    server.fault = slow
    arguments = [str(folder), server.url, "50", *(name.text for name in names)]
    with run(READERS, *arguments) as process:
        assert process.wait(100) == 0
    assert server.asked == {name.path: 1 for name in names}
    assert check(str(folder)).verified == len(names)
    assert left(folder) == []


def test_threads_of_one_process(server, fetcher, folder):
    names = [put(server, b"object %d " % i * 2000) for i in range(20)]
    cache, found = Cache(str(folder)), []

    def read_all(seed):
        order = random.Random(seed).sample(names, len(names))
        found.extend(read(cache.open(name, fetcher))[:7] for name in order)

    threads = [threading.Thread(target=read_all, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"object "] * 160
    assert server.asked == {name.path: 1 for name in names}


def test_all_who_wait_for_what_cannot_be_had_fail_soon(folder):
    """Not each after the one before it."""
    with silent() as nobody:
        one = Fetcher([f"http://{nobody.address}"], "DIRECT", direct_timeout_s=1, retries=0)
        cache, failures = Cache(str(folder)), []

        def fail():
            with pytest.raises(ObjectError) as raised:
                cache.open(Name(bytes(20)), one)
            failures.append(raised.value)

        threads = [threading.Thread(target=fail) for _ in range(10)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failures) == 10
        assert time.monotonic() - began < 5


WRITER = """
import sys
from hepscale.worker.cvmfs.cache import Cache
from hepscale.worker.cvmfs.fetch import Fetcher
from hepscale.worker.cvmfs.names import Name

folder, url, name = sys.argv[1:]
Cache(folder).open(Name.parse(name), Fetcher([url], "DIRECT", direct_timeout_s=60))
"""


def test_who_is_killed_leaves_nothing(server, fetcher, folder):
    plain = random.Random(2).randbytes(1 << 20)
    name = put(server, plain)
    data, resume, half = server.files[name.path], threading.Event(), threading.Event()

    def stop(handler, path):
        handler.answer(data[: len(data) // 2], length=len(data))
        half.set()
        return resume.wait(60)

    server.fault = stop
    with run(WRITER, str(folder), server.url, name.text) as process:
        try:
            assert half.wait(60)
            (temporary,) = wait_for(lambda: [one for one in left(folder) if size(folder, one)])
            old = time.time() - 3600
            os.utime(folder / "txn" / temporary, (old, old))
            Cache(str(folder))
            assert left(folder) == [temporary], "its writer lives"
        finally:
            process.send_signal(signal.SIGKILL)
            resume.set()
    server.fault = None
    assert objects(folder) == set()
    os.utime(folder / "txn" / temporary, (old, old))
    (folder / "txn" / "of-cvmfs").touch()
    os.utime(folder / "txn" / "of-cvmfs", (old, old))
    cache = Cache(str(folder))
    assert left(folder) == ["of-cvmfs"]
    assert read(cache.open(name, fetcher)) == plain


def size(folder, name):
    return (folder / "txn" / name).stat().st_size


def test_who_is_stopped_does_not_stop_all(server, fetcher, folder, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE_S", 0.2)
    cache, name = Cache(str(folder)), put(server, PLAIN)
    code = (
        "import sys; from hepscale.worker.cvmfs.names import Name;"
        "from hepscale.worker.cvmfs.store import Store;"
        "lock = Store(sys.argv[1], is_alien=False).alone(Name.parse(sys.argv[2]));"
        "lock.__enter__(); print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with run(code, str(folder), name.text, **pipes) as process:
        assert process.stdout.readline() == b"\n"
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert read(cache.open(name, fetcher)) == PLAIN
        assert time.monotonic() - began >= 0.2, "it was waited for"
        process.kill()


def test_a_large_object_takes_little_memory(server, fetcher, folder):
    length = 64 << 20
    name = put(server, bytes(length), level=9)
    cache = Cache(str(folder))
    tracemalloc.start()
    descriptor = cache.open(name, fetcher)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.fstat(descriptor).st_size == length
    os.close(descriptor)
    assert most < 4 << 20
