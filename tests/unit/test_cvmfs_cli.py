"""``hepscale cvmfs``: reading a repository, filling a cache, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import publisher
import pytest
from click.testing import CliRunner, Result
from publisher import File, Folder, Link
from site_folder import write
from web import served

from hepscale.cli import main

NAME = "demo.example.org"
OFFLINE = "http://127.0.0.1:9/cvmfs/@fqrn@"
BIG = bytes(range(256)) * 20
TREE = {
    "README": File(content=b"read me\n", mtime_ns=10**18, xattrs={"user.note": b"hello"}),
    "big": File(content=BIG, chunk=1000),
    "empty": File(content=b""),
    "latest": Link(target="v1"),
    "away": Link(target="/cvmfs/other.example.org/x"),
    "absolute": Link(target=f"/cvmfs/{NAME}/v1/lib"),
    "loop": Link(target="loop"),
    "nowhere": Link(target="gone"),
    "variant": Link(target="v1/$(ARCH)"),
    "hidden": File(content=b"h", hidden=True),
    "far": File(content=b"far", external=True),
    "v1": Folder(
        entries={
            "lib": Folder(entries={"code.py": b"x = 1\n", "up": Link(target="../../README")}),
            "x86": b"built\n",
            "two words\xfc": b"",
        },
        nested=True,
    ),
}


# the paths that were asked for
ASKED: list[str] = []


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Serve a folder; yield it and its URL."""
    folder = tmp_path_factory.mktemp("web")
    with served(folder, asked=ASKED) as url:
        yield folder, url


@pytest.fixture(scope="module")
def site(web: tuple[Path, str]) -> publisher.Site:
    return publisher.publish(web[0] / NAME, NAME, TREE)


@pytest.fixture
def config(tmp_path: Path, web: tuple[Path, str], site: publisher.Site) -> Path:
    write(
        tmp_path,
        {
            "own.conf": f'CVMFS_SERVER_URL="{web[1]}/@fqrn@"\nCVMFS_HTTP_PROXY=DIRECT\n'
            f"CVMFS_PUBLIC_KEY={tmp_path}/demo.pub\nCVMFS_CACHE_BASE={tmp_path}/base\nARCH=x86\n"
            "CVMFS_TIMEOUT_DIRECT=2\nCVMFS_MAX_RETRIES=0\n",
            "demo.pub": site.key,
        },
    )
    return tmp_path / "own.conf"


@pytest.fixture
def run(config: Path) -> Callable[..., Result]:
    def run(command: str, *args: object, code: int = 0, where: bool = True) -> Result:
        given = ["--config", str(config)] if where else []
        done = CliRunner().invoke(main, ["cvmfs", command, *map(str, args), *given])
        assert done.exit_code == code, done.output
        return done

    return run


# -- reading -------------------------------------------------------------------------------------


def test_ls(run):
    assert run("ls", NAME).stdout.splitlines() == sorted(set(TREE) - {"hidden"})
    assert "hidden" in run("ls", NAME, "/", "-a").stdout.splitlines()
    for path in ("v1/lib", "/v1/lib/", "latest/lib", "absolute", f"/cvmfs/{NAME}/latest/../v1/lib"):
        assert run("ls", NAME, path).stdout.splitlines() == ["code.py", "up"]
    assert run("ls", NAME, "v1/lib/up").stdout == "v1/lib/up\n"
    assert run("ls", NAME, "v1/x86").stdout == "v1/x86\n"


