"""Runs in packed environments: with few packages where that is enough, and in other caches."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import hepscale
from hepscale import HepScaleExecutor
from hepscale.config import load_settings
from hepscale.executor import coffea

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def own(function: Any) -> Any:
    """Return a function or class as one of the analysis: nothing beside it in its file counts."""
    for part in (function, *(one for one in vars(function).values() if inspect.isfunction(one))):
        part.__module__ = "__main__"
    return function


def without_coffea(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs need cloudpickle only, so that an environment is packed in a second."""

    def merge(outputs: Iterable[list[Any]], into: Any = None) -> list[Any]:
        return sum(outputs, into or [])

    monkeypatch.setattr(coffea, "_PRELOAD", ("cloudpickle",))
    monkeypatch.setattr(coffea, "accumulate", own(merge))


def calculate(
    function: Callable[[Any], Any], items: Iterable[Any] = range(3), **options: Any
) -> Any:
    """Return what a function gives for each of some items, sorted, in a packed environment."""
    options = {"cores": 2, "retries": 0, "status": False, "environment": "packed", **options}

    def one(item: Any) -> list[Any]:
        return [function(item)]

    own(function)
    output, error = HepScaleExecutor(**options)(items, own(one), None)
    if error:
        raise error
    return sorted(output)


def twin() -> None:
    """Print where a run's tasks were, for scripts that see nothing else of this module."""
    without_coffea(pytest.MonkeyPatch())

    def prefix(item: Any) -> str:
        return sys.prefix

    print(json.dumps(sorted({*calculate(prefix)})))


def failing(function: Callable[[Any], Any], **options: Any) -> Any:
    """Run, and return the error that this ends with."""
    with pytest.raises(hepscale.HepScaleError) as caught:
        calculate(function, **options)
    print(caught.value)
    return caught.value


def cache() -> Path:
    """Return the folder in which environments are packed and unpacked."""
    return load_settings().cache_dir


def unpacked() -> list[Path]:
    """Return the environments that are unpacked."""
    return sorted((cache() / "unpacked").glob("[0-9a-f]*/"))


def left_over() -> list[str]:
    """Return what lies beside them that is begun, or a lock."""
    return sorted(one.name for one in (cache() / "unpacked").glob(".*"))


def layers() -> list[Path]:
    """Return the archives of the store, without the code's."""
    found = [*(cache() / "environments/layers").glob("[ip]*.tar.*")]
    return sorted(found)


def forget() -> None:
    """Forget which modules were missed."""
    for path in (cache() / "environments/seen").glob("missed-*"):
        path.unlink()


def another_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: Path | None = None
) -> Iterator[Path]:
    """Use another cache, in which nothing is unpacked; packed is what is in the cache `source`."""
    for top, name in ((cache(), "learnt"), (source, "environments")):
        if top is not None and (top / name).exists():
            shutil.copytree(top / name, folder / name)
    monkeypatch.setenv("HEPSCALE_CACHE_DIR", str(folder))
    yield folder
    hepscale.shutdown()


def records() -> dict[str, Any]:
    """Return the records of environments by their digests."""
    folder = cache() / "environments/environments"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
