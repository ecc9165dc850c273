"""What is started, and its text: command lines, scripts, submit descriptions. Pure functions."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hepscale.errors import ConfigError
from hepscale.workers.version import PROGRAMS

__all__ = [
    "BATCH_SYSTEMS",
    "Address",
    "BatchName",
    "Plan",
    "beyond",
    "describe",
    "parse_address",
    "submit_files",
    "worker_command",
]

BatchName = Literal["local", "slurm", "condor", "sge", "pbs", "torque"]
BATCH_SYSTEMS: tuple[BatchName, ...] = ("local", "slurm", "condor", "sge", "pbs", "torque")

JOB_NAME = "hepscale-worker"
SCRIPT = "worker.sh"
SUBMIT = "worker.submit"

# a manager that is known by its address is there: who does not reach it for so long may go
_CONNECT_S = 60
_MAX_BACKOFF_S = 10

# HTCondor gives next to nothing to who asks for nothing
_DISK_MB_PER_CORE = 10_000

_HOST_PORT = re.compile(r"\[?(?P<host>[\w.:-]+?)\]?:(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the manager is: a host and a port, or the name that it has in the catalog.

    Attributes
    ----------
    host
        Name or address of its machine; empty where only its name is known.
    port
        0 where only its name is known.
    name
        Its name in the catalog; empty where its host is known.
    """

    host: str = ""
    port: int = 0
    name: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.name or f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides what is started.

    Attributes
    ----------
    batch
        Who starts the workers.
    count
        How many.
    cores
        Of each worker.
    memory_mb
        Of each worker.
    disk_mb
        That each worker announces; None: what it finds.
    options
        Lines for the batch system, as they would follow ``#SBATCH``, ``#$`` or ``#PBS``, or
        stand in HTCondor's submit description.
    setup
        Shell commands that run before the worker.
    workdir
        Folder on the worker's machine for its files; None: its temporary folder.
    idle_s
        Seconds without work after which a worker ends.
    binary
        The worker program.
    address
        Of the manager.
    password_file
        What the manager asks for; None: nothing.
    catalog
        ``HOST:PORT`` of the catalog server; empty: the worker's default.
    ssl
        Whether the manager speaks TLS.
    folder
        Where scripts, logs and the record of these workers are.
    """

    batch: BatchName
    count: int
    cores: int
    memory_mb: int
    disk_mb: int | None
    options: tuple[str, ...]
    setup: tuple[str, ...]
    workdir: Path | None
    idle_s: int
    binary: Path
    address: Address
    password_file: Path | None
    catalog: str
    ssl: bool
    folder: Path


def beyond(cores: int, memory_mb: int | None, *, has_cores: int, has_memory_mb: int) -> list[str]:
    """Return what is to be said where more is asked for, in all, than this machine has.

    Parameters
    ----------
    cores, memory_mb
        Of all workers together; None: no more than there is.
    has_cores, has_memory_mb
        Of this machine; 0: not known.
    """
    said = []
    if 0 < has_cores < cores:
        said.append(f"{cores} cores are to be used, and this machine has {has_cores} to give.")
    if 0 < has_memory_mb < (memory_mb or 0):
        said.append(
            f"{memory_mb} MB of memory are to be used, and this machine has {has_memory_mb} to "
            "give: it may kill tasks."
        )
    return said


def parse_address(text: str) -> Address:
    """Return the manager's address from ``HOST:PORT`` or the name of a project.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    found = _HOST_PORT.fullmatch(text)
    if found and 0 < int(found["port"]) < 2**16:
        return Address(host=found["host"], port=int(found["port"]))
    if found or not re.fullmatch(r"\w[\w.+-]*", text):
        raise ConfigError(
            f"{text!r} is not the address of a manager.",
            cause="it is neither HOST:PORT nor a name of letters, digits, '.', '+', '-' and '_'",
            fix="take the address that the run shows: HOST:PORT or its name",
        )
    return Address(name=text)


