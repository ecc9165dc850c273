"""What is packed, and what is not: closures, extra packages, files."""

from __future__ import annotations

import importlib.machinery
import sys
from importlib import import_module
from pathlib import Path

import packed
import pytest
from packed import calculate, failing
from site_folder import Prefix, direct_url

from hepscale import ConfigError, HepScaleExecutor
from hepscale.env import repositories
from hepscale.errors import InputError

pytestmark = pytest.mark.usefixtures("few", "nothing_left")

# nbformat requires it, and imports it in no module of its own
LAZY = "jupyter_core"
# a tool of the tests that no analysis requires
UNDECLARED = "iniconfig"


def there(*names):
    """Return those modules that can be imported; a task that looks for others is run again."""
    found = [importlib.machinery.PathFinder.find_spec(name) for name in names]
    return [one.name for one in found if one]


def test_only_what_is_imported_is_packed():
    packed.own(there)

    def look(item):
        return there("cloudpickle", "nbformat", LAZY, UNDECLARED, "numpy")

    def look_again(item):
        import nbformat  # noqa: F401

        return there("cloudpickle", "nbformat", LAZY, UNDECLARED, "numpy")

    assert calculate(look, [0]) == [["cloudpickle"]]
    assert calculate(look_again, [0], closure="imports") == [["cloudpickle", "nbformat"]]
    assert calculate(look_again, [0]) == [["cloudpickle", "nbformat", LAZY]]


# -- packages that are asked for -------------------------------------------------------------------


def test_extra_packages(told):
    def work(item):
        return import_module(UNDECLARED).__name__

    options = {"closure": "imports", "status": True}
    assert calculate(work, extra_packages=[UNDECLARED], **options) == [UNDECLARED] * 3
    assert told() == []


def test_extra_package_that_is_a_local_module(told, tmp_path, monkeypatch):
    (tmp_path / "calibration.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "calibration"

    def work(item):
        return import_module(name).VALUE

    assert calculate(work, extra_packages=[name], status=True) == [3] * 3
    assert told() == []


@pytest.mark.parametrize("excluded", [LAZY, "jupyter-core"])
@pytest.mark.parametrize("closure", ["full", "imports"])
def test_excluded_package(excluded, closure, told):
    def work(item):
        import nbformat  # noqa: F401

        try:
            return import_module(LAZY).__name__
        except ImportError as error:
            return type(error).__name__, str(error)

    expected = ("ModuleNotFoundError", f"No module named '{LAZY}'")
    options = {"exclude_packages": [excluded], "closure": closure, "status": True}
    assert calculate(work, **options) == [expected] * 3
    assert told() == []


def test_excluded_package_that_is_needed():
    def work(item):
        import nbformat

        return nbformat.__name__

    error = failing(work, exclude_packages=["nbformat"])
    assert isinstance(error, ModuleNotFoundError)
    assert "No module named 'nbformat'" in str(error)
    assert error.cause == "exclude_packages says that it is not packed"
    assert error.fix == "take what provides nbformat out of exclude_packages"


def test_package_that_is_not_installed():
    error = failing(lambda item: item, extra_packages=["nbformatt"])
    assert isinstance(error, ConfigError)
    assert error.fact == "'nbformatt' is not installed, neither as a distribution nor as a module."
    assert error.items == ("installed is nbformat",)
    assert "pip install nbformatt" in error.fix


def test_module_that_nobody_has():
    def work(item):
        import no_such_module

        return no_such_module.x

    error = failing(work)
    assert isinstance(error, ModuleNotFoundError)
    assert "pip install" in error.fix


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("closure", "all", "There is no closure 'all'."),
        ("closure", None, "There is no closure None."),
        ("extra_packages", "numpy", "extra_packages='numpy' cannot be used."),
        ("exclude_packages", b"numpy", "exclude_packages=b'numpy' cannot be used."),
        ("files", Path("a.json"), "files=PosixPath('a.json') cannot be used."),
        ("files", None, "files=None cannot be used."),
    ],
)
def test_options_that_are_seen_at_once(option, value, text):
    with pytest.raises(ConfigError) as caught:
        HepScaleExecutor(**{option: value})
    assert caught.value.fact == text
    assert caught.value.fix.startswith(f"HepScaleExecutor({option}=")


@pytest.mark.parametrize("given", ["Packed", "conda", "env.zip", "", Path("packed")])
def test_environment_that_is_misspelt(given):
    error = failing(lambda item: item, environment=given)
    assert isinstance(error, ConfigError)
    assert error.fact == f"environment={str(given)!r} cannot be used."
    assert "env.tar.gz" in error.cause


