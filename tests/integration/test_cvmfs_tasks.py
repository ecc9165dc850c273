"""Tasks that find repositories of CVMFS below ``/cvmfs``, which nobody has mounted."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import publisher
import pytest
from packed import calculate
from publisher import File

from hepscale import CvmfsConfig, Workers, doctor
from hepscale.errors import HepScaleError

pytestmark = pytest.mark.usefixtures("few", "nothing_left")

NAME = "demo.example.org"
TREE = {"README": File(content=b"read me\n"), "py": {"cvmfs_tool.py": b"ANSWER = 42\n"}}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CvmfsConfig]:
    """Serve a repository; yield what is said of it."""
    if doctor._refused_namespaces() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this machine lets users have no namespaces, or has no /dev/fuse for them")
    folder = tmp_path_factory.mktemp("web")
    site = publisher.publish(folder / NAME, NAME, TREE)
    key = folder / "demo.pub"
    key.write_text(site.key)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield CvmfsConfig(
            repositories=[NAME],
            servers=f"http://127.0.0.1:{server.server_address[1]}/@fqrn@",
            keys=key,
            proxies="DIRECT",
            cache=str(folder / "cache"),
        )
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "engine", [{}, {"engine": "workqueue", "workers": Workers("local", cores=2)}]
)
def test_data_files_and_modules(config, monkeypatch, engine):
    monkeypatch.syspath_prepend(f"/cvmfs/{NAME}/py")

    def work(item):
        import cvmfs_tool

        with open("/cvmfs/demo.example.org/README") as file:
            return file.read(), cvmfs_tool.ANSWER, cvmfs_tool.__file__

    file = f"/cvmfs/{NAME}/py/cvmfs_tool.py"
    assert calculate(work, cvmfs=config, **engine) == [("read me\n", 42, file)] * 3
    assert not Path(f"/cvmfs/{NAME}").exists()


def test_a_repository_that_cannot_be_had_ends_the_run(config):
    def work(item):
        return item

    broken = CvmfsConfig(**{**config.table(), "repositories": ["gone.example.org"]})
    with pytest.raises(HepScaleError, match=r"gone\.example\.org"):
        calculate(work, cvmfs=broken)
