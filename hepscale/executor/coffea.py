"""`HepScaleExecutor`: where coffea meets a run."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import coffea
import lz4.frame
from coffea.processor import accumulate
from coffea.processor.executor import ExecutorBase, FileMeta, WorkItem

from hepscale.config import Settings, load_settings
from hepscale.env import local
from hepscale.errors import ConfigError, HepScaleError, PayloadError
from hepscale.executor import advice, journal, payload, session, unpickle
from hepscale.executor.engines import machine, warm
from hepscale.executor.engines.local import LocalEngine
from hepscale.executor.job import Job, Outcome
from hepscale.executor.run import Run
from hepscale.executor.task import Chunk, InputFile, Notice, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hepscale.executor.engines.base import Engine
    from hepscale.executor.job import Observer
    from hepscale.worker.frames import Frame

__all__ = ["HepScaleExecutor", "shutdown"]

# what every coffea analysis imports sooner or later
_PRELOAD = ("cloudpickle", "coffea.processor", "coffea.nanoevents", "hist")
_ENGINES = ("local",)
# what a task leaves to the system and to this process
_MEMORY_SHARE = 0.9
# zlib's; coffea's own frames know higher levels
_MOST_COMPRESSION = 9
_run_numbers = itertools.count(1)


@dataclass
class HepScaleExecutor(ExecutorBase):  # type: ignore[misc]
    """Runs the chunks of a coffea analysis on workers that stay warm, and streams their results.

    Give it to :class:`coffea.processor.Runner` or to :func:`hepscale.run_uproot_job`.

    Parameters
    ----------
    status
        Whether progress is shown.
    unit, desc, function_name
        Set by coffea.
    compression
        Level, 1 to 9, at which results are compressed on their way; None: not at all.
    cores
        Number of chunks that run at a time; None: as many as this process may use cores.
    memory_mb
        Memory that one of them may use, in MB; None: its share of what there is. A chunk that
        needs more is split by entries, down to one event.
    wall_s
        Time that one chunk may take, in seconds; None: no limit.
    retries
        How often a chunk is run again whose process died. coffea also repeats a chunk that raised
        an exception this often, within its task.
    resume
        Whether to count what an earlier, unfinished run of the same analysis has done already.
    engine
        Who runs tasks: "local", processes of this machine.
    run_dir
        Folder for journals of runs; None: ``HEPSCALE_RUN_DIR``, or a folder in the user's cache.

    Raises
    ------
    ConfigError
        If an option has a value that cannot be used.
    """

    cores: int | None = None
    memory_mb: int | None = None
    wall_s: float | None = None
    retries: int = 3
    resume: bool = False
    engine: str = "local"
    run_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("cores", 1), ("memory_mb", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ConfigError(
                    f"{name}={value!r} cannot be used.",
                    cause=f"it is a whole number, at least {least}",
                    fix=f"HepScaleExecutor({name}={max(least, 1)})",
                )
        if self.wall_s is not None and not (_is_number(self.wall_s) and self.wall_s > 0):
            raise ConfigError(
                f"wall_s={self.wall_s!r} cannot be used.",
                cause="it is the time that one chunk may take, in seconds",
                fix="HepScaleExecutor(wall_s=600), or leave it out for no limit",
            )
        if self.engine not in _ENGINES:
            raise ConfigError(
                f"There is no engine {self.engine!r}.",
                cause=f"known are: {', '.join(_ENGINES)}",
                fix='HepScaleExecutor(engine="local")',
            )

    def __call__(
        self, items: Iterable[Any], function: Callable[..., Any], accumulator: Any
    ) -> tuple[Any, Any]:
        """Run `function` over `items` and add the outputs up.

        Returns
        -------
        tuple
            The accumulated output, and 0 or the exception that ended the run; the output is then
            that of the chunks that were counted.

        Raises
        ------
        RunError
            If the run ended without an output to return, or was to read metadata of files.
        PayloadError, EngineError, RunDirectoryError
            If the run could not begin, or could not go on and nothing was counted.
        """
        items = list(items)
        if not items:
            return accumulator, 0
        error: HepScaleError | None = None
        try:
            outcome = self._run(items, function)
            output = outcome.output
            if outcome.status != "done":
                error = advice.error_for(outcome, _unwrap, self.unit)
        except HepScaleError as caught:
            error, output = caught, caught.partial_output
        if error is not None and (output is None or isinstance(items[0], FileMeta)):
            # coffea looks at a returned exception only beside an output, and not for metadata
            error.partial_output = None
            raise error
        if accumulator is not None and output is not None:
            output = accumulate([output], accumulator)
        elif output is None:
            output = accumulator
        return output, error or 0

    def close(self) -> None:
        """End the warm workers that no other run uses, and remove what they left on disk."""
        warm.shutdown(idle_only=True)

    def _run(self, items: list[Any], function: Callable[..., Any]) -> Outcome:
        settings = self._settings()
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{os.getpid()}-{next(_run_numbers)}"
        with session.spool(settings.scratch_dir) as spool:
            job, digest = self._job(run_id, function, spool)
            chunks = list(_chunks(items, digest))
            engine = self._engine(settings)
            with session.shown(status=self.status) as observer, session.stop_on_sigint() as stop:
                if isinstance(items[0], FileMeta):
                    return Run(job, chunks, engine, observer, None, stop).execute()
                earlier = self._earlier(settings, digest, chunks, observer)
                folder = settings.run_dir / run_id
                written = journal.Journal(folder, digest, self.desc)
                try:
                    return Run(job, chunks, engine, observer, written, stop).execute(earlier)
                finally:
                    written.close()
                    journal.prune(settings.run_dir, settings.keep_runs)

    def _settings(self) -> Settings:
        settings = load_settings()
        if self.run_dir is None:
            return settings
        return settings.model_copy(update={"run_dir": Path(self.run_dir).expanduser().absolute()})

    def _engine(self, settings: Settings) -> Engine:
        return LocalEngine(self._slots(), settings, _PRELOAD)

    def _slots(self) -> int:
        return self.cores or machine.usable_cores()

    def _job(self, run_id: str, function: Callable[..., Any], spool: Path) -> tuple[Job, str]:
        """Write what tasks read into `spool`; return the job and the digest of its code."""
        session.write(spool / "payload", payload.dump_payload(function, accumulate))
        printed = payload.fingerprint((_versions(), _readable(function)))
        modules = local.closure(printed.modules, printed.codes)
        code = spool / "code" if modules else None
        sources = {}
        digest = printed.digest + payload.fingerprint([*_installed(printed.modules)]).digest
        if code is not None:
            digest += local.snapshot(modules, code)
            sources = {
                str(code / name): str(source) for one in modules for name, source in one.files
            }
        share_mb = int(machine.memory_limit_bytes() / 1e6 * _MEMORY_SHARE / self._slots())
        job = Job(
            run_id=run_id,
            desc=self.desc,
            unit=self.unit,
            payload=spool / "payload",
            code=code,
            sources=sources,
            merge=accumulate,
            dumps=cloudpickle.dumps,
            split=_split,
            inputs=_inputs,
            wraps=_wraps,
            resources=Resources(memory_mb=self.memory_mb or share_mb or None, wall_s=self.wall_s),
            retries=self.retries,
            compression=min(self.compression or 0, _MOST_COMPRESSION),
        )
        return job, digest

    def _earlier(
        self,
        settings: Settings,
        digest: str,
        chunks: list[Chunk],
        observer: Observer,
    ) -> Iterator[Frame]:
        if not self.resume:
            return iter(())
        paths = journal.find(settings.run_dir, digest, {chunk.key for chunk in chunks})
        if not paths:
            observer.see(
                Notice("Nothing to resume: no earlier run of this very analysis was found.")
            )
            return iter(())
        return itertools.chain.from_iterable(map(journal.read, paths))


def shutdown() -> None:
    """End all warm workers of this process at once, and remove what they left on disk."""
    warm.shutdown()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _versions() -> tuple[str, ...]:
    import awkward
    import hist
    import uproot

    return tuple(str(one.__version__) for one in (coffea, awkward, hist, uproot))


def _readable(function: Any) -> Any:
    """Return `function` with the processor in place of its compressed pickle, to look into it."""
    if not isinstance(function, partial):
        return function
    keywords = dict(function.keywords)
    packed = keywords.get("processor_instance")
    if isinstance(packed, bytes):
        keywords["processor_instance"] = _unpacked(packed)
    return partial(function.func, *map(_readable, function.args), **keywords)


def _unpacked(packed: bytes) -> Any:
    try:
        return unpickle.loads(lz4.frame.decompress(packed))
    except Exception as error:
        raise PayloadError(
            "The processor cannot be made again from its pickle.",
            items=[f"{type(error).__name__}: {error}"],
            cause="its __setstate__ or __reduce__, or that of something in it, raises",
            fix='python -c "import cloudpickle; cloudpickle.loads(cloudpickle.dumps(...))"',
        ) from error


def _installed(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield installed modules that the analysis refers to, with the time of their installation."""
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and local.is_installed(file):
            with suppress(OSError):
                yield name, Path(file).stat().st_mtime_ns


