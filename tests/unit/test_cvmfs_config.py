"""What is said of CVMFS: in settings, in arguments, and in CVMFS's own files."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from site_folder import write

from hepscale.config import CvmfsSettings
from hepscale.errors import ConfigError
from hepscale.executor import cvmfs, cvmfs_files

KEY = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"
NAME = "hepscale.example.org"
WHOLE = f"""\
CVMFS_SERVER_URL="http://one:8000/cvmfs/@fqrn@;http://two/opt/@org@/"
CVMFS_HTTP_PROXY='http://a:3128|http://b:3128;DIRECT'
CVMFS_PUBLIC_KEY=$KEYS/{NAME}.pub
"""

# as the client of CVMFS brings it
DEFAULT = """\
# Don't edit here.  Create /etc/cvmfs/default.local.
CVMFS_CACHE_BASE=/var/lib/cvmfs
CVMFS_QUOTA_LIMIT=9000
CVMFS_TIMEOUT=7
CVMFS_PAC_URLS="http://wpad/wpad.dat"
# CVMFS_HTTP_PROXY=auto
CVMFS_MAX_RETRIES=1
if [ "x$CVMFS_BASE_ENV" = "x" ]; then
  readonly CVMFS_USER=cvmfs
  readonly CVMFS_MOUNT_DIR=/cvmfs
  readonly CVMFS_BASE_ENV=1
fi
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    write(tmp_path / "keys", {f"{NAME}.pub": KEY, "other.pub": KEY.replace("IIB", "IIC")})
    return tmp_path / "keys"


@pytest.fixture
def told(tmp_path: Path, keys: Path) -> Callable[..., dict[str, Any]]:
    """Write a configuration in CVMFS's form, and return what workers are told after it."""

    def told(text: str | dict[str, str], *names: str, **given: Any) -> dict[str, Any]:
        source = tmp_path / "configured"
        shutil.rmtree(source, ignore_errors=True)
        write(source, {"own.conf": text} if isinstance(text, str) else text)
        file = source / "own.conf" if isinstance(text, str) else source
        config = CvmfsSettings(repositories=names or (NAME,), config=file, **given)
        found = cvmfs.for_workers(config, {"KEYS": str(keys), "SITE": "T2"})
        assert found == json.loads(json.dumps(found))
        return found or {}

    return told


def read(tmp_path: Path, text: str, **environ: str) -> dict[str, str | None]:
    """Return what one file says of a repository."""
    (tmp_path / "one.conf").write_text(text)
    found = cvmfs_files.parameters(tmp_path / "one.conf", NAME, environ)
    return {name: one.value for name, one in found.items()}


# -- what workers are told -------------------------------------------------------------------------


def test_all_that_workers_are_told(told):
    assert told(WHOLE + "CVMFS_MAX_TTL=3\nHEPSCALE_ARCH=aarch64\n") == {
        "repositories": [
            {
                "name": NAME,
                "servers": [f"http://one:8000/cvmfs/{NAME}", "http://two/opt/hepscale"],
                "keys": [KEY],
                "root_hash": None,
                "tag": None,
                "blacklist": [],
            }
        ],
        "proxies": "http://a:3128|http://b:3128;DIRECT",
        "cache": None,
        "alien_cache": None,
        "quota_mb": 4000,
        "timeout_s": 5.0,
        "direct_timeout_s": 10.0,
        "retries": 1,
        "max_ttl_s": 180.0,
        "variables": {
            "CVMFS_SERVER_URL": "http://one:8000/cvmfs/@fqrn@;http://two/opt/@org@/",
            "CVMFS_HTTP_PROXY": "http://a:3128|http://b:3128;DIRECT",
            "CVMFS_PUBLIC_KEY": told(WHOLE)["variables"]["CVMFS_PUBLIC_KEY"],
            "CVMFS_MAX_TTL": "3",
            "HEPSCALE_ARCH": "aarch64",
        },
        "how": "auto",
    }


