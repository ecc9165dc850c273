"""``hepscale run``: a notebook or a script without a browser, its progress on the terminal."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from hepscale.errors import ConfigError, InputError, NotebookError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_file", "run_notebook", "run_script"]


def run_file(
    path: str | os.PathLike[str],
    console: Console,
    progress: Console,
    *,
    out: str | os.PathLike[str] | None = None,
    timeout_s: int | None = None,
    kernel: str | None = None,
) -> None:
    """Run a notebook (``.ipynb``) or a script (``.py``) to its end.

    Parameters
    ----------
    path
        The file.
    console, progress
        Where what the cells print to stdout, and where all the rest is shown. A script has the
        stdout and stderr of this process.
    out
        Where to write the executed notebook, also when a cell fails; by default it is not kept.
    timeout_s
        Seconds after which a cell, or a script, is stopped; by default never.
    kernel
        Name of the Jupyter kernel; by default the notebook's own.

    Raises
    ------
    InputError
        If the file is missing, is neither a notebook nor a script, or cannot be read.
    ConfigError
        If an option does not go with the file, or names something that is not there.
    NotebookError
        If a cell or the script fails.
    """
    path = Path(path)
    if path.suffix not in (".ipynb", ".py"):
        raise InputError(
            "hepscale run takes a notebook (.ipynb) or a script (.py).",
            items=(str(path),),
            fix="hepscale run analysis.ipynb",
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
    if path.suffix == ".ipynb":
        run_notebook(path, console, progress, out=out, timeout_s=timeout_s, kernel=kernel)
        return
    for option, value in (("-o", out), ("--kernel", kernel)):
        if value is not None:
            raise ConfigError(
                f"{option} is for notebooks, {path.name} is a script.",
                fix=f"leave {option} out",
            )
    run_script(path, timeout_s=timeout_s)


def run_script(path: Path, *, timeout_s: int | None = None) -> None:
    """Run a script in a process of its own, with this interpreter.

    Raises
    ------
    NotebookError
        If it ends with another exit code than 0, or takes more than `timeout_s` seconds.
    """
    process = subprocess.Popen([sys.executable, str(path)])
    interrupted = False
    try:
        while True:
            try:
                code = process.wait(timeout_s)
                break
            except KeyboardInterrupt:
                # The script got the same Ctrl-C; it may have results to save before it ends.
                interrupted = True
    except subprocess.TimeoutExpired:
        raise NotebookError(
            f"{path.name} was stopped after {timeout_s} s.", fix="give a longer --timeout"
        ) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if interrupted:
        raise KeyboardInterrupt
    if code < 0:
        raise NotebookError(
            f"{path.name} was ended by {signal.Signals(-code).name}.",
            cause="it used too much memory, or compiled code in it failed",
            fix=f"{sys.executable} -X faulthandler {path}",
        )
    if code:
        raise NotebookError(
            f"{path.name} failed with exit code {code}; its own message is above.",
            fix=f"correct what it names, then: hepscale run {shlex.quote(str(path))}",
        )


def run_notebook(
    path: Path,
    console: Console,
    progress: Console,
    *,
    out: str | os.PathLike[str] | None = None,
    timeout_s: int | None = None,
    kernel: str | None = None,
) -> None:
    """Execute a notebook in its own folder; see :func:`run_file`."""
    notebook = _read(path)
    kernel = kernel or notebook.metadata.get("kernelspec", {}).get("name") or "python3"
    _check_kernel(kernel)
    target = None if out is None else _check_out(Path(out))
    client = _Client(
        notebook,
        console=console,
        progress=progress,
        kernel_name=kernel,
        timeout=timeout_s,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.absolute().parent)}},
    )
    # Nobody watches the notebook, so a run in it shows its progress as lines that are passed on.
    # Jupyter tells a kernel in the same way which notebook it is for.
    environ = {
        "HEPSCALE_VIEW": "lines",
        **os.environ,
        "JPY_SESSION_NAME": str(path.absolute()),
    }
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="hepscale-") as place:
            client.meet_in(Path(place))
            client.execute(env=environ)
    except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
        if client.interrupted:
            raise KeyboardInterrupt from None
        raise _failure(path, client, error, timeout_s) from None
    finally:
        if target is not None:
            _write(notebook, target)
            client.say(f"Notebook with outputs: {target}")
    client.say(f"{client.cells} cells in {time.monotonic() - began:.1f} s")


class _Client(NotebookClient):
    """Passes on what cells print, and turns a first Ctrl-C into an interrupt of the cell."""

    def __init__(
        self, notebook: Any, *, console: Console, progress: Console, **options: Any
    ) -> None:
        super().__init__(notebook, **options)
        self.interrupted = False
        self.here = "The start of the kernel"
        self.source = ""
        self.cells = sum(self._is_run(cell) for cell in notebook.cells)
        self._streams = {"stdout": console, "stderr": progress}
        self._progress = progress
        self._count = 0
        self._unfinished: IO[str] | None = None
        self._began = time.monotonic()
        self.on_notebook_start = self._catch_interrupts
        self.on_cell_execute = self._announce
        self.on_cell_error = self._show_error

    def meet_in(self, place: Path) -> None:
        """Talk to the kernel through sockets in a folder, which nobody else can open.

        A port that was free when it was chosen may be taken when the kernel comes to bind it, as
        happens on login nodes; the kernel then says nothing for a minute.
        """
        manager: Any = self.create_kernel_manager()
        if manager.ipykernel and _takes_sockets(place):
            manager.transport = "ipc"
            manager.connection_file = str(place / "kernel.json")

    async def async_start_new_kernel(self, **options: Any) -> None:
        if getattr(self.km, "ipykernel", False):
            # What the kernel logs about itself is not the notebook's output.
            self.extra_arguments = [*self.extra_arguments, "--log-level=CRITICAL"]
        await super().async_start_new_kernel(**options)

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]
            stream = self._streams[msg["content"]["name"]].file
            stream.write(text)
            stream.flush()
            self._unfinished = None if text.endswith(("\n", "\r")) else stream
        return super().process_message(msg, cell, cell_index)

    def _is_run(self, cell: Any) -> bool:
        tags = cell.metadata.get("tags", [])
        code: bool = cell.cell_type == "code" and cell.source.strip() != ""
        return code and self.skip_cells_with_tag not in tags

    def say(self, what: Any) -> None:
        if self._unfinished is not None:
            self._unfinished.write("\n")
            self._unfinished.flush()
            self._unfinished = None
        self._progress.print(what, soft_wrap=True, markup=False, highlight=False)

    def _announce(self, cell: Any, cell_index: int) -> None:  # noqa: ARG002
        self._count += 1
        self.source = cell.source
        self.here = f"Cell {self._count} of {self.cells}"
        first = next(line for line in cell.source.splitlines() if line.strip())
        elapsed_s = time.monotonic() - self._began
        line = Text.assemble((f"[{elapsed_s:6.1f} s] ", "dim"), (f"{self.here}: ", "bold"), first)
        line.truncate(max(40, self._progress.width), overflow="ellipsis")
        self.say(line)

    def _show_error(self, cell: Any, cell_index: int, execute_reply: Any) -> None:  # noqa: ARG002
        tags = cell.metadata.get("tags", [])
        if self.interrupted or "raises-exception" in tags:
            return
        self.say(Rule(Text(f"{self.here} failed", "bold"), style="red", align="left"))
        self.say(Syntax(cell.source, "python", line_numbers=True, background_color="default"))
        self.say(Rule(style="red"))
        self.say(Text.from_ansi("\n".join(execute_reply["content"].get("traceback", []))))

    async def _catch_interrupts(self, notebook: Any) -> None:  # noqa: ARG002
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)

    def _interrupt(self) -> None:
        first, self.interrupted = not self.interrupted, True
        manager: Any = self.km
        end = manager.interrupt_kernel() if first else manager.shutdown_kernel(now=True)
        self._ending = asyncio.ensure_future(end)


def _takes_sockets(place: Path) -> bool:
    """Return whether sockets can be in a folder: its path may be too long for their names."""
    try:
        with socket.socket(socket.AF_UNIX) as one:
            # as long as what Jupyter calls its own
            one.bind(str(place / "kernel-try-1"))
    except OSError:
        return False
    return True


def _failure(path: Path, client: _Client, error: Exception, timeout_s: int | None) -> NotebookError:
    where = f"{client.here} of {path.name}"
    if isinstance(error, CellExecutionError):
        value = error.evalue.partition("\n")[0]
        what = f"{error.ename}: {value}" if value else error.ename
        again = f"correct it, then: hepscale run {shlex.quote(str(path))}"
        return NotebookError(f"{where} failed: {what}", fix=again)
    first = next((line for line in client.source.splitlines() if line.strip()), "")
    if isinstance(error, CellTimeoutError):
        return NotebookError(
            f"{where} was stopped after {timeout_s} s.",
            items=(first,),
            fix="give a longer --timeout",
        )
    return NotebookError(
        f"{where} failed: the kernel died.",
        items=(first,) if first else (),
        cause="it used too much memory, or compiled code in it failed",
        fix="run the cell with less data, or look at the kernel's messages above",
    )


def _read(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Older notebooks have no cell ids, which is nothing that their user has to mend.
            warnings.simplefilter("ignore", nbformat.warnings.MissingIDFieldWarning)
            text = path.read_text(encoding="utf-8")
            notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
            nbformat.validate(notebook)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise _unreadable(path, str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise _unreadable(path, "it is JSON, but not a notebook") from error
    return notebook


def _unreadable(path: Path, cause: str) -> InputError:
    reason = cause.partition("\n")[0]
    return InputError(
        "The notebook cannot be read.",
        items=(str(path),),
        cause=reason if len(reason) <= 200 else reason[:197] + "...",
        fix="open and save it in Jupyter, or restore an earlier version",
    )


def _check_kernel(name: str) -> None:
    known = sorted(KernelSpecManager().find_kernel_specs())
    if name not in known:
        raise ConfigError(
            f"There is no Jupyter kernel {name!r}.",
            items=known,
            cause="the notebook was written on another machine, or the name is misspelt",
            fix=f"hepscale run --kernel {known[0] if known else 'python3'} ...",
        )


def _check_out(out: Path) -> Path:
    """Find out before an analysis of hours that its notebook cannot be written."""
    problem = ""
    if out.is_dir():
        problem = "it is a folder"
    elif not out.absolute().parent.is_dir():
        problem = "its folder does not exist"
    elif not os.access(out.absolute().parent, os.W_OK):
        problem = "its folder cannot be written to"
    if problem:
        raise ConfigError(
            "The executed notebook cannot be written.",
            items=(str(out),),
            cause=problem,
            fix="give another file with -o",
        )
    return out


def _write(notebook: Any, target: Path) -> None:
    """Write the notebook under another name, then rename it: never half of it."""
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            dir=target.absolute().parent,
            prefix=f".{target.name}.",
            delete=False,
        ) as file:
            work = Path(file.name)
            nbformat.write(notebook, file)  # type: ignore[no-untyped-call]
        work.chmod(0o644)
        work.replace(target)
    except OSError as error:
        raise NotebookError(
            "The executed notebook cannot be written.",
            items=(str(target),),
            cause=error.strerror or str(error),
            fix="give another file with -o",
        ) from error
