"""Where an analysis stands: a script, a notebook's file, or the cells that a kernel has executed.

Files are read, never run.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import tokenize
import warnings
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepscale.env.imports import examine
from hepscale.env.local import is_installed
from hepscale.env.units import Note, Unit
from hepscale.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Note", "Sources", "Unit", "from_file", "running"]

log = logging.getLogger(__name__)

_SKIPPED_TAG = "skip-execution"
_FAILING_TAG = "raises-exception"


@dataclass(frozen=True, slots=True)
class Sources:
    """The code of one analysis.

    Attributes
    ----------
    units
        Cells, scripts, and what these run with ``%run``.
    folder
        Local modules are looked for there first; None where nothing is known of the code's place.
    notes
        What could not be read.
    paths
        Folders that the code itself adds to ``sys.path`` or changes to, if they are there: local
        modules are looked for in these as well.
    running
        Whether it is the code of this process, whose modules count first.
    """

    units: tuple[Unit, ...]
    folder: Path | None
    notes: tuple[Note, ...]
    paths: tuple[Path, ...] = ()
    running: bool = False


def from_file(path: str | os.PathLike[str]) -> Sources:
    """Read a script (``.py``) or a notebook (``.ipynb``).

    Code cells that are not empty are numbered from 1. Those with the tag ``skip-execution`` are
    left out and not numbered, as in ``hepscale run``.

    Raises
    ------
    InputError
        If the file is missing, is neither of these, cannot be read, or is a notebook of another
        language.
    """
    path = Path(path)
    if path.suffix not in {".ipynb", ".py"}:
        raise InputError(
            "Imports are read from a notebook (.ipynb) or a script (.py).",
            items=(str(path),),
            fix="hepscale env analyze analysis.ipynb",
        )
    if not path.is_file():
        raise InputError(
            "There is no such file.",
            items=(str(path),),
            cause="it is a folder"
            if path.is_dir()
            else "the name is misspelt, or in another folder",
            fix=f"ls {path.absolute().parent}",
        )
    units, notes = _units(path)
    # Python puts the folder of the script itself on sys.path, a kernel starts in the link's.
    place = path.absolute() if path.suffix == ".ipynb" else path.resolve()
    if not any(unit.source.strip() for unit in units):
        text = "there is no code in it"
        notes.append(Note(path.name, text, "save the file, if its code is new"))
    return _completed(units, place.parent, notes, [place.parent])


def running() -> Sources:
    """Return the code that is running: a kernel's executed cells, or the script's file.

    Cells of the notebook's file, where that is known, come first; those that the kernel has not
    executed, and executed ones that failed, are not `certain`. Never raises.
    """
    try:
        return _running()
    except Exception as error:
        log.warning("The running code cannot be read: %s", error, exc_info=True)
        text = f"the running code cannot be read: {error}"
        return Sources((), None, (Note("the running code", text, 'extra_packages=["NAME"]'),))


# -- files ---------------------------------------------------------------------------------------


def _units(path: Path) -> tuple[list[Unit], list[Note]]:
    """Read any file that can be run, whatever its name ends in."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The file cannot be read: {error.strerror or error}.",
            items=(str(path),),
            cause="its permissions, or its file system went away",
            fix=f"ls -l {path}",
        ) from error
    place = str(path.absolute())
    if path.suffix == ".ipynb":
        return _cells(path, data), []
    text, line, problem = _decoded(data)
    notes = []
    if problem:
        fix = "save the file as UTF-8; Python refuses it as it is"
        notes.append(Note(f"{path.name}, line {line}", problem, fix))
    return [Unit(path.name, text, place, is_cell=path.suffix == ".ipy")], notes


def _units_or_note(path: Path, where: str) -> tuple[list[Unit], list[Note]]:
    try:
        return _units(path)
    except InputError as error:
        text = f"{error.fact} {error.cause}" if error.cause else error.fact
        return [], [Note(where, f"{path.name}: {text}", error.fix)]


