"""``hepscale report``: what is kept of a run as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import binascii
import html
import json
from datetime import datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from hepscale.errors import InputError
from hepscale.executor.summary import FORMAT, PLOTS, SUMMARY
from hepscale.view.gallery import decode
from hepscale.view.text import count_text, duration_text
from hepscale.view.timeline import Share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hepscale.view.gallery import Drawing

__all__ = ["find_run", "page"]

_STATUS = {
    "done": "All chunks were counted.",
    "failed": "Some chunks failed.",
    "stopped": "Stopped early: chunk after chunk failed.",
    "interrupted": "Stopped by its user.",
}
_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2rem; font-size: 1.15rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1.2rem .15rem 0; text-align: left;
vertical-align: top; } td, li { overflow-wrap: anywhere; } li { margin-bottom: .4rem; }
th { font-weight: 600; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; background: white; } .$status { font-weight: 600; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$run_id</p>
<p class="$status">$how</p>
$body
</body>
</html>
"""
)


def find_run(run_dir: Path, which: str = "last") -> Path:
    """Return the folder of a run.

    Parameters
    ----------
    run_dir
        Folder with the journals of runs.
    which
        The run's id, or as much of the end or the beginning of it as no other has; its folder; or
        "last".

    Raises
    ------
    InputError
        If there is no such run, or more than one.
    """
    folder = Path(which)
    if which != "last" and (folder / SUMMARY).is_file():
        return folder
    runs = sorted(path.parent for path in run_dir.glob(f"*/{SUMMARY}"))
    if which == "last":
        found = runs[-1:]
    else:
        found = [one for one in runs if one.name.startswith(which) or one.name.endswith(which)]
        found = [one for one in found if one.name == which] or found
    if len(found) == 1:
        return found[0]
    if not runs:
        raise InputError(
            "There is no run that can be reported.",
            items=[f"looked into {run_dir}"],
            cause="none has ended yet, or it wrote to another folder",
            fix="HEPSCALE_RUN_DIR=<folder> hepscale report",
        )
    raise InputError(
        f"{'More than one run is' if found else 'No run is'} called {which!r}.",
        items=[one.name for one in reversed(found or runs)],
        fix="hepscale report last",
    )


def page(folder: Path) -> str:
    """Return the page about a run.

    Raises
    ------
    InputError
        If what is kept of the run cannot be read.
    """
    try:
        run = _read(folder / SUMMARY)
        drawing = _drawing(folder / PLOTS)
        return _page(run, drawing)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "What is kept of the run cannot be read.",
            items=[f"{folder}: {type(error).__name__}: {error}"],
            cause="it was written by another version of HepScale, or was changed",
            fix="hepscale report last",
        ) from error


def _page(run: dict[str, Any], drawing: Drawing | None) -> str:
    status = str(run["status"])
    parts = [
        _section("Run", _facts(run)),
        _section("What the workers' slots did", _timeline(run["timeline"])),
        _section("Failures", _failures(run["failures"], run["chunks"]["failed"])),
        _section("Notes", _list([html.escape(text) for text in run["notices"]])),
        _section("Output", _picture(drawing)),
        _section("Versions", _table([*run["versions"].items()])),
    ]
    return _PAGE.substitute(
        title=html.escape(run["desc"] or "Run"),
        run_id=html.escape(run["run_id"]),
        status=status if status in _STATUS else "unknown",
        how=html.escape(_STATUS.get(status, "It did not come to its end.")),
        body="\n".join(part for part in parts if part),
    )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if path.name == SUMMARY and found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']}, not {FORMAT}")
    return found


def _drawing(path: Path) -> Drawing | None:
    if not path.is_file():
        return None
    found = _read(path)
    try:
        return decode(found["spec"], base64.b64decode(found["bins"], validate=True))
    except binascii.Error as error:
        raise ValueError(f"{path.name}: {error}") from error


