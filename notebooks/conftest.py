"""How nbval talks to the kernels of these notebooks while other tests run beside."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import kernels
import nbval.kernel
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def sockets() -> Iterator[None]:
    with kernels.by_sockets() as config, pytest.MonkeyPatch.context() as patch:
        made = functools.partial(nbval.kernel.KernelManager, config=config)
        patch.setattr(nbval.kernel, "KernelManager", made)
        yield
