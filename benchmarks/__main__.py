"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks import sections
from benchmarks.report import as_data, as_text
from benchmarks.rounds import Rounds
from hepscale.config import load_settings


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="one round, fewer chunks: minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (5; 1 with --quick)")
    parser.add_argument(
        "--again",
        type=int,
        default=0,
        metavar="N",
        help="repeat a measurement up to N times while others use more than a tenth of the cores",
    )
    parser.add_argument(
        "--only", choices=sections.SECTIONS, action="append", help="only this section; repeatable"
    )
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its figures; how far it is goes to standard error."""
    arguments = _arguments()
    number = arguments.rounds or (1 if arguments.quick else 5)
    home = load_settings().cache_dir
    home.mkdir(parents=True, exist_ok=True)
    lines = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home) as folder:
        rounds = Rounds(Path(folder), arguments.again)
        for name in arguments.only or sections.SECTIONS:
            lines += sections.SECTIONS[name](rounds, number, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(as_data(lines, rounds.others(), rounds.told), indent=1))
    else:
        print(as_text(lines, rounds.others(), number))


if __name__ == "__main__":
    main()
