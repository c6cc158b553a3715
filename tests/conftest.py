"""For all tests: no warning that idcfs logs goes unnoticed; long forms of tests, and what they count.

`--long` has the tests that try something again and again do it more often. What a test records with pytest's
`record_property` is printed at the end.

scripts/test runs the tests in several processes (pytest-xdist), those of a file in one. What is expensive to make is
made by the first of them that needs it, in the folder `shared`.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.mounting import CONNECTIONS, unmount_below

_SHARED = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try again and again for minutes what else takes seconds")


def pytest_configure(config: pytest.Config) -> None:
    # Folders that tests make are not to be refused because the tester's group could change them.
    os.umask(0o022)
    # The command that tests run is this environment's.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # How fast this machine is says nothing about an invariant.
    short = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.register_profile("short", short)
    hypothesis.settings.register_profile("long", short, max_examples=1000)
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "short")
    worker = getattr(config, "workerinput", None)
    if worker is None:
        _mount_fusectl()
    config.stash[_SHARED] = Path(worker["shared"] if worker else tempfile.mkdtemp(prefix="idcfs-test-"))
    # pytest's own temporary folders are closed to ordinary users.
    config.stash[_SHARED].chmod(0o755)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist where the folder is that all share."""
    node.workerinput["shared"] = str(node.config.stash[_SHARED])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        unmount_below(config.stash[_SHARED])
        shutil.rmtree(config.stash[_SHARED])


def _mount_fusectl() -> None:
    """Mount the kernel's control of FUSE mounts, as root and where it is missing; it stays mounted, as on a system
    with systemd."""
    if os.getuid() == 0 and not CONNECTIONS.is_mount():
        # A kernel or a container that forbids it makes some tests skip.
        subprocess.run(["mount", "-t", "fusectl", "fusectl", CONNECTIONS], stderr=subprocess.DEVNULL, check=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.user_properties:
                found = ", ".join(f"{name}: {value}" for name, value in report.user_properties)
                terminalreporter.write_line(f"{report.nodeid}: {found}")


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Path:
    """A folder that all processes of a run have in common and that an ordinary user can reach."""
    return request.config.stash[_SHARED]


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
