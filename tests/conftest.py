"""For all tests: nothing that idcfs logs as a warning or worse goes unnoticed."""

import logging
from collections.abc import Iterator

import pytest


class WarningsLogged(logging.Handler):
    """The warnings that idcfs has logged in a test and that the test has not taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))

    def take(self, part: str) -> str:
        """The first message that has *part* in it; the test expects it."""
        found = next((message for message in self.messages if part in message), None)
        assert found is not None, f"no warning with {part!r} was logged, but {self.messages}"
        self.messages.remove(found)
        return found


@pytest.fixture(autouse=True)
def warnings_logged() -> Iterator[WarningsLogged]:
    """Fails a test in which idcfs logs a warning that the test does not take."""
    handler = WarningsLogged()
    logging.getLogger("idcfs").addHandler(handler)
    yield handler
    logging.getLogger("idcfs").removeHandler(handler)
    assert not handler.messages, "idcfs logged warnings that the test does not expect"
