"""A run in JupyterLab and Notebook 7, watched and stopped by somebody at a real browser."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import jupyter_pages as notebooks
import pytest
from browsing import shoot
from support import CHUNK, EVENTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

CHUNKS = 3 * EVENTS // CHUNK
SETUP = """
import time
import hepscale
from analysis import tally, where
from support import run, tally_of

def slow(events):
    time.sleep({seconds})
    return tally(events)

def failing(events):
    if where(events)[1] == 20:
        raise ValueError("no muons here, " + where(events)[0])
    return slow(events)

def kept(process):
    try:
        return run(process, {fileset}, status=True)
    except hepscale.RunError as error:
        print("not all:", error.fact)
        return error.partial_output
"""
AFTER = "print('counted', out['events'], out == tally_of(out['chunks']))"
BAR = "progressbar"


def cells(files: Any, seconds: float, process: str) -> list[str]:
    setup = SETUP.format(seconds=seconds, fileset=files.fileset)
    return [setup, f"out = kept({process})", AFTER]


def progress(notebook: notebooks.Notebook) -> Any:
    return notebook.output(1).get_by_role(BAR, name="Processing, progress", exact=True)


def counted(notebook: notebooks.Notebook) -> int:
    """Return the events that the cell after the run has counted; it has found them added up."""
    text = notebook.output(2).inner_text()
    found = re.search(r"counted (\d+) True", text)
    assert found, text
    return int(found[1])


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_progress_moves_and_a_text_stays(
    browser: Any, server: notebooks.Server, app: str, files: Any, tmp_path: Path
) -> None:
    with notebooks.opened(browser, server, app, cells(files, 0.3, "slow")) as notebook:
        notebook.run_all()
        bar = progress(notebook)
        bar.wait_for(timeout=30_000)
        seen = set()
        while bar.count() and len(seen) < 3:
            seen.update(bar.evaluate_all("all => all.map((one) => one.ariaValueNow)"))
        assert len(seen) >= 3
        shoot(notebook.page, f"running_{app}", tmp_path)
        notebook.output(2).get_by_text("counted").wait_for(timeout=20_000)
        assert counted(notebook) == 3 * EVENTS
        left = notebook.output(1).inner_text()
        assert f"Processing: {CHUNKS} of {CHUNKS} chunks, {3 * EVENTS} events, 0 failed" in left
        assert notebook.output(1).get_by_role(BAR).count() == 0


HEARD = """
from hepscale.view.widget import WidgetView
heard, hear = [], WidgetView._hear

def noted(view, said):
    heard.append(said["type"])
    hear(view, said)

