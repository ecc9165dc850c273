"""``hepscale env run``: what the command gets and gives is as if it were run directly."""

from __future__ import annotations

import os
import subprocess
import sys

import packed
import pytest

RUN = [sys.executable, "-c", "from hepscale.cli import main; main()", "env", "run"]
TELL = "import json, sys; print(json.dumps([sys.argv[1:], sys.stdin.read()]))"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Write an analysis with a module beside it, and run it once, which packs."""
    folder = tmp_path_factory.mktemp("analysis")
    (folder / "analysis.py").write_text("import cloudpickle\nimport beside\nprint(beside.N)\n")
    (folder / "beside.py").write_text("N = 7\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPSCALE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        # also the first one, which packs and unpacks, leaves stdin and stdout alone
        first = run(folder, "--", "python", "-c", TELL, "a b", said="words\n")
        assert (first.returncode, first.stdout) == (0, '[["a b"], "words\\n"]\n'), first.stderr
        yield folder


def run(folder, *command, said="", what="analysis.py", **environ):
    return subprocess.run(
        [*RUN, what, *command],
        cwd=folder,
        env={**os.environ, **environ},
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )


def test_arguments_and_streams(place):
    given = ["-x", "--closure", "full", "--help", "two words", "", "*", "--", "$HOME", "'\"\\"]
    done = run(place, "--", "python", "-c", TELL, *given, said="some\nlines")
    assert done.stderr == ""
    assert done.stdout == packed.json.dumps([given, "some\nlines"]) + "\n"


def test_unknown_options_pass_without_dashes(place):
    done = run(place, "python", "-c", TELL, "--flag", "-v")
    assert done.stdout == '[["--flag", "-v"], ""]\n', done.stderr


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(place, code):
    assert run(place, "--", "sh", "-c", f"exit {code}").returncode == code


def test_signal_that_ends_it(place):
    assert run(place, "--", "sh", "-c", "kill -TERM $$").returncode == -15


def test_pipe_that_is_closed_ends_it_quietly(place):
    done = run(place, "--", "sh", "-c", "yes | head -n 1")
    assert (done.stdout, done.stderr) == ("y\n", "")


def test_command_that_cannot_be_run(place):
    done = run(place, "--", "no-such-command")
    assert (done.returncode, done.stderr) == (
        127,
        "hepscale: no-such-command: No such file or directory\n",
    )
    done = run(place, "--", "./beside.py")
    assert (done.returncode, done.stderr) == (126, "hepscale: ./beside.py: Permission denied\n")


def test_analysis_itself_and_its_modules(place, tmp_path):
    done = run(place, "--", "python", "analysis.py")
    assert (done.stdout, done.stderr) == ("7\n", "")
    # from elsewhere: the modules are those that were packed
    (tmp_path / "elsewhere.py").write_text("import beside; print(beside.N, beside.__file__)")
    done = run(tmp_path, "--", "python", "elsewhere.py", what=str(place / "analysis.py"))
    number, file = done.stdout.split()
    assert (number, file.startswith(str(packed.cache()))) == ("7", True)


def test_copy_of_modules_that_was_removed_halfway(place):
    code = "import beside; print(beside.__file__)"
    file = run(place, "--", "python", "-P", "-c", code).stdout.strip()
    folder = os.path.dirname(file)
    os.unlink(os.path.join(folder, ".hepscale-ready"))
    os.unlink(file)
    done = run(place, "--", "python", "-P", "-c", code)
    assert done.stdout.strip() == file, done.stderr


def test_nothing_of_this_process_leads_it_back(place, tmp_path):
    code = "import os, sys; print(sys.prefix, os.environ.get('VIRTUAL_ENV'), sys.path)"
    done = run(
        place,
        "--",
        "python",
        "-c",
        code,
        VIRTUAL_ENV=sys.prefix,
        PYTHONPATH=str(tmp_path),
        PYTHONHOME=sys.base_prefix,
    )
    prefix, environment, path = done.stdout.split(" ", 2)
    assert prefix in map(str, packed.unpacked())
    assert environment == "None"
    assert sys.prefix + "/" not in path
    assert str(tmp_path) not in path