def test_ls_long(run, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    lines = run("ls", NAME, "/", "-l").stdout.splitlines()
    rows = {line.split()[7]: line.split() for line in lines}
    readme = rows["README"]
    assert readme[0][0] == "-"
    assert readme[1:5] == ["1", "1500", "1500", "8"]
    assert readme[5].startswith("2001-09-0")
    assert rows["latest"][7:] == ["latest", "->", "v1"]
    assert rows["variant"][7:] == ["variant", "->", "v1/x86"]
    assert rows["v1"][0][0] == "d"
    assert len({line.index(":") for line in lines}) == 1
    (link,) = run("ls", NAME, "latest", "-l").stdout.splitlines()
    assert link.endswith(" latest -> v1")


def test_names_that_are_no_text(run):
    assert "two words\xfc" in run("ls", NAME, "v1").stdout


def test_ls_as_json(run):
    told = {one["path"]: one for one in json.loads(run("ls", NAME, "--json").stdout)}
    assert told["/big"]["size"] == len(BIG)
    assert len(told["/big"]["objects"]) == 6
    assert told["/latest"]["target"] == "v1"
    assert told["/v1"]["nested"] is True
    assert told["/far"]["external"] is True


def test_cat(run):
    assert run("cat", NAME, "README").stdout_bytes == b"read me\n"
    assert run("cat", NAME, "big", "empty", "latest/x86").stdout_bytes == BIG + b"built\n"
    assert run("cat", NAME, "v1/lib/up", "variant").stdout == "read me\nbuilt\n"


def test_stat(run, site):
    told = json.loads(run("stat", NAME, "README", "--json").stdout)
    assert told["path"] == "/README"
    assert told["type"] == "file"
    assert told["mtime_ns"] == 10**18
    assert told["xattrs"] == {"user.note": "hello"}
    assert told["objects"] == [site.objects["README"][0].text]
    assert (told["repository"], told["revision"]) == (NAME, 1)
    assert told["root_hash"] == site.last.root.text
    link = json.loads(run("stat", NAME, "variant", "--json").stdout)
    assert (link["type"], link["target"], link["raw_target"]) == ("link", "v1/x86", "v1/$(ARCH)")
    text = run("stat", NAME, "README").stdout
    assert re.search(r"^xattrs +user.note = hello$", text, re.MULTILINE)
    assert re.search(rf"^root hash +{site.last.root.text}$", text, re.MULTILINE)
    assert json.loads(run("stat", NAME, "/", "--json").stdout)["type"] == "folder"


@pytest.mark.parametrize(
    ("path", "cause", "fix"),
    [
        ("gone", "/gone is not in revision 1", f"ls {NAME} /"),
        ("v1/gone/x", "/v1/gone is not in revision 1", f"ls {NAME} /v1"),
        ("README/x", "/README is no folder", ""),
        ("away", "leads out of it: /cvmfs/other.example.org/x", ""),
        ("loop", "leads nowhere", ""),
        ("nowhere", "/gone is not in", ""),
        ("v1", "it is a folder", f"ls {NAME} v1"),
        ("far", "cannot be had", ""),
    ],
)
def test_files_that_cannot_be_read(run, path, cause, fix):
    done = run("cat", NAME, path, code=1)
    assert cause in done.stderr
    assert fix in done.stderr
    assert done.stdout == ""


def test_refused_repositories_are_told(run, config, tmp_path):
    (tmp_path / "demo.pub").write_text(publisher.public_pem("another"))
    done = run("ls", NAME, code=1)
    assert done.stderr.startswith("Error: ")
    assert NAME in done.stderr
    assert "Next: " in done.stderr
    done = run("ls", "../x", code=1)
    assert "no name of a repository" in done.stderr
    done = run("ls", "gone.example.org", code=1)
    assert "gone.example.org" in done.stderr


def test_settings_are_used_without_a_file(run, config, web, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "No " in run("ls", NAME, code=1, where=False).stderr
    (tmp_path / "hepscale.toml").write_text(
        f'[cvmfs]\nservers = "{web[1]}/@fqrn@"\nproxies = "DIRECT"\nkeys = "demo.pub"\n'
        'variables.ARCH = "lib"\ncache = "/not/here/but/on/workers"\n'
    )
    monkeypatch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path / "own"))
    assert run("ls", NAME, "variant", where=False).stdout.split() == ["code.py", "up"]
    assert (tmp_path / "own/cvmfs/txn").is_dir()


def test_a_file_says_where_the_cache_is(run, tmp_path):
    run("cat", NAME, "README")
    assert (tmp_path / "base/hepscale/txn").is_dir()


