"""A real Slurm of one node on this machine, for as long as a test needs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import support

if TYPE_CHECKING:
    from collections.abc import Iterator

_DAEMONS = ("munged", "slurmctld", "slurmd")
_CORES = 4
_MEMORY_MB = 4000

_CONFIG = """\
ClusterName=hepscale
SlurmctldHost={host}({address})
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
PlugStackConfig={folder}/plugstack.conf
ReturnToService=2
KillWait=5
MinJobAge=10
NodeName={host} NodeAddr={address} CPUs={cores} RealMemory={memory_mb} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs; its commands find it by ``SLURM_CONF``."""

    folder: Path
    config: Path

    def ask(self, *command: str) -> str:
        """Return what one of its commands prints."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "SLURM_CONF": str(self.config)},
        )
        return done.stdout.strip()


def missing() -> str:
    """Return why Slurm cannot be started here; empty if it can."""
    if os.geteuid():
        return "only root can start Slurm"
    absent = [one for one in (*_DAEMONS, "sbatch") if not shutil.which(one)]
    return f"{', '.join(absent)} not installed; make system" if absent else ""


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start Slurm with all its files below `folder`, whose path has to be short; end it after."""
    if why := missing():
        pytest.skip(why)
    # munge wants folders that nobody else may write
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "plugstack.conf").touch()
    slurm = Slurm(folder, folder / "slurm.conf")
    with ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        numbers = [port.getsockname()[1] for port in ports]
        stack.pop_all().close()
    host = socket.gethostname().partition(".")[0]
    slurm.config.write_text(
        _CONFIG.format(
            folder=folder,
            host=host,
            address="127.0.0.1",
            controller_port=numbers[0],
            daemon_port=numbers[1],
            cores=_CORES,
            memory_mb=_MEMORY_MB,
        )
    )
    with ExitStack() as stack:
        for command in _commands(folder):
            stack.enter_context(_daemon(command, slurm))
            if command[0] == "munged":
                support.wait_for((folder / "munge/socket").exists)
        support.wait_for(lambda: _state(slurm) == "idle")
        try:
            yield slurm
        finally:
            slurm.ask("scancel", "--user=root")
            support.wait_for(lambda: not slurm.ask("squeue", "--noheader"))


def _commands(folder: Path) -> list[list[str]]:
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log",
             "seed-file": "seed"}  # fmt: skip
    munge = [f"--{option}={folder}/munge/{name}" for option, name in files.items()]
    return [
        ["munged", "--foreground", *munge],
        ["slurmctld", "-D", "-c", "-f", str(folder / "slurm.conf")],
        ["slurmd", "-D", "-c", "-f", str(folder / "slurm.conf")],
    ]


@contextmanager
def _daemon(command: list[str], slurm: Slurm) -> Iterator[None]:
    with open(slurm.folder / f"{command[0]}.out", "wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            cwd=slurm.folder,
            env={**os.environ, "SLURM_CONF": str(slurm.config)},
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _state(slurm: Slurm) -> str:
    try:
        return slurm.ask("sinfo", "--noheader", "--format=%T")
    except subprocess.CalledProcessError:
        return ""
