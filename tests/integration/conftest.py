"""What workers connect to, and where forkservers of a test's own have their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import managers
import pytest
import sandboxes

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def place() -> Iterator[sandboxes.Place]:
    with sandboxes.place() as one:
        yield one


@pytest.fixture
def listener() -> Iterator[managers.Listener]:
    with managers.Listener() as made:
        yield made
