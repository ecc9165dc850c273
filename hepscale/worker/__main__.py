"""``python -I FOLDER SETTINGS``: start the forkserver whose settings are the JSON file SETTINGS.

``python -I FOLDER --task PID``: run the task whose folder the current one is, for this worker.

``python -I FOLDER --sandbox``: say whether the forkserver whose settings are read from standard
input could have a sandbox, see `sandbox.way`.

``python -I -S FOLDER --cvmfs SETTINGS REPOSITORY DESCRIPTOR``: serve a CVMFS repository.

``python -I FOLDER -- COMMAND ...``: run a command instead, in the environment of this Python.

The folder becomes the package ``hepscale_worker``, wherever it was unpacked: the analysis may
bring a ``hepscale`` of its own, and its modules must not meet ours under their plain names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


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


def _become(command: list[str]) -> NoReturn:
    """Run a command in place of this process, as a shell would."""
    in_use = importlib.import_module("hepscale_worker.scratch").hold_environment(sys.prefix)
    if in_use >= 0:
        # for as long as the command runs, whoever it is by then
        os.set_inheritable(in_use, True)
    sys.exit(importlib.import_module("hepscale_worker.execute").execute(command))


if __name__ == "__main__":
    _load_package()
    if sys.argv[1] == "--":
        _become(sys.argv[2:])
    if sys.argv[1] == "--task":
        folder = os.path.dirname(os.path.abspath(__file__))
        sys.exit(importlib.import_module("hepscale_worker.remote").main(folder, int(sys.argv[2])))
    if sys.argv[1] == "--sandbox":
        begin, why = importlib.import_module("hepscale_worker.sandbox").way(json.load(sys.stdin))
        print(json.dumps({"begin": begin, "why": why}))
        sys.exit()
    if sys.argv[1] == "--cvmfs":
        importlib.import_module("hepscale_worker.proc").die_with_parent()
        sys.exit(importlib.import_module("hepscale_worker.cvmfs.serve").main(sys.argv[2:]))
    importlib.import_module("hepscale_worker.forkserver").main(sys.argv[1])
