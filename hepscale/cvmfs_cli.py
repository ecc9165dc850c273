"""The commands ``hepscale cvmfs ls|cat|stat|prefetch|check|run``."""

from __future__ import annotations

import os
import stat as kinds
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from hepscale.cvmfs_access import Opened
    from hepscale.worker.cvmfs.catalog import Entry

__all__ = ["cvmfs"]

_MOST_SHOWN = 3
_CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In CVMFS's KEY=value form, or a folder as /etc/cvmfs.  [default: [cvmfs] of the "
    "settings, and /etc/cvmfs]",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.group()
def cvmfs() -> None:
    """Read repositories of CVMFS without mounting them, and fill caches of them."""


@contextmanager
def _open(repository: str, config: Path | None, filled: Path | None = None) -> Iterator[Opened]:
    from hepscale.cvmfs_access import opened, settings

    with opened(settings((repository,), config), filled) as found:
        if found.revision.notice:
            click.echo(f"note: {found.revision.notice}", err=True)
        yield found


@cvmfs.command("ls")
@click.argument("repository")
@click.argument("path", default="/")
@click.option("-l", "long", is_flag=True, help="With mode, owner, size and time.")
@click.option("-a", "hidden", is_flag=True, help="Also what the publisher has hidden.")
@_JSON
@_CONFIG
def ls(
    repository: str, path: str, long: bool, hidden: bool, as_json: bool, config: Path | None
) -> None:
    """List PATH of REPOSITORY, a folder or a file."""
    from hepscale.cvmfs_access import found, shown

    with _open(repository, config) as opened:
        entry = found(opened, path, follow=not long)
        listed = [entry]
        if kinds.S_ISDIR(entry.mode):
            every = opened.revision.children(entry.path).values()
            listed = [one for one in every if hidden or not one.hidden]
        if as_json:
            _print_json([shown(opened, one) for one in listed])
            return
    names = {one.path: one.name if len(listed) > 1 or one is not entry else path for one in listed}
    lines = _long(listed, names) if long else [names[one.path] for one in listed]
    for line in lines:
        _print(line)


@cvmfs.command("cat")
@click.argument("repository")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@_CONFIG
def cat(repository: str, paths: tuple[str, ...], config: Path | None) -> None:
    """Write files of REPOSITORY to the standard output; their content is verified."""
    from hepscale.cvmfs_access import found
    from hepscale.errors import InputError

    with _open(repository, config) as opened:
        entries = [found(opened, path) for path in paths]
        for path, entry in zip(paths, entries, strict=True):
            if not kinds.S_ISREG(entry.mode):
                raise InputError(
                    "It is no file.",
                    items=[path],
                    cause="it is a folder" if kinds.S_ISDIR(entry.mode) else "it is a device",
                    fix=f"hepscale cvmfs ls {repository} {path}",
                )
        for entry in entries:
            for chunk in opened.revision.chunks(entry):
                with open(opened.revision.open_chunk(entry, chunk), "rb") as stream:
                    while block := stream.read(1 << 20):
                        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


@cvmfs.command("stat")
@click.argument("repository")
@click.argument("path", default="/")
@_JSON
@_CONFIG
def stat(repository: str, path: str, as_json: bool, config: Path | None) -> None:
    """Say all that is known of PATH of REPOSITORY, and of the revision."""
    from hepscale.cvmfs_access import found, shown

    with _open(repository, config) as opened:
        told = shown(opened, found(opened, path, follow=False))
        revision = opened.revision
        told["repository"] = opened.name
        told["revision"] = revision.number
        told["root_hash"] = revision.root.text
        told["published_s"] = revision.time
    if as_json:
        _print_json(told)
        return
    told["mtime"] = _time(told.pop("mtime_ns") / 1e9)
    told["published"] = _time(told.pop("published_s"))
    width = max(map(len, told))
    for name, value in told.items():
        texts = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            texts = [f"{key} = {one}" for key, one in value.items()]
        for at, text in enumerate(texts):
            label = "" if at else name.replace("_", " ")
            _print(f"{label:{width}}  {'yes' if text is True else text}")


