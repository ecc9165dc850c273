"""What the process of a task runs inside: what a user may ask for, and what a worker is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hepscale.config.model import InterposerKind, InterposerSettings, InterposerWrites
from hepscale.errors import ConfigError, misspelt
from hepscale.executor import cvmfs
from hepscale.executor.task import Interposed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hepscale.config import Settings
    from hepscale.errors import HepScaleError

__all__ = ["Interposer", "explain", "given", "interposed", "notices", "told"]

_KINDS, _WRITES = get_args(InterposerKind), get_args(InterposerWrites)
_NO_FILE = re.compile(r"FileNotFoundError: .*'(/[^']+)'")
_CLOSED = re.compile(r"PermissionError: .*'(/[^']+)'")
_NO_WRITING = re.compile(r"OSError: \[Errno 30\] .*'([^']+)'")
_NO_NETWORK = re.compile(r"Network is unreachable|Connection refused|name resolution")
_TOP = "/cvmfs"
_UNSAID = InterposerSettings()
_NO_CONTENT = "[Errno 5] Input/output error"


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
        The settings cannot be used, or only with another interposer.
    """
    wanted = settings.interposer
    kind = _kind(settings)
    for key in ("network", "writes"):
        value = getattr(wanted, key)
        if kind == "none" and value != getattr(_UNSAID, key):
            raise ConfigError(
                f"{key}={value!r} cannot be had with interposer='none'.",
                cause="nothing but a sandbox keeps tasks from it",
                fix='HepScaleExecutor(interposer="userns")',
            )
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


def _kind(settings: Settings) -> str:
    is_asked_for = settings.cvmfs or settings.interposer != _UNSAID
    return settings.interposer.kind or ("auto" if is_asked_for else "none")


def interposed(ready: Mapping[str, Any], ended: Mapping[str, Any]) -> Interposed:
    """Return what a task has run in, from what its forkserver has said."""
    inside, left = ready["interposer"], ended["left"]
    repositories = tuple(sorted(inside["cvmfs"].items()))
    return Interposed(inside["kind"], inside["why"], repositories, left["files"], left["bytes"])


def notices(inside: Mapping[str, Any]) -> list[str]:
    """Return what is said once of what tasks run in: "auto" has found nothing, an old revision."""
    fallback = [f"Tasks run without a sandbox: {inside['why']}."] if inside["why"] else []
    return [*fallback, *inside["notices"]]


def explain(error: HepScaleError, settings: Settings, kinds: Iterable[str]) -> None:
    """Say of what a task could not find, write or reach how a sandbox, or CVMFS, gives it.

    Parameters
    ----------
    error
        What ended the run; cause and fix are changed.
    settings
        Of the run.
    kinds
        What its tasks have run inside, which "auto" does not say.
    """
    text = "\n".join(map(str, error.failed or error.items))
    found = _NO_FILE.search(text)
    missing = found[1] if found else ""
    advice = _of_repository(text, missing, settings)
    if advice is None and any(kind != "none" for kind in kinds):
        advice = _of_sandbox(text, missing, settings)
    if advice is not None:
        error.cause, error.fix = advice


def _of_repository(text: str, missing: str, settings: Settings) -> tuple[str, str] | None:
    """Return cause and fix of a failure that is one of CVMFS."""
    names = [one.name for one in settings.cvmfs.repositories]
    top, _, path = missing.removeprefix(f"{_TOP}/").partition("/")
    if not missing.startswith(f"{_TOP}/"):
        if not names or _NO_CONTENT not in text:
            return None
        cause = "a file below /cvmfs, if it was one, that no cache has and no server gives"
        return cause, f"hepscale cvmfs cat {names[0]} PATH  (says which server, and why)"
    if top in names:
        folder = f"/{path.rpartition('/')[0]}"
        return f"{top} has no such file", f"hepscale cvmfs ls {top} {folder}"
    if cvmfs.unreachable([top], settings.cvmfs):
        cause = f"the repository {top} is neither configured nor mounted here"
        return cause, f'HepScaleExecutor(cvmfs=CvmfsConfig(repositories=["{top}"], ...))'
    return None


def _of_sandbox(text: str, missing: str, settings: Settings) -> tuple[str, str] | None:
    """Return cause and fix of a failure that is one of the sandbox."""
    wanted = settings.interposer
    closed = _CLOSED.search(text)
    found = _NO_WRITING.search(text) or closed
    path = Path(found[1] if found else missing)
    if found and path.is_absolute():
        cause = f"{path} is outside of what the sandbox lets tasks write to"
        cause += ", or belongs to somebody else" * (found is closed)
        return cause, _with(settings, allow=(*wanted.allow, f"{path.parent}:rw"))
    if found and wanted.writes == "outputs":
        cause = 'writes="outputs" lets tasks write in temporary folders only'
        return cause, _with(settings, writes="folder")
    if missing and path.exists():
        if any(path.is_relative_to(one.removesuffix(":rw")) for one in wanted.allow):
            cause = f"{path} may be seen, but the worker has no such file or may not read it"
            return cause, f'HepScaleExecutor(files=["{path}"]) sends it along'
        cause = f"{path} is outside of what the sandbox shows"
        return cause, _with(settings, allow=(*wanted.allow, str(path)))
    if not wanted.network and _NO_NETWORK.search(text):
        return "network=False: the sandbox has no network", _with(settings, network=True)
    return None


def _with(settings: Settings, **changed: Any) -> str:
    """Return how the sandbox of these settings is asked for with something else in it."""
    old = settings.interposer
    one = Interposer(old.kind or "auto", old.allow, old.network, old.writes)
    new, default = replace(one, **changed), Interposer()
    parts = [f'"{new.kind}"'] if new.kind != default.kind else []
    parts += [f"allow={json.dumps(list(new.allow))}"] if new.allow else []
    parts += [f"network={new.network}"] if new.network != default.network else []
    parts += [f'writes="{new.writes}"'] if new.writes != default.writes else []
    return f"HepScaleExecutor(interposer=Interposer({', '.join(parts)}))"
