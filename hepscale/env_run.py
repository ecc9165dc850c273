"""``hepscale env run`` and ``env diff``: commands in a packed environment, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hepscale.config import load_settings
from hepscale.env import api, archive, environment
from hepscale.env.snapshot import digest, snapshot
from hepscale.env.spec import Spec
from hepscale.executor.engines import warm

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    modules: tuple[LocalModule, ...] = ()
    if archive.is_archive(what):
        made: Environment = archive.take(Path(what), api.store())
    else:
        found = api.analyze(what)
        modules = found.need.modules
        made = environment.build(api.planned(found), api.store(), closure, tell)
    environ = warm.worker_environ(warm.unpacked(settings, made))
    if modules:
        folder = settings.cache_dir / "unpacked" / f"code-{digest(modules)}"
        if not folder.exists():
            snapshot(modules, folder)
        environ["PYTHONPATH"] = str(folder)
    about = settings.cache_dir / "unpacked" / f"{made.digest}.txt"
    about.parent.mkdir(parents=True, exist_ok=True)
    return warm.from_layers(made, settings, about, ["--", *command]), environ


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