def worker_command(plan: Plan) -> list[str]:
    """Return the command that runs one worker, where the manager's files are readable."""
    # of this machine: in a folder of its own, in which it is started
    workdir = Path() if plan.batch == "local" else plan.workdir
    # there --workdir names the worker's own folder, and not the one that it goes into
    vine = plan.binary.name == PROGRAMS["taskvine"]
    place = [] if workdir is None else ["--workdir", str(workdir)]
    return [
        *(["env", f"CCTOOLS_TEMP={workdir}"] if vine and place else []),
        str(plan.binary),
        *_options(plan),
        *([] if vine else place),
        *(("--password", str(plan.password_file)) if plan.password_file else ()),
        *_manager(plan),
    ]


def _options(plan: Plan) -> list[str]:
    # one that is known by name may come later, as long as a worker waits at all
    connect_s = plan.idle_s if plan.address.name else min(_CONNECT_S, plan.idle_s)
    given = {
        "--cores": plan.cores,
        "--memory": plan.memory_mb,
        "--disk": plan.disk_mb,
        "--idle-timeout": plan.idle_s,
        "--connect-timeout": connect_s,
        "--max-backoff": _MAX_BACKOFF_S,
    }
    return [text for key, value in given.items() if value is not None for text in (key, str(value))]


def _manager(plan: Plan) -> list[str]:
    ssl = ["--ssl"] if plan.ssl else []
    if not plan.address.name:
        return [*ssl, plan.address.host, str(plan.address.port)]
    catalog = ["--catalog", plan.catalog] if plan.catalog else []
    # the worker takes a regular expression
    return [*ssl, *catalog, "-M", re.sub(r"[.+]", r"[\g<0>]", plan.address.name)]


def submit_files(plan: Plan) -> dict[str, str]:
    """Return the files, by name, that a batch system needs in the folder of the workers."""
    if plan.batch == "local":
        return {}
    if plan.batch == "condor":
        return {SUBMIT: _condor_description(plan), SCRIPT: _script(plan, _condor_run(plan), [])}
    prefix, directives = _DIRECTIVES[plan.batch](plan)
    lines = [f"{prefix} {text}" for key, text in directives if not _overridden(plan, key)]
    lines += [f"{prefix} {text}" for text in plan.options]
    return {SCRIPT: _script(plan, [f"exec {shlex.join(worker_command(plan))}"], lines)}


def describe(plan: Plan, command: list[str]) -> str:
    """Return all that is run to start the workers, as text for a terminal.

    Parameters
    ----------
    plan
        What is started.
    command
        The command that submits it.
    """
    if plan.batch == "local":
        return f"# {plan.count} of\n{shlex.join(worker_command(plan))}\n"
    files = [f"# {plan.folder / name}\n{text}" for name, text in submit_files(plan).items()]
    return "\n".join([*files, f"# in {plan.folder}\n{shlex.join(command)}\n"])


def _overridden(plan: Plan, key: str) -> bool:
    """Whether the user's options say what ours with this key would say."""
    return bool(key) and any(option.startswith(key) for option in plan.options)


def _script(plan: Plan, run: list[str], directives: list[str]) -> str:
    log = shlex.quote(str(plan.folder))
    identity = {"slurm": "SLURM_JOB_ID", "sge": "JOB_ID.$SGE_TASK_ID"}.get(plan.batch, "PBS_JOBID")
    # where the folder is not shared, or gone, the worker runs without a log
    logged = f'if [ -w {log} ]; then exec >>{log}/"${identity}.log" 2>&1; fi'
    mkdir = [f"mkdir -p {shlex.quote(str(plan.workdir))} || exit"] if plan.workdir else []
    lines = [
        "#!/bin/sh",
        *directives,
        "umask 077",
        *([logged] if plan.batch != "condor" else ()),
        *plan.setup,
        *mkdir,
        *run,
    ]
    return "\n".join(lines) + "\n"


def _slurm(plan: Plan) -> tuple[str, list[tuple[str, str]]]:
    return "#SBATCH", [
        ("", f"--job-name={JOB_NAME}"),
        ("", f"--array=1-{plan.count}"),
        ("", "--nodes=1"),
        ("", "--ntasks=1"),
        ("", f"--cpus-per-task={plan.cores}"),
        ("--mem", f"--mem={plan.memory_mb}M"),
        ("", "--output=/dev/null"),
        # that of the submission need not exist there
        ("", "--chdir=/"),
    ]


