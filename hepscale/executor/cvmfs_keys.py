"""Public keys of repositories of CVMFS, as this machine has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hepscale.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["read"]

_PEM = "-----BEGIN"


def read(paths: Iterable[Path], name: str) -> list[str]:
    """Return the texts of the public keys of a repository, each once.

    Parameters
    ----------
    paths
        Files, and folders of files ``*.pub``.
    name
        The repository, for the error.

    Raises
    ------
    ConfigError
        There is none, or one cannot be read or holds no public key.
    """
    return list(dict.fromkeys(_text(file) for path in paths for file in _files(path, name)))


def _files(path: Path, name: str) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(path.glob("*.pub"))
    if not found:
        raise ConfigError(
            f"There is no public key for {name}.",
            items=[f"{path}/*.pub"],
            cause="the keys of a domain often are in a folder of their own",
            fix=f"ls {path}",
        )
    yield from found


def _text(path: Path) -> str:
    try:
        text = path.read_text("ascii")
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            "A public key cannot be read.",
            items=[str(path)],
            cause=cause.lower(),
            fix=f"ls -l {path}",
        ) from None
    if _PEM not in text or "PRIVATE" in text:
        raise ConfigError(
            "A file holds no public key.",
            items=[str(path)],
            cause="it is not a PEM file that begins with -----BEGIN PUBLIC KEY-----",
            fix="take the .pub file of the repository's domain",
        )
    return text
