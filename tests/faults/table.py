"""The matrix as a table in docs/reliability.md.

    python -m tests.faults.table

writes it there; a test compares the document with it.
"""

import re
from pathlib import Path

from tests.faults.cases import CELLS, RIGHT, Case, Cell, Operation, cases

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"

_BEGIN, _END = "<!-- begin: written by python -m tests.faults.table -->\n", "<!-- end -->\n"


def table() -> str:
    """The table in Markdown, with the numbers of faults and cells below it."""
    found = cases()
    rows = [
        ["fault", *(operation.value for operation in Operation)],
        ["---"] * (1 + len(Operation)),
        *([case.name, *(_outcome(case, operation) for operation in Operation)] for case in found),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    figures = f"{len(found)} faults, each with and without the cache: {len(found) * len(CELLS)} cells."
    return "\n".join([*lines, "", figures, ""])


def _outcome(case: Case, operation: Operation) -> str:
    expected = case.expected(Cell(operation, is_cached=False))
    return " or ".join("works" if outcome == RIGHT else outcome for outcome in sorted(expected))


def with_table(text: str) -> str:
    """The document with the present table."""
    return re.sub(f"(?<={_BEGIN}).*(?={_END})", lambda found: f"\n{table()}\n", text, flags=re.DOTALL)


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
