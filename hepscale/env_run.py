"""``hepscale env run`` and ``env diff``: commands in a packed environment, and what differs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.config import load_settings
from hepscale.env import api, archive, environment
from hepscale.env.snapshot import digest, snapshot
from hepscale.env.spec import Spec
from hepscale.executor.engines import warm
from hepscale.worker import READY, scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hepscale.env.environment import Environment, Tell
    from hepscale.env.local import LocalModule

__all__ = ["prepare", "spec_of"]


def prepare(
    what: str, command: Sequence[str], closure: environment.Closure, tell: Tell
) -> tuple[list[str], dict[str, str]]:
    """Return what to execute, with which variables, to run a command in an environment.

    The environment is packed here, if need be, and unpacked by what is executed.

    Parameters
    ----------
    what
        A packed environment (``.tar.gz``, ``.tar.zst``), or a script or notebook whose
        environment is meant.
    command
        The program and its arguments.
    closure
        See :func:`hepscale.pack`.
    tell
        Is told the progress of packing.

    Raises
    ------
    InputError, ConfigError, PackError
        The environment cannot be made.
    """
    settings = load_settings()
    store = settings.cache_dir / "unpacked"
    modules: tuple[LocalModule, ...] = ()
    if archive.is_archive(what):
        made: Environment = archive.take(Path(what), api.store())
        # what unpacks it would speak of tasks; of a .tar.zst all has been read
        if what.endswith("gz") and not (store / made.digest / READY).exists():
            archive.verify(Path(what))
    else:
        found = api.analyze(what)
        modules = found.need.modules
        made = environment.build(api.planned(found), api.store(), closure, tell)
    environ = warm.worker_environ(warm.unpacked(settings, made))
    if modules:
        environ["PYTHONPATH"] = str(_copy(modules, store))
    about = store / f"{made.digest}.txt"
    about.parent.mkdir(parents=True, exist_ok=True)
    return warm.from_layers(made, settings, about, ["--", *command]), environ


def _copy(modules: Iterable[LocalModule], store: Path) -> Path:
    """Return a copy of local modules that stays for as long as this process runs."""
    folder = store / f"code-{digest(modules)}"
    while not _hold(folder):
        # whole or not at all; what a killed process leaves under this name is swept away
        begun = store / f".new-code-{os.uname().nodename}-{os.getpid()}"
        snapshot(modules, begun)
        (begun / READY).touch()
        try:
            begun.rename(folder)
        except OSError:
            # somebody was faster; or it is the rest of one that was removed
            if not (folder / READY).exists():
                shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(begun, ignore_errors=True)
    return folder


def _hold(folder: Path) -> bool:
    """Lock what was unpacked, so that nobody removes it; what is executed next keeps the lock."""
    mark = scratch.hold_environment(str(folder))
    if mark >= 0:
        os.set_inheritable(mark, True)
    return mark >= 0


def spec_of(what: str) -> Spec:
    """Return what an environment consists of.

    Parameters
    ----------
    what
        The beginning of a digest that ``hepscale env list`` shows, a packed environment, or a
        script or notebook.

    Raises
    ------
    ConfigError, InputError, PackError
        There is none, or it cannot be read.
    """
    if archive.is_archive(what):
        return archive.spec(Path(what))
    if Path(what).suffix in {".py", ".ipynb"}:
        return environment.describe(api.planned(api.analyze(what)), api.store())
    return Spec.from_json(api.store().environment(what)["spec"])
