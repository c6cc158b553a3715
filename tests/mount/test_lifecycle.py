"""How a mount starts and ends, and how it goes on when one of its processes dies."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import drop_pages
from tests.mounting import Commands, mirror_series, status
from tests.processes import PATIENCE, children_of, is_running, until


@pytest.fixture
def point(commands: Commands, folder_mirror: Path) -> Iterator[Path]:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        yield point


@pytest.fixture
def original(folder_mirror: Path) -> Path:
    """The largest file of the mirror."""
    files = [file for series in mirror_series(folder_mirror).values() for file in series.iterdir()]
    return max(files, key=lambda file: file.stat().st_size)


def mounted(point: Path, original: Path) -> Path:
    """The same file in a mount."""
    return point / ".idc" / "by-uuid" / original.parent.name / original.name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_and_leaves_nothing(point: Path, number: int) -> None:
    daemon = status(point)["pid"]
    workers = children_of(daemon)
    os.kill(daemon, number)
    until(lambda: not is_running(daemon))
    assert not os.path.ismount(point)
    assert os.listdir(point) == []
    until(lambda: not any(map(is_running, workers)))


def test_an_open_file_can_be_read_to_its_end_after_a_signal(point: Path, original: Path) -> None:
    daemon = status(point)["pid"]
    with open(mounted(point, original), "rb", buffering=0) as file:
        os.kill(daemon, signal.SIGTERM)
        time.sleep(0.5)
        assert file.readall() == original.read_bytes()
        assert os.path.ismount(point)
    until(lambda: not is_running(daemon))
    assert not os.path.ismount(point)


@contextlib.contextmanager
def left_open(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            os.close(file)


def test_an_open_file_does_not_keep_the_mount(commands: Commands, folder_mirror: Path, original: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        daemon = status(point)["pid"]
        with left_open(mounted(point, original)) as file:
            os.kill(daemon, signal.SIGTERM)
            until(lambda: not is_running(daemon))
            assert not os.path.ismount(point)
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.read(file, 100)
        assert os.listdir(point) == []
        # The folder can be mounted on again.
        with commands.mounted(point, "--mirror", folder_mirror):
            assert mounted(point, original).read_bytes() == original.read_bytes()


def test_more_signals_end_the_mount_at_once(commands: Commands, point: Path) -> None:
    daemon = status(point)["pid"]
    with left_open(point / ".idc" / "status.json"):
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGTERM)
            time.sleep(0.02)
        until(lambda: not is_running(daemon))
    assert not os.path.ismount(point)
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    assert "is in use" not in log.read_text(), "the mount has waited for the file"


@pytest.fixture
def temporary(commands: Commands) -> Path:
    """The folder of the commands' temporary files."""
    folder = commands.home / "temporary"
    folder.mkdir()
    commands.environment["TMPDIR"] = str(folder)
    return folder


def test_a_demo_that_is_ended_leaves_no_temporary_folder(commands: Commands, temporary: Path) -> None:
    with commands.mounted(commands.home / "idc", "--demo") as point:
        daemon = status(point)["pid"]
        assert list(temporary.iterdir())
        os.kill(daemon, signal.SIGTERM)
        until(lambda: not is_running(daemon))
        assert list(temporary.iterdir()) == []


