"""From imports to distributions, and from these to all that they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sites import Site

from hepscale.env.imports import How, Import
from hepscale.env.resolve import Missing, Resolution, resolve
from hepscale.errors import ConfigError


def one(
    name: str, *members: str, how: How = "sure", line: int = 1, lazy: bool = False, level: int = 0
) -> Import:
    return Import(name, f"cell 3, line {line}", how, members, level, lazy)


def resolved(site: Site, *imports: Import, **options: object) -> Resolution:
    return resolve(imports, site.index(), site.interpreter, **options)  # type: ignore[arg-type]


def taken(site: Site, *imports: Import, **options: object) -> dict[str, tuple[str, ...]]:
    """Return the reasons by distribution; nothing may be missing."""
    result = resolved(site, *imports, **options)
    assert result.missing == ()
    assert [each.distribution.name for each in result.taken] == sorted(
        each.distribution.name for each in result.taken
    )
    return {each.distribution.name: each.reasons for each in result.taken}


def missing(site: Site, *imports: Import, **options: object) -> dict[str, Missing]:
    return {each.name: each for each in resolved(site, *imports, **options).missing}


# -- imports -------------------------------------------------------------------------------------


def test_modules_are_found_by_their_files_whatever_the_distribution_is_called(site: Site) -> None:
    site.put("PyYAML", {"yaml/__init__.py": ""})
    site.put("scikit-learn", {"sklearn/__init__.py": "", "sklearn/svm/__init__.py": ""})
    site.put("opencv-python-headless", {"cv2/__init__.py": "", "cv2/cv2.abi3.so": b""})
    found = taken(
        site,
        one("yaml", line=2),
        one("sklearn.svm", "SVC", "SVR", "NuSVC", "x"),
        one("cv2", lazy=True),
        one("yaml", line=5, how="guarded"),
    )
    assert found == {
        "pyyaml": ("cell 3, line 2: import yaml", "cell 3, line 5: import yaml"),
        "scikit-learn": ("cell 3, line 1: from sklearn.svm import SVC, SVR, NuSVC, ...",),
        "opencv-python-headless": ("cell 3, line 1: import cv2",),
    }


def test_parts_of_namespace_packages_are_found_with_their_owners(site: Site) -> None:
    site.put("space-one", {"space/one.py": "", "space/deep/a.py": ""})
    site.put("space-two", {"space/two/__init__.py": "", "space/deep/b.py": ""})
    assert set(taken(site, one("space", "two"))) == {"space-two"}
    assert set(taken(site, one("space.one"))) == {"space-one"}
    assert set(taken(site, one("space.one", "x"))) == {"space-one"}
    assert set(taken(site, one("space.two", "x"))) == {"space-two"}
    assert set(taken(site, one("space.deep", "b"))) == {"space-two"}
    assert set(taken(site, one("space.deep.a"))) == {"space-one"}
    assert set(taken(site, one("space"))) == {"space-one", "space-two"}
    assert set(taken(site, one("space", "*"))) == {"space-one", "space-two"}
    assert set(taken(site, one("space", "deep"))) == {"space-one", "space-two"}


def test_a_part_that_a_namespace_package_has_not_is_missing(site: Site) -> None:
    site.put("space-one", {"space/one.py": ""})
    result = resolved(site, one("space", "one", "three"), one("space.four", line=2))
    assert [each.distribution.name for each in result.taken] == ["space-one"]
    assert result.missing == (
        Missing(
            "space.four",
            ("cell 3, line 2",),
            "sure",
            "pip install space-four (provides space.four)",
        ),
        Missing(
            "space.three",
            ("cell 3, line 1",),
            "sure",
            "pip install space-three (provides space.three)",
        ),
    )
    site.put("space-two", {"space/two/__init__.py": ""})
    assert set(missing(site, one("space", "one", "three"))) == {"space.three"}


def test_what_is_not_installed_is_missing_with_where_and_fix(site: Site) -> None:
    result = resolved(
        site,
        one("sklearn.svm", "SVC", line=4, how="dynamic"),
        one("sklearn", line=5, lazy=True),
        one("sklearn", line=5),
        one("tensorflow"),
        one("google.protobuf"),
        one("cupy", how="guarded"),
        one("", how="dynamic"),
        one("beside", level=1),
    )
    assert result.taken == ()
    assert result.missing == (
        Missing(
            "google.protobuf",
            ("cell 3, line 1",),
            "sure",
            "pip install protobuf (provides google.protobuf)",
        ),
        Missing(
            "sklearn",
            ("cell 3, line 4", "cell 3, line 5"),
            "sure",
            "pip install scikit-learn (provides sklearn)",
        ),
        Missing("tensorflow", ("cell 3, line 1",), "sure", "pip install tensorflow"),
    )


def test_a_typing_error_is_thought_of(site: Site) -> None:
    site.put("numpy", {"numpy/__init__.py": ""})
    fix = missing(site, one("nunpy"))["nunpy"].fix
    assert fix == "write numpy if that was meant, else pip install nunpy"


# -- requirements --------------------------------------------------------------------------------


def test_requirements_are_followed_where_their_markers_hold(site: Site) -> None:
    requires = [
        "second>=2",
        "never; python_version < '3'",
        "elsewhere; sys_platform == 'win32'",
        "here; sys_platform == 'linux' and python_version >= '3'",
        "optional; extra == 'more'",
        "both; extra == 'more' or python_version >= '3'",
    ]
    site.put("first", {"first.py": ""}, requires=requires)
    site.put("second", {"second.py": ""}, requires=["Third_One", "first"])
    site.put("third.one", {"third.py": ""})
    for name in ("never", "elsewhere", "here", "optional", "both"):
        site.put(name, {f"{name}.py": ""})
    assert taken(site, one("first")) == {
        "first": ("cell 3, line 1: import first", "required by second"),
        "second": ("required by first",),
        "third-one": ("required by second",),
        "here": ("required by first",),
        "both": ("required by first",),
    }
    markers = {**dict(site.interpreter.markers), "sys_platform": "win32"}
    windows = replace(site.interpreter, markers=tuple(markers.items()))
    result = resolve([one("first")], site.index(), windows)
    assert {each.distribution.name for each in result.taken} == {
        *("first", "second", "third-one", "elsewhere", "both")
    }


def test_extras_are_followed_where_they_are_asked_for(site: Site) -> None:
    requires = ["base", "drawing; extra == 'plot'", "hist[plot]; extra == 'all'"]
    requires += ["fits[Fast]; extra == 'all'"]
    site.put("hist", {"hist.py": ""}, requires=requires)
    site.put("fits", {"fits.py": ""}, requires=["quick; extra == 'fast'", "x; extra == 'slow'"])
    for name in ("base", "drawing", "quick", "x"):
        site.put(name, {f"{name}.py": ""})
    site.put("user", {"user.py": ""}, requires=["hist[plot]"])
    assert set(taken(site, one("hist"))) == {"hist", "base"}
    assert set(taken(site, one("user"))) == {"user", "hist", "base", "drawing"}
    assert taken(site, one("hist"), extra=["hist[all]>=2"]) == {
        "hist": ("asked for", "cell 3, line 1: import hist", "required by hist[all]"),
        "base": ("required by hist",),
        "drawing": ("required by hist[plot]",),
        "fits": ("required by hist[all]",),
        "quick": ("required by fits[fast]",),
    }


def test_a_hard_requirement_that_is_not_installed_is_missing(site: Site) -> None:
    requires = ["absent<3,>=1", "absent-too; extra == 'more'", "absent-three; os_name == 'nt'"]
    site.put("first", {"first.py": ""}, requires=requires)
    site.put("second", {"second.py": ""}, requires=["absent", "first[more]"])
    assert missing(site, one("first")) == {
        "absent": Missing(
            "absent",
            ("required by first, not installed",),
            "guarded",
            "pip install 'absent<3,>=1'",
        )
    }
    found = missing(site, one("second"))
    assert found["absent"].where == (
        "required by second, not installed",
        "required by first, not installed",
    )
    assert found["absent-too"].where == ("required by first[more], not installed",)


def test_a_requirement_may_be_there_under_another_name(site: Site) -> None:
    site.put("first", {"first.py": ""}, requires=["PyYAML", "some-thing"])
    site.put("yaml-by-others", {"yaml/__init__.py": ""})
    site.add({"some_thing.py": ""})
    assert set(taken(site, one("first"))) == {"first", "yaml-by-others", "some-thing"}


def test_a_requirement_that_pip_would_refuse_counts_by_its_name(site: Site) -> None:
    site.put("first", {"first.py": ""}, requires=["second >= 1.0.*, nonsense", "%%"])
    site.put("second", {"second.py": ""})
    assert set(taken(site, one("first"))) == {"first", "second"}


def test_conda_is_trusted_to_have_what_its_packages_need(site: Site) -> None:
    info = site.install("first", {"first.py": ""}, requires=["absent", "second"])
    paths = [f"lib/{info.parent.parent.name}/site-packages/{name}" for name in ("first.py",)]
    paths += [str(path.relative_to(site.root)) for path in info.iterdir()]
    site.conda("first", paths)
    site.put("second", {"second.py": ""})
    assert site.index().distributions["first"].kind == "conda"
    assert set(taken(site, one("first"))) == {"first", "second"}


def test_plugins_of_what_is_taken_are_taken(site: Site) -> None:
    site.put("fsspec", {"fsspec.py": ""})
    site.put(
        "fsspec-xrootd",
        {"fsspec_xrootd.py": ""},
        requires=["xrootd"],
        entry_points="[fsspec.specs]\nroot = fsspec_xrootd:Files\n",
    )
    site.put("xrootd", {"XRootD/__init__.py": ""})
    site.put(
        "many-words", {"many_words.py": ""}, entry_points="[xrootd_some_things]\na = many_words\n"
    )
    site.put("scikit-learn", {"sklearn.py": ""})
    site.put("by-module", {"by_module.py": ""}, entry_points="[sklearn.x]\na = by_module:f\n")
    site.put("tool", {"tool.py": ""}, entry_points="[console_scripts]\nfsspec = tool:main\n")
    site.put("console", {"console.py": ""})
    # this one says how fsspec is to use a part of itself
    site.put("other", {"other.py": ""}, entry_points="[fsspec.specs]\nlocal = fsspec:Local\n")
    assert taken(site, one("fsspec")) == {
        "fsspec": ("cell 3, line 1: import fsspec",),
        "fsspec-xrootd": ("plugin of fsspec (fsspec.specs)",),
        "xrootd": ("required by fsspec-xrootd",),
        "many-words": ("plugin of xrootd (xrootd_some_things)",),
    }
    assert set(taken(site, one("sklearn"))) == {"scikit-learn", "by-module"}
    assert set(taken(site, one("console"))) == {"console"}


# -- what is asked for ---------------------------------------------------------------------------


def test_what_is_asked_for_is_taken_by_any_of_its_names(site: Site) -> None:
    site.put("scikit-learn", {"sklearn/__init__.py": "import deep"}, requires=["base"])
    site.put("base", {"base.py": ""})
    site.put("deep", {"deep.py": ""})
    site.put("no-modules", {"share/x.txt": ""})
    for name in ("scikit-learn", "Scikit_Learn>=0.1", "sklearn", "sklearn.svm"):
        assert taken(site, extra=[name]) == {
            "scikit-learn": ("asked for",),
            "base": ("required by scikit-learn",),
            "deep": ("imported by sklearn",),
        }
    (lonely,) = resolved(site, extra=["no-modules"]).taken
    assert lonely.at_import


@pytest.mark.parametrize("option", ["extra", "exclude"])
def test_asking_for_what_is_not_there_is_an_error(site: Site, option: str) -> None:
    site.put("scikit-learn", {"sklearn/__init__.py": ""})
    with pytest.raises(ConfigError, match="'skleran' is not installed") as caught:
        resolved(site, **{option: ["skleran"]})
    assert caught.value.items[0] == "installed is sklearn"
    with pytest.raises(ConfigError, match="'scikit_lern' is not installed") as caught:
        resolved(site, **{option: ["scikit_lern"]})
    assert caught.value.items[0] == "installed is scikit-learn"
    with pytest.raises(ConfigError, match="'a b' is no requirement"):
        resolved(site, **{option: ["a b"]})
    with pytest.raises(ConfigError, match="'yaml' is not installed") as caught:
        resolved(site, **{option: ["yaml"]})
    assert "pip install pyyaml" in caught.value.fix


def test_what_is_excluded_is_not_followed(site: Site) -> None:
    site.put("top", {"top.py": "import heavy, both"}, requires=["Heavy-One", "both"])
    site.put("heavy-one", {"heavy.py": "import behind"}, requires=["behind", "both", "absent"])
    site.put("behind", {"behind.py": ""})
    site.put("both", {"both.py": ""})
    site.put("plug", {"plug.py": ""}, entry_points="[top.plugins]\na = plug\n")
    for name in ("heavy_one", "heavy"):
        found = resolved(site, one("top"), one("heavy"), exclude=[name, "plug"], extra=["heavy"])
        assert [each.distribution.name for each in found.taken] == ["both", "top"]
        assert found.missing == ()


# -- at import -----------------------------------------------------------------------------------


def test_what_is_required_and_not_imported_is_told_apart(site: Site, tmp_path: Path) -> None:
    site.put("top", {"top.py": "import used"}, requires=["used", "unused"])
    site.put("used", {"used.abi3.so": b""}, requires=["library"])
    site.put("library", {"lib/liba.so": b""}, large=True)
    site.put("unused", {"unused.py": "import used"}, requires=["behind"])
    site.put("behind", {"behind.py": ""})
    for _ in range(2):
        found = resolved(site, one("top"), cache=tmp_path / "cache")
        assert {each.distribution.name: each.at_import for each in found.taken} == {
            "top": True,
            "used": True,
            "library": True,
            "unused": False,
            "behind": False,
        }
    assert (tmp_path / "cache" / "reach").is_dir()


def test_a_compiled_module_counts_with_what_its_extras_require(site: Site) -> None:
    site.put("used", {"used.abi3.so": b""}, requires=["library; extra == 'more'"])
    site.put("library", {"lib/liba.so": b""}, large=True)
    assert set(taken(site, one("used"))) == {"used"}
    (library, _) = resolved(site, one("used"), extra=["used[more]"]).taken
    assert library.distribution.name == "library"
    assert library.at_import


def test_members_of_an_import_are_followed(site: Site) -> None:
    site.put("top", {"top/__init__.py": "", "top/part.py": "import first"}, requires=["first"])
    site.put("first", {"first.py": ""})
    (first, _) = resolved(site, one("top", "x")).taken
    assert not first.at_import
    (first, _) = resolved(site, one("top", "part")).taken
    assert first.at_import


def test_what_is_imported_without_being_required_is_taken(site: Site) -> None:
    site.put("top", {"top.py": "import eager\ndef f():\n    import lazy"})
    site.put("eager", {"eager.py": ""}, requires=["base"])
    # an optional feature: nothing requires it
    site.put("lazy", {"lazy.py": ""})
    site.put("base", {"base.py": ""})
    assert taken(site, one("top")) == {
        "top": ("cell 3, line 1: import top",),
        "eager": ("imported by top",),
        "base": ("required by eager",),
    }


def test_reasons_are_the_first_few(site: Site) -> None:
    site.put("top", {"top.py": ""})
    found = taken(site, *(one("top", line=line) for line in range(20)))
    assert found["top"] == tuple(f"cell 3, line {line}: import top" for line in range(5))
