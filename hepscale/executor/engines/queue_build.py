"""Compiles the binding to the C library of Work Queue, once, into the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import cffi
import cffi.recompiler

from hepscale.errors import EngineError

if TYPE_CHECKING:
    from types import ModuleType

    from hepscale.config import Settings

__all__ = ["HEADER", "LIBRARIES", "load"]

_PREFIX = Path("/usr")
HEADER = _PREFIX / "include/cctools/work_queue.h"
LIBRARIES = (_PREFIX / "lib/libwork_queue.a", _PREFIX / "lib/libdttools.a")
_NAME = "_hepscale_work_queue"
# since this function is there, the one that our shim calls has another signature
_TOO_NEW = b"work_queue_wait_for_tag"
_INSTALL = "apt-get install coop-computing-tools-dev zlib1g-dev gcc python3-dev"

_CDEF = """
struct work_queue;
struct hs_timer;
struct work_queue_task {
    char *output; int taskid; int return_status; int result; char *host; char *hostname;
    int try_count; uint64_t time_workers_execute_last; uint64_t time_workers_execute_failure;
    int64_t bytes_received; int64_t bytes_sent; ...;
};
struct work_queue_stats {
    int workers_connected; int workers_joined; int workers_removed; int workers_busy;
    int tasks_waiting; int tasks_running; int tasks_dispatched;
    int64_t bytes_sent; int64_t bytes_received; int64_t total_cores;
    uint64_t time_polling; uint64_t time_send; uint64_t time_receive; uint64_t time_status_msgs;
    uint64_t time_internal; ...;
};
struct work_queue *work_queue_create(int port);
void work_queue_delete(struct work_queue *q);
void work_queue_specify_name(struct work_queue *q, const char *name);
void work_queue_specify_catalog_servers(struct work_queue *q, const char *hosts);
int work_queue_specify_password_file(struct work_queue *q, const char *file);
int work_queue_specify_transactions_log(struct work_queue *q, const char *logfile);
void work_queue_specify_keepalive_interval(struct work_queue *q, int interval);
void work_queue_specify_keepalive_timeout(struct work_queue *q, int timeout);
int work_queue_tune(struct work_queue *q, const char *name, double value);
int work_queue_shut_down_workers(struct work_queue *q, int n);
void work_queue_get_stats(struct work_queue *q, struct work_queue_stats *s);
int work_queue_submit(struct work_queue *q, struct work_queue_task *t);
struct work_queue_task *work_queue_cancel_by_taskid(struct work_queue *q, int id);
struct work_queue_task *work_queue_task_create(const char *command);
void work_queue_task_delete(struct work_queue_task *t);
int work_queue_task_specify_file(struct work_queue_task *t, const char *local, const char *remote,
    int type, int flags);
void work_queue_task_specify_max_retries(struct work_queue_task *t, int64_t max_retries);
void work_queue_task_specify_cores(struct work_queue_task *t, int cores);
void work_queue_task_specify_memory(struct work_queue_task *t, int64_t memory);
void work_queue_task_specify_disk(struct work_queue_task *t, int64_t disk);
void work_queue_task_specify_gpus(struct work_queue_task *t, int gpus);
void work_queue_task_specify_running_time_max(struct work_queue_task *t, int64_t seconds);
void work_queue_task_specify_category(struct work_queue_task *t, const char *category);
void work_queue_task_specify_priority(struct work_queue_task *t, double priority);
void work_queue_task_specify_environment_variable(struct work_queue_task *t, const char *name,
    const char *value);
int debug_config_file_e(const char *path);
static struct hs_timer *hs_timer_create(void);
static void hs_timer_delete(struct hs_timer *timer);
static struct work_queue_task *hs_wait(struct work_queue *q, struct hs_timer *timer,
    double timeout_s);
"""


def load(settings: Settings) -> ModuleType:
    """Return the compiled module, with ``ffi`` and ``lib``; compile it if this was not done yet.

    Raises
    ------
    EngineError
        If the C library, its header or a compiler is missing, or if it does not compile.
    """
    missing = [str(path) for path in (HEADER, *LIBRARIES) if not path.exists()]
    if missing:
        raise EngineError(
            "The C library of Work Queue is not installed.",
            items=missing,
            fix=f"{_INSTALL}, or conda install -c conda-forge ndcctools",
        )
    if _TOO_NEW in HEADER.read_bytes():
        raise _unknown([f"{HEADER} declares {_TOO_NEW.decode()}"])
    shim = resources.files("hepscale.executor.engines").joinpath("queue_shim.c").read_text()
    path = settings.cache_dir / "work_queue" / _key(shim) / f"{_NAME}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _compile(shim, path)
    except OSError as error:
        raise EngineError(
            "The binding to Work Queue could not be written.",
            items=[f"{path}: {error.strerror}"],
            fix="make the folder writable, or export XDG_CACHE_HOME=<another one>",
        ) from None
    return _imported(path)


def _key(shim: str) -> str:
    """Cover all that the compiled module depends on."""
    whole = hashlib.sha256()
    versions = (sys.version, sys.implementation.cache_tag, cffi.__version__, os.uname().machine)
    for text in (*versions, shim, _CDEF):
        whole.update(str(text).encode() + b"\0")
    for path in (HEADER, *LIBRARIES):
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:24]


def _compile(shim: str, path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    include = Path(sysconfig.get_path("include"))
    if compiler is None or not (include / "Python.h").exists():
        raise EngineError(
            "The binding to Work Queue cannot be compiled.",
            items=["no C compiler was found" if compiler is None else f"no {include}/Python.h"],
            fix=_INSTALL,
        )
    ffi = cffi.FFI()
    ffi.cdef(_CDEF)
    # several processes may compile at once, each in a folder of its own
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as folder:
        source, module = Path(folder, f"{_NAME}.c"), Path(folder, f"{_NAME}.so")
        cffi.recompiler.make_c_source(ffi, _NAME, shim, str(source))
        flags = ["-shared", "-fPIC", "-O2", "-w", f"-I{include}", f"-I{HEADER.parent.parent}"]
        archives = [str(library) for library in LIBRARIES]
        link = ["-Wl,--wrap=link_address_remote", "-lm", "-lz", "-lpthread"]
        command = [compiler, *flags, str(source), *archives, *link, "-o", str(module)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            raise _unknown([line for line in said.stderr.splitlines() if "rror" in line])
        module.replace(path)


def _imported(path: Path) -> ModuleType:
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        # a symbol that the archives do not have is noticed only here
        raise _unknown([str(error)]) from None
    sys.modules[_NAME] = module
    return module


def _unknown(items: list[str]) -> EngineError:
    return EngineError(
        "The C library of Work Queue is not one that this binding knows.",
        items=items,
        cause="it is of another version than Debian's 9.9",
        fix=f"{_INSTALL}, or conda install -c conda-forge ndcctools",
    )
