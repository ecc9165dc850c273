"""A notebook in JupyterLab or Notebook 7, on loopback, driven through a browser."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

# the kernel before subshells: installed by `make browser`, beside the environment
OLD_KERNEL = os.environ.get("HEPSCALE_OLD_IPYKERNEL", "")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Server:
    """A Jupyter server that serves `folder`."""

    url: str
    token: str
    folder: Path

    def page(self, app: str, name: str) -> str:
        """Return where a notebook is shown by "lab" or "notebook"."""
        place = f"lab/tree/{name}" if app == "lab" else f"notebooks/{name}"
        return f"{self.url}{place}?token={self.token}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder with JupyterLab and Notebook 7, kernels "python3" and, if there, "old"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    _kernelspecs(folder / "jupyter")
    environ = {name: value for name, value in os.environ.items() if name != "HEPSCALE_VIEW"}
    environ |= {
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(_HERE),
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
    # Else Notebook 7 does not show its commands to the page.
    command += [f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    command += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            ["nice", *command], cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True
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


def _kernelspecs(data: Path) -> None:
    for name, path in {"python3": "", "old": OLD_KERNEL}.items():
        if name == "old" and not path:
            continue
        spec = data / "kernels" / name
        spec.mkdir(parents=True)
        search = os.pathsep.join(filter(None, [path, str(_HERE)]))
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        about = {"argv": command, "display_name": name, "language": "python"}
        (spec / "kernel.json").write_text(json.dumps({**about, "env": {"PYTHONPATH": search}}))


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

    def __init__(self, page: Page) -> None:
        self.page = page

    def output(self, cell: int) -> Locator:
        """Return where a cell, counted from 0, shows its output."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".jp-OutputArea")

    def run_all(self) -> None:
        """Begin to run all cells."""
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def run_all_until(self, text: str, cell: int, timeout_s: float = 30) -> None:
        """Run all cells and wait for a text in the output of one."""
        self.run_all()
        self.output(cell).get_by_text(text).first.wait_for(timeout=1000 * timeout_s)


@contextmanager
def opened(
    browser: Browser, server: Server, app: str, cells: list[str], kernel: str = "python3"
) -> Iterator[Notebook]:
    """Write a notebook of these cells and open it."""
    new: Any = nbformat.v4
    document = new.new_notebook()
    document.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    document.cells = [new.new_code_cell(cell) for cell in cells]
    name = f"test_{secrets.token_hex(4)}.ipynb"
    nbformat.write(document, server.folder / name)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    try:
        page.goto(server.page(app, name))
        page.locator(".jp-Notebook .jp-CodeCell").last.wait_for(timeout=60_000)
        page.wait_for_function("window.jupyterapp !== undefined")
        idle = ".jp-Notebook-ExecutionIndicator[data-status='idle']"
        page.locator(idle).first.wait_for(state="attached", timeout=60_000)
        yield Notebook(page)
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
