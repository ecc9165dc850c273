"""Workers in another root and behind another network, which a test starts by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import bare
import queues

from hepscale.workers.version import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def worker(
    address: str, password: Path, folder: Path, *within: str, engine: str = "workqueue"
) -> Iterator[None]:
    """Run a worker by the command `within`; it keeps its files in `folder`."""
    folder.mkdir()
    options = ["--cores", "1", "--disk", "2000", "--memory", "2000", "--max-backoff", "1"]
    secure = ["--ssl"] if engine == "taskvine" or queues.has_ndcctools() else []
    options += ["--password", str(password), *secure, *address.split(":")]
    command = [*within, "env", f"TMPDIR={folder}", PROGRAMS[engine], *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def bare_root(folder: Path, *shared: Path, engine: str = "workqueue") -> tuple[str, ...]:
    """Return the command that runs others in a root without Python, which has the worker."""
    chroot = bare.chroot(folder, *shared)
    # and what it is linked to
    program = shutil.which(PROGRAMS[engine])
    assert program is not None
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for one in (program, *(word for word in said.split() if word.startswith("/"))):
        if not (bare.minbase() / one.lstrip("/")).exists():
            # by its real folder: a folder in place of the link /lib would hide all that is there
            real = Path(one).parent.resolve() / Path(one).name
            target = Path(f"{folder}/changes{real}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one, target)
    # who it is: a worker of Debian's that cannot find out says something that was in its memory
    hosts = folder / "changes/etc/hosts"
    hosts.parent.mkdir(parents=True, exist_ok=True)
    hosts.write_text(f"127.0.0.1 localhost {os.uname().nodename}\n")
    return chroot


@contextmanager
def network() -> Iterator[tuple[tuple[str, ...], str, Callable[[str], None]]]:
    """Make a network of its own: the command that runs others in it, our address, the cut."""
    name, ours, theirs = (f"{one}{os.getpid()}" for one in ("hs-", "hsa", "hsb"))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    address = f"10.213.{os.getpid() % 250}"
    ip("netns", "add", name)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("address", "add", f"{address}.1/24", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "address", "add", f"{address}.2/24", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        within = ("ip", "netns", "exec", name)
        yield within, f"{address}.1", lambda state: ip("link", "set", ours, state)
    finally:
        ip("netns", "delete", name)
