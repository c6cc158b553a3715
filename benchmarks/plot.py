"""The plot of docs/performance.md: what was measured, in parts of what was asked for.

It is drawn from the document's tables, so it always shows what they say. Loads matplotlib, so it is called in a
child process.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.results import DOCUMENT

PLOT = DOCUMENT.with_suffix(".svg")
NAMES = ("cached", "reading", "tools", "load")
"""The benchmarks that it shows."""

_SECTION = re.compile(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
_NUMBER = re.compile(r"[\d.,]+")
SHORTEST = 0.01
"""Of a bar; what took none of what it may take has one too."""


class Bar(NamedTuple):
    """A thing that was measured, and what it took of what was asked for: more than 1 is a miss."""

    what: str
    part: float


def bars(document: str, names: Sequence[str] = NAMES) -> Iterator[Bar]:
    """What a document's tables say of everything that something was asked of, in the order of *names*."""
    sections = dict(_SECTION.findall(document))
    for name in names:
        for line in sections.get(name, "").splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if len(cells) == 5 and cells[3][:1] in ("≤", "≥"):
                what, median, _, asked, _ = cells
                part = _number(median) / _number(asked) if asked[0] == "≤" else _number(asked) / _number(median)
                yield Bar(what.replace("`", ""), max(part, SHORTEST))


def _number(cell: str) -> float:
    found = _NUMBER.search(cell)
    if found is None:
        raise ValueError(f"no number in {cell!r}")
    return float(found[0].replace(",", ""))


def draw() -> None:
    """Draw it again."""
    import matplotlib

    # The same tables give the same file, whose text is text.
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
    axes.set_xlabel("part of what was asked for (logarithmic): left of 1 is met, shorter is better")
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    draw()
