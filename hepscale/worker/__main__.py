"""``python -I FOLDER SETTINGS``: start the forkserver whose settings are the JSON file SETTINGS.

``python -I FOLDER -- COMMAND ...``: run a command instead, in the environment of this Python.

The folder becomes the package ``hepscale_worker``, wherever it was unpacked: the analysis may
bring a ``hepscale`` of its own, and its modules must not meet ours under their plain names.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _load_package() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    spec = importlib.util.spec_from_file_location(
        "hepscale_worker",
        os.path.join(folder, "__init__.py"),
        submodule_search_locations=[folder],
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hepscale_worker"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if sys.argv[1] == "--":
        os.execvp(sys.argv[2], sys.argv[2:])
    _load_package()
    importlib.import_module("hepscale_worker.forkserver").main(sys.argv[1])