def test_without_repositories_nothing_is_told(monkeypatch):
    monkeypatch.setattr(cvmfs_files, "parameters", lambda *_: pytest.fail("files are read"))
    assert cvmfs.for_workers(CvmfsSettings()) is None


def test_settings_are_stronger_than_files(told, keys):
    found = told(
        WHOLE + "CVMFS_ROOT_HASH=" + 40 * "a" + "\nCVMFS_MAX_RETRIES=5\nARCH=x\nOS=y\n",
        repositories := {"name": NAME, "tag": "second", "servers": "http://own/@fqrn@"},
        proxies="DIRECT",
        retries=0,
        quota_mb=-1,
        timeout_s=2,
        max_ttl_s=60,
        alien_cache="/site/cache",
        cache="/own/cache",
        variables={"ARCH": "z"},
        how="client",
        keys=keys / "other.pub",
    )
    (one,) = found["repositories"]
    assert repositories["tag"] == one["tag"]
    assert (one["root_hash"], one["servers"]) == (None, [f"http://own/{NAME}"])
    assert one["keys"] == [KEY.replace("IIB", "IIC")]
    assert (found["proxies"], found["retries"], found["quota_mb"]) == ("DIRECT", 0, None)
    assert (found["timeout_s"], found["direct_timeout_s"], found["max_ttl_s"]) == (2, 10, 60)
    assert (found["alien_cache"], found["cache"]) == ("/site/cache", "/own/cache")
    assert (found["variables"]["ARCH"], found["variables"]["OS"]) == ("z", "y")
    assert found["how"] == "client"


def test_a_file_may_give_all_that_settings_can(told):
    more = (
        f"CVMFS_ROOT_HASH={40 * 'b'}\nCVMFS_REPOSITORY_TAG=first\nCVMFS_CACHE_BASE=/scratch/c\n"
        "CVMFS_QUOTA_LIMIT=-1\nCVMFS_ALIEN_CACHE=/site\nCVMFS_TIMEOUT=1\nCVMFS_TIMEOUT_DIRECT=2\n"
    )
    found = told(WHOLE + more)
    (one,) = found["repositories"]
    assert (one["root_hash"], one["tag"]) == (40 * "b", "first")
    assert (found["cache"], found["quota_mb"]) == ("/scratch/c/hepscale", None)
    assert (found["alien_cache"], found["timeout_s"], found["direct_timeout_s"]) == ("/site", 1, 2)


def test_keys_are_sent_as_text(told, keys):
    both = [KEY, KEY.replace("IIB", "IIC")]
    for line in ("CVMFS_KEYS_DIR=$KEYS", f"CVMFS_PUBLIC_KEY=$KEYS/{NAME}.pub:$KEYS/other.pub"):
        text = WHOLE.replace(f"CVMFS_PUBLIC_KEY=$KEYS/{NAME}.pub", line)
        assert told(text)["repositories"][0]["keys"] == both
    # as with the client of CVMFS
    first = told(WHOLE + "CVMFS_KEYS_DIR=$KEYS\n")["repositories"][0]["keys"]
    assert first == [KEY]
    assert told(WHOLE, keys=[keys, keys / "other.pub"])["repositories"][0]["keys"] == both


@pytest.mark.parametrize(
    ("line", "proxies"),
    [
        ("CVMFS_FALLBACK_PROXY='http://f1|http://f2'", "http://a:3128|http://b:3128;http://f1|http://f2"),
        ("CVMFS_FALLBACK_PROXY='http://f1;DIRECT'", "http://a:3128|http://b:3128;http://f1"),
        (
            "CVMFS_FALLBACK_PROXY=http://f\nCVMFS_HTTP_PROXY='http://a|DIRECT; DIRECT'",
            "http://a;http://f",
        ),
        ("CVMFS_FALLBACK_PROXY=http://f\nCVMFS_HTTP_PROXY=DIRECT", "http://f"),
        ("CVMFS_HTTP_PROXY='http://a|DIRECT'", "http://a|DIRECT"),
        ("CVMFS_HTTP_PROXY=DIRECT", "DIRECT"),
    ],
)  # fmt: skip
def test_fallback_proxies_come_last_and_rule_direct_out(told, line, proxies):
    assert told(WHOLE + line)["proxies"] == proxies


