"""The matrix as docs/reliability.md prints it.

    python -m tests.faults.table

writes it there anew; a test holds the document against it.
"""

import re
from pathlib import Path

from tests.faults.cases import CELLS, NOT_YET, RIGHT, Case, Cell, Operation, cases

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"

_BEGIN, _END = "<!-- python -m tests.faults.table writes this -->\n", "<!-- to here -->\n"


def table() -> str:
    """The rows, the notes below them, and how many cells there are."""
    found = cases()
    reasons = list(dict.fromkeys(NOT_YET.values()))
    rows = [
        ["what goes wrong", *(operation.value for operation in Operation)],
        ["---"] * (1 + len(Operation)),
        *([case.name, *(_told(case, operation, reasons) for operation in Operation)] for case in found),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"<sup>{number}</sup> Not yet: {reason}." for number, reason in enumerate(reasons, 1)]
    figures = f"{len(found)} faults, each with and without the cache: {len(found) * len(CELLS)} cells."
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes), figures, ""])


def _told(case: Case, operation: Operation, reasons: list[str]) -> str:
    cell = Cell(operation, is_cached=False)
    words = " or ".join("works" if told == RIGHT else told for told in sorted(case.expected(cell)))
    reason = NOT_YET.get((case.name, cell))
    return words if reason is None else f"{words} <sup>{reasons.index(reason) + 1}</sup>"


def with_table(text: str) -> str:
    """The document with the table of today."""
    return re.sub(f"(?<={_BEGIN}).*(?={_END})", lambda found: f"\n{table()}\n", text, flags=re.DOTALL)


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
