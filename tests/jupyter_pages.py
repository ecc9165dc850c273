"""A notebook in JupyterLab or Notebook 7, on loopback, driven through a browser."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

# the kernel before subshells: installed by `make browser`, beside the environment
OLD_KERNEL = os.environ.get("HEPSCALE_OLD_IPYKERNEL", "")
_HERE = Path(__file__).parent
_READY = """
async () => {
  const {context} = window.jupyterapp.shell.currentWidget;
  await context.sessionContext.ready;
  await context.sessionContext.session.kernel.info;
}
"""


@dataclass(frozen=True)
class Server:
    """A Jupyter server that serves `folder`."""

    url: str
    token: str
    folder: Path

    def page(self, app: str, name: str) -> str:
        """Return where a notebook is shown by "lab" or "notebook"."""
        # a workspace of its own, or JupyterLab would open earlier notebooks beside it
        own = f"lab/workspaces/{Path(name).stem}/tree/{name}"
        place = own if app == "lab" else f"notebooks/{name}"
        return f"{self.url}{place}?token={self.token}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder with JupyterLab and Notebook 7, kernels "python3" and, if there, "old"."""
    port, token = ports.free(), secrets.token_hex(16)
    _prepare(folder)
    environ = {name: value for name, value in os.environ.items() if name != "HEPSCALE_VIEW"}
    environ |= {
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parent)]),
    }
    command = [sys.executable, "-m", "jupyter", "server", "--ServerApp.ip=127.0.0.1"]
    options = {
        "port": port,
        "port_retries": 0,
        "open_browser": False,
        "allow_root": True,
        "root_dir": folder,
        "jpserver_extensions": "{'jupyterlab': True, 'notebook': True}",
    }
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    # A port that was free may be taken by another test when a kernel comes to bind it.
    command += ["--KernelManager.transport=ipc"]
    # Else Notebook 7 does not show its commands to the page.
    command += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    command += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    with tempfile.TemporaryDirectory(prefix="jupyter-") as runtime:
        with open(folder / "server.log", "wb") as log:
            process = subprocess.Popen(
                ["nice", *command],
                cwd=folder,
                env=environ | {"JUPYTER_RUNTIME_DIR": runtime},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            server = Server(f"http://127.0.0.1:{port}/", token, folder)
            _wait_until_answering(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _prepare(folder: Path) -> None:
    """Write the old kernel's description, and that nobody wants to be asked about news."""
    if OLD_KERNEL:
        spec = folder / "jupyter/kernels/old"
        spec.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        about = {"argv": command, "display_name": "old", "language": "python"}
        search = os.pathsep.join([OLD_KERNEL, str(_HERE)])
        (spec / "kernel.json").write_text(json.dumps({**about, "env": {"PYTHONPATH": search}}))
    settings = folder / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')


def _wait_until_answering(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{server.url}api?token={server.token}"):
            return
        log = (server.folder / "server.log").read_text()
        assert process.poll() is None, log
        assert time.monotonic() < end, log
        time.sleep(0.05)


class Notebook:
    """A notebook that is open in a browser."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.path = path

    def output(self, cell: int) -> Locator:
        """Return where a cell, counted from 0, shows its output."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea")

    def run_all(self) -> None:
        """Begin to run all cells."""
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def run_cell(self, cell: int) -> None:
        """Begin to run one cell, after what runs already."""
        self.page.evaluate(
            """(cell) => {
              const {shell, commands} = window.jupyterapp;
              shell.currentWidget.content.activeCellIndex = cell;
              void commands.execute('notebook:run-cell');
            }""",
            cell,
        )

    def reload(self) -> None:
        """Load the page again; a kernel that is busy does not answer it before it is done."""
        self.page.reload()
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.context?.sessionContext.session?.kernel"
            "?.connectionStatus === 'connected'",
            timeout=60_000,
        )
        self.page.locator(".jp-Notebook .jp-CodeCell").last.wait_for(timeout=60_000)

    def save(self) -> Path:
        """Save it as the application does; return the file."""
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        return self.path


@contextmanager
def opened(
    browser: Browser,
    server: Server,
    app: str,
    cells: list[str],
    kernel: str = "python3",
    scale: float = 1,
) -> Iterator[Notebook]:
    """Write a notebook of these cells and open it on a screen of this resolution."""
    new: Any = nbformat.v4
    document = new.new_notebook()
    document.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    document.cells = [new.new_code_cell(cell) for cell in cells]
    path = server.folder / f"test_{secrets.token_hex(4)}.ipynb"
    nbformat.write(document, path)
    with showing(browser, server, app, path, scale) as notebook:
        yield notebook


@contextmanager
def showing(
    browser: Browser, server: Server, app: str, path: Path, scale: float = 1
) -> Iterator[Notebook]:
    """Open a notebook that is in the server's folder."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, device_scale_factor=scale)
    try:
        page.goto(server.page(app, path.name))
        page.locator(".jp-Notebook .jp-CodeCell").last.wait_for(timeout=60_000)
        page.wait_for_function("window.jupyterapp !== undefined")
        page.evaluate(_READY)
        yield Notebook(page, path)
    finally:
        page.close()
        _end_kernels(server)


def _end_kernels(server: Server) -> None:
    head = {"Authorization": f"token {server.token}"}
    ask = urllib.request.Request(f"{server.url}api/kernels", headers=head)
    with urllib.request.urlopen(ask) as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        one = f"{server.url}api/kernels/{kernel['id']}"
        urllib.request.urlopen(urllib.request.Request(one, headers=head, method="DELETE")).close()
