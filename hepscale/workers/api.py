"""`Workers`: a description of workers that can be started and stopped."""

from __future__ import annotations

import atexit
import os
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hepscale import machine
from hepscale.config import Settings, load_settings
from hepscale.errors import ConfigError, EngineError, misspelt
from hepscale.workers import groups, records
from hepscale.workers.checks import check_workdir, checked_password
from hepscale.workers.plan import BATCH_SYSTEMS, BatchName, Plan, beyond, parse_address
from hepscale.workers.version import PROGRAMS, check_protocol, find_worker, worker_version

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence

    from hepscale.workers.records import Group

__all__ = ["Workers", "beyond_machine"]

# what a core of the grid's sites comes with
_BATCH_MB_PER_CORE = 2000
# of the workers of this machine, when their parent is killed
_MOST_RESTARTS = 3


@dataclass(slots=True)
class _Started:
    """What a `Workers` has started.

    Attributes
    ----------
    group
        Its record.
    process
        The supervisor of workers of this machine.
    pid
        The process that has started it; a fork of it is not the owner.
    told
        The last news of them.
    again
        Starts them again.
    restarts
        How often that was done since somebody asked for them.
    """

    group: Group | None = None
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0
    told: str = ""
    again: Callable[[], None] | None = None
    restarts: int = 0


