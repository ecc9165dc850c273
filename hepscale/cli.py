"""The command ``hepscale``. Each command imports what it needs when it runs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from hepscale import __version__
from hepscale.cvmfs_cli import cvmfs
from hepscale.errors import HepScaleError
from hepscale.workers_cli import workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

    from hepscale.env.environment import Packed

__all__ = ["main"]

_INTERRUPTED = 130


class _Group(click.Group):
    """Prints our errors without a traceback; Ctrl-C ends with the code that shells expect."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            text = str(error) if isinstance(error, HepScaleError) else "Interrupted."
            click.echo(text, err=True)
            ctx.exit(_INTERRUPTED)
        except HepScaleError as error:
            click.echo(f"{click.style('Error:', fg='red', bold=True)} {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hepscale")
def main() -> None:
    """Scale a coffea analysis from the notebook it was written in."""


main.add_command(workers)
main.add_command(cvmfs)


@main.command()
@click.option("--events", default=1_000_000, show_default=True, help="Events to generate.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=".",
    help="Folder for the picture; by default the current one.",
)
@click.option("--cores", type=int, help="Worker processes; by default one for each core.")
@click.option(
    "--engine",
    type=click.Choice(["local", "workqueue", "taskvine"]),
    help="Who runs the chunks; by default what the settings say.",
)
@click.option("--seed", type=int, help="The same seed gives the same events.")
def demo(events: int, out: Path, cores: int | None, engine: str | None, seed: int | None) -> None:
    """Find the Z boson in generated events."""
    from rich.console import Console

    from hepscale.demo import run_demo

    given = {} if seed is None else {"seed": seed}
    run_demo(Console(), events=events, out=out, cores=cores, engine=engine, **given)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the executed notebook to."
)
@click.option("--timeout", type=click.IntRange(1), help="Seconds for each cell, or for the script.")
@click.option("--kernel", help="Jupyter kernel; by default the notebook's own.")
def run(file: Path, output: Path | None, timeout: int | None, kernel: str | None) -> None:
    """Run a notebook or a script without a browser.

    Exits with 1 when a cell or the script fails; with -o what was executed until then is kept.
    """
    from rich.console import Console

    from hepscale.notebook_run import run_file

    console, progress = Console(), Console(stderr=True)
    run_file(file, console, progress, out=output, timeout_s=timeout, kernel=kernel)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(as_json: bool) -> None:
    """Say what works on this machine, and how to mend what does not."""
    from hepscale.doctor import check_all

    checks = check_all()
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        colors = {"ok": "green", "warn": "yellow", "fail": "red"}
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = click.style(f"{check.status:4}", fg=colors[check.status])
            click.echo(f"{mark}  {check.name:{width}}  {check.fact}")
            if check.fix:
                click.echo(f"      {'':{width}}  {click.style(check.fix, bold=True)}")
    if any(check.status == "fail" for check in checks):
        click.get_current_context().exit(1)


@main.command()
@click.argument("run", default="last")
@click.option(
    "-o",
    "--output",
    type=click.File("w", encoding="utf-8", lazy=True),
    default="report.html",
    show_default=True,
    help="The page.",
)
def report(run: str, output: TextIO) -> None:
    """Write what is kept of RUN as one HTML page, for a colleague.

    RUN is the id of a run, its folder, or "last", the newest one.
    """
    from hepscale import report as reports
    from hepscale.config import load_settings

    folder = reports.find_run(load_settings().run_dir, run)
    output.write(reports.page(folder))
    click.echo(f"{output.name}: {folder.name}", err=True)


@main.group()
def config() -> None:
    """See the settings."""


@config.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--site", metavar="NAME", help="As with this profile.")
def config_show(as_json: bool, site: str | None) -> None:
    """Say what each setting is here, and where its value came from."""
    from hepscale import config_report
    from hepscale.config import resolve

    found = resolve(site)
    if as_json:
        import json

        click.echo(json.dumps(config_report.settings_json(found), indent=1))
    else:
        from rich.console import Console

        console = Console()
        # terminals wrap what is too long all the same, but it can be copied
        console.print(config_report.settings_table(found, console.width), soft_wrap=True)


_PACKAGES = (
    click.option("--with", "extra", multiple=True, metavar="PACKAGE", help="Take this one too."),
    click.option("--without", "exclude", multiple=True, metavar="PACKAGE", help="Leave this out."),
    click.option("--python", help="Interpreter whose environment is meant; by default this one."),
)
_CLOSURE = click.option(
    "--closure",
    type=click.Choice(["full", "imports"]),
    default="full",
    show_default=True,
    help="All that the packages require, or only what is imported at import time.",
)