def _sge(plan: Plan) -> tuple[str, list[tuple[str, str]]]:
    # per slot
    memory_mb = -(-plan.memory_mb // plan.cores)
    return "#$", [
        ("", f"-N {JOB_NAME}"),
        ("-S", "-S /bin/sh"),
        ("", f"-t 1-{plan.count}"),
        *([("-pe", f"-pe smp {plan.cores}")] if plan.cores > 1 else []),
        ("-l h_vmem", f"-l h_vmem={memory_mb}M"),
        # a signal before the end, upon which the worker cleans up
        ("", "-notify"),
        ("-o", "-o /dev/null"),
        ("-j", "-j y"),
    ]


def _pbs(plan: Plan) -> tuple[str, list[tuple[str, str]]]:
    return "#PBS", [
        ("", f"-N {JOB_NAME}"),
        # an array of one is refused
        *([("", f"-J 1-{plan.count}")] if plan.count > 1 else []),
        ("-l select", f"-l select=1:ncpus={plan.cores}:mem={plan.memory_mb}mb"),
        ("-o", "-o /dev/null"),
        ("-j", "-j oe"),
    ]


def _torque(plan: Plan) -> tuple[str, list[tuple[str, str]]]:
    disk = f",file={_asked_disk_mb(plan.disk_mb)}mb" if plan.disk_mb else ""
    return "#PBS", [
        ("", f"-N {JOB_NAME}"),
        ("", f"-t 1-{plan.count}"),
        ("-l nodes", f"-l nodes=1:ppn={plan.cores},mem={plan.memory_mb}mb{disk}"),
        ("-o", "-o /dev/null"),
        ("-j", "-j oe"),
    ]


_DIRECTIVES = {"slurm": _slurm, "sge": _sge, "pbs": _pbs, "torque": _torque}


def _asked_disk_mb(disk_mb: int) -> int:
    """Return what to ask for: a worker ends when it finds less than it is to announce."""
    return disk_mb * 11 // 10


def _condor_description(plan: Plan) -> str:
    inputs = [plan.binary, *([plan.password_file] if plan.password_file else [])]
    for path in inputs:
        if set(str(path)) & set(',$"\n') or str(path).strip() != str(path):
            raise ConfigError(
                "HTCondor cannot transfer a file of this name.",
                items=[str(path)],
                cause="a comma, a dollar sign, a quote or a space at an end has a meaning there",
                fix="copy it to a folder with a plain name",
            )
    asked_mb = _asked_disk_mb(plan.disk_mb) if plan.disk_mb else _DISK_MB_PER_CORE * plan.cores
    lines = [
        "universe = vanilla",
        f"batch_name = {JOB_NAME}",
        f"executable = {SCRIPT}",
        "transfer_executable = true",
        "should_transfer_files = yes",
        "when_to_transfer_output = on_exit",
        f"transfer_input_files = {', '.join(map(str, inputs))}",
        'transfer_output_files = ""',
        "output = $(ClusterId).$(ProcId).log",
        "error = $(ClusterId).$(ProcId).log",
        "notification = never",
        f"request_cpus = {plan.cores}",
        f"request_memory = {plan.memory_mb}",
        f"request_disk = {asked_mb * 1024}",
        *plan.options,
        f"queue {plan.count}",
    ]
    return "\n".join(lines) + "\n"


def _condor_run(plan: Plan) -> list[str]:
    """Return how the worker is run where HTCondor has put its files: beside one another."""
    password = [shlex.quote(f"./{plan.password_file.name}")] if plan.password_file else []
    binary = f"./{shlex.quote(plan.binary.name)}"
    workdir = shlex.quote(str(plan.workdir)) if plan.workdir else '"$PWD"'
    vine = plan.binary.name == PROGRAMS["taskvine"]
    words = [
        *([f"env CCTOOLS_TEMP={workdir}"] if vine else []),
        binary,
        shlex.join(_options(plan)),
        *([] if vine else [f"--workdir {workdir}"]),
        *(f"--password {one}" for one in password),
        shlex.join(_manager(plan)),
    ]
    # jobs have none by default
    return ['export HOME="${HOME:-$PWD}"', f"chmod 700 {binary}", f"exec {' '.join(words)}"]
