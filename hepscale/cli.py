"""The command ``hepscale``. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hepscale import __version__
from hepscale.errors import HepScaleError

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


@main.command()
@click.option("--events", default=1_000_000, show_default=True, help="Events to generate.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=".",
    help="Folder for the picture; by default the current one.",
)
@click.option("--cores", type=int, help="Worker processes; by default one for each core.")
@click.option("--seed", type=int, help="The same seed gives the same events.")
def demo(events: int, out: Path, cores: int | None, seed: int | None) -> None:
    """Find the Z boson in generated events."""
    from rich.console import Console

    from hepscale.demo import run_demo

    given = {} if seed is None else {"seed": seed}
    run_demo(Console(), events=events, out=out, cores=cores, **given)


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