# -- what cannot be used ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("CVMFS_HTTP_PROXY=", ['say "DIRECT"', "own.conf:4", "write CVMFS_HTTP_PROXY="]),
        ("CVMFS_HTTP_PROXY=' ; '", ['say "DIRECT"']),
        ("CVMFS_HTTP_PROXY='auto;DIRECT'", ["name the proxies"]),
        ("CVMFS_HTTP_PROXY=DIRECT\nCVMFS_FALLBACK_PROXY=DIRECT", ['say "DIRECT"']),
        ("CVMFS_PUBLIC_KEY=/nowhere.pub", ["/nowhere.pub", "no such file"]),
        ("CVMFS_PUBLIC_KEY=$KEYS/../configured/own.conf", ["holds no public key"]),
        ("CVMFS_SERVER_URL=", ["No server", NAME, "servers ="]),
        ("CVMFS_TIMEOUT=soon", ["CVMFS_TIMEOUT='soon'", "own.conf:4"]),
        ("CVMFS_ALIEN_CACHE=a/b", ["CVMFS_ALIEN_CACHE='a/b'", "own.conf:4", "begins with /"]),
        ("CVMFS_CACHE_BASE=b", ["CVMFS_CACHE_BASE='b'", "own.conf:4", "begins with /"]),
        ("CVMFS_REPOSITORY_DATE=2024-01-01T00:00:00Z", ["date", "root_hash"]),
        ("CVMFS_HTTP_PROXY=$(cat /proxy)", ["own.conf:4", "CVMFS_HTTP_PROXY depends on a shell"]),
        ("CVMFS_HTTP_PROXY=`cat /proxy`", ["own.conf:4", "CVMFS_HTTP_PROXY depends on a shell"]),
        ("CVMFS_HTTP_PROXY=http://a;DIRECT", ["own.conf:4", "'DIRECT' is no KEY=value"]),
        ("CVMFS_HTTP_PROXY=http://a|http://b", ["own.conf:4", "need quotes"]),
        ("CVMFS_HTTP_PROXY = DIRECT", ["own.conf:4", "'CVMFS_HTTP_PROXY' is no KEY=value"]),
        ("CVMFS_HTTP_PROXY='DIRECT", ["own.conf:4", "not closed"]),
        ("CVMFS_HTTP_PROXY=DIRECT\nfi", ["own.conf:5", "'fi'"]),
        ("\nif [ a = a ]; then\nX=1\n", ["own.conf:5", "no fi"]),
        ("if [ a = a ]\nX=1\nfi", ["own.conf:4", "no then"]),
        ("echo hello", ["own.conf:4", "'echo'"]),
        ("ARCH=$(uname -m)", ["own.conf:4", "ARCH depends on a shell"]),
        (". $(dirname x)/y", ["own.conf:4", "which file"]),
    ],
)
def test_lines_that_cannot_be_used(told, line, words):
    with pytest.raises(ConfigError) as caught:
        told(WHOLE + line)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.fix


def test_nothing_is_said_anywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(cvmfs, "SYSTEM", tmp_path / "not-there")
    config = {"repositories": NAME, "servers": "http://x", "keys": "/x.pub"}
    for lacking, words in (("servers", "No server"), ("keys", "No public key")):
        with pytest.raises(ConfigError, match=words) as caught:
            cvmfs.for_workers(CvmfsSettings(**{**config, lacking: None}))
        assert "not there" in caught.value.cause
        assert f"{lacking} =" in caught.value.fix