def _decoded(data: bytes) -> tuple[str, int, str]:
    """Return the text of a script, and the line and the text of what is wrong with its encoding."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding), 0, ""
    except (SyntaxError, LookupError, UnicodeDecodeError) as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        text = data.decode("utf-8-sig", "replace")
        return text, data.count(b"\n", 0, at) + 1, f"its encoding is wrong: {error}"


def _cells(path: Path, data: bytes) -> list[Unit]:
    units: list[Unit] = []
    try:
        notebook = _notebook(data)
        _refuse_other_language(path, notebook.get("metadata", {}))
        for cell in notebook["cells"]:
            source = cell["source"] if cell["cell_type"] == "code" else ""
            source = source if isinstance(source, str) else "".join(source)
            metadata = cell.get("metadata", {})
            tags = metadata.get("tags", ())
            if not source.strip() or _SKIPPED_TAG in tags:
                continue
            unit = Unit(
                f"cell {len(units) + 1}",
                source if _is_python(metadata) else "",
                str(path.absolute()),
                is_cell=True,
                certain=_FAILING_TAG not in tags,
            )
            units.append(unit)
    except ValueError as error:
        reason = str(error).partition("\n")[0][:200]
        raise _no_notebook(path, reason or "it is not JSON") from error
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _no_notebook(path, "it is JSON, but not a notebook") from error
    return units


def _notebook(data: bytes) -> Any:
    text = data.decode("utf-8-sig")
    if not text.strip():
        raise ValueError("it is empty")
    notebook = json.loads(text)
    version = notebook["nbformat"]
    if version > 4:
        raise ValueError(f"its format, {version}, is newer than this release knows")
    if version == 4:
        return notebook
    # Slow to import, and only notebooks from before 2015 need it.
    import nbformat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]


def _no_notebook(path: Path, cause: str) -> InputError:
    return InputError(
        "The notebook cannot be read.",
        items=(str(path),),
        cause=cause,
        fix="open and save it in Jupyter, or restore an earlier version",
    )


def _refuse_other_language(path: Path, metadata: Any) -> None:
    told = metadata.get("language_info", {}).get("name")
    told = told or metadata.get("kernelspec", {}).get("language") or "python"
    if told.lower() not in {"python", "python3", "ipython"}:
        raise InputError(
            f"The notebook's language is {told}, not Python.",
            items=(str(path),),
            cause="it was saved with a kernel of that language",
            fix="choose a Python kernel in Jupyter and save the notebook",
        )


def _is_python(metadata: Any) -> bool:
    """Return whether a cell is Python: VS Code has cells of other languages in one notebook."""
    language = metadata.get("vscode", {}).get("languageId", "python")
    return str(language) == "python"


# -- what %run runs ------------------------------------------------------------------------------


def _completed(
    units: Iterable[Unit], folder: Path | None, notes: Iterable[Note], places: list[Path]
) -> Sources:
    """Add the scripts that ``%run`` runs, looked for in `places`, and those that they run."""
    notes, found = list(notes), list(units)
    waiting = deque(found)
    known = {unit.path for unit in found}
    paths: dict[Path, None] = {}
    while waiting:
        unit = waiting.popleft()
        findings = examine(unit)
        beside = [Path(unit.path).parent] if unit.path else []
        for below in findings.folders:
            there = (Path(os.path.normpath(place / below)) for place in [*places, *beside])
            paths |= dict.fromkeys(one for one in there if os.path.isdir(one) and one != folder)
        for script in findings.scripts:
            path = _script(script.name, [*places, *paths, *beside])
            if path is None:
                if unit.certain:
                    text = f"%run {script.name}: there is no such script, its imports are not known"
                    fix = f"put it beside the notebook: ls {places[0] if places else '.'}"
                    notes.append(Note(script.where, text, fix))
                continue
            if str(path.absolute()) in known:
                continue
            known.add(str(path.absolute()))
            more, problems = _units_or_note(path, script.where)
            notes += problems
            for one in more:
                label = f"{one.label} of {path.name}" if path.suffix == ".ipynb" else one.label
                certain = unit.certain and one.certain
                found.append(replace(one, label=label, certain=certain))
                waiting.append(found[-1])
    return Sources(tuple(found), folder, tuple(notes), tuple(paths))


def _script(name: str, places: Iterable[Path]) -> Path | None:
    """Find a script as ``%run`` does, which adds ".py" where it is left out."""
    for place in places:
        for given in (name, f"{name}.py"):
            path = os.path.normpath(place / os.path.expanduser(given))
            if os.path.isfile(path):
                return Path(path)
    return None


# -- the running code ----------------------------------------------------------------------------


def _running() -> Sources:
    shell, script = _shell(), _script_of_main()
    executed = {} if shell is None else _executed(shell)
    file = None if shell is None else _notebook_file(shell)
    units: list[Unit] = []
    notes: list[Note] = []
    if file is not None:
        units, notes = _units_or_note(file, file.name)
        units = [
            replace(unit, certain=executed.pop(unit.source.strip(), _NEVER).certain)
            for unit in units
        ]
    units += executed.values()
    places = [] if file is None else [file.parent]
    places += [] if shell is None else _working_folder()
    if script is not None:
        more, problems = _units_or_note(script, script.name)
        units, notes = units + more, notes + problems
        places.append(_folder_of_main(script))
    if shell is None and script is None:
        text = "neither a notebook nor a script's file is running, so no imports are known"
        notes.append(Note("the running code", text, 'extra_packages=["NAME"]'))
    found = _completed(units, places[0] if places else None, notes, list(dict.fromkeys(places)))
    return replace(found, running=True)


_NEVER = Unit("", "", certain=False)


def _shell() -> Any:
    """Return the running IPython, which is not imported for this, or None."""
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get() if callable(get) else None


def _executed(shell: Any) -> dict[str, Unit]:
    """Return the cells that were executed, each once, by their text."""
    history = getattr(shell, "history_manager", None)
    failed = getattr(history, "exceptions", None) or {}
    units: dict[str, Unit] = {}
    for number, source in enumerate(getattr(history, "input_hist_raw", None) or ()):
        text = source.strip()
        if text:
            certain = number not in failed or (text in units and units[text].certain)
            units[text] = Unit(f"In [{number}]", source, is_cell=True, certain=certain)
    return units


def _notebook_file(shell: Any) -> Path | None:
    """Return the notebook's file as the front end tells it, if it is there."""
    told = getattr(shell, "user_ns", {}).get("__vsc_ipynb_file__")
    for name in (told, os.environ.get("JPY_SESSION_NAME")):
        if not isinstance(name, str) or not name.endswith(".ipynb"):
            continue
        # The server joins the kernel's folder and a name that may hold that folder once more, and
        # a drive such as "RTC:" in shared notebooks.
        base = os.path.basename(name)
        for given in (name, os.path.join(os.path.dirname(name), base.rpartition(":")[2]), base):
            if os.path.isfile(given):
                return Path(given).absolute()
    return None


def _working_folder() -> list[Path]:
    try:
        return [Path.cwd()]
    except OSError:
        # It was removed.
        return []


def _script_of_main() -> Path | None:
    """Return the script that Python was started with, unless it is an installed program."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or not os.path.isfile(file):
        return None
    return None if is_installed(file) else Path(file).resolve()


def _folder_of_main(script: Path) -> Path:
    """Return where imports begin: with ``python -m a.b``, the folder that the package is in."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    above = script.parents
    return above[0 if spec is None else min(spec.name.count("."), len(above) - 1)]
