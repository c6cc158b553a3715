"""The command line as users see it: an error is one clear line and an exit code, and changes nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idcfs.catalog.index import find_index
from tests.mount.conftest import give_catalogue
from tests.mounting import LONGEST, Commands, status
from tests.processes import PATIENCE, is_running, stopped

NOTHING_LISTENS = "http://127.0.0.1:9"

IN_THE_ROOT = 179 + 1
"""The number of collections, and of the folder of cohorts."""


def refused(commands: Commands, code: int, *arguments: str | Path) -> str:
    """Run idcfs, make sure that it exits with *code* and one line of error, and return the line."""
    done = commands.idcfs(*arguments)
    lines = [line for line in done.stderr.splitlines() if not line.endswith("...")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("idcfs: ")
    assert done.stdout == ""
    return lines[0]


def test_mount_prints_what_it_mounted_and_where(commands: Commands, folder_mirror: Path) -> None:
    done = commands.idcfs("mount", "--mirror", folder_mirror)
    point = commands.home / "idc"
    try:
        assert done.returncode == 0, done.stderr
        assert "IDC v25" in done.stdout
        assert "1,044,191 series" in done.stdout
        assert f"Mounted on {point}" in done.stdout
        assert len(os.listdir(point)) == IN_THE_ROOT
    finally:
        assert commands.idcfs("unmount").returncode == 0
    assert os.listdir(point) == []


def test_the_daemon_has_ended_when_unmount_returns(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        daemon = status(point)["pid"]
        assert commands.idcfs("unmount", point).returncode == 0
        assert not is_running(daemon)


def test_unmount_refuses_while_in_use_unless_lazy(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        user = commands.start("sleep", "60", cwd=point / "nlst")
        try:
            assert "fuser" in refused(commands, 4, "unmount", point)
            assert (point / "nlst").is_dir()
            assert commands.idcfs("unmount", "--lazy", point).returncode == 0
            assert not os.path.ismount(point)
        finally:
            user.kill()
            user.wait()


def test_unmount_leaves_other_mounts_alone(commands: Commands) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount something else")
    other = commands.home / "other"
    other.mkdir()
    assert commands.run("mount", "-t", "tmpfs", "none", other).returncode == 0
    try:
        assert "not mounted here" in refused(commands, 4, "unmount", other)
        assert os.path.ismount(other)
    finally:
        commands.run("umount", other)


def test_a_link_to_the_mountpoint_can_be_used(commands: Commands, folder_mirror: Path) -> None:
    (commands.home / "real").mkdir()
    (commands.home / "link").symlink_to("real")
    with commands.mounted(commands.home / "link", "--mirror", folder_mirror) as point:
        assert commands.idcfs("status", point).returncode == 0
        assert commands.idcfs("unmount", point).returncode == 0


def test_the_end_of_a_session_unmounts(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        daemon = status(point)["pid"]
        os.kill(daemon, signal.SIGHUP)
        while is_running(daemon):
            time.sleep(0.01)
        assert not os.path.ismount(point)


def test_status_prints_json_and_a_table(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        file = next((point / ".idc" / "by-uuid" / "527a5965-9a10-477b-863a-3597081538a4").iterdir())
        data = file.read_bytes()
        facts = json.loads(commands.idcfs("status", "--json", point).stdout)[str(point)]
        assert facts["mirror"] == str(folder_mirror)
        assert facts["bytes_served"] >= len(data)
        assert facts["bytes_fetched"] >= len(data)
        assert facts["cache"]["objects"]["limit"] > 0
        assert facts["uptime_seconds"] >= 0
        with open(file, "rb") as opened:
            opened.read(1)
            assert status(point)["open_files"] == 1
        table = commands.idcfs("status", point).stdout
        assert str(point) in table
        assert "fetched" in table
        assert str(point) in commands.idcfs("status").stdout


ESCAPE = "\x1b]0;gone\x07\u009b2J\u202e"
WELL = {
    "idc_version": 25, "mirror": ESCAPE, "uptime_seconds": 1, "pid": 1, "bytes_served": 1, "open_files": 0,
    "bytes_fetched": 1, "objects_fetched": 1, "listings_fetched": 1, "hit_rate": None, "errors": {ESCAPE: 1},
    "mirrors": {ESCAPE: {"state": "open", "retry_in": 1, "reason": ESCAPE}},
    "cache": {ESCAPE: {"bytes": 1, "limit": 1, "entries": 1, "failure": ESCAPE}},
}  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0, reason="only root can cover a file with another")
@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (json.dumps(WELL), r"\x1b]0;gone\x07\x9b2J\u202e"),
        ("[]", "no status of idcfs"),
        ("{", "no status of idcfs"),
        ("[" * 100_000, "no status of idcfs"),
        ("\udc80", "no status of idcfs"),
        ("{}", "no status of idcfs"),
        (json.dumps(WELL | {"bytes_served": 10**400}), "no status of idcfs"),
        (json.dumps(WELL | {"mirrors": [ESCAPE]}), "no status of idcfs"),
        (json.dumps({"failure": "well", "remedy": "rm"}), "no status of idcfs"),
    ],
    ids=["escapes", "a list", "cut", "deep", "no UTF-8", "empty", "too large", "of other types", "a remedy"],
)
def test_the_status_of_any_mount_is_printed_as_text(
    commands: Commands, folder_mirror: Path, output: str, shown: str
) -> None:
    """The content stands in for the status.json of a mount of this user."""
    planted = commands.home / "planted"
    planted.write_text(output, errors="surrogateescape")
    commands.environment["COLUMNS"] = "1000"
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        own = point / ".idc" / "status.json"
        assert commands.run("mount", "--bind", planted, own).returncode == 0
        try:
            table = commands.idcfs("status", point)
            assert (table.returncode, table.stderr) == (0, "")
            assert shown in table.stdout
            assert not set(table.stdout) & set("\x1b\x07\u009b\u202e")
            facts = commands.idcfs("status", "--json", point)
            assert facts.returncode == 0
            assert str(point) in json.loads(facts.stdout)
            assert facts.stdout.isascii()
        finally:
            commands.run("umount", own)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount as another user")
def test_the_mount_of_another_user_is_reported_as_such(
    world_readable: Path, someone: Commands, catalogue_folder: Path, folder_mirror: Path
) -> None:
    if someone.user is None:
        pytest.skip("root's own mount")
    give_catalogue(someone, catalogue_folder)
    with someone.mounted(someone.home / "idc", "--mirror", folder_mirror) as point:
        output = Commands(someone.home.parent).idcfs("status", point).stdout
        assert "another user's mount" in output
        assert "recover" not in output


def test_status_of_a_folder_that_is_not_mounted_is_an_error(commands: Commands) -> None:
    assert "idcfs mount" in refused(commands, 4, "status", commands.home / "nothing")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda home: home / "no" / "such", "mkdir -p"),
        (lambda home: (home / "file").write_text("x") and home / "file", "is a file"),
        (lambda home: (home / "full" / "x").mkdir(parents=True) or home / "full", "not empty"),
    ],
    ids=["no parent", "a file", "not empty"],
)
def test_an_unusable_mountpoint_is_an_error(commands: Commands, make: Callable[[Path], Path], error: str) -> None:
    point = make(commands.home)
    before = sorted(commands.home.rglob("*"))
    line = refused(commands, 4, "mount", point)
    assert error in line
    assert str(point) in line
    assert sorted(commands.home.rglob("*")) == before


def test_a_second_mount_on_one_folder_is_an_error(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        assert "idcfs unmount" in refused(commands, 4, "mount", point)
        assert os.listdir(point)


def test_a_dead_mount_is_named_and_recovered(commands: Commands, folder_mirror: Path) -> None:
    point = commands.home / "idc"
    assert commands.idcfs("mount", "--mirror", folder_mirror, point).returncode == 0
    try:
        daemon = status(point)["pid"]
        # The kernel then has the root in its cache, and answers for it.
        assert commands.run("ls", "-ld", point).returncode == 0
        os.kill(daemon, signal.SIGKILL)
        while is_running(daemon):
            time.sleep(0.01)
        assert "--recover" in refused(commands, 4, "mount", point)
        output = commands.idcfs("status").stdout
        assert "not answering" in output
        assert "idcfs mount --recover" in output
        with commands.mounted(point, "--recover", "--mirror", folder_mirror):
            assert len(os.listdir(point)) == IN_THE_ROOT
    finally:
        commands.run("fusermount3", "-uz", point)


@pytest.mark.parametrize("flag", ["--cache-dir", "--cohort-dir", "--mirror", "--index"])
def test_the_folders_of_a_mount_may_not_be_inside_it(commands: Commands, folder_mirror: Path, flag: str) -> None:
    inside = commands.home / "idc" / "inside"
    assert "inside" in refused(commands, 2, "mount", flag, inside, commands.home / "idc")


def test_no_command_waits_for_a_mount_that_hangs(commands: Commands, folder_mirror: Path) -> None:
    (commands.home / "link").symlink_to("idc")
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        # The kernel then reads the root's attributes from the daemon again.
        os.listdir(point)
        with stopped(status(point)["pid"]):
            for output in (commands.idcfs("status", "--json"), commands.idcfs("status", "--json", point)):
                facts = json.loads(output.stdout)[str(point)]
                assert facts["failure"] == "no answer in 5 seconds"
                assert facts["remedy"] == f"idcfs unmount --lazy {point}"
            assert "idcfs is mounted here already" in refused(commands, 4, "mount", "--recover", point)
            assert "no answer in 5 seconds" in refused(commands, 4, "mount", point / "nlst" / "100002")
            assert commands.idcfs("unmount", "--lazy", commands.home / "link").returncode == 0
            assert os.listdir(point) == []


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--mirror", "azure"], "azure"),
        (["--mirror", "http://"], "http://"),
        (["--mirror", "http://host:99999"], "99999"),
        (["--mirror", "ftp://host"], "ftp"),
        (["--mirror", "/no/such/mirror"], "/no/such/mirror"),
        (["--cache-size", "lots"], "lots"),
        (["--cache-size", "-1GB"], "-1GB"),
        (["--cache-size", "1kB"], "1kB"),
        (["--timeout", "0"], "timeout"),
        (["--timeout", "soon"], "soon"),
        (["--idc-version", "99"], "1 to 25"),
        (["--idc-version", "new"], "new"),
        (["--layout", "%Nothing"], "Nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_flag_is_an_error(commands: Commands, flags: list[str], error: str) -> None:
    assert error in refused(commands, 2, "mount", *flags, commands.home / "idc")
    assert not (commands.home / "idc").exists()


def test_a_mirror_folder_may_be_a_relative_path(commands: Commands, folder_mirror: Path) -> None:
    (commands.home / "near").symlink_to(folder_mirror)
    point = commands.home / "idc"
    starting = commands.start("idcfs", "mount", "--mirror", "./near", point, cwd=commands.home)
    try:
        assert starting.wait(LONGEST) == 0
        assert os.listdir(point / ".idc" / "by-uuid" / "527a5965-9a10-477b-863a-3597081538a4")
    finally:
        commands.idcfs("unmount", "--lazy", point)


def test_an_earlier_version_has_its_own_totals(commands: Commands, folder_mirror: Path) -> None:
    point = commands.home / "idc"
    done = commands.idcfs("mount", "--idc-version", "2", "--mirror", folder_mirror, point)
    try:
        assert "IDC v2 of 2021-04-10" in done.stdout
        assert "116,508 series" in done.stdout
        assert f" {len(os.listdir(point)) - 1} collections" in done.stdout, "without the folder of cohorts"
    finally:
        commands.idcfs("unmount", "--lazy", point)


def test_settings_come_from_the_file_and_the_environment(commands: Commands, folder_mirror: Path) -> None:
    file = commands.home / ".config" / "idcfs" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'mirror = "{folder_mirror}"\ncache_size = "1GB"\n')
    commands.environment["IDCFS_CACHE_SIZE"] = "2GB"
    with commands.mounted(commands.home / "idc") as point:
        facts = status(point)
        assert facts["mirror"] == str(folder_mirror)
        assert facts["cache"]["objects"]["limit"] == 2 * 10**9
    file.write_text("mirorr = 'aws'\n")
    assert "mirorr" in refused(commands, 2, "mount", commands.home / "idc")
    file.write_text("mirror = \n")
    assert str(file) in refused(commands, 2, "mount", commands.home / "idc")


def test_a_cache_folder_that_cannot_be_written_is_an_error(someone: Commands, folder_mirror: Path) -> None:
    blocked = someone.home / "blocked"
    blocked.write_text("not a folder")
    line = refused(someone, 5, "mount", "--mirror", folder_mirror, "--cache-dir", blocked, someone.home / "idc")
    assert "--cache-dir" in line
    if someone.user is not None:
        closed = someone.home.parent / f"{someone.home.name}-closed"
        closed.mkdir(mode=0o755)
        line = refused(someone, 5, "mount", "--mirror", folder_mirror, "--cache-dir", closed, someone.home / "idc")
        assert str(closed) in line


def _without_a_column(folder: Path) -> None:
    path = folder / "idc_index.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["crdc_series_uuid"]), path)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda folder: (folder / "idc_index.parquet").unlink(), "idc_index.parquet"),
        (lambda folder: (folder / "idc_index.parquet").write_bytes(b"PAR1 garbage"), "idc_index.parquet"),
        (lambda folder: os.truncate(folder / "prior_versions_index.parquet", 100), "prior_versions_index.parquet"),
        (_without_a_column, "crdc_series_uuid"),
    ],
    ids=["missing", "garbage", "cut", "lacking a column"],
)
def test_an_unusable_index_is_an_error(commands: Commands, spoil: Callable[[Path], None], error: str) -> None:
    folder = commands.home / "index"
    folder.mkdir()
    for path in find_index().tables.values():
        shutil.copy(path, folder)
    # A small index is enough for this test, and faster.
    rows = pq.read_table(folder / "idc_index.parquet").slice(0, 100)
    pq.write_table(rows, folder / "idc_index.parquet")
    spoil(folder)
    line = refused(commands, 3, "mount", "--index", folder, commands.home / "idc")
    assert error in line
    assert "idc-index-data" in line


def test_an_empty_index_folder_is_an_error(commands: Commands) -> None:
    (commands.home / "empty").mkdir()
    line = refused(commands, 3, "mount", "--index", commands.home / "empty", commands.home / "idc")
    assert "idc-index-data" in line


def test_a_missing_index_package_is_an_error(commands: Commands) -> None:
    """The package cannot be found in this Python."""
    hidden = (
        "import importlib.util as u, sys; real = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'idc_index_data' else real(name, *more); "
        "from idcfs.cli import main; sys.argv = ['idcfs', 'mount']; main()"
    )
    done = commands.run("python", "-c", hidden)
    assert done.returncode == 3
    assert done.stderr == "idcfs: the IDC index is not installed; install it: python -m pip install idc-index-data\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hide /dev/fuse")
def test_a_machine_without_fuse_is_an_error(commands: Commands, tmp_path: Path) -> None:
    """The test runs in its own mount namespace, so that this machine keeps its device."""
    hidden = "mount --bind /dev/null /dev/fuse 2>/dev/null; rm -f /dev/fuse 2>/dev/null; mount -t tmpfs none /dev; "
    done = commands.run("unshare", "--mount", "sh", "-c", hidden + "exec idcfs mount")
    assert done.returncode == 4
    assert "/dev/fuse is missing" in done.stderr
    assert Path("/dev/fuse").exists()


def test_a_machine_without_fusermount3_is_an_error(commands: Commands, tmp_path: Path) -> None:
    for name in ("idcfs", "python", "python3"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    commands.environment["PATH"] = str(tmp_path)
    assert "apt install fuse3" in refused(commands, 4, "mount", commands.home / "idc")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to run as another user")
def test_allow_other_needs_permission(world_readable: Path, someone: Commands, folder_mirror: Path) -> None:
    if someone.user is None:
        pytest.skip("root needs no permission")
    config = Path("/etc/fuse.conf")
    if config.exists() and "\nuser_allow_other" in config.read_text():
        pytest.skip("this machine permits it")
    line = refused(someone, 4, "mount", "--allow-other", "--mirror", folder_mirror, someone.home / "idc")
    assert "user_allow_other" in line


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to look as another user")
def test_only_the_mounting_user_sees_the_mount_unless_allowed(commands: Commands, folder_mirror: Path) -> None:
    other = Commands(commands.home, 65534)
    for flags, code in (((), 2), (("--allow-other",), 0)):
        with commands.mounted(commands.home / "idc", *flags, "--mirror", folder_mirror) as point:
            assert other.run("ls", point).returncode == code
            assert other.run("sh", "-c", f"echo x > {point}/x").returncode != 0


def test_interrupting_the_first_mount_leaves_nothing(commands: Commands, world_readable: Path) -> None:
    cache = commands.home / "fresh"
    process = commands.start(
        "idcfs", "mount", "--cache-dir", cache, commands.home / "idc", stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    while "reading the index" not in process.stderr.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    process.stderr.close()
    assert not os.path.ismount(commands.home / "idc")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_two_first_mounts_can_start_at_once(world_readable: Path, commands: Commands) -> None:
    cache = commands.home / "shared"
    points = [commands.home / "one", commands.home / "two"]
    starting = [commands.start("idcfs", "mount", "--cache-dir", cache, point) for point in points]
    try:
        assert [process.wait(LONGEST) for process in starting] == [0, 0]
        assert os.listdir(points[0]) == os.listdir(points[1])
        assert len(list((cache / "catalogue").glob("*/contents.json"))) == 1
    finally:
        for point in points:
            commands.idcfs("unmount", "--lazy", point)


def test_cache_info_prints_sizes_and_clear_frees_them(commands: Commands, folder_mirror: Path) -> None:
    cache = commands.home / ".cache" / "idcfs"
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        for file in (point / ".idc" / "by-uuid" / "527a5965-9a10-477b-863a-3597081538a4").iterdir():
            file.read_bytes()
        assert "unmount" in refused(commands, 5, "cache", "clear")
    facts = json.loads(commands.idcfs("cache", "info", "--json").stdout)
    assert facts["folder"] == str(cache)
    assert facts["bytes"]["objects"] > 1_000_000
    assert "freed" in commands.idcfs("cache", "clear").stdout
    facts = json.loads(commands.idcfs("cache", "info", "--json").stdout)
    assert facts["bytes"]["objects"] == 0
    assert facts["bytes"]["catalogue"] > 0
    commands.idcfs("cache", "clear", "--catalogue")
    assert json.loads(commands.idcfs("cache", "info", "--json").stdout)["bytes"]["catalogue"] == 0
    assert "objects" in commands.idcfs("cache", "info").stdout


def test_the_demo_needs_only_the_index(commands: Commands) -> None:
    commands.environment |= {"http_proxy": NOTHING_LISTENS, "https_proxy": NOTHING_LISTENS}
    with commands.mounted(commands.home / "idc", "--demo") as point:
        series = point / ".idc" / "by-uuid" / "527a5965-9a10-477b-863a-3597081538a4"
        assert all(file.read_bytes()[128:132] == b"DICM" for file in series.iterdir())
        assert not list((commands.home / ".cache" / "idcfs").glob("objects/*"))


QUERY = "SELECT Modality, count(*) AS series, NULL AS nothing FROM index GROUP BY 1 ORDER BY 2 DESC"


def test_a_query_has_the_same_rows_in_each_format(commands: Commands) -> None:
    rows = json.loads(commands.idcfs("query", QUERY, "--format", "json").stdout)
    assert sum(row["series"] for row in rows) == 1044191
    assert rows[0]["nothing"] is None
    top = commands.idcfs("query", QUERY, "--format", "csv", "--limit", "1").stdout
    assert top.splitlines() == ["Modality,series,nothing", f"{rows[0]['Modality']},{rows[0]['series']},"]
    done = subprocess.run(
        ["idcfs", "query", QUERY, "--format", "parquet"], capture_output=True, env=commands.variables(), check=True
    )
    assert pq.read_table(pa.BufferReader(done.stdout)).to_pylist() == rows
    table = commands.idcfs("query", "SELECT PatientID FROM index").stdout
    assert "100 rows" in table


def test_a_refused_query_shows_where_it_is_wrong(commands: Commands) -> None:
    done = commands.idcfs("query", "SELECT count(*) FROM indexx")
    assert (done.returncode, done.stdout) == (6, "")
    assert "indexx" in done.stderr
    done = commands.idcfs("query", "--query-timeout", "1", "SELECT count(*) FROM range(1000000000000)")
    assert done.returncode == 6
    assert "--query-timeout" in done.stderr


@pytest.mark.parametrize(
    "command",
    [[], ["mount"], ["unmount"], ["status"], ["cache"], ["cache", "verify"], ["query"], ["cohort"], ["demo-mirror"]],
)
def test_every_command_has_help(commands: Commands, command: list[str]) -> None:
    done = commands.idcfs(*command, "--help")
    assert done.returncode == 0
    assert "Usage: idcfs" in done.stdout


def test_systemd_is_notified_when_the_mount_answers(commands: Commands, folder_mirror: Path) -> None:
    address = commands.home / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(PATIENCE)
        commands.environment["NOTIFY_SOCKET"] = str(address)
        point = commands.home / "idc"
        daemon = commands.start("idcfs", "mount", "--foreground", "--mirror", folder_mirror, point)
        try:
            assert systemd.recv(100) == b"READY=1"
            assert len(os.listdir(point)) == IN_THE_ROOT
            daemon.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            assert daemon.wait(PATIENCE) == 0
            assert not os.path.ismount(point)
        finally:
            daemon.kill()
            commands.run("fusermount3", "-uzq", point)


UNIT = Path(__file__).parents[2] / "systemd" / "idcfs@.service"


def test_systemd_accepts_the_unit(commands: Commands) -> None:
    commands.environment["XDG_RUNTIME_DIR"] = str(commands.home)
    done = commands.run("systemd-analyze", "verify", "--user", "--man=no", UNIT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_has_no_command_that_unmounts() -> None:
    """Such commands also run when the start has failed, for example because something else is mounted there."""
    commands = [line for line in UNIT.read_text().splitlines() if line.startswith("Exec")]
    assert commands == ["ExecStart=/usr/bin/env idcfs mount --foreground --recover /%I"]


def test_ctrl_c_in_the_foreground_unmounts(commands: Commands, folder_mirror: Path) -> None:
    point = commands.home / "idc"
    daemon = commands.start("idcfs", "mount", "--foreground", "--mirror", folder_mirror, point, stdout=subprocess.PIPE)
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline().startswith("IDC v25")
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(PATIENCE) == 0
        assert not os.path.ismount(point)
        daemon.stdout.close()
    finally:
        daemon.kill()
