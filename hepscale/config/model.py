"""Which settings there are, with their types and defaults."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from hepscale.config.cvmfs import CvmfsSettings
from hepscale.config.table import Count, Folder, Table

__all__ = [
    "PATHS",
    "RUN_OPTIONS",
    "SHORT",
    "TABLES",
    "InterposerKind",
    "InterposerSettings",
    "InterposerWrites",
    "Settings",
    "WorkersSettings",
    "home",
]

InterposerKind: TypeAlias = Literal["auto", "none", "userns", "parrot"]
InterposerWrites: TypeAlias = Literal["folder", "outputs"]

_LAST_PORT = 65535


def home() -> Path | None:
    """Return the user's home; None in a container whose user has none."""
    try:
        # without the variable pathlib asks the system; with an empty one it would say "/"
        return Path.home() if os.environ.get("HOME", "unset") else None
    except RuntimeError:
        return None


def _cache_home() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "hepscale"
    folder = home()
    if folder is None:
        return Path(tempfile.gettempdir()) / f"hepscale-cache-{os.getuid()}"
    return folder / ".cache" / "hepscale"


def _words(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


def _lines(value: Any) -> Any:
    return value.splitlines() if isinstance(value, str) else value


def _ports(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        low, _, high = value.partition("-")
        if not (low.strip().isdecimal() and (high or low).strip().isdecimal()):
            raise ValueError('it is a port, or a range of them: 9123, "9000-9100"')
        return (int(low), int(high or low))
    return value


def _range(ports: tuple[int, int]) -> tuple[int, int]:
    low, high = ports
    if not 0 < low <= high <= _LAST_PORT:
        raise ValueError(f"ports are 1 to {_LAST_PORT}, the lower one first")
    return ports


def _shown(text: str) -> str:
    path = Path(text.removesuffix(":rw")).expanduser()
    if not path.is_absolute() or os.path.normpath(path) == "/":
        raise ValueError("a path that tasks see is absolute, and not all that there is")
    return f"{path}:rw" if text.endswith(":rw") else str(path)


_Ports = Annotated[tuple[int, int], BeforeValidator(_ports), AfterValidator(_range)]
_Shown = Annotated[str, AfterValidator(_shown)]


class WorkersSettings(Table):
    """Workers that are started for the user.

    Attributes
    ----------
    batch
        Who starts them.
    count
        How many; 0: none, somebody else starts them.
    cores, memory_mb, disk_mb
        What each of them has; None: what the batch system gives.
    options
        Options that the batch system is given as they are; a text is split as a shell does.
    setup
        Lines of shell that are run before a worker starts; a text is split into its lines.
    workdir
        Folder for workspaces on the workers' machines; variables in it are theirs.
    """

    batch: Literal["local", "slurm", "condor", "sge", "pbs", "torque"] = "local"
    count: Annotated[int, Field(ge=0)] = 0
    cores: Count = 1
    memory_mb: Count | None = None
    disk_mb: Count | None = None
    options: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    setup: Annotated[tuple[str, ...], BeforeValidator(_lines)] = ()
    workdir: str | None = None


class InterposerSettings(Table):
    """What the process of a task runs inside.

    Attributes
    ----------
    kind
        "userns", "parrot", "none", or "auto": what works on the worker; None: "none", or "auto"
        where there are repositories to be had, or anything of the following is asked for.
    allow
        Absolute paths that tasks see besides, "PATH:rw" one that they may write to; a text is
        split as a shell does.
    network
        Whether they have the network of the worker.
    writes
        What they may write to: all of their folder, or only their outputs.
    """

    kind: InterposerKind | None = None
    allow: Annotated[tuple[_Shown, ...], BeforeValidator(_words)] = ()
    network: bool = True
    writes: InterposerWrites = "folder"


class Settings(Table):
    """What a user or a site may set once for all runs.

    Attributes
    ----------
    site
        The profile that was chosen; empty: none.
    engine
        Who runs tasks.
    name
        Under which name workers find the manager; None: one is made for each run.
    port
        Ports that the manager may listen on, the first and the last; None: any.
    password_file
        What workers prove to know; None: a password is made for each run.
    send_credentials
        Whether proxies and tokens of the user are sent to the workers.
    http_proxy
        Proxy that the workers use.
    interposer
        What the process of a task runs inside; a text is its kind.
    workers
        Workers that are started for the user.
    cvmfs
        Repositories for the workers, and how these get at them.
    cache_dir
        Packed environments, demo data and other things that can be made again.
    run_dir
        Journals of runs; what a restarted kernel resumes from.
    scratch_dir
        Workers' sandboxes; everything below it is removed when its worker ends.
    idle_s
        Seconds after which a warm worker without work ends.
    keep_runs
        How many journals are kept; the oldest are removed first.
    keep_environments
        How many packed environments are kept, with what this machine's workers have unpacked.
    """

    site: str = ""
    engine: Literal["local", "workqueue", "taskvine"] = "local"
    name: str | None = None
    port: _Ports | None = None
    password_file: Folder | None = None
    send_credentials: bool = True
    http_proxy: str | None = None
    interposer: InterposerSettings = InterposerSettings()
    workers: WorkersSettings = WorkersSettings()
    cvmfs: CvmfsSettings = CvmfsSettings()
    cache_dir: Folder = Field(default_factory=_cache_home)
    run_dir: Folder = Field(default_factory=lambda: _cache_home() / "runs")
    scratch_dir: Folder = Field(default_factory=lambda: Path(tempfile.gettempdir()))
    idle_s: float = Field(default=300.0, gt=0)
    keep_runs: int = Field(default=8, ge=1)
    keep_environments: int = Field(default=8, ge=1)


# keys of tables within the settings
TABLES = {
    "cvmfs": frozenset(CvmfsSettings.model_fields),
    "interposer": frozenset(InterposerSettings.model_fields),
    "workers": frozenset(WorkersSettings.model_fields),
}
# tables for which one value may stand: that of this key
SHORT = {"interposer": "kind"}
# options of the executor that belong to an analysis, not to a place
RUN_OPTIONS = frozenset(
    {"closure", "cores", "environment", "exclude_packages", "extra_packages", "files", "memory_mb"}
    | {"interval_s", "on_partial", "resume", "retries", "wall_s", "watch"}
)
# in a file they are relative to its folder
PATHS = frozenset(
    {("cache_dir",), ("run_dir",), ("scratch_dir",), ("password_file",)}
    | {("cvmfs", "config"), ("cvmfs", "keys"), ("cvmfs", "repositories", "keys")}
)
