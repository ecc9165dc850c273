"""Opens a queue of either library of ``ndcctools``: both are made, and let workers in, alike."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hepscale.errors import EngineError
from hepscale.executor.engines.queue_listen import listen
from hepscale.executor.engines.queue_tls import certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepscale.executor.engines.queue import QueueOptions

__all__ = ["opened"]


def opened(
    what: str,
    options: QueueOptions,
    make: Callable[[int, tuple[str, str] | None], Any],
    admit: Callable[[Any, str], object],
) -> tuple[int, Any]:
    """Return the port and the library's queue.

    Parameters
    ----------
    what
        The library, for messages.
    options
        How it listens.
    make
        Makes the queue, of a port and of the paths of key and certificate.
    admit
        Tells the queue its password file, and returns whether it could read it.

    Raises
    ------
    EngineError
        If the port is taken, the password file cannot be read, or the library fails.
    """
    proof = certificate(options.folder) if options.ssl else None
    made: list[Any] = []
    if options.catalog:
        # the only way that takes all forms of the address, and before the name is given
        os.environ["CATALOG_HOST"] = options.catalog

    def create(port: int) -> bool:
        try:
            with _variables_kept("TCP_LOW_PORT", "TCP_HIGH_PORT"):
                made.append(make(port, proof))
        # it raises nothing more telling
        except Exception as error:  # noqa: BLE001
            if "port" in str(error):
                return False
            raise EngineError(f"{what} could not be started.", items=[str(error)]) from None
        return True

    port = listen(options.port, create)
    password = options.password_file
    if password is not None and not admit(made[0], str(password)):
        raise EngineError("The password file for workers cannot be read.", items=[str(password)])
    # it would give a task as large a part of the disk as of the cores, of a disk that shrinks
    made[0].tune("proportional-resources", 0)
    return port, made[0]


@contextmanager
def _variables_kept(*names: str) -> Iterator[None]:
    """Undo what a library does to variables: workers of this machine would listen there too."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
