"""Results of benchmarks and their targets, as tables, which `write` puts into docs/performance.md."""

import datetime
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"


@dataclass(frozen=True)
class Result:
    """Measurements of one thing, of which the median counts.

    `unit` is ``s``, ``MB``, or what is counted; empty for a ratio. The target, if any, is `at_most` or `at_least`.
    """

    what: str
    values: Sequence[float]
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        """The median of the measurements."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without a target."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return self.median >= self.at_least if self.at_least is not None else None

    def cells(self) -> list[str]:
        """The cells of a row: what, median, range and number of measurements, target, and whether that is met."""
        target = ""
        if self.at_most is not None:
            target = f"≤ {self._number(self.at_most)} {self.unit}".strip()
        elif self.at_least is not None:
            target = f"≥ {self._number(self.at_least)} {self.unit}".strip()
        return [
            self.what,
            f"{self._number(self.median)} {self.unit}".strip(),
            f"{self._number(min(self.values))} to {self._number(max(self.values))}, n = {len(self.values)}",
            target,
            {True: "met", False: "missed", None: ""}[self.met],
        ]

    def _number(self, value: float) -> str:
        return f"{value:,.2f}" if value < 10 and self.unit != "requests" else f"{value:,.0f}"


def table(results: Sequence[Result]) -> str:
    """A table in Markdown, aligned for a terminal too."""
    rows = [["measured", "median", "range", "target", ""], *(result.cells() for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> str:
    """The day, the machine and the versions, in a line."""
    models = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.date.today().isoformat()}: {models[0] if models else platform.machine()}, "
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )


def write(name: str, results: Sequence[Result]) -> None:
    """Put a benchmark's results between its markers in the document.

    Raises:
        ValueError: the document has no such markers.
    """
    before, begin, rest = DOCUMENT.read_text().partition(f"<!-- begin {name} -->\n")
    _, end, after = rest.partition(f"<!-- end {name} -->\n")
    if not end:
        raise ValueError(f"{DOCUMENT} has no markers for {name}")
    DOCUMENT.write_text(f"{before}{begin}{machine()}\n\n{table(results)}\n{end}{after}")
