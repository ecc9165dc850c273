"""``python -m benchmarks.child CASE OPTIONS``: run one case here and print what came of it."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Run the case; the last line that is printed is the result, as JSON."""
    # whatever a user would have imported before the clock starts
    from benchmarks import cases

    name, options = sys.argv[1], json.loads(sys.argv[2])
    before = os.getloadavg()[0]
    result = cases.CASES[name](**options)
    print(json.dumps(result | {"load": [before, os.getloadavg()[0]]}), flush=True)


if __name__ == "__main__":
    main()
