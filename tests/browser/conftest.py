"""The browser of a module, and the server that it looks at; nothing is left of the tests' runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jupyter_pages as notebooks
import pytest
from browsing import chromium

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def browser(nothing_left: None) -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[notebooks.Server]:
    with notebooks.serving(tmp_path_factory.mktemp("server")) as started:
        yield started
