"""The text that starts workers: compared with files that a person has read."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

import pytest

import hepscale
from hepscale import ConfigError, Workers, machine
from hepscale.config import load_settings
from hepscale.executor import placing
from hepscale.workers import systems
from hepscale.workers.plan import (
    BATCH_SYSTEMS,
    Address,
    Plan,
    beyond,
    describe,
    parse_address,
    submit_files,
    worker_command,
)

GOLDEN = Path(__file__).parents[1] / "fixtures" / "workers"

OPTIONS = {
    "slurm": ("--partition=short", "--account=cms"),
    "condor": ('+JobFlavour = "longlunch"', "requirements = (OpSysAndVer =?= \"AlmaLinux9\")"),
    "sge": ("-q long.q", "-pe multicore 4"),
    "pbs": ("-q short", "-l walltime=02:00:00"),
    "torque": ("-q short", "-l walltime=02:00:00"),
}  # fmt: skip


def plan(batch, **changes):
    given = Plan(
        batch=batch,
        count=50,
        cores=4,
        memory_mb=8000,
        disk_mb=20000,
        options=OPTIONS.get(batch, ()),
        setup=() if batch == "local" else ("module load cctools",),
        workdir=None if batch == "local" else Path("/scratch/me"),
        idle_s=900,
        binary=Path("/opt/it's here/bin/work_queue_worker"),
        address=Address(host="login.example.org", port=9123),
        password_file=Path("/home/me/my runs/password"),
        catalog="",
        ssl=False,
        folder=Path("/home/me/.cache/hepscale/workers/0a1b2c3d"),
    )
    return dataclasses.replace(given, **changes)


def text(given):
    return describe(given, systems.submit_command(given.batch))


@pytest.mark.parametrize("batch", BATCH_SYSTEMS)
def test_golden(batch):
    path = GOLDEN / f"{batch}.txt"
    if os.environ.get("HEPSCALE_UPDATE_GOLDEN"):
        path.write_text(text(plan(batch)))
    assert text(plan(batch)) == path.read_text()


@pytest.mark.parametrize("batch", BATCH_SYSTEMS)
def test_golden_of_few_options(batch):
    """By name, over TLS, without password, folder, disk or options."""
    path = GOLDEN / f"{batch}_plain.txt"
    bare = {"options": (), "setup": (), "workdir": None, "disk_mb": None, "password_file": None}
    given = plan(batch, **bare, count=1, cores=1, address=Address(name="z.peak"),
                 catalog="catalog.example.org:9097", ssl=True)  # fmt: skip
    if os.environ.get("HEPSCALE_UPDATE_GOLDEN"):
        path.write_text(text(given))
    assert text(given) == path.read_text()


@pytest.mark.parametrize("batch", BATCH_SYSTEMS[1:])
def test_scripts_are_shell(batch):
    script = submit_files(plan(batch))["worker.sh"]
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("batch", "option", "ours"),
    [
        ("slurm", "--mem-per-cpu=1900M", "--mem="),
        ("sge", "-pe other 4", "-pe smp"),
        ("sge", "-l h_vmem=9G", "-l h_vmem=2000M"),
        ("pbs", "-l select=1:ncpus=4:mem=9gb:scratch=1gb", "-l select=1:ncpus=4:mem=8000mb"),
        ("torque", "-l nodes=1:ppn=4:fast", "-l nodes=1:ppn=4,mem"),
    ],
)
def test_an_option_replaces_ours(batch, option, ours):
    assert ours in submit_files(plan(batch, options=()))["worker.sh"]
    script = submit_files(plan(batch, options=(option,)))["worker.sh"]
    assert f" {option}\n" in script
    assert ours not in script


def test_the_password_is_named_and_not_read():
    for batch in BATCH_SYSTEMS:
        assert "/home/me/my runs/password" in text(plan(batch)).replace("'", "")


def test_a_worker_waits_a_minute_for_a_manager_of_known_address_only():
    def waits(**changes):
        command = worker_command(plan("slurm", **changes))
        return command[command.index("--connect-timeout") + 1]

    assert waits() == "60"
    assert waits(idle_s=20) == "20"
    assert waits(address=Address(name="mine")) == "900"


@pytest.mark.parametrize("path", ["/home/a,b/password", "/home/$x/password", "/home/x/password "])
def test_what_condor_cannot_transfer(path):
    with pytest.raises(ConfigError, match="HTCondor cannot transfer"):
        submit_files(plan("condor", password_file=Path(path)))


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("login.example.org:9123", Address(host="login.example.org", port=9123)),
        ("192.0.2.1:80", Address(host="192.0.2.1", port=80)),
        ("[2001:db8::1]:9123", Address(host="2001:db8::1", port=9123)),
        ("my-analysis.v2+x", Address(name="my-analysis.v2+x")),
    ],
)
def test_addresses(given, address):
    assert parse_address(given) == address
    assert str(address) == given


@pytest.mark.parametrize("given", ["", "host:0", "host:65536", "host:x", "a b", "-x", ".*", "a;b"])
def test_no_addresses(given):
    with pytest.raises(ConfigError, match="is not the address"):
        parse_address(given)


def test_names_are_matched_as_they_are():
    command = worker_command(plan("slurm", address=Address(name="z.peak+1")))
    assert command[-2:] == ["-M", "z[.]peak[+]1"]


@pytest.mark.parametrize(
    "given",
    [
        {"count": 0},
        {"cores": 1.5},
        {"memory_mb": 0},
        {"disk_mb": -1},
        {"idle_s": None},
        {"count": True},
        {"batch": "slurm", "options": ("--a\n--b",)},
        {"batch": "slurm", "setup": "a\nb"},
        {"options": ("--partition=x",)},
        {"setup": ("true",)},
    ],
)
def test_what_cannot_be_used(given):
    with pytest.raises(ConfigError, match=r"^Workers: "):
        Workers(**given)


def test_batch_system_that_there_is_none_of():
    with pytest.raises(ConfigError, match="There is no batch system 'lsf'") as caught:
        Workers("lsf")
    assert "slurm" in caught.value.cause


def test_a_description_does_not_change():
    workers = Workers("slurm", options=["--a"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        workers.count = 2
    assert workers.options == ("--a",)
    assert repr(workers).startswith("Workers(batch='slurm', count=1")


@pytest.fixture
def worker_on_path(tmp_path, monkeypatch):
    (tmp_path / "work_queue_worker").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_what_is_asked_for_without_being_told(worker_on_path):
    made = Workers("condor", cores=4).plan("a:1")
    assert (made.memory_mb, made.disk_mb) == (8000, None)
    assert "request_disk = 40960000\n" in submit_files(made)["worker.submit"]
    one, four = (Workers(count=count).plan("a:1") for count in (1, 4))
    assert four.memory_mb == one.memory_mb // 4


def test_a_password_that_others_can_read(worker_on_path, tmp_path):
    path = tmp_path / "password"
    path.touch(0o640)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        Workers().plan("a:1", path)
    assert caught.value.fix == f"chmod 600 {path}"
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        Workers().plan("a:1", path)


@pytest.mark.parametrize("batch", ["local", "slurm"])
def test_a_folder_that_the_worker_cannot_use(worker_on_path, tmp_path, batch):
    with pytest.raises(ConfigError, match="cannot work in a folder of this name"):
        Workers(batch, workdir=tmp_path / "a b").plan("a:1")


def test_no_worker_program(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(hepscale.EngineError, match="was not found on PATH") as caught:
        Workers().plan("a:1")
    assert "apt-get install coop-computing-tools" in caught.value.fix
    assert "conda install -c conda-forge ndcctools" in caught.value.fix


def test_catalog_of_the_variables(worker_on_path, monkeypatch):
    monkeypatch.setenv("CATALOG_HOST", "catalog.example.org")
    monkeypatch.setenv("CATALOG_PORT", "9999")
    command = worker_command(Workers("slurm").plan("mine"))
    assert "--catalog catalog.example.org:9999 -M mine" in shlex.join(command)


@pytest.mark.parametrize(
    ("cores", "memory_mb", "said"),
    [
        (4, 8000, []),
        (4, None, []),
        (5, None, ["5 cores are to be used, and this machine has 4 "]),
        (4, 8001, ["8001 MB of memory are to be used, and this machine has 8000 "]),
    ],
)
def test_more_than_this_machine_has(cores, memory_mb, said):
    found = beyond(cores, memory_mb, has_cores=4, has_memory_mb=8000)
    assert len(found) == len(said)
    assert all(one.startswith(text) for one, text in zip(found, said, strict=True))
    assert beyond(cores, memory_mb, has_cores=0, has_memory_mb=0) == []


def test_more_than_this_machine_has_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 8000 * 2**20)

    def said(engine, workers=None, slots=1, memory_mb=None):
        settings = load_settings(engine=engine, send_credentials=False)
        return [text.split()[0] for text in placing.beyond(settings, workers, slots, memory_mb)]

    assert said("local", slots=4, memory_mb=2000) == []
    assert said("local", slots=5, memory_mb=2000) == ["5", "10000"]
    # each has its share
    assert said("local", slots=4) == []
    assert said("workqueue", slots=5, memory_mb=9000) == []
    assert said("workqueue", Workers(count=2, cores=2, memory_mb=4000)) == []
    assert said("workqueue", Workers(count=3, cores=2, memory_mb=4000)) == ["6", "12000"]
    assert said("workqueue", Workers("slurm", count=50, cores=64)) == []