def test_no_proxy_is_said_anywhere(told):
    with pytest.raises(ConfigError, match="No proxy is given") as caught:
        told(WHOLE.replace("CVMFS_HTTP_PROXY", "NO"))
    assert "DIRECT" in caught.value.fix


def test_folder_of_keys_without_keys(told, tmp_path):
    with pytest.raises(ConfigError, match="no public key") as caught:
        told(WHOLE, keys=tmp_path)
    assert caught.value.items == (f"{tmp_path}/*.pub",)


def test_a_configuration_that_is_not_there():
    with pytest.raises(ConfigError, match="no such configuration"):
        cvmfs.for_workers(CvmfsSettings(repositories=NAME, config="/nowhere/x.conf"))


# -- files of CVMFS --------------------------------------------------------------------------------


def test_files_of_a_folder_in_their_order(told, keys):
    found = told(
        {
            "default.conf": DEFAULT
            + "A=1\nB=1\nC=1\nD=1\nE=1\nF=1\nG=1\nCVMFS_HTTP_PROXY=DIRECT\n",
            "default.d/50-site.conf": "B=2\nC=2\nD=2\nE=2\nF=2\nG=2\n",
            "default.d/60-site.conf": "C=3\nD=3\nE=3\nF=3\nG=3\n",
            "default.d/ignored.txt": "Z=0\n",
            "default.local": "D=4\nE=4\nF=4\nG=4\n",
            "domain.d/example.org.conf": "E=5\nF=5\nG=5\nCVMFS_SERVER_URL=http://s/@fqrn@\n",
            "domain.d/example.org.local": "F=6\nG=6\n",
            "domain.d/cern.ch.conf": "A=0\n",
            f"config.d/{NAME}.conf": "G=7\n",
            f"config.d/{NAME}.local": 'H="$G.$A"\n',
            "keys/one.pub": KEY,
            "blacklist": "# forbidden\n\n<hepscale.example.org 4\n00:11\n",
        }
    )
    variables = found["variables"]
    assert "".join(variables[name] for name in "ABCDEFG") == "1234567"
    assert variables["H"] == "7.1"
    assert variables["CVMFS_MOUNT_DIR"] == "/cvmfs"
    assert "Z" not in variables
    (one,) = found["repositories"]
    assert (one["servers"], one["keys"]) == ([f"http://s/{NAME}"], [KEY])
    assert one["blacklist"] == [f"<{NAME} 4", "00:11"]
    # cache and quota there are of the client of this machine
    assert (found["cache"], found["quota_mb"], found["timeout_s"]) == (None, 4000, 7.0)


def test_configuration_repository(told, tmp_path):
    shared = "CVMFS_HTTP_PROXY=$PROXY\nA=repository\nB=repository\n"
    write(
        tmp_path / "mounted/config.example.org/etc/cvmfs",
        {
            "default.conf": "PROXY=DIRECT\nA=default\n",
            "common.conf": shared,
            "domain.d/example.org.conf": ". ../common.conf\nCVMFS_SERVER_URL=http://s\n"
            "CVMFS_KEYS_DIR=$CVMFS_MOUNT_DIR/$CVMFS_CONFIG_REPOSITORY/etc/cvmfs/keys\n",
            "keys/one.pub": KEY,
        },
    )
    own = {
        "default.conf": f"CVMFS_MOUNT_DIR={tmp_path}/mounted\n",
        "default.d/1.conf": "CVMFS_CONFIG_REPOSITORY=config.example.org\n",
        "domain.d/example.org.local": "B=own\n",
    }
    found = told(own)
    assert (found["proxies"], found["repositories"][0]["keys"]) == ("DIRECT", [KEY])
    assert (found["variables"]["A"], found["variables"]["B"]) == ("repository", "own")
    # it is not configured by itself
    with pytest.raises(ConfigError, match="No server"):
        told(own, "config.example.org")