@pytest.mark.parametrize("environment", [None, "env.tar.gz"])
@pytest.mark.parametrize("option", ["extra_packages", "exclude_packages"])
def test_packages_where_nothing_is_packed(environment, option):
    error = failing(lambda item: item, environment=environment, **{option: ["nbformat"]})
    assert isinstance(error, ConfigError)
    assert "nothing is" in error.fact
    assert (environment or "the environment of this process") in error.cause


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder with some files, and have one elsewhere."""
    (tmp_path / "here/weights/2018").mkdir(parents=True)
    (tmp_path / "here/weights/2018/b.txt").write_text("b")
    (tmp_path / "here/a.txt").write_text("a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/c.txt").write_text("c")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def read(*names):
    def work(item):
        return [Path(name).read_text() for name in names]

    return work


@pytest.mark.parametrize("environment", ["packed", None])
def test_files(here, environment):
    files = ["a.txt", Path("weights"), "weights/2018/b.txt", str(here / "elsewhere/c.txt")]
    work = read("a.txt", "weights/2018/b.txt", "c.txt")
    assert calculate(work, files=files, environment=environment) == [["a", "b", "c"]] * 3
    # nothing is written into the user's own folders
    assert sorted(path.name for path in here.rglob("*.txt")) == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("../elsewhere/c.txt", "c.txt"),
        ("../elsewhere", "elsewhere/c.txt"),
        ("weights/../a.txt", "a.txt"),
        ("weights/", "weights/2018/b.txt"),
        (".", "here/a.txt"),
        ("..", "HERE/elsewhere/c.txt"),
    ],
)
def test_names_of_files(here, name, below):
    below = below.replace("HERE", here.name)
    assert calculate(read(below), [0], files=[name], environment=None) == [[below[-5]]]


def test_files_below_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "elsewhere"))
    assert calculate(read("c.txt"), [0], files=["~/c.txt"], environment=None) == [["c"]]


def test_file_that_is_missing(here):
    error = failing(lambda item: item, files=["a.txt", "no.txt"])
    assert isinstance(error, InputError)
    assert error.fact == "There is no such file to be sent along."
    assert error.items == (str(here / "here/no.txt"),)
    assert error.fix == f"ls {here / 'here'}"


def test_files_of_one_name(here):
    (here / "a.txt").touch()
    error = failing(lambda item: item, files=["a.txt", here / "a.txt"])
    assert isinstance(error, InputError)
    assert "both be called a.txt" in error.fact
    assert error.items == (str(here / "here/a.txt"), str(here / "a.txt"))


def test_missing_imports_of_the_analysis_are_told(told, tmp_path, monkeypatch):
    (tmp_path / "local_part.py").write_text(
        "def maybe():\n    import no_such_module\n\ntry:\n    import nor_this_one\n"
        "except ImportError:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def work(item):
        import local_part

        return callable(local_part.maybe)

    assert calculate(work, status=True) == [True] * 3
    (line,) = told()
    assert line.startswith("no_such_module (local_part.py, line 2) was not found and is not packed")
    assert "pip install no-such-module" in line


# -- editable installs -----------------------------------------------------------------------------


def test_metadata_of_an_editable_install(tmp_path, monkeypatch):
    prefix, project = Prefix(tmp_path), tmp_path / "project"
    (project / "detector").mkdir(parents=True)
    (project / "detector/__init__.py").write_text("LAYERS = 4\n")
    (project / "detector/map.txt").write_text("barrel")
    prefix.install(
        "detector",
        {"__editable__.detector-1.0.pth": f"{project}\n"},
        direct_url=direct_url(project),
    )
    monkeypatch.syspath_prepend(prefix.site)
    monkeypatch.syspath_prepend(project)

    def work(item):
        from importlib.metadata import version
        from importlib.resources import files

        import detector

        text = (files("detector") / "map.txt").read_text()
        return version("detector"), detector.LAYERS, text, detector.__file__.startswith(sys.prefix)

    assert calculate(work) == [("1.0", 4, "barrel", False)] * 3
    (project / "detector/__init__.py").write_text("LAYERS = 5\n")
    assert calculate(work) == [("1.0", 5, "barrel", False)] * 3


# -- repositories of CVMFS -------------------------------------------------------------------------


def test_what_is_imported_from_a_repository_is_not_sent(told, tmp_path, monkeypatch):
    folder = tmp_path / "cvmfs/a.example.org/py"
    folder.mkdir(parents=True)
    (folder / "mounted.py").write_text("")
    monkeypatch.setattr(repositories, "TOP", str(tmp_path / "cvmfs"))
    monkeypatch.syspath_prepend(folder)

    def work(item):
        import mounted

        return mounted.__file__

    assert calculate(work, status=True) == [str(folder / "mounted.py")] * 3
    assert told() == []


def test_repositories_that_tasks_may_not_find_are_told(told, tmp_path, monkeypatch):
    (tmp_path / "uses_cvmfs.py").write_text("FILE = '/cvmfs/not-here.example.org/x.json'\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work(item):
        import uses_cvmfs

        return uses_cvmfs.FILE

    assert calculate(work, status=True) == ["/cvmfs/not-here.example.org/x.json"] * 3
    (line,) = told()
    assert "/cvmfs/not-here.example.org, which is neither configured nor mounted" in line
