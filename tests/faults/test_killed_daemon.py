"""A daemon that is killed at work: no program waits for it, and nothing of it remains.

tests/mount/test_page_cache.py tests what happens to pages of the kernel that were being filled.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases import STALLED_READS
from tests.faults.server import GET, FaultServer
from tests.faults.tree import LARGE, series
from tests.index_factory import make_index, objects
from tests.mounting import ORDINARY_USER, Commands
from tests.processes import PATIENCE, children_of, is_running, until

SLOW_QUERY = (
    "SELECT max(SeriesInstanceUID) AS SeriesInstanceUID FROM index, range(100000000000) AS t(n) WHERE hash(n) = 0"
)


@pytest.fixture(params=["whoever runs the tests", "an ordinary user"])
def commands(request: pytest.FixtureRequest) -> Iterator[Commands]:
    """Commands in a folder that an ordinary user can reach, unlike pytest's own."""
    is_other = request.param == "an ordinary user"
    if is_other and os.getuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    with tempfile.TemporaryDirectory(prefix="idcfs-test-") as folder:
        Path(folder).chmod(0o755)
        commands = Commands(Path(folder) / "home", ORDINARY_USER if is_other else None)
        commands.home.mkdir()
        if is_other:
            os.chown(commands.home, ORDINARY_USER, ORDINARY_USER)
        yield commands


def test_a_killed_daemon_leaves_no_waiting_program_and_no_process(commands: Commands) -> None:
    one = series("one")
    index = commands.home.parent / "index"
    make_index(index, [one.row])
    point = commands.home / "idc"
    name, content = one.instance(LARGE)
    file = one.folder(point) / name
    wanted = commands.home.parent / "wanted"
    wanted.write_bytes(content)
    with FaultServer({f"{bucket}/{key}": data for bucket, key, data in objects([one.row])}) as server:
        flags = ("--index", index, "--mirror", server.url)
        assert commands.idcfs("mount", *flags, point).returncode == 0
        try:
            daemon = int(commands.run("grep", "-Po", r'"pid": \K\d+', point / ".idc" / "status.json").stdout)
            assert commands.run("ls", one.folder(point)).stdout.split() == one.names
            with server.failing(STALLED_READS):
                cohort = point / "cohorts" / "slow"
                assert commands.run("mkdir", cohort).returncode == 0
                assert commands.run("sh", "-c", f"echo '{SLOW_QUERY}' > {cohort}/.query").returncode == 0
                reader = commands.start("cat", file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                try:
                    until(lambda: server.requests[GET])
                    children = children_of(daemon)
                    for program in ("idcfs.store.server", "idcfs.cache.server", "idcfs.cohorts"):
                        assert children_of(daemon, program), f"{program} is not running"
                    os.kill(daemon, signal.SIGKILL)
                    until(lambda: "not connected" in commands.run("stat", "-f", point, timeout=PATIENCE).stderr)
                    assert "not connected" in reader.communicate(timeout=PATIENCE)[1]
                finally:
                    reader.kill()
                    reader.communicate()
            until(lambda: not any(map(is_running, children)))
            assert commands.run("fusermount3", "-u", point).returncode == 0
            assert os.listdir(point) == []
        finally:
            commands.run("fusermount3", "-uzq", point)
        with commands.mounted(point, *flags):
            assert commands.run("cmp", file, wanted).returncode == 0
