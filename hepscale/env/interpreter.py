"""The Python interpreter whose environment is looked at: the running one, or another one."""

from __future__ import annotations

import inspect
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Interpreter", "of", "this"]

_OLDEST = (3, 11)
_MOST_SECONDS = 60
_MARK = "hepscale-interpreter "


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What has to be known of an interpreter to find what is installed for it.

    Attributes
    ----------
    executable
        The command that starts it; in a venv the link in the venv.
    base_executable
        The real binary.
    prefix, base_prefix
        ``sys.prefix`` and ``sys.base_prefix``; they differ in a venv.
    stdlib, platstdlib
        Folders of the standard library: the base interpreter's, in a venv too.
    version
        Such as ``3.11.7``.
    sites
        Folders of installed packages, in the order of ``sys.path``.
    site_below
        Where this interpreter, found below any prefix, looks for packages, relative to it.
    path
        ``sys.path`` without the empty entry.
    stdlib_names
        Top-level modules of the standard library and built-in modules.
    markers
        The variables that environment markers ask for, sorted.
    machine
        Such as ``x86_64``.
    conda
        Whether the prefix is a conda prefix.
    """

    executable: str
    base_executable: str
    prefix: str
    base_prefix: str
    stdlib: str
    platstdlib: str
    version: str
    sites: tuple[str, ...]
    site_below: str
    path: tuple[str, ...]
    stdlib_names: frozenset[str]
    markers: tuple[tuple[str, str], ...]
    machine: str
    conda: bool


def this() -> Interpreter:
    """Describe the interpreter of the running process, with ``sys.path`` as it is now."""
    return _interpreter(_facts())


def of(executable: str | Path) -> Interpreter:
    """Describe another interpreter, by running it.

    It is run isolated (``-I``): ``PYTHONPATH`` and the user's own site folder do not count.

    Parameters
    ----------
    executable
        A path, or a command to be found on ``PATH``.

    Raises
    ------
    ConfigError
        It cannot be run, is no Python, or is too old.
    """
    sources = [inspect.getsource(function) for function in (_sites, _markers, _facts)]
    program = "\n".join([*sources, "import json", f"print({_MARK!r} + json.dumps(_facts()))"])
    command = [str(executable), "-I", "-c", program]
    try:
        # No input: a shell script that is no Python would wait for it.
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MOST_SECONDS,
            check=False,
        )
    except (OSError, ValueError) as error:
        raise _unusable(executable, getattr(error, "strerror", None) or str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise _unusable(executable, f"no answer within {_MOST_SECONDS} s") from error
    # What a sitecustomize prints comes before.
    _, marked, answer = done.stdout.rpartition(_MARK)
    if done.returncode or not marked:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise _unusable(executable, *said, f"exit code {done.returncode}")
    try:
        facts = json.loads(answer)
    except ValueError as error:
        raise _unusable(executable, "its answer is damaged") from error
    version = tuple(int(part) for part in facts["version"].split(".")[:2])
    if version < _OLDEST:
        raise ConfigError(
            f"Python {facts['version']} is too old: workers need 3.11 or newer.",
            items=[str(executable)],
            fix="name another interpreter, or make the environment anew with a newer Python",
        )
    return _interpreter(facts)


def _unusable(executable: str | Path, *said: str) -> ConfigError:
    return ConfigError(
        f"{executable} cannot be used as a Python interpreter.",
        items=said,
        cause="it is not there, is no Python 3.11 or newer, or its installation is broken",
        fix=f"{executable} -I -c 'import sys; print(sys.version)'",
    )


def _interpreter(facts: dict[str, Any]) -> Interpreter:
    facts = {
        key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()
    }
    facts["stdlib_names"] = frozenset(facts["stdlib_names"])
    facts["markers"] = tuple(sorted(facts["markers"].items()))
    return Interpreter(**facts)


# The sources of the functions below are also run by other interpreters, old ones among them, so
# that these can be named in the error: nothing from outside, nothing newer than Python 3.6.


def _facts() -> dict:  # type: ignore[type-arg]
    import os
    import platform
    import sys
    import sysconfig

    executable = sys.executable or "/proc/self/exe"
    # In a venv, platstdlib would be the venv's.
    places = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    places.update(installed_base=sys.base_prefix, installed_platbase=sys.base_exec_prefix)
    names = set(getattr(sys, "stdlib_module_names", ())) | set(sys.builtin_module_names)
    stdlib = sysconfig.get_path("stdlib", vars=places)
    # that list leaves the tests out, wherever they are installed
    if os.path.isfile(os.path.join(stdlib, "test", "__init__.py")):
        names.add("test")
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    sites, below = _sites(path)
    return {
        "executable": executable,
        "base_executable": os.path.realpath(getattr(sys, "_base_executable", "") or executable),
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "stdlib": stdlib,
        "platstdlib": sysconfig.get_path("platstdlib", vars=places),
        "version": platform.python_version(),
        "sites": sites,
        "site_below": below,
        "path": path,
        "stdlib_names": sorted(names),
        "markers": _markers(),
        "machine": platform.machine(),
        "conda": os.path.isdir(os.path.join(sys.prefix, "conda-meta")),
    }


def _sites(path: list) -> tuple:  # type: ignore[type-arg]
    import os
    import site

    sites, seen = [], set()
    for entry in path:
        real = os.path.realpath(entry)
        names = {os.path.basename(entry), os.path.basename(real)}
        # On some systems lib64 is a link to lib, and both are on the path.
        if names & {"site-packages", "dist-packages"} and os.path.isdir(real) and real not in seen:
            seen.add(real)
            sites.append(entry)
    below = [os.path.relpath(entry, "/X") for entry in site.getsitepackages(["/X"])]
    # Debian's Python looks into dist-packages; in a venv, and only there, also into site-packages.
    debian = [entry for entry in below if entry.endswith("dist-packages")]
    debian = [entry for entry in debian if not entry.startswith("local")]
    return sites, (debian or below)[0]


def _markers() -> dict:  # type: ignore[type-arg]
    import os
    import platform
    import sys

    info = sys.implementation
    number = f"{info.version.major}.{info.version.minor}.{info.version.micro}"
    if info.version.releaselevel != "final":
        number += info.version.releaselevel[0] + str(info.version.serial)
    return {
        "implementation_name": info.name,
        "implementation_version": number,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "platform_python_implementation": platform.python_implementation(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }
