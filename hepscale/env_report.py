"""What ``hepscale env`` prints: tables for people, JSON for programs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from hepscale.env.analysis import Analysis
    from hepscale.env.spec import Change, Difference

__all__ = ["SCHEMA", "analysis_json", "difference_table", "environments_table", "report"]

# the version of docs/env-analyze.schema.json
SCHEMA = 1
_MOST_REASONS = 2
_MB = 1e6


def analysis_json(found: Analysis) -> dict[str, Any]:
    """Return an analysis as a JSON object, after ``docs/env-analyze.schema.json``."""
    parts = {
        name: [asdict(one) for one in getattr(found, name)]
        for name in ("imports", "distributions", "modules", "missing", "notes", "repositories")
    }
    return {
        "schema": SCHEMA,
        "source": found.source,
        "python": found.python,
        "prefix": found.prefix,
        "size_bytes": found.size_bytes,
        **parts,
    }


def report(found: Analysis) -> RenderableType:
    """Return an analysis as tables: imports, local code, distributions, what is missing."""
    parts: list[RenderableType] = [_imports(found)]
    if found.modules:
        parts += ["", _modules(found)]
    for table in _distributions(found):
        parts += ["", table]
    if found.repositories:
        parts += ["", _repositories(found)]
    if found.missing:
        parts += ["", _missing(found)]
    if found.notes:
        parts += ["", _notes(found)]
    parts += ["", _summary(found)]
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        right = name.endswith("MB")
        table.add_column(name, justify="right" if right else "left", style="cyan" * (name == ""))
    return table


def _add(table: Table, *cells: str | Text, style: str = "") -> None:
    # what stands in brackets is no markup: it is the name of a file, or an extra
    table.add_row(*(Text(one) if isinstance(one, str) else one for one in cells), style=style)


def _imports(found: Analysis) -> Table:
    table = _table("Imports", "module", "from", "where", "how")
    styles = {"missing": "red", "local": "green"}
    shown: dict[tuple[str, str], list[str]] = {}
    how: dict[tuple[str, str], str] = {}
    for one in found.imports:
        within = one.origin == "local" and one.where.startswith(f"{one.provider}/")
        if one.origin == "standard" or within:
            continue
        named = {"local": "local code", "missing": "not found", "cvmfs": f"/cvmfs/{one.provider}"}
        source = named.get(one.origin, one.provider)
        key = (one.name, source)
        shown.setdefault(key, []).append(one.where)
        if one.how != "sure":
            how[key] = one.how
        if one.origin in styles:
            how.setdefault(key, "")
    for (name, source), where in shown.items():
        style = {"local code": "green", "not found": "red"}.get(source, "")
        _add(table, name, Text(source, style), _cut(where), how.get((name, source), ""))
    return table


def _modules(found: Analysis) -> Table:
    table = _table("Local code", "module", "files", "kB", "imported in")
    for one in found.modules:
        size = f"{one.size_bytes / 1e3:.1f}"
        _add(table, one.name, str(len(one.files)), size, _cut(one.reasons))
    return table


def _distributions(found: Analysis) -> Iterator[Table]:
    """Yield what the analysis imports itself, in its order, and what that needs, by size."""
    order = {one.provider: at for at, one in reversed([*enumerate(found.imports)])}
    by_size = sorted(found.distributions, key=lambda one: -one.size_bytes)
    own = [one for one in by_size if one.name in order or one.reasons[:1] == ("asked for",)]
    own.sort(key=lambda one: order.get(one.name, len(order)))
    needed = [one for one in by_size if one not in own]
    for title, block in (
        ("Distributions that are imported", own),
        ("Imported by these", [one for one in needed if one.at_import]),
        ("Required besides", [one for one in needed if not one.at_import]),
    ):
        table = _table(title, "name", "version", "MB", "why")
        for one in block:
            size = f"{one.size_bytes / _MB:.1f}"
            style = "" if one.at_import else "dim"
            _add(table, one.name, one.version, size, _cut(one.reasons), style=style)
        if block:
            yield table


def _repositories(found: Analysis) -> Table:
    table = _table("Repositories of CVMFS, which are not packed", "path", "why")
    for one in found.repositories:
        _add(table, f"/cvmfs/{one.name}", _cut(one.reasons))
    return table


def _missing(found: Analysis) -> Table:
    table = _table("Not found", "module", "where", "next")
    for one in found.missing:
        _add(table, Text(one.name, "red"), _cut(one.where), one.fix)
    return table


def _notes(found: Analysis) -> Table:
    table = _table("Notes", "where", "what", "next")
    for one in found.notes:
        _add(table, one.where, Text(one.text, "yellow"), one.fix)
    return table


def _summary(found: Analysis) -> Text:
    at_import = sum(one.size_bytes for one in found.distributions if one.at_import)
    whole = sum(one.size_bytes for one in found.distributions)
    local = sum(one.size_bytes for one in found.modules)
    return Text(
        f"{len(found.distributions)} distributions, {whole / _MB:.0f} MB unpacked "
        f"({at_import / _MB:.0f} MB of it imported at import time); {len(found.modules)} local "
        f"modules, {local / 1e3:.0f} kB; Python {found.python}"
    )


def _cut(reasons: Sequence[str]) -> str:
    text = "; ".join(reasons[:_MOST_REASONS])
    more = len(reasons) - _MOST_REASONS
    return f"{text} and {more} more" if more > 0 else text


def difference_table(found: Difference) -> RenderableType:
    """Return a difference as a table, one line for each change."""
    if not found:
        return Text("The two hold the same.")
    table = _table("", "what", "before", "after")
    for kind, changes in (
        ("", found.facts),
        ("distribution ", found.distributions),
        ("local module ", found.modules),
    ):
        _add_changes(table, kind, changes)
    return table


def _add_changes(table: Table, kind: str, changes: Iterable[Change]) -> None:
    for one in changes:
        style = "green" if not one.before else "red" if not one.after else "yellow"
        _add(table, Text(f"{kind}{one.name}", style), one.before or "-", one.after or "-")


def environments_table(found: Iterable[tuple[str, float, dict[str, Any]]]) -> RenderableType:
    """Return the environments of the store as a table, the one used last first."""
    table = _table("", "environment", "last used", "Python", "distributions", "closure", "MB")
    for digest, used_s, record in found:
        size = sum(one["size_bytes"] for one in record["layers"])
        spec = record["spec"]
        _add(
            table,
            digest[:12],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(used_s)),
            spec["python"],
            str(len(spec["distributions"]) - 1),
            record["closure"],
            f"{size / _MB:.1f}",
        )
    head = table if table.row_count else Text("There are no environments yet.")
    foot = "An archive of hepscale env pack is listed once something has run in it."
    return Group(head, Text(foot, "dim"))
