"""Runs benchmarks: ``python -m benchmarks [--runs N] [NAME...]``; prints results and writes docs/performance.md.

``--runs N`` is for trials: nothing is measured more than N times, and nothing is written. Exits with 1 if a target is
missed.
"""

import argparse
import importlib
import signal
import sys

from benchmarks import plot, processes, results
from benchmarks.workspace import touch_memory, workspace

NAMES = ("mount", "find", "tenfold", "listing", "cached", "cohorts", "reading", "tools", "load")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--runs", type=int, metavar="N", help="measure at most N times, and write nothing")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    # sys.exit, unlike SIGTERM's default action, removes the workspace.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(results.machine())
    found: list[results.Result] = []
    with workspace(asked.runs) as place:
        for name in asked.names or NAMES:
            touch_memory()
            measured = list(importlib.import_module(f"benchmarks.{name}").measure(place))
            print(f"\n{name}\n{results.table(measured)}", flush=True)
            if measured and not asked.runs:
                results.write(name, measured)
            found += measured
    if not asked.runs:
        processes.in_child(plot.draw)
    return int(any(result.met is False for result in found))


if __name__ == "__main__":
    sys.exit(main())
