"""Repositories that are mounted for a test, by the worker's own client."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from as_root import SYSTEM_PYTHON

import hepscale.worker
from hepscale import doctor

_INSIDE = Path(__file__).with_name("cvmfs_inside.py")
_DEVICE = Path("/dev/fuse")


class Refused(Exception):
    """The repository was not mounted; the argument is what was told."""


class Mounted:
    """A mounted repository; code is run in a process for which it is mounted, and is its folder."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.server: int = 0

    def run(self, code: str, **names: object) -> Any:
        """Run code, for which names stay; return what it leaves in ``result``."""
        line = json.dumps({"code": textwrap.dedent(code), "names": names})
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._told()
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _told(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, "the process inside ended"
        return json.loads(line)

    def started(self) -> None:
        """Wait until it is mounted."""
        said = self._told()
        self.server = said.pop("pid")
        if "fact" in said:
            raise Refused(said)


def needed() -> None:
    """Skip the tests where nothing can be mounted."""
    if why := doctor.try_sandbox()[1]:
        pytest.skip(f"this machine lets users have no sandbox: {why}")
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"this machine has no {_DEVICE} for its users")


def as_nobody(test: Callable[..., None]) -> Any:
    """Mark a test that becomes somebody else."""
    why = "only root may become somebody else, who needs a Python that all may run"
    may = os.getuid() == 0 and Path(SYSTEM_PYTHON).exists()
    return pytest.mark.root(pytest.mark.skipif(not may, reason=why)(test))


@contextlib.contextmanager
def open_to_all() -> Iterator[None]:
    """Let every user open ``/dev/fuse``, where the tests run as root."""
    before = stat.S_IMODE(_DEVICE.stat().st_mode)
    if os.getuid() or before == 0o666:
        yield
        return
    _DEVICE.chmod(0o666)
    try:
        yield
    finally:
        _DEVICE.chmod(before)


@contextlib.contextmanager
def mounted(
    repository: Mapping[str, Any],
    cache: Path | None,
    *,
    user: int | None = None,
    client: str = "client",
    **settings: Any,
) -> Iterator[Mounted]:
    """Mount a repository as `user`, by default the one of the tests.

    `cache` is its own cache; a temporary one if it is None. `client` is "client", the worker's own,
    or "cvmfs2", that of this machine.
    """
    folder = Path(tempfile.mkdtemp(prefix="hepscale-mount-"))
    python = sys.executable
    try:
        place, worker = folder / "m", folder / "worker"
        place.mkdir()
        shutil.copytree(hepscale.worker.__path__[0], worker)
        shutil.copy(_INSIDE, folder / "inside.py")
        told = {
            "repositories": [repository],
            "proxies": "DIRECT",
            "cache": str(cache or folder / "cache"),
            "alien_cache": None,
            "quota_mb": 4000,
            "timeout_s": 5.0,
            "direct_timeout_s": 5.0,
            "retries": 0,
            "max_ttl_s": None,
            "variables": {},
            **settings,
        }
        (folder / "settings.json").write_text(json.dumps(told))
        as_user = {}
        if user is not None:
            python = SYSTEM_PYTHON
            as_user = {"user": user, "group": user, "extra_groups": []}
            os.chown(folder, user, user)
        arguments = [worker, folder / "settings.json", str(repository["name"]), place, client]
        process = subprocess.Popen(
            [python, "-I", "-S", folder / "inside.py", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **as_user,
        )
        with process:
            try:
                inside = Mounted(process)
                inside.started()
                yield inside
            finally:
                # the server dies with its parent, and the mount with them
                process.kill()
    finally:
        shutil.rmtree(folder)
