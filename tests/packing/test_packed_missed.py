"""What a task imports and its environment does not have: it is packed, and the task run again."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import packed
import pytest
import site_folder
from packed import calculate

pytestmark = pytest.mark.usefixtures("few", "installed", "nothing_left")

# the carrier requires it, and imports it in no module of its own
LAZY = "cargo"
# a tool of the tests that no analysis requires
UNDECLARED = "iniconfig"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Have a few small packages beside those that are installed."""
    prefix = site_folder.Prefix(tmp_path_factory.mktemp("prefix"))
    prefix.install("carrier", {"carrier.py": ""}, requires=["cargo"])
    prefix.install("cargo", {"cargo.py": "import ballast\n"}, requires=["ballast"])
    prefix.install("ballast", {"ballast.py": ""})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(prefix.site)
        yield


def imports(name):
    return import_module(name).__name__


def swallows_import_error(name):
    try:
        return import_module(name).__name__
    except ImportError:
        return "another way"


def swallows_exceptions(name):
    try:
        return import_module(name).__name__
    except Exception:
        return "another way"


def swallows_everything(name):
    try:
        return import_module(name).__name__
    except:  # noqa: E722
        return "another way"


def looks(name):
    import importlib.util

    return name if importlib.util.find_spec(name) else "another way"


def in_a_thread(name):
    from concurrent.futures import ThreadPoolExecutor

    def there():
        try:
            return import_module(name).__name__
        except BaseException:
            return "another way"

    with ThreadPoolExecutor() as pool:
        return pool.submit(there).result()


WAYS = [
    imports,
    swallows_import_error,
    swallows_exceptions,
    swallows_everything,
    looks,
    in_a_thread,
]


@pytest.mark.parametrize("way", WAYS)
def test_module_that_is_missed(way, told):
    packed.own(way)

    def work(item):
        import carrier  # noqa: F401

        return item, way(LAZY if item else "carrier")

    expected = [(0, "carrier"), (1, LAZY), (2, LAZY), (3, LAZY)]
    assert calculate(work, range(4), closure="imports", status=True) == expected
    (line,) = told()
    assert line.startswith(f"{LAZY}: imported in a way that is not seen in advance.")
    # and now it is known
    assert calculate(work, range(4), closure="imports", status=True) == expected
    assert told() == []


class Holder:
    """Imports when it is made again from its pickle."""

    def __init__(self, name):
        self.name = name

    def __setstate__(self, state):
        self.__dict__ = state
        self.module = import_module(self.name)

    def __getstate__(self):
        return {"name": self.name}


def test_module_that_is_missed_when_the_analysis_is_loaded(told):
    holder = packed.own(Holder)(LAZY)

    def work(item):
        import carrier  # noqa: F401

        return holder.module.__name__

    assert calculate(work, closure="imports", status=True) == [LAZY] * 3
    assert [line.partition(":")[0] for line in told()] == [LAZY]


def test_several_modules_that_are_missed_one_after_the_other(told):
    names = [LAZY, "ballast", UNDECLARED]

    def work(item):
        import carrier  # noqa: F401

        return [import_module(name).__name__ for name in names]

    assert calculate(work, closure="imports", status=True) == [names] * 3
    assert [line.partition(":")[0] for line in told()] == [LAZY, UNDECLARED]
    assert calculate(work, closure="imports", status=True) == [names] * 3
    assert told() == []


def test_module_that_no_requirement_names(told):
    def work(item):
        return import_module(UNDECLARED).__name__

    assert calculate(work, status=True) == [UNDECLARED] * 3
    assert [line.partition(":")[0] for line in told()] == [UNDECLARED]
    assert calculate(work, status=True) == [UNDECLARED] * 3
    assert told() == []


def test_module_that_only_the_pickle_refers_to():
    from iniconfig import IniConfig

    config = IniConfig("none", data="[a]\nb = 7\n")

    def work(item):
        return item * int(config["a"]["b"])

    assert calculate(work) == [0, 7, 14]


def test_what_was_missed_and_is_not_installed_any_more(told):
    def work(item):
        import carrier  # noqa: F401

        return import_module(LAZY).__name__

    assert calculate(work, closure="imports", status=True) == [LAZY] * 3
    assert len(told()) == 1
    (memory,) = packed.cache().glob("environments/seen/missed-*")
    memory.write_text(memory.read_text().replace(LAZY, "gone_meanwhile"))
    assert calculate(work, closure="imports", status=True) == [LAZY] * 3
    assert len(told()) == 1


def test_chunks_that_miss_nothing_are_not_run_again(tmp_path):
    def work(item):
        import carrier  # noqa: F401

        with open(tmp_path / "ran", "a") as out:
            out.write(f"{item}\n")
        if item == 2:
            import_module(LAZY)
        return item

    assert calculate(work, range(4), closure="imports", cores=1) == [0, 1, 2, 3]
    assert sorted((tmp_path / "ran").read_text().split()) == ["0", "1", "2", "2", "3"]


def test_part_of_the_standard_library_that_is_seldom_used(told):
    # the first of those that are there: some distributions have them in packages of their own
    name = next(filter(find_spec, ("idlelib", "test")))

    def work(item):
        try:
            return import_module(name).__name__
        except ImportError:
            return "another way"

    assert calculate(work, status=True) == [name] * 3
    assert [line.partition(":")[0] for line in told()] == [name]
    assert calculate(work, status=True) == [name] * 3
    assert told() == []


def test_local_module_that_a_computed_name_leads_to(told, tmp_path, monkeypatch):
    (tmp_path / "cuts_2018.py").write_text("from helper_of_cuts import LEAST\n")
    (tmp_path / "helper_of_cuts.py").write_text("LEAST = 30\n")
    monkeypatch.syspath_prepend(tmp_path)
    year = 2018

    def work(item):
        return import_module(f"cuts_{year}").LEAST

    assert calculate(work, status=True) == [30] * 3
    assert [line.partition(":")[0] for line in told()] == ["cuts_2018"]
    # and now it is known, also when it is edited
    (tmp_path / "helper_of_cuts.py").write_text("LEAST = 35\n")
    assert calculate(work, status=True) == [35] * 3
    assert told() == []


def test_local_module_that_fails_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_cuts.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "broken_cuts"
    error = packed.failing(lambda item: import_module(name))
    assert isinstance(error, ModuleNotFoundError)
    assert "no_such_module" in str(error)