def _chunks(items: Iterable[Any], digest: str) -> Iterator[Chunk]:
    seen: dict[str, int] = {}
    for item in items:
        identity, about = _identify(item)
        key = payload.chunk_key(digest, identity)
        # the same file given twice is counted twice, as every executor of coffea does
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            key = payload.chunk_key(digest, identity, seen[key] - 1)
        yield Chunk(key, item, *about)


def _identify(item: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what makes a chunk the chunk that it is, and (dataset, file, start, stop)."""
    if isinstance(item, WorkItem):
        start, stop = int(item.entrystart), int(item.entrystop)
        preload = None if item.preload is None else sorted(item.preload)
        identity: tuple[Any, ...] = (
            "chunk",
            item.dataset,
            item.filename,
            item.fileuuid,
            _stamp(item),
            item.treename,
            start,
            stop,
            item.usermeta,
            preload,
        )
        return identity, (item.dataset, item.filename, start, stop)
    if isinstance(item, FileMeta):
        identity = ("file", item.dataset, item.filename, item.treename, item.metadata)
        return identity, (item.dataset, item.filename)
    return ("item", item), ()


def _stamp(item: WorkItem) -> tuple[str, int, int] | None:
    """Return which file this is where coffea's uuid says only what it is called: parquet's."""
    if item.fileuuid == hashlib.md5(item.filename.encode(), usedforsecurity=False).digest():
        with suppress(OSError):
            found = Path(item.filename).stat()
            return str(Path(item.filename).absolute()), found.st_size, found.st_mtime_ns
    return None


def _split(chunk: Chunk) -> tuple[Chunk, Chunk] | None:
    if not isinstance(chunk.item, WorkItem) or chunk.entries < 2:
        return None
    middle = (chunk.start + chunk.stop) // 2
    first = replace(
        chunk,
        key=payload.chunk_key(chunk.key, ("half", 0)),
        item=replace(chunk.item, entrystop=middle),
        stop=middle,
    )
    second = replace(
        chunk,
        key=payload.chunk_key(chunk.key, ("half", 1)),
        item=replace(chunk.item, entrystart=middle),
        start=middle,
    )
    return first, second


def _inputs(chunk: Chunk) -> Iterator[InputFile]:
    name = chunk.file
    if name and "://" not in name and not Path(name).is_absolute():
        yield InputFile(name, Path(name).absolute())


def _wraps(type_name: str, message: str) -> bool:
    return type_name == "Exception" and message.startswith("Failed ")


def _unwrap(error: BaseException) -> BaseException:
    while error.__cause__ is not None and _wraps(type(error).__name__, str(error)):
        error = error.__cause__
    return error
