"""The commands of batch systems: submitting, counting, cancelling."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hepscale.errors import EngineError
from hepscale.workers.plan import SCRIPT, SUBMIT, BatchName

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cancel", "count", "submit", "submit_command"]

_ANSWER_S = 120


@dataclass(frozen=True, slots=True)
class _System:
    """How one batch system is spoken to; ``{job}`` stands for the job and ``{user}`` for the user.

    Attributes
    ----------
    title
        Its name.
    submit
        The command that submits, run in the folder of the files.
    submitted
        What it prints; the group ``job`` is the job.
    query
        The command that lists the jobs that wait or run.
    listed
        A line of the list that is one worker.
    cancel
        The command that cancels.
    gone
        What the commands say, and fail, where the job is over.
    """

    title: str
    submit: tuple[str, ...]
    submitted: str
    query: tuple[str, ...]
    listed: str
    cancel: tuple[str, ...]
    gone: str


# waiting, held, running or moving; neither completed nor the array as a whole
_QSTAT = r"{job}\S*\s+\S+\s+\S+\s+\S+\s+[EHQRSTUWM]\s"

_SYSTEMS: dict[BatchName, _System] = {
    "slurm": _System(
        "Slurm",
        ("sbatch", "--parsable", SCRIPT),
        r"^(?P<job>\d+)(;\S+)?$",
        ("squeue", "--noheader", "--array", "--jobs={job}", "--format=%A"),
        r"\d+",
        ("scancel", "{job}"),
        "Invalid job id",
    ),
    "condor": _System(
        "HTCondor",
        ("condor_submit", "-terse", SUBMIT),
        r"^(?P<job>\d+)\.\d+ - \d+\.\d+$",
        ("condor_q", "{job}", "-format", r"%d\n", "ProcId"),
        r"\d+",
        ("condor_rm", "{job}"),
        "(?i)not found|find any",
    ),
    "sge": _System(
        "Grid Engine",
        ("qsub", "-terse", SCRIPT),
        r"^(?P<job>\d+)(\.\S+)?$",
        ("qstat", "-g", "d", "-u", "{user}"),
        r"\s*{job}\s",
        ("qdel", "{job}"),
        "(?i)does not exist",
    ),
    "pbs": _System(
        "PBS",
        ("qsub", SCRIPT),
        r"^(?P<job>\d+(\[\])?(\.\S+)?)$",
        ("qstat", "-t", "{job}"),
        _QSTAT,
        ("qdel", "{job}"),
        "(?i)unknown job|has finished",
    ),
    "torque": _System(
        "Torque",
        ("qsub", SCRIPT),
        r"^(?P<job>\d+(\[\])?(\.\S+)?)$",
        ("qstat", "-t", "{job}"),
        _QSTAT,
        ("qdel", "{job}"),
        "(?i)unknown job|invalid state",
    ),
}


def submit_command(batch: BatchName) -> list[str]:
    """Return the command that submits the files of a plan; none for this machine."""
    return list(_SYSTEMS[batch].submit) if batch in _SYSTEMS else []


def submit(batch: BatchName, folder: Path) -> str:
    """Submit the files in `folder`; return the job.

    Raises
    ------
    EngineError
        If the batch system is not there or refuses.
    """
    system = _SYSTEMS[batch]
    done = _run(system, system.submit, folder)
    found = re.search(system.submitted, done.stdout.strip(), re.MULTILINE)
    if done.returncode or found is None:
        raise EngineError(
            f"{system.title} has refused the workers.",
            items=_lines(done),
            cause="an option is missing that this site asks for, or one that it does not allow",
            fix="see what was submitted with hepscale workers start --dry-run, add --option ...",
        )
    return found["job"]


def count(batch: BatchName, job: str) -> int:
    """Return how many workers of a job wait or run.

    Raises
    ------
    EngineError
        If the batch system does not say.
    """
    system = _SYSTEMS[batch]
    done = _run(system, _filled(system.query, job))
    if done.returncode and not re.search(system.gone, done.stderr + done.stdout):
        raise EngineError(
            f"{system.title} does not say what became of the workers.",
            items=_lines(done),
            cause="its server does not answer",
            fix="try again later",
        )
    # 12[].server is the array, its workers are 12[1].server
    number = re.escape(job.partition("[")[0].partition(".")[0])
    parent = r"(?!\S*\[\])" if "[]" in job else ""
    pattern = re.compile(parent + system.listed.replace("{job}", number))
    return sum(bool(pattern.match(line)) for line in done.stdout.splitlines())


def cancel(batch: BatchName, job: str) -> None:
    """Cancel the workers of a job, unless they are over.

    Raises
    ------
    EngineError
        If the batch system refuses.
    """
    system = _SYSTEMS[batch]
    done = _run(system, _filled(system.cancel, job))
    if done.returncode and not re.search(system.gone, done.stderr + done.stdout):
        raise EngineError(
            f"{system.title} has not cancelled the workers.",
            items=[f"job {job}", *_lines(done)],
            cause="its server does not answer, or the job is not yours",
            fix="hepscale workers stop, later; without a manager they end by themselves",
        )


def _filled(command: tuple[str, ...], job: str) -> tuple[str, ...]:
    known = {"{job}": job, "{user}": getpass.getuser()}
    return tuple(re.sub(r"\{\w+\}", lambda found: known[found[0]], word) for word in command)


def _run(
    system: _System, command: tuple[str, ...], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0])
    if program is None:
        raise EngineError(
            f"{command[0]} was not found on PATH.",
            cause=f"this machine does not submit to {system.title}",
            fix=f"log in to one that does, or choose another --batch than {system.title}",
        )
    try:
        return subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            f"{command[0]} does not answer.",
            items=[str(error)],
            cause=f"the server of {system.title} is down or overloaded",
            fix="try again later",
        ) from None


def _lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    said = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines()]
    return [line for line in said if line] or [f"exit code {done.returncode}"]
