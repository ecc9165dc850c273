"""What the process of a task runs inside: what a user may ask for, and what a worker is told."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.errors import ConfigError, misspelt
from hepscale.executor import cvmfs
from hepscale.executor.task import Interposed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hepscale.config import Settings
    from hepscale.errors import HepScaleError

__all__ = ["Interposer", "explain", "given", "interposed", "notices", "told"]

_KINDS = ("auto", "none", "userns", "parrot")
_WRITES = ("folder", "outputs")
_NO_FILE = re.compile(r"(?:FileNotFound|Permission)Error: .*'(/[^']+)'")
_NO_WRITING = re.compile(r"OSError: \[Errno 30\] .*'(/[^']+)'")


@dataclass(frozen=True)
class Interposer:
    """What tasks run inside.

    Attributes
    ----------
    kind
        "userns", a sandbox made of the kernel's namespaces: tasks see the system, their
        environment and their inputs, and write in their own folder; "parrot", the same made by
        ``parrot_run`` of the worker; "auto", the first of them that works on the worker, or none;
        "none".
    allow
        Paths that tasks see besides; "PATH:rw" is one that they may write to.
    network
        Whether they have the network of the worker.
    writes
        "folder": they may write in all of their folder; "outputs": only what HepScale reads, and
        their temporary folders.
    """

    kind: str = "auto"
    allow: Sequence[str] = ()
    network: bool = True
    writes: str = "folder"


def given(value: Interposer | str | None) -> dict[str, Any] | None:
    """Return an option as the settings have it; None: not given.

    Raises
    ------
    ConfigError
        It cannot be used.
    """
    if value is None:
        return None
    one = Interposer(value) if isinstance(value, str) else value
    if not isinstance(one, Interposer):
        raise ConfigError(
            f"interposer={value!r} cannot be used.",
            cause='it is a name, or an Interposer("auto", allow=[...])',
            fix='HepScaleExecutor(interposer="auto")',
        )
    if one.kind not in _KINDS:
        raise misspelt("interposer", one.kind, _KINDS, 'HepScaleExecutor(interposer="{}")')
    if one.writes not in _WRITES:
        raise misspelt("writes", one.writes, _WRITES, 'Interposer(writes="{}")')
    if isinstance(one.allow, str) or not isinstance(one.allow, Iterable):
        raise ConfigError(
            f"allow={one.allow!r} cannot be used.",
            cause="it is a list of paths",
            fix=f"Interposer(allow=[{str(one.allow)!r}])",
        )
    allow = tuple(map(str, one.allow))
    return {"kind": one.kind, "allow": allow, "network": one.network, "writes": one.writes}


def told(settings: Settings) -> dict[str, Any]:
    """Return what a forkserver is told of it, and of CVMFS.

    Raises
    ------
    ConfigError
        The settings of CVMFS cannot be used, or only with another interposer.
    """
    wanted = settings.interposer
    kind = wanted.kind or ("auto" if settings.cvmfs else "none")
    if settings.cvmfs and settings.cvmfs.how == "parrot":
        if kind not in ("auto", "parrot"):
            raise ConfigError(
                f"Parrot cannot give repositories to tasks of interposer={kind!r}.",
                cause='[cvmfs] has how = "parrot"',
                fix='HepScaleExecutor(interposer="parrot"), or CvmfsConfig(how="auto")',
            )
        kind = "parrot"
    if kind == "none" and not settings.cvmfs:
        return {"interposer": None, "cvmfs": None}
    return {
        "interposer": {
            "kind": kind,
            "allow": wanted.allow,
            "network": wanted.network,
            "writes": wanted.writes,
        },
        "cvmfs": cvmfs.for_workers(settings.cvmfs),
    }


def interposed(ready: Mapping[str, Any], ended: Mapping[str, Any]) -> Interposed:
    """Return what a task has run in, from what its forkserver has said."""
    inside, left = ready["interposer"], ended["left"]
    repositories = tuple(sorted(inside["cvmfs"].items()))
    return Interposed(inside["kind"], inside["why"], repositories, left["files"], left["bytes"])


def notices(inside: Mapping[str, Any]) -> list[str]:
    """Return what is said once of what tasks run in: "auto" has found nothing, an old revision."""
    fallback = [f"Tasks run without a sandbox: {inside['why']}."] if inside["why"] else []
    return [*fallback, *inside["notices"]]


def explain(error: HepScaleError, settings: Settings) -> None:
    """Say of a path that a task did not find, but that is here, how a sandbox shows it."""
    inside = told(settings)["interposer"]
    if inside is None or inside["kind"] == "none":
        return
    text = "\n".join(map(str, error.failed or error.items))
    found = _NO_WRITING.search(text)
    if found is not None:
        folder = Path(found[1]).parent
        error.cause = f"{found[1]} is outside of what the sandbox lets tasks write to"
        error.fix = f'HepScaleExecutor(interposer=Interposer(allow=["{folder}:rw"]))'
        return
    found = _NO_FILE.search(text)
    if found is not None and Path(found[1]).exists():
        error.cause = f"{found[1]} is outside of what the sandbox shows"
        error.fix = f'HepScaleExecutor(interposer=Interposer(allow=["{found[1]}"]))'