def test_what_is_one_for_all_may_not_differ(told, keys):
    files = {
        "default.conf": WHOLE.replace("$KEYS", str(keys)),
        "config.d/b.example.org.conf": "CVMFS_HTTP_PROXY=DIRECT\n",
    }
    with pytest.raises(ConfigError, match=f"CVMFS_HTTP_PROXY differs between {NAME}") as caught:
        told(files, NAME, "b.example.org")
    assert [one.rpartition("/")[2] for one in caught.value.items] == [
        "default.conf:2",
        "b.example.org.conf:1",
    ]
    found = told(files, NAME, "b.example.org", proxies="http://p:1")
    assert found["proxies"] == "http://p:1"
    assert "CVMFS_HTTP_PROXY" not in found["variables"]
    assert [one["servers"][1] for one in found["repositories"]] == [
        "http://two/opt/hepscale",
        "http://two/opt/b",
    ]
    own = {f"config.d/{NAME}.conf": "ARCH=1", "config.d/b.example.org.conf": "ARCH=2"}
    with pytest.raises(ConfigError, match="ARCH differs"):
        told({**files, **own}, NAME, "b.example.org")


SHELL = r"""
A=plain  # a comment
B="double $A ${A}s \$A \"q\" \\ `echo x`"
C='single $A "q"'
D=mixed" $A "'$A'\ x
export E=exported
export E
readonly F=read G=$E
H=${NOT_SET:-other} I=${A:-other} J=${EMPTY:-other} K=${EMPTY-other} L=${NOT_SET-} M=${NOT_SET}
N=a#b
O=one\
two
P="two
lines"
Q=$GIVEN:${GIVEN:-x}
R=; S=1
if [ "$A" = plain ] && [ -n "$E" ]; then T=1; else T=2; fi
if [ "$A" != plain ] || [ -z "$EMPTY" ]; then
  U=1
  if [ ! -d /nowhere ]; then V=1; elif [ x ]; then V=2; else V=3; fi
  if [ -z "$A" ]; then V=no; elif [ "$A" = "plain" ]; then W=1; else W=2; fi
else
  U=2
fi
X=$A$A.${B:-c}
Y=a=b
"""


def test_values_are_those_of_a_shell(tmp_path):
    text = SHELL.replace(" `echo x`", "")
    found = read(tmp_path, text, GIVEN="given", EMPTY="")
    names = sorted(found)
    assert set(names) == set("ABCDEFGHIJKLMNOPQRSTUVWXY")
    lines = [f"printf '%s\\0' \"${name}\"\n" for name in names]
    shell = subprocess.run(
        ["sh", "-c", text + "".join(lines)],
        env={"GIVEN": "given", "EMPTY": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(zip(names, shell.stdout.split("\0"), strict=False)) == found


def test_what_takes_a_shell_is_an_error_only_where_it_is_needed(told, tmp_path):
    text = (
        'if [ "$(($$ % 2))" == 1 ]; then\n  CVMFS_PAC_URLS="a"\nelse\n  CVMFS_PAC_URLS="b"\nfi\n'
        'CVMFS_REPOSITORIES="`ls /cvmfs`"\nCVMFS_X=$CVMFS_REPOSITORIES\n'
    )
    assert read(tmp_path, text) == {
        "CVMFS_PAC_URLS": None,
        "CVMFS_REPOSITORIES": None,
        "CVMFS_X": None,
    }
    assert told(WHOLE + text)["variables"].keys() >= {"CVMFS_SERVER_URL"}
    with pytest.raises(ConfigError, match=r"own\.conf:11"):
        told(WHOLE + text + "CVMFS_ALIEN_CACHE=$CVMFS_X\n")


def test_branches_that_are_not_taken_are_not_read(told):
    text = "if [ a = b ]; then\n  . /nowhere\n  CVMFS_HTTP_PROXY=$(no)\nfi\n"
    assert told(WHOLE + text)["proxies"].startswith("http://a")
