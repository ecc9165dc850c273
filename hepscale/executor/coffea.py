"""`HepScaleExecutor`: where coffea meets a run."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle
import coffea
from coffea.processor import accumulate
from coffea.processor.executor import ExecutorBase, FileMeta

from hepscale import machine
from hepscale.config import Settings, load_settings
from hepscale.env.api import DEFAULT_CLOSURE
from hepscale.errors import HepScaleError
from hepscale.executor import (
    advice,
    chunking,
    interposer,
    journal,
    options,
    packing,
    payload,
    placing,
    processors,
    session,
)
from hepscale.executor.code import Code, installed
from hepscale.executor.job import Job, Outcome, StopRequest
from hepscale.executor.run import Run
from hepscale.executor.task import Chunk, Notice, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from hepscale.executor.cvmfs import CvmfsConfig
    from hepscale.executor.interposer import Interposer
    from hepscale.executor.job import Observer
    from hepscale.view import RunState
    from hepscale.view.gallery import Watch
    from hepscale.worker.frames import Frame
    from hepscale.workers.api import Workers

__all__ = ["HepScaleExecutor", "shutdown"]

# what every coffea analysis imports sooner or later
_PRELOAD = ("cloudpickle", "coffea.processor", "coffea.nanoevents", "hist")
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
        Who runs tasks: "local", processes of this machine; "workqueue", workers of Work Queue;
        None: what the settings say.
    run_dir
        Folder for journals of runs; None: what the settings say, or a folder in the user's cache.
    environment
        What tasks run in: "packed", a copy of the part of what this process runs in that the
        analysis needs; or an archive that ``hepscale env pack`` or conda-pack has written. None:
        with the local engine what this process runs in, else "packed".
    closure
        What is packed: "full", all that the imported packages require; "imports", what they
        import at import time (should a task import more, the rest is sent and it is run again).
    extra_packages, exclude_packages
        Packages or modules that are packed, or not, whatever the analysis imports.
    files
        Files or folders that tasks find in their folder: under the same name if that is a relative
        one, else under the last part of it.
    site
        Profile of a site, from which the settings come that are not given here; None: the one that
        ``HEPSCALE_SITE`` or a file names.
    workers
        Are started for Work Queue, and stay until `close` or the end of this process; None: what
        the settings say, or somebody else starts them.
    name
        By which workers find this process, through Work Queue's catalog server.
    port
        On which it listens to workers: 9123, or a range, "9000-9100"; None: any.
    password_file
        What the workers have to know; None: a new one, which `workers` are given.
    interposer
        What tasks run inside: an :class:`hepscale.Interposer`, or its kind; None: what the
        settings say, or nothing.
    watch
        Which histograms are drawn while the run goes on: patterns of their names, such as
        ``["mass", "cutflow.*"]``; or a function that is given a copy of the partial output and
        returns histograms by name. None: the first twelve.
    on_partial
        Is called with a copy of the partial output, and of the
        :class:`hepscale.view.RunState`, when chunks have come in, and once more at the end. An
        exception in it is told once and does not end the run.
    interval_s
        Least seconds between two of these calls. The run waits for them.
    cvmfs
        Repositories that tasks find below ``/cvmfs``; None: what the settings say.

    Raises
    ------
    ConfigError
        If an option or a setting has a value that cannot be used.
    """

    cores: int | None = None
    memory_mb: int | None = None
    wall_s: float | None = None
    retries: int = 3
    resume: bool = False
    engine: str | None = None
    run_dir: str | os.PathLike[str] | None = None
    environment: str | os.PathLike[str] | None = None
    closure: str = DEFAULT_CLOSURE
    extra_packages: Sequence[str] = ()
    exclude_packages: Sequence[str] = ()
    files: Sequence[str | os.PathLike[str]] = ()
    site: str | None = None
    workers: Workers | None = None
    name: str | None = None
    port: int | str | None = None
    password_file: str | os.PathLike[str] | None = None
    interposer: Interposer | str | None = None
    watch: Watch | None = None
    on_partial: Callable[[Any, RunState], object] | None = None
    interval_s: float = 1.0
    cvmfs: CvmfsConfig | None = None

    def __post_init__(self) -> None:
        options.check(self)
        placing.check(self._settings().engine, self.workers)

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
        advice.refuse_in_task()
        items = list(items)
        if not items:
            return accumulator, 0
        error: HepScaleError | None = None
        try:
            output = self._run(items, function).output
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
        placing.shutdown(idle_only=True)

    def _run(self, items: list[Any], function: Callable[..., Any]) -> Outcome:
        settings = self._settings()
        stop = StopRequest()
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{os.getpid()}-{next(_run_numbers)}"
        watched = self._watched(items, function, settings.run_dir / run_id)
        with (
            session.spool(settings.scratch_dir) as spool,
            session.shown(stop, status=self.status, watched=watched) as observer,
        ):
            job, digest, packed = self._job(run_id, function, spool, settings, observer)
            # the first of coffea's two runs, the one over files, may have been spared
            told = placing.warnings(settings)
            if isinstance(items[0], FileMeta):
                told += placing.beyond(settings, self.workers, self._slots(), self.memory_mb)
            else:
                told += packed.missing
            for text in told:
                observer.see(Notice(text))
            try:
                outcome = self._execute(job, digest, items, settings, observer, stop)
                if stop.keep and advice.is_kept(outcome, job.unit):
                    observer.see(Notice(advice.kept(outcome, job.unit), lasting=True))
                elif outcome.status != "done":
                    raise advice.error_for(outcome, chunking.unwrap, job.unit)
            except HepScaleError as error:
                packed.explain(error)
                interposer.explain(error, settings, observer.interposers)
                raise
            return outcome

    def _execute(
        self,
        job: Job,
        digest: str,
        items: list[Any],
        settings: Settings,
        observer: Observer,
        stop: StopRequest,
    ) -> Outcome:
        chunks = list(chunking.chunks_of(items, digest))
        engine = placing.engine_for(
            settings, self.workers, self._slots(), _PRELOAD, job.environment
        )
        with session.stop_on_sigint(stop):
            if isinstance(items[0], FileMeta):
                return Run(job, chunks, engine, observer, None, stop).execute()
            earlier = self._earlier(settings, digest, chunks, observer)
            written = journal.Journal(settings.run_dir / job.run_id, digest, self.desc)
            try:
                return Run(job, chunks, engine, observer, written, stop).execute(earlier)
            finally:
                written.close()
                journal.prune(settings.run_dir, settings.keep_runs)

    def _watched(
        self, items: list[Any], function: Callable[..., Any], folder: Path
    ) -> session.Watched | None:
        """Return what is done with the growing output; that of reading metadata is coffea's own."""
        if isinstance(items[0], FileMeta):
            return None
        return session.Watched(
            chunking.content,
            self.watch,
            self.on_partial,
            self.interval_s,
            folder,
            partial(processors.again, self, items, function),
        )

    def _settings(self) -> Settings:
        return load_settings(
            self.site,
            engine=self.engine,
            name=self.name,
            port=self.port,
            password_file=self.password_file,
            run_dir=self.run_dir,
            cvmfs=self.cvmfs and self.cvmfs.table(),
            interposer=interposer.given(self.interposer),
        )

    def _slots(self) -> int:
        return self.cores or machine.usable_cores()

    def _memory_mb(self, settings: Settings) -> int | None:
        """Return what a chunk may use: of this machine its share, elsewhere what there is."""
        if self.memory_mb or settings.engine != "local":
            return self.memory_mb
        return int(machine.memory_limit_bytes() / 1e6 * _MEMORY_SHARE / self._slots()) or None

    def _job(
        self,
        run_id: str,
        function: Callable[..., Any],
        spool: Path,
        settings: Settings,
        observer: Observer,
    ) -> tuple[Job, str, packing.RunEnvironment]:
        """Write what tasks read into `spool`; return job, digest of its code, place."""
        named = chunking.named_files(self.files)
        session.write(spool / "payload", payload.dump_payload(function, accumulate))
        printed = payload.fingerprint((_versions(), processors.readable(function)))
        environment = self.environment
        if environment is None:
            environment = placing.default_environment(settings.engine)
        wanted = packing.Wanted(
            environment,
            self.closure,
            (*self.extra_packages,),
            (*self.exclude_packages,),
            settings,
        )
        packed = packing.pack(wanted, printed, _PRELOAD, observer)
        code = Code(spool, printed)
        read = [*installed(printed.modules), *chunking.states(named)]
        digest = printed.digest + payload.fingerprint(read).digest
        if packed.environment is not None and packed.environment.whole:
            # its packages are others than those of this process
            digest += packed.environment.digest
        digest += code.take(packed)
        job = Job(
            run_id=run_id,
            desc=self.desc,
            # coffea calls it "event" or "items", but what is counted is chunks
            unit="file" if self.unit == "file" else "chunk",
            payload=spool / "payload",
            code=code.folder,
            sources=code.sources,
            merge=accumulate,
            dumps=cloudpickle.dumps,
            split=chunking.split,
            inputs=partial(chunking.inputs, named),
            wraps=chunking.wraps,
            resources=Resources(memory_mb=self._memory_mb(settings), wall_s=self.wall_s),
            retries=self.retries,
            compression=min(self.compression or 0, _MOST_COMPRESSION),
            environment=packed.environment,
            widen=code.widener(packed),
            elsewhere=settings.engine != "local",
            interposed=interposer.told(settings)["interposer"] is not None,
        )
        return job, digest, packed

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
    placing.shutdown()


def _versions() -> tuple[str, ...]:
    import awkward
    import hist
    import uproot

    return tuple(str(one.__version__) for one in (coffea, awkward, hist, uproot))
