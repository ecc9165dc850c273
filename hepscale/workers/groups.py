"""Starting, counting and stopping workers."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.errors import EngineError, RunDirectoryError
from hepscale.worker import scratch
from hepscale.workers import systems
from hepscale.workers.plan import SCRIPT, submit_files, worker_command
from hepscale.workers.records import Group, Process, every, forget, here, keep, write

if TYPE_CHECKING:
    from hepscale.config import Settings
    from hepscale.workers.plan import Plan

__all__ = ["alive", "end_process", "is_watched", "new_folder", "said", "start", "stop", "sweep"]

log = logging.getLogger(__name__)

_END_S = 10.0
_ROOT = Path(__file__).parents[2]
# the package by its place: an interpreter of its own need not find it
_SUPERVISE = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from hepscale.workers.supervisor import main; main(sys.argv[2])"
)


def new_folder(settings: Settings) -> Path:
    """Return a path for the folder of a new group; it is not made."""
    return settings.cache_dir / "workers" / secrets.token_hex(4)


def start(
    plan: Plan, settings: Settings, *, owned: bool
) -> tuple[Group, subprocess.Popen[bytes] | None]:
    """Start what `plan` says.

    Parameters
    ----------
    plan
        What is started.
    settings
        Where the scratch folders of workers of this machine go.
    owned
        Whether the workers end with this process.

    Returns
    -------
    tuple
        The group, and its supervisor if it is one of this machine that this process owns.

    Raises
    ------
    EngineError
        If they cannot be started.
    RunDirectoryError
        If no record can be written.
    """
    process: subprocess.Popen[bytes] | None = None
    supervisor: Process | None = None
    workers: tuple[Process, ...] = ()
    job = ""
    try:
        plan.folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise _unusable(plan.folder, error) from None
    try:
        if plan.batch == "local":
            process, supervisor, workers = _start_here(plan, settings, owned=owned)
        else:
            for name, text in submit_files(plan).items():
                write(plan.folder / name, text, 0o700 if name == SCRIPT else 0o600)
            job = systems.submit(plan.batch, plan.folder)
        group = Group(
            folder=plan.folder,
            batch=plan.batch,
            address=str(plan.address),
            count=plan.count,
            cores=plan.cores,
            memory_mb=plan.memory_mb,
            started_s=time.time(),
            host=socket.gethostname(),
            job=job,
            supervisor=supervisor,
            workers=workers,
            owner=Process.of(os.getpid()) if owned else None,
        )
        keep(group)
    except BaseException as error:
        if process is not None:
            end_process(process)
        if job:
            systems.cancel(plan.batch, job)
        shutil.rmtree(plan.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unusable(plan.folder, error) from None
        raise
    return group, process


def alive(group: Group) -> int:
    """Return how many workers of a group wait or run.

    Raises
    ------
    EngineError
        If the batch system does not say, or the group is one of another machine.
    """
    if group.batch != "local":
        return systems.count(group.batch, group.job)
    _check_here(group)
    return sum(worker.alive for worker in here(group).workers)


def is_watched(group: Group) -> bool:
    """Return whether workers of this machine are watched: others may come for those that ended."""
    return group.supervisor is not None and group.supervisor.alive


def stop(group: Group) -> None:
    """End the workers of a group, if there are any left, and forget it.

    Raises
    ------
    EngineError
        If the batch system refuses, or the group is one of another machine.
    """
    if group.batch == "local":
        _check_here(group)
        _stop_here(group)
    else:
        systems.cancel(group.batch, group.job)
    forget(group)


def sweep(settings: Settings) -> None:
    """Stop what was left behind by processes of this machine that were killed."""
    for group in every(settings):
        if group.owner is None or group.host != socket.gethostname() or group.owner.alive:
            continue
        try:
            stop(group)
        except EngineError as error:
            log.warning("workers %s of a process that has ended: %s", group.id, error.fact)
        else:
            log.info("stopped workers %s, whose process has ended", group.id)


def said(group: Group) -> str:
    """Return what the workers of a group have written."""
    texts = []
    for path in sorted(group.folder.glob("*.log")):
        with suppress(OSError):
            texts.append(path.read_text(errors="replace"))
    return "".join(texts)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a supervisor that is a child of this process, and wait for it."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    # a process that was forked from this one may hold the other end of that pipe too
    process.terminate()
    # it may take longer to remove what its workers have unpacked: it does that without us
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)


def _start_here(
    plan: Plan, settings: Settings, *, owned: bool
) -> tuple[subprocess.Popen[bytes] | None, Process, tuple[Process, ...]]:
    parent = plan.workdir or settings.scratch_dir
    scratch.sweep(str(parent))
    try:
        folder, lock = scratch.make(str(parent))
    except OSError as error:
        raise _unusable(parent, error) from None
    told = {
        "command": worker_command(plan),
        "count": plan.count,
        "folder": folder,
        "log": str(plan.folder / "worker.log"),
        "lock": lock,
        "manager_pid": os.getpid() if owned else None,
    }
    try:
        write(plan.folder / "supervisor.json", json.dumps(told), 0o600)
        arguments = [str(_ROOT), str(plan.folder / "supervisor.json")]
        with open(plan.folder / "supervisor.log", "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _SUPERVISE, *arguments],
                stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                pass_fds=(lock,),
                start_new_session=True,
            )
    finally:
        # the supervisor and the workers hold it from here on
        os.close(lock)
    assert process.stdout is not None
    with process.stdout as stream:
        answer = json.loads(stream.readline() or b'{"workers": []}')
    if not answer["workers"]:
        end_process(process)
        items = [answer.get("problem") or "", *(plan.folder / "supervisor.log").read_text()
                 .splitlines()[-3:]]  # fmt: skip
        raise EngineError(
            "Workers cannot be started on this machine.",
            items=[item for item in items if item],
            cause="too many processes, too little memory, or a worker program that does not run",
            fix="hepscale doctor",
        )
    if not owned:
        # it has forked
        process.wait()
    workers = tuple(Process.of(pid) for pid in answer["workers"])
    return process if owned else None, Process.of(answer["supervisor"]), workers


def _stop_here(group: Group) -> None:
    known = [one for one in (group.supervisor, *here(group).workers) if one is not None]
    # the supervisor first, and alone: it lets the workers clean up
    for number, wait_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, 1.0)):
        running = [one for one in known if one.alive]
        lead = [one for one in running if one == group.supervisor]
        if number == signal.SIGKILL:
            # it still removes what its workers have unpacked
            running = [one for one in running if one not in lead]
        for one in lead if number == signal.SIGTERM and lead else running:
            with suppress(ProcessLookupError):
                os.kill(one.pid, number)
        until = time.monotonic() + wait_s
        while any(one.alive for one in running) and time.monotonic() < until:
            time.sleep(0.02)


def _check_here(group: Group) -> None:
    if group.host != socket.gethostname():
        raise EngineError(
            f"The workers {group.id} run on another machine.",
            items=[group.host],
            cause="the folder with their record is shared between machines",
            fix=f"run the command on {group.host}",
        )


def _unusable(folder: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        "A folder that workers need cannot be used.",
        items=[f"{folder}: {error.strerror}"],
        cause="it is missing, read-only or full",
        fix="export HEPSCALE_CACHE_DIR=<a folder of yours>, HEPSCALE_SCRATCH_DIR=<a local one>",
    )