def _facts(run: dict[str, Any]) -> str:
    chunks, events, tasks, workers = run["chunks"], run["events"], run["tasks"], run["workers"]
    wall_s = float(run["wall_s"])
    rate = f", {count_text(events['done'] / wall_s)} per second" if wall_s > 0 else ""
    special = [f"{chunks[name]:,} {name}" for name in ("failed", "resumed", "split")]
    ended = [f"{tasks[key]:,} {said}" for key, said in _TASKS if tasks[key]]
    cores = tasks["cpu_s"] / tasks["wall_s"] if tasks["wall_s"] > 0 else 0.0
    memory = (
        f"{tasks['memory_mb_most']:,.0f} MB at most, {tasks['memory_mb_mean']:,.0f} MB on average"
    )
    total = f" of {events['total']:,}" if events["total"] else ""
    return _table(
        [
            ("Begun", datetime.fromisoformat(run["begun"]).strftime("%Y-%m-%d %H:%M:%S %Z")),
            ("Took", duration_text(wall_s, tenths=True)),
            ("Engine", run["engine"]),
            ("Chunks", f"{chunks['done']:,} of {chunks['total']:,}; {', '.join(special)}"),
            ("Events", f"{events['done']:,}{total}{rate}"),
            ("Workers", f"{workers['joined']:,} joined, {workers['lost']:,} lost"),
            ("Slots", f"{workers['slots_most']:,} at most"),
            ("Tasks", ", ".join([f"{tasks['ended']:,} ended", *ended])),
            ("Memory of a task", memory),
            ("Cores of a task", f"{cores:.2f} on average"),
            *_environment(run.get("environment") or {}),
            *_sandbox(run.get("interposer") or {}),
            ("Read by tasks", f"{count_text(run.get('bytes_read', 0))}B"),
            ("Outputs received", f"{count_text(run['bytes_merged'])}B"),
        ]
    )


def _environment(sent: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what tasks were sent to import, where that was anything."""
    if not sent.get("layers"):
        return []
    text = f"{sent['layers']:,} layers, {count_text(sent['size_bytes'])}B"
    text += f", {sent['layers_cached']:,} of them packed before"
    there = sent["workers"]
    where = f"; on {there:,} worker{'s' if there > 1 else ''}" if there else ""
    return [("Environment", text + where)]


def _sandbox(inside: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what tasks ran in, where that was more than nothing, and their repositories."""
    ways = inside.get("repositories", {}).items()
    found = [("Repositories", ", ".join(f"{name} ({way})" for name, way in ways))] if ways else []
    kinds = [f"{kind}: {count:,} tasks" for kind, count in inside.get("tasks", {}).items()]
    if set(inside.get("tasks", {})) <= {"none"}:
        return found
    left = f"{inside['left_files']:,} files, {count_text(inside['left_bytes'])}B left in /tmp"
    return [("Sandbox", f"{', '.join(kinds)}; {left}"), *found]


_TASKS = (("died", "died"), ("lost", "lost with their worker"), ("over_memory", "over memory"))


def _timeline(kept: dict[str, Any]) -> str:
    # matplotlib, seconds the first time
    from hepscale.view.timeline_picture import png

    share = Share(float(kept["bin_s"]), float(kept["span_s"]), kept["kinds"])
    totals_s, percent = share.totals_s, share.percent
    if not sum(totals_s.values()):
        return "<p>There were no slots.</p>"
    rows = [
        (kind, f"{percent[kind]:.1f} %", duration_text(one_s, tenths=True))
        for kind, one_s in totals_s.items()
    ]
    return _image(png(share), "Slots by what they did, over time") + _table(rows, numbers=True)


def _failures(failures: Sequence[dict[str, Any]], total: int) -> str:
    items = []
    for one in failures:
        parts = [one["dataset"], one["file"]]
        if one["stop"] > one["start"]:
            parts.append(f"entries {one['start']} to {one['stop']}")
        tried = f", tried {one['attempts']} times" if one["attempts"] > 1 else ""
        lines = [f"{', '.join(part for part in parts if part)}{tried}", one["reason"], one["where"]]
        items.append("<br>".join(html.escape(line) for line in lines if line))
    if total > len(failures):
        items.append(f"and {total - len(failures):,} more")
    return _list(items)


def _list(items: Sequence[str]) -> str:
    return "<ul>\n{}\n</ul>".format("\n".join(f"<li>{one}</li>" for one in items)) if items else ""


def _picture(drawing: Drawing | None) -> str:
    if drawing is None or not drawing.plots:
        return ""
    from hepscale.view.picture import png

    names = ", ".join(plot.name for plot in drawing.plots)
    return _image(png(drawing, ""), f"Histograms: {names}")


def _image(picture: bytes, said: str) -> str:
    data = base64.b64encode(picture).decode("ascii")
    return f'<p><img src="data:image/png;base64,{data}" alt="{html.escape(said)}"></p>'


def _section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{body}" if body else ""


def _table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Return a table; the first cell of each row is its head."""
    kind = ' class="n"' if numbers else ""
    lines = []
    for head, *cells in rows:
        inner = "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{html.escape(head)}</th>{inner}</tr>')
    return "<table>\n{}\n</table>".format("\n".join(lines)) if lines else ""
