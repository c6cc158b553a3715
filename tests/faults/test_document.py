"""The table in docs/reliability.md has the outcomes that the tests of the matrix expect."""

from tests.faults.table import DOCUMENT, table, with_table


def test_the_document_has_the_matrix() -> None:
    text = DOCUMENT.read_text()
    assert table() in text
    assert with_table(text) == text, "run: python -m tests.faults.table"