@cvmfs.command("prefetch")
@click.argument("repository")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--cache",
    "folder",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The cache, in CVMFS's alien layout; made if it is not there.",
)
@_CONFIG
def prefetch(repository: str, paths: tuple[str, ...], folder: Path, config: Path | None) -> None:
    """Fill a cache with all that is below PATHs of REPOSITORY.

    Workers that see the folder need no network then: name it as alien_cache in [cvmfs].
    """
    from hepscale.cvmfs_prefetch import fetch, plan

    with _progress() as bar, _open(repository, config, folder) as opened:
        looking = bar.add_task("Reading catalogs", total=None)
        wanted = plan(opened, paths)
        bar.remove_task(looking)
        task = bar.add_task("Fetching", total=wanted.absent_bytes)
        done = fetch(opened, wanted, folder, lambda size: bar.advance(task, size))
        number = opened.revision.number
    click.echo(
        f"{wanted.files} files of {repository}, revision {number}, are in {folder}: "
        f"{len(wanted.objects)} objects, {done.objects} of them fetched now, "
        f"{done.size_bytes / 1e6:.1f} MB"
    )
    leaving = [f"{path} -> {target}" for path, target in wanted.leaving]
    for what, items in (
        ("links that lead out of what was fetched", leaving),
        ("files on other servers, which were not fetched", wanted.external),
    ):
        if items:
            more = ", ..." if len(items) > _MOST_SHOWN else ""
            shown = ", ".join(items[:_MOST_SHOWN])
            click.echo(f"note: {what} ({len(items)}): {shown}{more}", err=True)


@cvmfs.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def check(folder: Path) -> None:
    """Verify all objects of a cache. Exits with 1 when some are damaged."""
    from hepscale.errors import InputError
    from hepscale.worker.cvmfs import check as checking

    try:
        with _progress() as bar:
            task = bar.add_task("Checking", total=None)

            def tell(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            found = checking.check(str(folder), progress=tell)
    except OSError as error:
        raise InputError(
            "The cache cannot be read.",
            items=[str(folder)],
            cause=(error.strerror or str(error)).lower(),
            fix=f"ls -ld {folder}",
        ) from None
    if found == (0, (), ()) and not (folder / "00").is_dir():
        raise InputError(
            "There is no cache of CVMFS.",
            items=[str(folder)],
            cause="it has no folders 00 to ff: it is that of another thing, or one above or below",
            fix=f"ls {folder}",
        )
    click.echo(f"{found.verified} objects are what their names say.")
    if found.unknown:
        click.echo(f"{len(found.unknown)} cannot be verified: no digest of them was kept.")
    for name in found.damaged:
        click.echo(f"damaged: {folder / name[:2] / name[2:]}")
    if found.damaged:
        click.echo("Next: remove these files; what needs them fetches them again.", err=True)
        click.get_current_context().exit(1)


class _WithCommand(click.Command):
    """Takes what stands behind ``--`` as the command, also where there is nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.obj = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@cvmfs.command("run", cls=_WithCommand, options_metavar="[--config FILE]")
@click.argument("repositories", metavar="REPOSITORY... [-- COMMAND ...]", nargs=-1, required=True)
@_CONFIG
@click.pass_obj
def run(command: list[str], repositories: tuple[str, ...], config: Path | None) -> None:
    """Run COMMAND, by default a shell, with repositories below /cvmfs.

    Neither root nor a mount is needed. What this machine has mounted is used as it is.
    """
    from hepscale.cvmfs_access import settings
    from hepscale.cvmfs_run import run

    click.get_current_context().exit(run(settings(repositories, config), command))


# -- what is printed -----------------------------------------------------------------------------


def _print(line: str) -> None:
    if sys.stdout.isatty():
        # as ls does: a name could change the terminal
        line = "".join(one if one.isprintable() else "?" for one in line)
    click.echo(os.fsencode(line))


def _print_json(told: Any) -> None:
    import json

    click.echo(json.dumps(told, indent=1))


def _long(listed: list[Entry], names: dict[str, str]) -> list[str]:
    """Return lines as those of ``ls -l``."""
    rows = [
        (kinds.filemode(one.mode), str(one.nlink), str(one.uid), str(one.gid), str(one.size),
         _time(one.mtime_ns / 1e9))
        for one in listed
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for one, row in zip(listed, rows, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        link = f" -> {one.link}" if kinds.S_ISLNK(one.mode) else ""
        lines.append(" ".join([*cells, f"{names[one.path]}{link}"]))
    return lines


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    shown = console.is_terminal
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown)
    with bar:
        yield bar