# -- prefetching ---------------------------------------------------------------------------------


def objects(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("??/*") if path.is_file())


def test_prefetch_is_enough_for_workers_without_a_network(run, config, tmp_path):
    cache = tmp_path / "deep/alien"
    done = run("prefetch", NAME, "latest", "big", "--cache", cache)
    assert done.stdout.startswith(f"4 files of {NAME}, revision 1, are in {cache}: ")
    assert "lead out of what was fetched (1): " in done.stderr
    assert "/v1/lib/up -> ../../README" in done.stderr
    again = run("prefetch", NAME, "v1", "--cache", cache)
    assert " 0 of them fetched now" in again.stdout
    assert not (tmp_path / "base").exists()
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o550 if path.is_dir() else 0o440)
    text = config.read_text()
    config.write_text(
        re.sub("http://[^@]*/@", "http://127.0.0.1:9/@", text) + f"CVMFS_ALIEN_CACHE={cache}\n"
    )
    read = run("cat", NAME, "v1/lib/code.py", "big")
    assert read.stdout_bytes == b"x = 1\n" + BIG
    assert "note: " in read.stderr
    missing = run("cat", NAME, "README", code=1)
    assert "cannot be had" in missing.stderr
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o770)


def test_prefetch_takes_the_objects_of_empty_files(run, tmp_path):
    """The real client wants them, ours does not."""
    cache = tmp_path / "alien"
    run("prefetch", NAME, "/empty", "--cache", cache)
    assert 0 in [path.stat().st_size for path in objects(cache)]


def test_prefetch_leaves_out_what_cannot_be_there(run, tmp_path):
    done = run("prefetch", NAME, "/", "--cache", tmp_path / "alien")
    assert "on other servers, which were not fetched (1): /far" in done.stderr
    assert "fetched (1): /away -> /cvmfs/other.example.org/x" in done.stderr


def test_prefetch_goes_on_and_tells_what_it_lacks(run, web, tmp_path):
    broken = publisher.publish(web[0] / "broken.example.org", "broken.example.org", dict(TREE))
    broken.damage("big")
    done = run("prefetch", "broken.example.org", "/", "--cache", tmp_path / "alien", code=1)
    assert re.search(r"1 of \d+ objects of broken.example.org cannot be had", done.stderr)
    assert broken.objects["big"][0].text in done.stderr
    names = {path.parent.name + path.name for path in objects(tmp_path / "alien")}
    assert {one.text for one in broken.objects["big"][1:]} <= names
    shutil.rmtree(web[0] / "broken.example.org")


def test_prefetch_into_what_cannot_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    done = run("prefetch", NAME, "/", "--cache", tmp_path / "file/below", code=1)
    assert "The cache cannot be filled." in done.stderr


def test_prefetch_onto_a_full_disk(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    done = run("prefetch", NAME, "v1", "--cache", tmp_path / "alien", code=1)
    assert "0 MB are free" in done.stderr


def test_each_object_is_fetched_once(run, tmp_path):
    ASKED.clear()
    run("prefetch", NAME, "/", "--cache", tmp_path / "alien")
    data = [path for path in ASKED if "/data/" in path]
    assert len(data) == len(set(data)) == len(objects(tmp_path / "alien"))


def test_check(run, tmp_path):
    cache = tmp_path / "alien"
    run("prefetch", NAME, "/", "--cache", cache)
    done = run("check", cache, where=False)
    assert done.stdout == f"{len(objects(cache))} objects are what their names say.\n"
    damaged = objects(cache)[3]
    damaged.chmod(stat.S_IRUSR | stat.S_IWUSR)
    content = damaged.read_bytes()
    damaged.write_bytes(bytes([content[0] ^ 1]) + content[1:] if content else b"x")
    done = run("check", cache, where=False, code=1)
    assert f"damaged: {damaged}\n" in done.stdout
    assert "remove these files" in done.stderr
    assert "cannot be read" in run("check", tmp_path / "gone", where=False, code=1).stderr
    assert "no cache of CVMFS" in run("check", tmp_path, where=False, code=1).stderr