@dataclass(frozen=True, eq=False)
class Workers:
    """Workers of Work Queue or TaskVine, described; they run from `start` to `stop`.

    They belong to the process that has started them, and end with it: those of this machine within
    seconds, however it ended; those of a batch system a minute after their manager has gone.

    Parameters
    ----------
    batch
        Who starts them: ``"local"`` (this machine), ``"slurm"``, ``"condor"``, ``"sge"``,
        ``"pbs"`` or ``"torque"``.
    count
        How many.
    cores
        Of each worker.
    memory_mb
        Of each worker. None: on this machine an equal share, elsewhere 2000 MB a core.
    disk_mb
        That each worker announces; it ends should less be free. None: what it finds; HTCondor is
        then asked for 10,000 MB a core.
    options
        Lines for the batch system, as they would follow ``#SBATCH``, ``#$`` or ``#PBS``
        (``"--partition=short"``, ``"-q long"``), or stand in HTCondor's submit description
        (``'+JobFlavour = "longlunch"'``).
    setup
        Shell commands that run before each worker of a batch system.
    workdir
        Folder for the workers' files. None: the scratch folder of this machine, elsewhere the
        temporary folder of the job.
    idle_s
        Seconds without work after which a worker ends.

    Raises
    ------
    ConfigError
        If one of these cannot be used.

    Examples
    --------
    >>> with Workers("local", count=2) as workers:  # doctest: +SKIP
    ...     workers.start("127.0.0.1:9123", "password")
    """

    batch: BatchName = "local"
    _: KW_ONLY
    count: int = 1
    cores: int = 1
    memory_mb: int | None = None
    disk_mb: int | None = None
    options: Sequence[str] = ()
    setup: Sequence[str] = ()
    workdir: str | os.PathLike[str] | None = None
    idle_s: int = 900
    _started: _Started = field(default_factory=_Started, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch not in BATCH_SYSTEMS:
            raise misspelt("batch system", self.batch, BATCH_SYSTEMS, 'Workers("{}")')
        for name in ("count", "cores", "memory_mb", "disk_mb", "idle_s"):
            value = getattr(self, name)
            optional = name.endswith("_mb") and value is None
            if not optional and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"Workers: {name}={value!r} cannot be used.",
                    cause="it is not a whole number above zero",
                    fix=f"give {name} another value",
                )
        for name in ("options", "setup"):
            lines = getattr(self, name)
            lines = (lines,) if isinstance(lines, str) else tuple(lines)
            if any(set(line) & set("\n\r\0") for line in lines):
                raise ConfigError(
                    f"Workers: one of {name} has more than one line.",
                    items=[repr(line) for line in lines],
                    fix="give each line as a text of its own",
                )
            object.__setattr__(self, name, lines)
        if self.batch == "local" and (self.options or self.setup):
            raise ConfigError(
                "Workers: options and setup are for batch systems.",
                cause="workers of this machine have the variables of the process that starts them",
                fix='leave them out, or choose another batch than "local"',
            )

    def plan(
        self,
        address: str,
        password_file: str | os.PathLike[str] | None = None,
        *,
        ssl: bool = False,
        program: str = PROGRAMS["workqueue"],
        settings: Settings | None = None,
    ) -> Plan:
        """Return what `start` would start; nothing is written.

        Parameters
        ----------
        address
            ``HOST:PORT`` of the manager, or its name in the catalog.
        password_file
            What it asks for; None: nothing.
        ssl
            Whether it speaks TLS.
        program
            The worker's, of Work Queue or TaskVine.
        settings
            Where scratch folders and records go; None: those of this process.

        Raises
        ------
        ConfigError
            If the address, the password file or a folder cannot be used.
        EngineError
            If there is no worker program.
        """
        settings = settings or load_settings()
        parsed = parse_address(address)
        password = None if password_file is None else checked_password(Path(password_file))
        binary = find_worker(program)
        workdir = None if self.workdir is None else Path(self.workdir).expanduser().absolute()
        local = self.batch == "local"
        used = (workdir or settings.scratch_dir) if local else workdir
        if used is not None:
            check_workdir(used)
        memory_mb = self.memory_mb
        if memory_mb is None:
            memory_mb = (
                machine.memory_limit_bytes() // 2**20 // self.count
                if local
                else _BATCH_MB_PER_CORE * self.cores
            )
        return Plan(
            batch=self.batch,
            count=self.count,
            cores=self.cores,
            memory_mb=memory_mb,
            disk_mb=self.disk_mb,
            options=tuple(self.options),
            setup=tuple(self.setup),
            workdir=workdir,
            idle_s=self.idle_s,
            binary=binary,
            address=parsed,
            password_file=password,
            catalog=_catalog(),
            ssl=ssl,
            folder=groups.new_folder(settings),
        )

    def start(
        self,
        address: str,
        password_file: str | os.PathLike[str] | None = None,
        *,
        ssl: bool = False,
        protocol: int | None = None,
        program: str = PROGRAMS["workqueue"],
        settings: Settings | None = None,
    ) -> None:
        """Start the workers; returns when they are started or queued, before they are connected.

        Parameters
        ----------
        address
            ``HOST:PORT`` of the manager, or its name in the catalog.
        password_file
            What it asks for, with mode 0600; batch jobs read it where it is, HTCondor sends it.
        ssl
            Whether it speaks TLS.
        protocol
            Version of its protocol; None: not checked.
        program
            The worker's, of Work Queue or TaskVine.
        settings
            Where scratch folders and records go; None: those of this process.

        Raises
        ------
        ConfigError
            If the address, the password file or a folder cannot be used.
        EngineError
            If they run already, there is no worker program, it speaks another protocol, or the
            batch system refuses.
        RunDirectoryError
            If their record or their scratch folder cannot be written.
        """
        if self._started.group is not None:
            raise EngineError(
                "These workers are started already.",
                items=[f"{self._started.group.id} for {self._started.group.address}"],
                cause="one description cannot serve two runs at the same time",
                fix="stop() them first, or make another Workers(...)",
            )
        settings = settings or load_settings()
        plan = self.plan(address, password_file, ssl=ssl, program=program, settings=settings)
        if protocol is not None:
            check_protocol(worker_version(plan.binary), protocol)
        groups.sweep(settings)
        started = self._started
        started.group, started.process = groups.start(plan, settings, owned=True)
        started.pid, started.told, started.restarts = os.getpid(), "", 0
        started.again = partial(
            self.start,
            address,
            password_file,
            ssl=ssl,
            protocol=protocol,
            program=program,
            settings=settings,
        )
        atexit.register(self.stop)

    def alive(self) -> int:
        """Return how many workers wait or run.

        Raises
        ------
        EngineError
            If the batch system does not say.
        """
        return groups.alive(self._started.group) if self._started.group is not None else 0

    def said(self) -> str:
        """Return what the workers have written; a worker writes most of it when it ends."""
        return groups.said(self._started.group) if self._started.group is not None else ""

    def news(self) -> str:
        """Return, once, what a user should know of those of this machine; else nothing.

        If their parent was killed, with which they end, they are started again.

        Raises
        ------
        EngineError
            If all of them were killed, again and again, or cannot be started again.
        """
        started = self._started
        if started.group is None or self.batch != "local":
            return ""
        if started.process is not None and (started.process.poll() or 0) < 0:
            return self._start_again()
        here = records.here(started.group)
        if here.given_up and not here.workers:
            raise _killed([line for line in self.said().splitlines() if "hepscale: " in line])
        text = ""
        if here.given_up:
            text = "Workers of this machine are killed again and again: no more are started."
        elif here.killed:
            text = (
                "A worker of this machine was killed, perhaps for want of memory. "
                "Others are started in place of such."
            )
        if text == started.told:
            return ""
        started.told = text
        return text

    def _start_again(self) -> str:
        started = self._started
        if self.alive():
            return ""
        assert started.again is not None
        times = started.restarts + 1
        if times > _MOST_RESTARTS:
            raise _killed([f"their parent, {times} times"])
        self.stop()
        started.again()
        started.restarts = times
        return (
            "The parent of the workers of this machine was killed, perhaps for want of memory: "
            f"{self.count} are started again ({times} of {_MOST_RESTARTS} times)."
        )

    def stop(self) -> None:
        """End the workers and forget them; does nothing if there are none.

        Raises
        ------
        EngineError
            If the batch system does not cancel them; it may be called again then.
        """
        started = self._started
        if started.group is None or started.pid != os.getpid():
            return
        if started.process is not None:
            groups.end_process(started.process)
        groups.stop(started.group)
        started.group = started.process = None
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _killed(items: Sequence[str]) -> EngineError:
    return EngineError(
        "The workers of this machine are killed again and again.",
        items=items[-3:],
        cause="the machine has too little memory for so many",
        fix="Workers(count=<fewer>); dmesg says whom the kernel has killed",
    )


def beyond_machine(count: int, cores: int, memory_mb: int | None) -> list[str]:
    """Return a sentence for each thing of which so many workers are to have more than is here.

    Parameters
    ----------
    count
        How many there are, or slots.
    cores, memory_mb
        Of each; None: what there is.
    """
    return beyond(
        count * cores,
        memory_mb and count * memory_mb,
        has_cores=machine.usable_cores(),
        has_memory_mb=machine.memory_limit_bytes() // 2**20,
    )


def _catalog() -> str:
    """Return the catalog server that the variables of cctools name, for jobs without them."""
    host, port = os.environ.get("CATALOG_HOST", ""), os.environ.get("CATALOG_PORT", "")
    return f"{host}:{port}" if host and port else host
