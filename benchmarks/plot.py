"""Draws the plot of docs/performance.md from its tables: each result as a part of its target.

Loads matplotlib, so it is called in a child process.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.results import DOCUMENT

PLOT = DOCUMENT.with_suffix(".svg")
NAMES = ("cached", "reading", "tools", "load")
"""The benchmarks in the plot."""

_SECTION = re.compile(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
_NUMBER = re.compile(r"[\d.,]+")
SHORTEST = 0.01
"""The shortest bar, so that a result of 0 is visible on the logarithmic scale."""


class Bar(NamedTuple):
    """A result as a part of its target: more than 1 is a miss."""

    what: str
    part: float


def bars(document: str, names: Sequence[str] = NAMES) -> Iterator[Bar]:
    """The results with a target in a document's tables, in the order of *names*."""
    sections = dict(_SECTION.findall(document))
    for name in names:
        for line in sections.get(name, "").splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if len(cells) == 5 and cells[3][:1] in ("≤", "≥"):
                what, median, _, target, _ = cells
                part = _number(median) / _number(target) if target[0] == "≤" else _number(target) / _number(median)
                yield Bar(what.replace("`", ""), max(part, SHORTEST))


def _number(cell: str) -> float:
    found = _NUMBER.search(cell)
    if found is None:
        raise ValueError(f"no number in {cell!r}")
    return float(found[0].replace(",", ""))


def draw() -> None:
    """Write the plot."""
    import matplotlib

    # With these settings the same tables give the same file, in which text stays text.
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "idcfs", "svg.fonttype": "none"}
    from matplotlib import pyplot

    shown = list(bars(DOCUMENT.read_text()))
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.3 * len(shown)), layout="constrained")
    colours = ["tab:blue" if bar.part <= 1 else "tab:red" for bar in shown]
    rows = range(len(shown))
    axes.barh(rows, [bar.part for bar in shown], color=colours)
    axes.set_yticks(rows, [bar.what for bar in shown])
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("part of the target (logarithmic): left of 1 is met, shorter is better")
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    draw()
