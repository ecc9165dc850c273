"""Interposers: what may be asked for, what workers are told, what is said of failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepscale import ConfigError, HepScaleExecutor, Interposer
from hepscale.config import load_settings, resolve
from hepscale.errors import ChunksFailed
from hepscale.executor import interposer
from hepscale.executor.failures import describe
from hepscale.executor.task import Chunk, ChunkKey, Task, TaskEnded, TaskId
from hepscale.view.state import RunState, apply
from hepscale.worker import Unusable, repositories, sandbox, syscalls

# -- settings --------------------------------------------------------------------------------------


def told(**given):
    return interposer.told(load_settings(**given))


def test_nothing_unless_asked_for():
    assert told() == {"interposer": None, "cvmfs": None}
    assert told(interposer={"kind": "none"})["interposer"] is None


def table(folder, **more):
    """Return what is said of a repository."""
    (folder / "k.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    keys = {"proxies": "DIRECT", "keys": [str(folder / "k.pub")]}
    return {"repositories": ["r.example.org"], "servers": "http://a/@fqrn@", **keys, **more}


def test_repositories_want_one(tmp_path):
    given = table(tmp_path)
    assert told(cvmfs=given)["interposer"]["kind"] == "auto"
    assert told(cvmfs=given, interposer="none")["interposer"]["kind"] == "none"


@pytest.mark.parametrize("table", [{"network": False}, {"writes": "outputs"}, {"allow": ["/data"]}])
def test_what_is_said_of_one_wants_one(table):
    assert told(interposer=table)["interposer"]["kind"] == "auto"


@pytest.mark.parametrize(
    ("table", "said"),
    [({"network": False}, "network=False"), ({"writes": "outputs"}, "writes='outputs'")],
)
def test_what_only_a_sandbox_gives_is_refused_without(table, said):
    with pytest.raises(ConfigError) as caught:
        told(interposer={"kind": "none", **table})
    assert caught.value.fact == f"{said} cannot be had with interposer='none'."
    assert caught.value.fix == 'HepScaleExecutor(interposer="userns")'


def test_what_may_be_seen_may_be_said_without_one():
    assert told(interposer={"kind": "none", "allow": ["/data"]})["interposer"] is None


def test_a_kind_or_all_of_it():
    assert interposer.given(None) is None
    assert told(interposer=interposer.given("auto"))["interposer"] == {
        "kind": "auto",
        "allow": (),
        "network": True,
        "writes": "folder",
    }
    wanted = Interposer("userns", allow=["/a", "/b:rw"], network=False, writes="outputs")
    found = told(interposer=interposer.given(wanted))["interposer"]
    assert found == {
        "kind": "userns",
        "allow": ("/a", "/b:rw"),
        "network": False,
        "writes": "outputs",
    }


@pytest.mark.parametrize(
    ("text", "kind", "allow"),
    [
        ('interposer = "auto"\n', "auto", ()),
        ('[interposer]\nkind = "userns"\nallow = ["/data", "~/x:rw"]\n', "userns", 2),
    ],
)
def test_in_files(tmp_path, monkeypatch, text, kind, allow):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "hepscale.toml").write_text(text)
    found = resolve()
    assert found.settings.interposer.kind == kind
    assert str(found.origin("interposer.kind")).startswith(f"{tmp_path}/hepscale.toml:")
    if allow:
        assert found.settings.interposer.allow == ("/data", "/home/me/x:rw")


def test_in_variables(monkeypatch):
    monkeypatch.setenv("HEPSCALE_INTERPOSER", "userns")
    monkeypatch.setenv("HEPSCALE_INTERPOSER_ALLOW", "/data '/with space'")
    monkeypatch.setenv("HEPSCALE_INTERPOSER_NETWORK", "false")
    found = load_settings().interposer
    assert (found.kind, found.network) == ("userns", False)
    assert found.allow == ("/data", "/with space")


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("usernss", "'userns'"),
        (3, "interposer=3"),
        (Interposer(writes="output"), "'outputs'"),
        (Interposer(allow="/data"), "['/data']"),
        (Interposer(allow=["data"]), "absolute"),
        (Interposer(allow=["/"]), "not all that there is"),
        (Interposer(network="no way"), "interposer.network"),
    ],
)
def test_what_cannot_be_used_is_refused(wanted, text):
    with pytest.raises(ConfigError) as caught:
        HepScaleExecutor(interposer=wanted)
    assert text in str(caught.value)
    assert caught.value.fix


# -- records ---------------------------------------------------------------------------------------


def test_what_tasks_read():
    names = ["/a", "file:///b", "root://host//c", "relative", "/a", ""]
    chunks = tuple(Chunk(ChunkKey(str(n)), None, file=name) for n, name in enumerate(names))
    task = Task(TaskId("t"), 1, chunks, b"", Path("payload"))
    assert task.reads == ("/a", "/b")


def test_what_was_left_is_added_up():
    state = RunState()
    for files in (1, 2):
        ended = {"left": {"files": files, "bytes": 10 * files}}
        ready = {"interposer": {"kind": "userns", "why": "", "cvmfs": {"r": "client"}}}
        inside = interposer.interposed(ready, ended)
        assert inside.repositories == (("r", "client"),)
        apply(state, TaskEnded(TaskId("t"), "done", interposed=inside), 1.0)
    assert state.repositories == {"r": "client"}
    assert (state.interposers, state.left_files, state.left_bytes) == ({"userns": 2}, 3, 30)


# -- what is said of failures ----------------------------------------------------------------------


def explained(reason, kind="userns", had=None, **given):
    failure = describe(Chunk(ChunkKey("k"), None), "exception", reason)
    error = ChunksFailed("1 chunk failed.", items=[str(failure)], cause="old", fix="old")
    error.failed = (failure,)
    cvmfs_too = {"cvmfs": given.pop("cvmfs")} if "cvmfs" in given else {}
    settings = load_settings(interposer={"kind": kind, **given}, **cvmfs_too)
    interposer.explain(error, settings, {had or kind: 1})
    return error


def test_a_path_that_is_hidden(tmp_path):
    reason = f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}'"
    error = explained(reason)
    assert f"{tmp_path} is outside of what the sandbox shows" in error.cause
    assert f'allow=["{tmp_path}"]' in error.fix
    assert explained(reason, kind="none").cause == "old"
    assert explained(reason, kind="auto", had="none").cause == "old"
    assert explained(reason.replace(str(tmp_path), f"{tmp_path}/no")).cause == "old"


def test_a_path_that_cannot_be_written():
    error = explained("OSError: [Errno 30] Read-only file system: '/data/out/file'")
    assert "outside of what the sandbox lets tasks write to" in error.cause
    assert 'allow=["/data/out:rw"]' in error.fix


def test_a_folder_on_the_way_to_what_is_seen(tmp_path):
    reason = f"PermissionError: [Errno 13] Permission denied: '{tmp_path}/out.txt'"
    assert f'allow=["{tmp_path}:rw"]' in explained(reason).fix


def test_what_is_advised_keeps_what_was_given(tmp_path):
    reason = "OSError: [Errno 30] Read-only file system: '/data/out/file'"
    error = explained(reason, allow=["/a"], network=False, writes="outputs")
    wanted = '"userns", allow=["/a", "/data/out:rw"], network=False, writes="outputs"'
    assert error.fix == f"HepScaleExecutor(interposer=Interposer({wanted}))"


def test_only_outputs_are_written():
    reason = "OSError: [Errno 30] Read-only file system: 'mine.txt'"
    error = explained(reason, writes="outputs", kind="auto")
    assert "temporary folders" in error.cause
    assert error.fix == "HepScaleExecutor(interposer=Interposer())"
    assert explained(reason).cause == "old"


def test_there_is_no_network():
    for reason in (
        "OSError: [Errno 101] Network is unreachable",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
    ):
        assert "no network" in explained(reason, network=False).cause
        assert explained(reason).cause == "old"


def test_a_path_that_is_allowed_and_not_there(tmp_path):
    reason = f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}'"
    error = explained(reason, allow=[str(tmp_path.parent)])
    assert "the worker has no such file" in error.cause
    assert f'files=["{tmp_path}"]' in error.fix


@pytest.mark.parametrize("kind", ["none", "userns"])
def test_a_file_of_a_repository(kind):
    reason = "FileNotFoundError: [Errno 2] No such file or directory: '/cvmfs/r.example.org/a/b'"
    error = explained(reason, kind=kind)
    assert "r.example.org is neither configured nor mounted" in error.cause
    assert 'repositories=["r.example.org"]' in error.fix
    error = explained(reason, kind=kind, cvmfs={"repositories": ["r.example.org"]})
    assert error.cause == "r.example.org has no such file"
    assert error.fix == "hepscale cvmfs ls r.example.org /a"


def test_content_that_nobody_has():
    reason = "OSError: [Errno 5] Input/output error"
    assert explained(reason).cause == "old"
    error = explained(reason, cvmfs={"repositories": ["r.example.org"]})
    assert "no server gives" in error.cause
    assert "hepscale cvmfs cat r.example.org" in error.fix


# -- why there is none -----------------------------------------------------------------------------


def test_reasons(monkeypatch):
    def read(path):
        return {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}.get(path, "")

    monkeypatch.setattr(sandbox, "_read", read)
    said = sandbox.reason(PermissionError(13, "Permission denied", "/proc/self/uid_map"))
    assert "AppArmor refuses them" in said
    assert "/proc/self/uid_map" in said


def test_mounts_below_a_path(monkeypatch, tmp_path):
    lines = [
        "1 0 8:1 / / rw,relatime - ext4 /dev/a rw",
        f"2 1 8:1 /x {tmp_path} rw,nosuid,noatime - ext4 /dev/a rw",
        rf"3 2 8:1 /y {tmp_path}/a\040b ro,nodev - ext4 /dev/a rw",
        f"4 1 8:1 /z {tmp_path}-other rw - ext4 /dev/a rw",
    ]
    path = tmp_path / "mountinfo"
    path.write_text("\n".join(lines) + "\n")
    real = open
    monkeypatch.setattr("builtins.open", lambda name, mode: real(path, mode))
    found = syscalls._mounts_below(str(tmp_path))
    assert found == [(str(tmp_path), 2 | 0x400), (f"{tmp_path}/a b", 1 | 4)]


def test_what_a_system_call_refuses_is_an_error(tmp_path):
    with pytest.raises(OSError, match="umount") as caught:
        syscalls.unmount(str(tmp_path))
    assert caught.value.filename == str(tmp_path)


def test_a_repository_that_is_not_there(tmp_path):
    cvmfs = {"repositories": [{"name": "no.example.org"}]}
    settings = {"dir": str(tmp_path), "interposer": {"kind": "none"}, "cvmfs": cvmfs}
    with pytest.raises(Unusable, match=r"The repository no\.example\.org is not there"):
        sandbox.arrange(settings)


def test_a_repository_that_only_the_machine_may_mount():
    cvmfs = {"repositories": [{"name": "r.example.org"}], "how": "mounted"}
    with pytest.raises(Unusable, match=r"The repository r\.example\.org is not there"):
        repositories.provide(cvmfs)


def test_parrot_has_to_be_the_interposer_where_it_gives_repositories(tmp_path):
    given = table(tmp_path, how="parrot")
    for kind in (None, "auto", "parrot"):
        assert told(cvmfs=given, interposer=kind)["interposer"]["kind"] == "parrot"
    with pytest.raises(ConfigError, match="Parrot cannot give"):
        told(cvmfs=given, interposer="userns")
