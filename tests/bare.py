"""Machines without Python, made here: a Debian minbase chroot, and this machine with holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

import os
import shutil
import subprocess
import sys
from pathlib import Path

import as_root
import pytest

import hepscale
from hepscale.config import load_settings

WORKER = Path(hepscale.__file__).parent / "worker"


def minbase() -> Path:
    """Return a folder with Debian's minbase, made once and kept in the user's cache."""
    as_root.needed("making a chroot")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed: apt-get install debootstrap")
    release = Path("/etc/os-release").read_text()
    suite = next(line for line in release.splitlines() if line.startswith("VERSION_CODENAME="))
    suite = suite.partition("=")[2].strip('"')
    kept = Path.home() / ".cache" / "hepscale-tests" / f"minbase-{suite}"
    if not kept.exists():
        # from where apt itself has its packages
        command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
        sites = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        begun = kept.with_name(f".{kept.name}-{os.getpid()}")
        begun.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", suite, str(begun), sites.split()[0]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        try:
            begun.rename(kept)
        except OSError:
            # another test run was faster
            shutil.rmtree(begun)
    return kept


def chroot(folder: Path, *shared: Path) -> tuple[str, ...]:
    """Return the command that runs others in a minbase, which shares some folders with us.

    The mounts are its own: they end with it, whatever becomes of the test.
    """
    base = minbase()
    assert not list(base.glob("usr/bin/python*"))
    root, work, changes = (folder / name for name in ("root", "work", "changes"))
    for one in (root, work, changes):
        one.mkdir(parents=True)
    layers = f"lowerdir={base},upperdir={changes},workdir={work}"
    script = [f"mount -t overlay overlay -o '{layers}' '{root}'"]
    for one in (Path("/proc"), Path("/dev"), WORKER, *shared):
        script += [f"mkdir -p '{root}{one}'", f"mount --bind '{one}' '{root}{one}'"]
    script += [f"exec chroot '{root}' \"$@\""]
    return ("unshare", "--mount", "sh", "-ec", "; ".join(script), "sh")


def without(*hidden: Path) -> tuple[str, ...]:
    """Return the command that runs others where these folders are empty.

    The worker's own files stay, wherever they lie.
    """
    as_root.needed("mounting")
    keep = load_settings().scratch_dir / "worker-kept"
    keep.mkdir(exist_ok=True)
    script = [f"mount --bind '{WORKER}' '{keep}'"]
    script += [f"mount -t tmpfs none '{one}'" for one in hidden]
    script += [f"mkdir -p '{WORKER}'", f"mount --bind '{keep}' '{WORKER}'", 'exec "$@"']
    return ("unshare", "--mount", "sh", "-ec", "; ".join(script), "sh")


def ours() -> list[Path]:
    """Return the folders in which Python and its packages lie here, and the user's own."""
    found = {Path.home(), Path(sys.prefix), Path(sys.base_prefix)}
    # the system's own Python cannot be hidden without the rest of the system
    found -= {Path("/usr"), Path("/usr/local")}
    return sorted(one for one in found if not found & {*one.parents})


def told(command: Sequence[str], **environ: str) -> str:
    """Run a command that knows nothing of us, and has to succeed and to say nothing on stderr."""
    done = subprocess.run(
        command,
        cwd="/",
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
