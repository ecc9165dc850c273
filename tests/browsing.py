"""A browser, and the live view's page in it with a model made of what a test says."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

RUN = {
    "desc": "Processing",
    "percent": 41.5,
    "chunks": "83 of 200 chunks",
    "facts": [
        ["Events", "4.15 M of 10 M"],
        ["Rate", "812,000 events/s"],
        ["Workers", "24 busy of 24"],
        ["Failures", "none"],
        ["Elapsed", "5 s"],
        ["Remaining", "7 s"],
        ["Each task", "used up to 612 MB, 1.0 cores"],
    ],
    "notices": [],
}
# What anywidget gives `render`, as far as it is used.
_MODEL = """
async ({esm, css, state}) => {
  const style = document.createElement("style");
  style.textContent = css;
  document.head.append(style);
  const url = URL.createObjectURL(new Blob([esm], {type: "text/javascript"}));
  const widget = (await import(url)).default;
  const handlers = {};
  const decode = (patch) => {
    if (typeof patch.bins !== "string") return patch;
    const bytes = Uint8Array.from(atob(patch.bins), (one) => one.charCodeAt(0));
    // As they come from a kernel: somewhere in a larger buffer.
    const room = new Uint8Array(bytes.length + 3);
    room.set(bytes, 3);
    return {...patch, bins: new DataView(room.buffer, 3)};
  };
  const values = decode(state);
  window.sent = [];
  window.model = {
    get: (name) => values[name],
    on: (name, handle) => (handlers[name] ??= []).push(handle),
    off: (name, handle) => handlers[name].splice(handlers[name].indexOf(handle), 1),
    send: (content) => window.sent.push(content),
    put: (patch) => {
      Object.assign(values, decode(patch));
      const heard = Object.keys(patch).flatMap((name) => handlers[`change:${name}`] ?? []);
      heard.forEach((one) => one());
    },
  };
  window.close_ = widget.render({model: window.model, el: document.getElementById("here")});
}
"""
_LIGHT = "background: #fff; color: #1a1a1a"
_DARK = (
    "background: #111; color: #e6e6e6; --jp-layout-color1: #181818; --jp-ui-font-color1: #e6e6e6;"
    "--jp-border-color2: #444; color-scheme: dark"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium without a screen; skip the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no browser: apt-get install chromium fonts-dejavu-core")
    from playwright.sync_api import sync_playwright

    # As root there is no sandbox; the pages are our own.
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def drawn(
    browser: Browser, state: dict[str, Any], *, dark: bool = False, width: int = 1100
) -> Iterator[Page]:
    """Open a page with the view's own script and style, and a model with this state."""
    from hepscale.view.widget import RunWidget

    page = browser.new_page(viewport={"width": width, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    theme = _DARK if dark else _LIGHT
    page.set_content(f"<body style='margin: 8px; {theme}'><div id=here></div>")
    model = {"esm": RunWidget._esm, "css": RunWidget._css, "state": {"run": RUN, **state}}
    page.evaluate(_MODEL, model)
    frames(page)
    try:
        yield page
        assert faults == []
    finally:
        page.close()


def frames(page: Page, count: int = 2) -> None:
    """Wait until the page has been drawn again."""
    page.evaluate(
        "async (n) => { for (; n; n--) await new Promise((go) => requestAnimationFrame(go)); }",
        count,
    )


def shoot(what: Page | Locator, name: str, folder: Path) -> None:
    """Save a picture of a page, or of a part of it; also where ``HEPSCALE_SCREENSHOTS`` says."""
    whole = {"full_page": True} if hasattr(what, "goto") else {}
    for place in filter(None, [str(folder), os.environ.get("HEPSCALE_SCREENSHOTS")]):
        what.screenshot(path=Path(place) / f"{name}.png", **whole)
