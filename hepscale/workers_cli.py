"""The commands ``hepscale workers start|list|stop``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["workers"]

# as in hepscale.workers.plan, which is not imported for a help text
_BATCH = ("local", "slurm", "condor", "sge", "pbs", "torque")


@click.group()
def workers() -> None:
    """Start, list and stop workers of Work Queue or TaskVine."""


@workers.command("start")
@click.argument("address", metavar="NAME|HOST:PORT")
@click.option("--batch", type=click.Choice(_BATCH), default="local", show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--cores", type=click.IntRange(1), default=1, show_default=True)
@click.option("--memory", type=click.IntRange(1), metavar="MB", help="Of each worker.")
@click.option("--disk", type=click.IntRange(1), metavar="MB", help="Of each worker.")
@click.option(
    "--option", "options", multiple=True, metavar="LINE", help="For the batch system; repeatable."
)
@click.option(
    "--setup", multiple=True, metavar="COMMAND", help="Run before each worker; repeatable."
)
@click.option("--password", type=click.Path(path_type=Path), help="File with the password.")
@click.option("--ssl", is_flag=True, help="The manager speaks TLS.")
@click.option(
    "--engine",
    type=click.Choice(["workqueue", "taskvine"]),
    default="workqueue",
    show_default=True,
    help="Whose workers.",
)
@click.option("--workdir", type=click.Path(path_type=Path), help="Folder for the workers' files.")
@click.option("--idle", type=click.IntRange(1), default=900, show_default=True, metavar="S",
              help="Seconds without work after which a worker ends.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be run.")
def start(
    address: str,
    batch: str,
    count: int,
    cores: int,
    memory: int | None,
    disk: int | None,
    options: tuple[str, ...],
    setup: tuple[str, ...],
    password: Path | None,
    ssl: bool,
    engine: str,
    workdir: Path | None,
    idle: int,
    dry_run: bool,
) -> None:
    """Start workers for a manager, which is known by its address or its name.

    They stay when this command ends, until they have been idle for long.
    """
    from typing import cast

    from hepscale.config import load_settings
    from hepscale.workers import groups, systems
    from hepscale.workers.api import Workers, beyond_machine
    from hepscale.workers.plan import BatchName, describe
    from hepscale.workers.version import PROGRAMS

    described = Workers(
        cast("BatchName", batch),
        count=count,
        cores=cores,
        memory_mb=memory,
        disk_mb=disk,
        options=options,
        setup=setup,
        workdir=workdir,
        idle_s=idle,
    )
    settings = load_settings()
    program = PROGRAMS[engine]
    plan = described.plan(address, password, ssl=ssl, program=program, settings=settings)
    if plan.batch == "local":
        for text in beyond_machine(count, cores, memory):
            click.echo(f"note: {text}", err=True)
    if dry_run:
        click.echo(describe(plan, systems.submit_command(plan.batch)), nl=False)
        return
    groups.sweep(settings)
    group, _ = groups.start(plan, settings, owned=False)
    job = f" (job {group.job})" if group.job else ""
    click.echo(f"{group.id}: {count} workers of {batch} for {group.address}{job}")
    click.echo(f"hepscale workers stop {group.id}")


@workers.command("list")
def list_() -> None:
    """Show the workers that were started here, the newest first; forget those that have ended."""
    import time

    from hepscale.config import load_settings
    from hepscale.errors import EngineError
    from hepscale.workers import groups, records

    rows = [("ID", "batch", "manager", "job", "workers", "cores", "memory", "since")]
    for group in records.every(load_settings()):
        number: int | str
        try:
            number = groups.alive(group)
            if not number and not groups.is_watched(group):
                records.forget(group)
                continue
        except EngineError as error:
            number = "?"
            click.echo(f"{group.id}: {error}", err=True)
        row = (group.id, group.batch, group.address, group.job or group.host)
        size = (f"{number} of {group.count}", str(group.cores), f"{group.memory_mb} MB")
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(group.started_s))
        rows.append((*row, *size, since))
    if len(rows) == 1:
        click.echo("There are no workers.")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for one in rows:
        cells = (cell.ljust(width) for cell, width in zip(one, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@workers.command("stop")
@click.argument("identities", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Stop all that workers list shows.")
def stop(identities: tuple[str, ...], everything: bool) -> None:
    """End workers by the ID that workers list shows."""
    from hepscale.config import load_settings
    from hepscale.errors import EngineError
    from hepscale.workers import groups, records

    if bool(identities) == everything:
        raise click.UsageError("Give the IDs that hepscale workers list shows, or --all.")
    settings = load_settings()
    chosen = (
        records.every(settings) if everything else [records.find(settings, i) for i in identities]
    )
    failed = 0
    for group in chosen:
        try:
            groups.stop(group)
        except EngineError as error:
            failed += 1
            click.echo(f"{group.id}: {error}", err=True)
        else:
            click.echo(f"{group.id}: stopped")
    if failed:
        click.get_current_context().exit(1)
