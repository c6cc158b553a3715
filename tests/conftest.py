"""For all tests: no warning that idcfs logs goes unnoticed; long forms of tests, and what they count.

`--long` has the tests that try something again and again do it more often. What a test records with pytest's
`record_property` is printed at the end.
"""

import logging
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try again and again for minutes what else takes seconds")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.user_properties:
                found = ", ".join(f"{name}: {value}" for name, value in report.user_properties)
                terminalreporter.write_line(f"{report.nodeid}: {found}")


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether tests are to take their time."""
    return bool(request.config.getoption("--long"))


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