WidgetView._hear = noted
"""
# as if the kernel had heard nothing of the page
DEAF = "import comm; comm.get_comm_manager().register_target = lambda *_: None\n"


@pytest.mark.parametrize(
    ("app", "kernel", "before"),
    [
        ("lab", "python3", ""),
        ("notebook", "python3", ""),
        ("lab", "old", ""),
        pytest.param("notebook", "python3", DEAF, id="notebook-deaf"),
    ],
)
def test_stop_and_keep(
    browser: Any,
    server: notebooks.Server,
    app: str,
    kernel: str,
    before: str,
    files: Any,
    tmp_path: Path,
) -> None:
    if kernel == "old" and not notebooks.OLD_KERNEL:
        pytest.skip("ipykernel 6.31 is not there: make browser")
    begun = cells(files, 0.5, "slow")
    begun[2] += "\nprint('heard', *heard)"
    # it returns what it has: no exception would let the cells after it run
    begun[1] = (
        f"{before}import ipykernel; print('kernel', ipykernel.__version__)\n{HEARD}"
        f"out = run(slow, {files.fileset}, status=True)"
    )
    with notebooks.opened(browser, server, app, begun, kernel) as notebook:
        notebook.run_all()
        notebook.page.wait_for_function(
            "[...document.querySelectorAll('[aria-label=\"Processing, progress\"]')]"
            ".some((one) => Number(one.ariaValueNow) >= 20)",
            timeout=30_000,
        )
        shoot(notebook.page, f"stop_{app}_{kernel}", tmp_path)
        stop = notebook.output(1).get_by_role("button", name="Stop and keep")
        clicked_s = time.monotonic()
        stop.click(timeout=3000)
        notebook.output(2).get_by_text("counted").wait_for(timeout=10_000)
        took_s = time.monotonic() - clicked_s
        print(f"{app} {kernel}: {took_s:.2f} s")
        text = notebook.output(1).inner_text()
        assert ("kernel 6.31" in text) == (kernel == "old")
        assert "Stopped:" in text
        assert 0 < counted(notebook) < 3 * EVENTS
        assert took_s < 1
        # who was heard need not interrupt, and an interrupt is not the button then
        hears = kernel == "python3" and not before
        assert ("heard hello" in notebook.output(2).inner_text()) == hears
        shoot(notebook.page, f"stopped_{app}_{kernel}", tmp_path)


SHOW = "hepscale.last_run().show()"


def under_way(notebook: notebooks.Notebook) -> None:
    """Run all cells but the last, and wait until chunks have been counted."""
    for cell in range(2):
        notebook.run_cell(cell)
    notebook.page.wait_for_function(
        "[...document.querySelectorAll('[aria-label=\"Processing, progress\"]')]"
        ".some((one) => Number(one.ariaValueNow) >= 5)",
        timeout=30_000,
    )


@pytest.mark.parametrize("kernel", ["python3", "old"])
def test_after_a_reload_the_run_comes_back_when_it_is_over(
    browser: Any, server: notebooks.Server, kernel: str, files: Any, tmp_path: Path
) -> None:
    if kernel == "old" and not notebooks.OLD_KERNEL:
        pytest.skip("ipykernel 6.31 is not there: make browser")
    # until then no kernel answers a page that is new to it, subshells or not
    code = [*cells(files, 0.7, "slow")[:2], SHOW]
    with notebooks.opened(browser, server, "lab", code, kernel) as notebook:
        under_way(notebook)
        notebook.save()
        notebook.reload()
        notebook.run_cell(2)
        assert notebook.output(2).get_by_role("img").count() == 0
        picture = notebook.output(2).get_by_text(f"Processing: {CHUNKS} of {CHUNKS} chunks")
        picture.wait_for(timeout=30_000)
        assert f"{3 * EVENTS} events, 0 failed" in notebook.output(2).inner_text()
        shoot(notebook.page, f"reloaded_{kernel}", tmp_path)


def test_a_subshell_console_shows_a_run_live(
    browser: Any, server: notebooks.Server, files: Any, tmp_path: Path
) -> None:
    with notebooks.opened(browser, server, "lab", cells(files, 0.7, "slow")) as notebook:
        page = notebook.page
        # before the run: a new connection to a kernel is of no use until a cell has ended
        page.evaluate(
            "window.jupyterapp.commands.execute('notebook:create-subshell-console',"
            " {activate: false})"
        )
        console = page.locator(".jp-CodeConsole")
        console.get_by_text("IPython").first.wait_for(timeout=20_000)
        under_way(notebook)
        console.locator(".jp-CodeConsole-promptCell .cm-content").click(timeout=10_000)
        page.keyboard.type(SHOW)
        page.keyboard.press("Shift+Enter")
        bar = console.get_by_role(BAR, name="Processing, progress", exact=True)
        bar.wait_for(timeout=10_000)
        seen = set()
        while bar.count() and len(seen) < 3:
            seen.update(bar.evaluate_all("all => all.map((one) => one.ariaValueNow)"))
        assert len(seen) >= 3
        shoot(page, "subshell", tmp_path)
        stop = console.get_by_role("button", name="Stop and keep")
        stop.click(timeout=3000)
        console.get_by_text("Processing interrupted").wait_for(timeout=10_000)
        assert bar.count() == 0


def test_the_reason_of_a_failing_chunk_can_be_read(
    browser: Any, server: notebooks.Server, files: Any, tmp_path: Path
) -> None:
    with notebooks.opened(browser, server, "lab", cells(files, 0.3, "failing")) as notebook:
        notebook.run_all()
        failures = notebook.output(1).get_by_role("list", name="Failed chunks")
        failures.get_by_role("listitem").first.wait_for(timeout=12_000)
        assert re.search(
            r"good_\d\.root, entries 20 to 30: .*no muons here, good_\d\.root",
            failures.inner_text(),
        )
        # what the worker said, and the user's own line
        failures.locator("summary").first.click(timeout=2000)
        told = failures.locator("pre").first.inner_text()
        assert "Traceback" in told
        assert 'raise ValueError("no muons here' in told
        shoot(notebook.page, "failing", tmp_path)
        notebook.output(2).get_by_text("counted").wait_for(timeout=20_000)
        assert counted(notebook) == 3 * (EVENTS - CHUNK)