def test_the_next_demo_removes_the_folder_of_a_killed_one(commands: Commands, temporary: Path) -> None:
    with commands.mounted(commands.home / "living", "--demo") as living:
        (in_use,) = temporary.iterdir()
        with commands.mounted(commands.home / "idc", "--demo") as point:
            (left,) = {*temporary.iterdir()} - {in_use}
            os.kill(status(point)["pid"], signal.SIGKILL)
        assert left.exists()
        with commands.mounted(commands.home / "idc", "--demo") as point:
            assert not left.exists()
            assert len(list(temporary.iterdir())) == 2
            assert len(os.listdir(point)) == len(os.listdir(living))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_reports_it_and_leaves_nothing(
    commands: Commands, temporary: Path, number: signal.Signals, is_long: bool
) -> None:
    point = commands.home / "idc"
    stderr = commands.home / "stderr"
    for delay in [0, *(random.Random(number).uniform(0, 2.2) for _ in range(20 if is_long else 3))]:
        with stderr.open("w") as errors:
            starting = commands.start(
                "idcfs", "mount", "--foreground", "--demo", point, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            # Before that, Python itself is starting.
            until(lambda: "sample" in stderr.read_text())
            time.sleep(delay)
            starting.send_signal(number)
            out, _ = starting.communicate(timeout=PATIENCE)
        finally:
            starting.kill()
            commands.run("fusermount3", "-uzq", point)
        output = stderr.read_text()
        if "Mounted" in out:
            assert starting.returncode == 0, output
        elif number == signal.SIGINT:
            assert (starting.returncode, output.splitlines()[-1]) == (130, "idcfs: interrupted")
        elif starting.returncode != -signal.SIGTERM:
            # Otherwise the signal came before idcfs handled it, and there was nothing to remove.
            assert starting.returncode == 4
            assert output.splitlines()[-1] == f"idcfs: {point}: SIGTERM came before the mount answered"
        assert "Traceback" not in output
        assert list(temporary.iterdir()) == []
        assert not os.path.ismount(point)


def test_an_interrupted_background_start_leaves_nothing(commands: Commands, temporary: Path) -> None:
    point = commands.home / "idc"
    starting = commands.start("idcfs", "mount", "--demo", point, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert starting.stderr is not None
        assert "sample" in starting.stderr.readline()
        starting.send_signal(signal.SIGINT)
        assert starting.wait(PATIENCE) == 130
    finally:
        starting.kill()
        starting.communicate()
    assert list(temporary.iterdir()) == []
    assert not os.path.ismount(point)


def test_stacks_are_written_on_demand(commands: Commands, point: Path) -> None:
    daemon = status(point)["pid"]
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    for times in (1, 2):
        os.kill(daemon, signal.SIGUSR1)
        until(lambda times=times: log.read_text().count("idcfs.mount.stacks: tasks:") == times)  # type: ignore[misc]
    written = log.read_text()
    assert "Current thread" in written
    assert "in main" in written
    assert "_pyfuse3" in written or "pyfuse3" in written
    assert len(written) < 100_000, "equal stacks are written once"
    assert status(point)["pid"] == daemon


def read_while_killing(point: Path, files: list[Path], program: str, every: float) -> None:
    """Compare the bytes of files while workers are killed again and again."""
    daemon = status(point)["pid"]
    is_read, goes_on = threading.Event(), threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not is_read.wait(every):
            if not goes_on.is_set():
                # The reader still waits for the worker that has replaced the last one.
                continue
            goes_on.clear()
            for worker in children_of(daemon, program):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    killed.add(worker)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        for file in files:
            assert mounted(point, file).read_bytes() == file.read_bytes()
            goes_on.set()
            time.sleep(0.02)
    finally:
        is_read.set()
        killing.join()
    assert len(killed) > 1
    assert status(point)["pid"] == daemon


def test_requests_of_a_killed_fetch_worker_are_repeated(
    commands: Commands, s3_mirror: str, folder_mirror: Path
) -> None:
    files = [file for series in mirror_series(folder_mirror).values() for file in sorted(series.iterdir())[:12]]
    with commands.mounted(commands.home / "idc", "--mirror", s3_mirror) as point:
        read_while_killing(point, files, "idcfs.store.server", 1.5)
        assert status(point)["errors"] == {}


def test_a_killed_cache_worker_is_replaced_without_an_error(commands: Commands, folder_mirror: Path) -> None:
    files = [file for series in mirror_series(folder_mirror).values() for file in sorted(series.iterdir())[:12]]
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        read_while_killing(point, files, "idcfs.cache.server", 0.15)
        assert status(point)["errors"] == {}

        def works() -> bool:
            # A failed write is reported until a later one works, which takes bytes that are in no cache.
            for file in files:
                drop_pages(mounted(point, file))
                assert mounted(point, file).read_bytes() == file.read_bytes()
            return status(point)["cache"]["objects"]["failure"] is None

        until(works)
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        for file in files:
            assert mounted(point, file).read_bytes() == file.read_bytes()
