"""The matrix as docs/reliability.md prints it.

    python -m tests.faults.table

writes it there anew; a test holds the document against it.
"""

import re
from pathlib import Path

from tests.faults.cases import CELLS, RIGHT, Case, Cell, Operation, cases

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"

_BEGIN, _END = "<!-- python -m tests.faults.table writes this -->\n", "<!-- to here -->\n"


def table() -> str:
    """The rows, and how many cells there are."""
    found = cases()
    rows = [
        ["what goes wrong", *(operation.value for operation in Operation)],
        ["---"] * (1 + len(Operation)),
        *([case.name, *(_told(case, operation) for operation in Operation)] for case in found),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    figures = f"{len(found)} faults, each with and without the cache: {len(found) * len(CELLS)} cells."
    return "\n".join([*lines, "", figures, ""])


def _told(case: Case, operation: Operation) -> str:
    expected = case.expected(Cell(operation, is_cached=False))
    return " or ".join("works" if told == RIGHT else told for told in sorted(expected))


def with_table(text: str) -> str:
    """The document with the table of today."""
    return re.sub(f"(?<={_BEGIN}).*(?={_END})", lambda found: f"\n{table()}\n", text, flags=re.DOTALL)


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
