"""Runs benchmarks: ``python -m benchmarks [NAME...]``; prints their results and writes them down.

Exits with 1 if something that was asked for is missed.
"""

import importlib
import signal
import sys

from benchmarks import results
from benchmarks.workspace import touch_memory, workspace

NAMES = ("mount", "find", "tenfold", "listing", "cached", "cohorts")


def main(names: list[str]) -> int:
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    # Ending by a signal cleans up too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(results.machine())
    found: list[results.Result] = []
    with workspace() as place:
        for name in names or NAMES:
            touch_memory()
            measured = list(importlib.import_module(f"benchmarks.{name}").measure(place))
            print(f"\n{name}\n{results.table(measured)}", flush=True)
            if measured:
                results.write(name, measured)
            found += measured
    return int(any(result.met is False for result in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
