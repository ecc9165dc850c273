"""`run_uproot_job`, as analyses written for coffea 0.7 call it."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from coffea.nanoevents import BaseSchema
from coffea.processor import Runner

from hepscale.errors import ConfigError, InputError, also_as, nearest
from hepscale.executor import payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coffea.processor.executor import ExecutorBase

__all__ = ["run_uproot_job"]

_RUNNER_OPTIONS = {one.name for one in fields(Runner)} - {
    "executor",
    "pre_executor",
    "chunksize",
    "maxchunks",
    "metadata_cache",
}
# options of coffea 0.7 that have no meaning any more
_FORMER_OPTIONS = {"mmap", "tailtimeout", "use_dataframes", "worker_affinity"}


def run_uproot_job(
    fileset: Mapping[str, Any] | str,
    treename: str | None,
    processor_instance: Any,
    executor: type[ExecutorBase] | ExecutorBase,
    executor_args: Mapping[str, Any] | None = None,
    pre_executor: type[ExecutorBase] | ExecutorBase | None = None,
    pre_args: Mapping[str, Any] | None = None,
    chunksize: int = 100_000,
    maxchunks: int | None = None,
    metadata_cache: Any = None,
) -> Any:
    """Run a processor over a fileset, as coffea 0.7 did.

    Parameters
    ----------
    fileset
        ``{dataset: [file, ...]}``, ``{dataset: {"treename": ..., "files": [...]}}``, or the path
        of a JSON file with one of these.
    treename
        Name of the tree in each file; None where the fileset names it.
    processor_instance
        A ``ProcessorABC`` or a callable that takes events.
    executor
        ``HepScaleExecutor``, or an instance of it; any other executor of coffea will do.
    executor_args
        Options of the executor and of coffea's ``Runner`` (``schema``, ``skipbadfiles``,
        ``savemetrics``, ``xrootdtimeout``, ``align_clusters``, ``format``, ...). As in coffea 0.7
        the default schema is ``BaseSchema``, and a number as ``workers`` is one of processes.
    pre_executor, pre_args
        The same for reading the files' metadata; default: the executor.
    chunksize
        Number of events in a chunk.
    maxchunks
        Number of chunks for each dataset; None: all.
    metadata_cache
        A mapping that keeps the files' metadata between calls.

    Returns
    -------
    object
        The accumulated output; with ``savemetrics`` a tuple of it and the metrics.

    Raises
    ------
    ConfigError
        If an option is not known.
    InputError
        If the fileset has no files.
    PayloadError
        If the processor cannot be pickled.
    RunError
        If chunks failed or the run was stopped; ``partial_output`` has the rest.
    """
    options, runner_options = _sorted_options(executor, dict(executor_args or {}))
    runner_options.setdefault("schema", BaseSchema)
    _check_fileset(fileset)
    if pre_executor is not None:
        pre_options = options if pre_args is None else _sorted_options(pre_executor, pre_args)[0]
        pre_executor = _made(pre_executor, pre_options)
    runner = Runner(
        executor=_made(executor, options),
        pre_executor=pre_executor,
        chunksize=chunksize,
        maxchunks=maxchunks,
        metadata_cache=metadata_cache,
        **runner_options,
    )
    try:
        return runner(fileset, processor_instance=processor_instance, treename=treename)
    except (TypeError, PicklingError):
        # coffea pickles the processor before any executor sees it: say what in it was in the way
        payload.fingerprint(processor_instance)
        raise


def _sorted_options(
    executor: type[ExecutorBase] | ExecutorBase, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the executor and those of the Runner."""
    known = {one.name for one in fields(executor)}
    options, runner_options = {}, {}
    for name, value in given.items():
        if name == "workers" and isinstance(value, int) and "cores" in known:
            options["cores"] = value
        elif name in known:
            options[name] = value
        elif name in _RUNNER_OPTIONS:
            runner_options[name] = value
        elif name in _FORMER_OPTIONS:
            warnings.warn(f"the option {name!r} has no effect any more", stacklevel=3)
        else:
            near = nearest(name, known | _RUNNER_OPTIONS)
            raise ConfigError(
                f"There is no option {name!r}.",
                cause=f"it is spelt {near!r}" if near else "",
                fix=f'executor_args={{"{near}": {value!r}}}'
                if near
                else f"known are: {', '.join(sorted(known | _RUNNER_OPTIONS))}",
            )
    return options, runner_options


def _made(executor: type[ExecutorBase] | ExecutorBase, options: Mapping[str, Any]) -> Any:
    return executor(**options) if isinstance(executor, type) else executor.copy(**options)


def _check_fileset(fileset: Mapping[str, Any] | str) -> None:
    if isinstance(fileset, str):
        if not Path(fileset).is_file():
            raise also_as(InputError, FileNotFoundError)(
                "There is no such fileset.",
                items=[fileset],
                cause="the path is wrong, or a file was given where a dict of datasets belongs",
                fix=f'{{"dataset": [{fileset!r}]}} is a fileset with this file',
            )
        return
    empty = [
        name
        for name, value in fileset.items()
        if not (value.get("files") if hasattr(value, "get") else value)
    ]
    if empty or not fileset:
        raise also_as(InputError, ValueError)(
            "The fileset has datasets without files." if fileset else "The fileset is empty.",
            items=empty,
            cause="a pattern that matched nothing",
            fix="print(fileset)",
        )
