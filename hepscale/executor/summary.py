"""What is kept of a run beside its journal, for ``hepscale report``: counts, times and reasons.

No credentials: what addresses carry of them is left out, and nothing is taken from variables.
"""

from __future__ import annotations

import base64
import json
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from hepscale.executor.task import ChunkFailure
    from hepscale.view import RunState
    from hepscale.view.timeline import Timeline

__all__ = ["FORMAT", "PLOTS", "SUMMARY", "summarize", "without_secrets", "write"]

FORMAT = 1
SUMMARY, PLOTS = "summary.json", "plots.json"
_PACKAGES = ("hepscale", "coffea", "awkward", "uproot", "hist", "numpy", "cloudpickle")
_MOST_FAILURES = 200
_MOST_NOTICES = 100
# user:password@ and ?authz=... of an address, and what is said of tokens elsewhere
_LOGIN = re.compile(r"(\w://)[^/\s@]+@")
_QUERY = re.compile(r"(\w://[^\s?'\"<>]+)\?[^\s'\"<>]*")
_BEARER = re.compile(r"\b(Bearer|authz=|access_token=|password=)\s*[^\s'\"&<>]+", re.IGNORECASE)


def summarize(state: RunState, timeline: Timeline) -> dict[str, Any]:
    """Return a JSON object that says how a run went."""
    share = timeline.share()
    begun_s = state.start_time_s or 0.0
    return {
        "format": FORMAT,
        "run_id": state.run_id,
        "desc": state.desc,
        "engine": state.engine,
        "status": state.status,
        "begun": datetime.fromtimestamp(begun_s, UTC).isoformat(timespec="seconds"),
        "wall_s": round(state.elapsed_s, 3),
        "versions": _versions(),
        "chunks": {
            "total": state.chunks_total,
            "done": state.chunks_done,
            "failed": state.chunks_failed,
            "resumed": state.chunks_resumed,
            "split": state.chunks_split,
        },
        "events": {"total": state.entries_total, "done": state.entries_done},
        "bytes_merged": state.bytes_merged,
        "bytes_read": state.bytes_read,
        "workers": {
            "joined": state.workers_joined,
            "lost": state.workers_lost,
            "slots_most": timeline.slots_most,
        },
        "tasks": {
            "ended": timeline.tasks,
            "died": state.tasks_died,
            "lost": state.tasks_lost,
            "over_memory": state.tasks_over_memory,
            "wall_s": round(state.tasks_wall_s, 3),
            "cpu_s": round(state.tasks_cpu_s, 3),
            "memory_mb_most": round(state.task_memory_mb, 1),
            "memory_mb_mean": round(timeline.tasks_memory_mb / max(timeline.tasks, 1), 1),
        },
        "environment": {
            "layers": state.environment.layers,
            "layers_cached": state.environment.layers_cached,
            "size_bytes": state.environment.size_bytes,
            "workers": len(state.environment.workers),
        },
        "interposer": {
            "tasks": dict(sorted(state.interposers.items())),
            "repositories": dict(sorted(state.repositories.items())),
            "left_files": state.left_files,
            "left_bytes": state.left_bytes,
        },
        "timeline": {
            "bin_s": share.bin_s,
            "span_s": round(share.span_s, 3),
            "kinds": {kind: [round(one, 4) for one in row] for kind, row in share.kinds.items()},
        },
        "failures": [_failure(one) for one in state.failures[:_MOST_FAILURES]],
        "notices": [without_secrets(text) for text in state.notices[:_MOST_NOTICES]],
    }


def write(
    folder: Path, summary: dict[str, Any], plots: tuple[dict[str, Any], bytes] | None
) -> None:
    """Write a summary, and what is drawn of the output, into the run's folder.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if plots is not None:
        spec, bins = plots
        _replace(folder / PLOTS, {"spec": spec, "bins": base64.b64encode(bins).decode("ascii")})
    # the last, as a folder with it is a run that can be reported
    _replace(folder / SUMMARY, summary)


def without_secrets(text: str) -> str:
    """Return a text without the logins and queries of the addresses in it."""
    return _BEARER.sub(r"\1...", _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text)))


def _failure(one: ChunkFailure) -> dict[str, Any]:
    return {
        "dataset": one.dataset,
        "file": without_secrets(one.file),
        "start": one.start,
        "stop": one.stop,
        "kind": one.kind,
        "reason": without_secrets(one.reason),
        "where": without_secrets(one.where),
        "attempts": one.attempts,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _replace(path: Path, value: Any) -> None:
    begun = path.with_suffix(".tmp")
    begun.write_text(json.dumps(value), encoding="utf-8")
    begun.replace(path)
