from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from hepscale import doctor

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    for name in ("CACHE", "RUN", "SCRATCH"):
        monkeypatch.setenv(f"HEPSCALE_{name}_DIR", str(tmp_path / name.lower()))


def find(name: str) -> doctor.Check:
    return next(check for check in doctor.check_all() if check.name == name)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_every_shortcoming_has_a_fix():
    checks = doctor.check_all()
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.fact
        assert (check.status == "ok") == (check.fix == "")


def test_it_is_fast_and_makes_nothing_but_the_binding(tmp_path):
    began = time.perf_counter()
    doctor.check_all()
    assert time.perf_counter() - began < 10
    assert [one.name for one in tmp_path.rglob("cache/*")] == ["work_queue"]
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


def test_what_this_suite_needs_is_there():
    assert find("Python").status == "ok"
    assert find("coffea").status == "ok"
    assert find("cache folder").status == "ok"
    assert find("local engine").status == "ok"


@pytest.mark.parametrize(
    ("version", "status"), [("", "fail"), ("0.7.22", "fail"), ("2026.9.0", "ok"), ("2027.1", "ok")]
)
def test_coffea(monkeypatch, version, status):
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    check = find("coffea")
    assert check.status == status
    assert ("pip install 'coffea>=2026.9'" in check.fix) == (status == "fail")


def test_little_memory_is_said_with_a_number_of_cores_that_fits(monkeypatch):
    monkeypatch.setattr(doctor, "memory_limit_bytes", lambda: 3_000_000_000)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8)
    check = find("memory")
    assert check.status == "warn"
    assert "cores=3" in check.fix


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEPSCALE_RUN_DIR", str(tmp_path / "file" / "runs"))
    check = find("run folder")
    assert check.status == "fail"
    assert "HEPSCALE_RUN_DIR" in check.fix


def test_setting_that_cannot_be_used(monkeypatch):
    monkeypatch.setenv("HEPSCALE_KEEP_RUNS", "many")
    check = find("settings")
    assert check.status == "fail"
    assert "HEPSCALE_KEEP_RUNS" in check.fact


def test_missing_widgets(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "anywidget" else "1.0")
    check = find("widgets")
    assert check.status == "warn"
    assert check.fix.startswith("pip install anywidget ")


def test_work_queue():
    check = find("Work Queue")
    assert (check.status, check.fix) == ("ok", "")
    assert re.search(r"work_queue_worker, version \S+, protocol \d+$", check.fact)


def test_no_worker_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    check = find("Work Queue")
    assert check.status == "warn"
    assert "was not found on PATH" in check.fact
    assert "coop-computing-tools" in check.fix


def test_worker_program_that_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "work_queue_worker"
    program.write_text("#!/no/such/shell\n")
    program.chmod(0o755)
    check = find("Work Queue")
    assert check.status == "warn"
    assert str(program) in check.fact


def test_worker_and_library_of_other_protocols(monkeypatch):
    monkeypatch.setattr(doctor, "library_protocol", lambda settings, engine: 99)
    check = find("Work Queue")
    assert check.status == "warn"
    assert "the manager 99" in check.fact


def test_optional_packages_are_found_without_import(tmp_path, monkeypatch):
    write(tmp_path, {f"p/{name}/__init__.py": "1 / 0" for name in ("ndcctools", "XRootD")})
    write(tmp_path, {"p/fsspec_xrootd.py": "1 / 0"})
    monkeypatch.syspath_prepend(str(tmp_path / "p"))
    assert find("ndcctools").status == "ok"
    assert find("XRootD").status == "ok"
    assert "ndcctools" not in sys.modules


CGROUPS = {
    "version 2": {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user/memory.max": "2000000000\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
    },
    "version 1": {
        "proc/self/cgroup": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    },
    "in a container": {
        "proc/self/cgroup": "0::/docker/0123\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "2000000000\n",
    },
}


@pytest.mark.parametrize("files", CGROUPS.values(), ids=CGROUPS)
def test_limits_of_control_groups(tmp_path, monkeypatch, files):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    root = write(tmp_path, {"proc/meminfo": "MemTotal: 16000000 kB\n"} | files)
    assert doctor.usable_cores(root) == 2
    assert doctor.memory_limit_bytes(root) == 2_000_000_000


def test_limits_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert doctor.usable_cores(tmp_path) == 16
    assert doctor.memory_limit_bytes(tmp_path) == 0
    write(tmp_path, {"proc/meminfo": "MemTotal: 16000000 kB\n"})
    assert doctor.memory_limit_bytes(tmp_path) == 16_384_000_000


# -- sandbox and CVMFS -----------------------------------------------------------------------------


def test_without_user_namespaces_there_is_no_sandbox(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "try_sandbox", lambda: ([], "operation not permitted"))
    monkeypatch.setattr(doctor, "_CVMFS", tmp_path / "none")
    assert find("sandbox").status == "warn"
    assert "operation not permitted" in find("sandbox").fact
    assert "nothing can be mounted" in find("CVMFS").fact


def test_cvmfs_needs_a_mount_or_fuse(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "try_sandbox", lambda: ([], ""))
    monkeypatch.setattr(doctor, "_CVMFS", tmp_path / "cvmfs")
    monkeypatch.setattr(doctor, "_FUSE", tmp_path / "fuse")
    assert f"{tmp_path}/fuse cannot be opened" in find("CVMFS").fact
    (tmp_path / "fuse").touch()
    assert find("CVMFS").status == "ok"
    assert "HepScale can mount repositories" in find("CVMFS").fact
    (tmp_path / "fuse").unlink()
    (tmp_path / "cvmfs/cms.cern.ch").mkdir(parents=True)
    assert find("CVMFS").fact == "mounted: cms.cern.ch"
    assert find("CVMFS").status == "ok"


def test_a_sandbox_is_tried_as_a_worker_does(monkeypatch):
    off = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    code = "from hepscale import doctor; print(doctor.try_sandbox())"
    within = ["unshare", "--user", "--map-root-user", "sh", "-ec", off, "sh"]
    command = [*within, "setpriv", "--bounding-set=-all", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "user namespaces are switched off" in done.stdout


def test_a_sandbox_that_only_bubblewrap_may_begin(monkeypatch):
    monkeypatch.setattr(doctor, "try_sandbox", lambda: (["/usr/bin/bwrap", "--"], ""))
    assert find("sandbox").fact == "user namespaces, by /usr/bin/bwrap"


def test_the_client_of_the_machine_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "try_sandbox", lambda: ([], ""))
    program = tmp_path / "cvmfsexec"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"this machine's client: {program}" in find("CVMFS").fact


def test_cvmfs_settings_that_lack_something(monkeypatch):
    monkeypatch.setenv("HEPSCALE_CVMFS_REPOSITORIES", "a.example.org")
    monkeypatch.setenv("HEPSCALE_CVMFS_SERVERS", "http://server/@fqrn@")
    assert find("CVMFS").status == "warn"
    assert "No " in find("CVMFS").fact