def _package_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_PACKAGES):
        command = option(command)
    return command


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bars: dict[str, TaskID] = {}
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))

    def tell(label: str, done: int, total: int) -> None:
        if not bars:
            # not before: even without a bar it would write a line
            progress.start()
        if label not in bars:
            bars[label] = progress.add_task(f"Packing {label}", total=total)
        progress.update(bars[label], completed=done)

    try:
        yield tell
    finally:
        if bars:
            progress.stop()


@main.group()
def env() -> None:
    """See, pack and use the environment of an analysis."""


@env.command("analyze")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the analysis as JSON.")
@_package_options
def env_analyze(
    file: Path, as_json: bool, extra: tuple[str, ...], exclude: tuple[str, ...], python: str | None
) -> None:
    """Say what FILE, a script or a notebook, imports and where that comes from.

    Nothing of it is imported or run. Exits with 1 when something is missing.
    """
    from hepscale import env_report
    from hepscale.env.api import analyze

    found = analyze(file, python=python, extra_packages=extra, exclude_packages=exclude)
    if as_json:
        import json

        click.echo(json.dumps(env_report.analysis_json(found), indent=1))
    else:
        from rich.console import Console

        Console().print(env_report.report(found))
    if found.missing:
        click.get_current_context().exit(1)


@env.command("pack")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The archive.  [default: env.tar.gz]"
)
@click.option("--format", "form", type=click.Choice(["tar.gz", "tar.zst"]))
@_CLOSURE
@_package_options
def env_pack(
    file: Path,
    output: Path | None,
    form: str | None,
    closure: Any,
    extra: tuple[str, ...],
    exclude: tuple[str, ...],
    python: str | None,
) -> None:
    """Write the environment of FILE as one archive, which conda-pack's tools understand."""
    from hepscale.env.api import pack

    with _progress() as tell:
        packed = pack(
            file,
            output or f"env.{form or 'tar.gz'}",
            format=form,
            closure=closure,
            python=python,
            extra_packages=extra,
            exclude_packages=exclude,
            tell=tell,
        )
    _say_missing(file, packed)
    what = f"{len(packed.spec.distributions) - 1} distributions, Python {packed.spec.python}"
    size = f"{packed.size_bytes / 1e6:.1f} MB, {packed.unpacked_bytes / 1e6:.0f} MB unpacked"
    click.echo(f"{packed.path}: {size}; {what}{' (unchanged)' if packed.unchanged else ''}")


def _say_missing(file: Path, packed: Packed) -> None:
    """Warn of what an environment was made without."""
    names = [one.name for one in packed.missing if one.how == "sure"]
    if names or packed.notes:
        what = [f"not found: {', '.join(names)}"] if names else []
        what += [f"other things to know: {len(packed.notes)}"] if packed.notes else []
        click.echo(
            f"{click.style('Warning:', fg='yellow', bold=True)} {'; '.join(what)}. "
            f"hepscale env analyze {file} has the lines.",
            err=True,
        )


@env.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("what")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_CLOSURE
def env_run(what: str, command: tuple[str, ...], closure: Any) -> None:
    """Run COMMAND in the environment of WHAT: an archive, a script or a notebook.

    \b
    hepscale env run env.tar.gz -- python analysis.py
    hepscale env run analysis.ipynb -- python -c 'import coffea; print(coffea.__file__)'
    """
    from hepscale.env_run import prepare

    with _progress() as tell:
        line, environ = prepare(what, command, closure, tell)
    os.execvpe(line[0], line, environ)  # noqa: S606


@env.command("diff")
@click.argument("before")
@click.argument("after")
def env_diff(before: str, after: str) -> None:
    """Say how two environments differ: archives, scripts, notebooks, or digests of env list.

    Exits with 1 when they do.
    """
    from rich.console import Console

    from hepscale import env_report
    from hepscale.env.spec import difference
    from hepscale.env_run import spec_of

    found = difference(spec_of(before), spec_of(after))
    Console().print(env_report.difference_table(found))
    if found:
        click.get_current_context().exit(1)


@env.command("list")
def env_list() -> None:
    """Show the environments that are kept here, the one used last first."""
    from rich.console import Console

    from hepscale import env_report
    from hepscale.env.api import store

    Console().print(env_report.environments_table(store().environments()))


@env.command("prune")
@click.option(
    "--keep", type=click.IntRange(0), default=0, show_default=True, help="Environments to keep."
)
def env_prune(keep: int) -> None:
    """Remove packed and unpacked environments; what workers use stays."""
    from hepscale.config import load_settings
    from hepscale.env.api import store

    done = store().prune(keep, load_settings().cache_dir / "unpacked")
    noun = "environment" if done.environments == 1 else "environments"
    text = f"{done.environments} {noun} removed, {done.size_bytes / 1e6:.0f} MB freed"
    if done.recent_bytes:
        text += f"; {done.recent_bytes / 1e6:.0f} MB were used within the last minute and stay"
    click.echo(text)
