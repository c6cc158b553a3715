"""Cohorts through the kernel, as users and their tools make, change and read them."""

import contextlib
import errno
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from idcfs.catalog.index import find_index
from tests.mount.conftest import give_catalogue
from tests.mounting import Commands, checksums, mirror_series, status
from tests.processes import PATIENCE, is_running, until

SMALL = "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'tcga_luad' ORDER BY 1 LIMIT 3"
OTHER = "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'nlst' ORDER BY 1 LIMIT 3"
BROKEN = "SELECT SeriesInstanceUID FROM indexx"
SLOW = "SELECT max(SeriesInstanceUID) AS SeriesInstanceUID FROM index, range(100000000000) AS t(n) WHERE hash(n) = 0"


@pytest.fixture(scope="module")
def home(world_readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = world_readable / f"home-{tmp_path_factory.mktemp('cohorts').name}"
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def mounted(home: Path, catalogue_folder: Path, folder_mirror: Path) -> Iterator[Path]:
    """One mount for all tests that do not need their own."""
    commands = give_catalogue(Commands(home), catalogue_folder)
    with commands.mounted(home / "idc", "--mirror", folder_mirror) as point:
        yield point


@pytest.fixture
def cohort(mounted: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A cohort with three series."""
    folder = mounted / "cohorts" / f"{request.node.originalname}-{os.urandom(4).hex()}"
    folder.mkdir()
    (folder / ".query").write_text(SMALL)
    yield folder
    if folder.exists():
        folder.rmdir()


def number_of(call: Callable[[], object]) -> str:
    """The name of the errno that a call fails with."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "worked"


def children(daemon: int) -> set[int]:
    """The processes in which a daemon evaluates queries."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(daemon) and b"cohorts.build" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
    return found


def ask(sql: str) -> list[str]:
    """The first column of a query of the index, from DuckDB itself."""
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW index AS SELECT * FROM '{find_index().tables['index']}'")
        return [row[0] for row in connection.execute(sql).fetchall()]


EXAMPLE = r"""
mkdir ~/idc/cohorts/lung_ct
echo "SELECT SeriesInstanceUID FROM index WHERE Modality='CT' AND BodyPartExamined='LUNG'" \
    > ~/idc/cohorts/lung_ct/.query
ls ~/idc/cohorts/lung_ct        # the same collection/patient/study/series tree, only these series
"""


@pytest.mark.parametrize("demo", [False, True], ids=["a mirror", "the demo"])
def test_the_example_works(someone: Commands, catalogue_folder: Path, folder_mirror: Path, demo: bool) -> None:
    give_catalogue(someone, catalogue_folder)
    flags: list[str | Path] = ["--demo"] if demo else ["--mirror", folder_mirror]
    with someone.mounted(someone.home / "idc", *flags):
        done = someone.run("sh", "-c", EXAMPLE)
        assert (done.returncode, done.stderr) == (0, "")
        where = "FROM index WHERE Modality='CT' AND BodyPartExamined='LUNG'"
        assert done.stdout.split() == ask(f"SELECT DISTINCT collection_id {where} ORDER BY 1")
        summary = json.loads(someone.run("cat", someone.home / "idc/cohorts/lung_ct/.summary").stdout)
        assert [summary["series"]] == ask(f"SELECT count(*) {where}")
        assert someone.run("ls", "-A", someone.home / "idc/cohorts/lung_ct").stdout == done.stdout


WRITERS = {
    "echo": 'cat good > text; echo "$(cat good)" > "$Q"',
    "here document": 'cat good > text; cat > "$Q" << E\n$(cat good)\nE\n',
    "cp": 'cp good text; cp good "$Q"',
    "tee": 'cp good text; tee "$Q" < good',
    "append": 'cat good good > text; sed -i "2s/^/-- /" text; cp good "$Q"; (printf -- "-- "; cat good) >> "$Q"',
    "tee -a": 'cat good more > text; cp good "$Q"; tee -a "$Q" < more',
    "dd": 'cp good text; dd if=good of="$Q" status=none',
    "dd in blocks": 'cp good text; dd if=good of="$Q" bs=10 status=none',
    "dd over it": '! cp bad "$Q" 2> /dev/null; cp good text; dd if=good of="$Q" conv=notrunc status=none; '
    'truncate -s "$(stat -c %s good)" "$Q"',
    "truncate and append": 'cp good text; truncate -s 0 "$Q"; cat good >> "$Q"',
    "cut": 'cp good text; cat good bad > both; ! cp both "$Q" 2> /dev/null; truncate -s "$(stat -c %s good)" "$Q"',
    "python": "cp good text; python3 -c \"import sys; open(sys.argv[1], 'w').write(open('good').read())\" \"$Q\"",
    "rsync": 'cp good text; rsync -a --inplace good "$Q"',
    "vi": 'cp good text; ! cp bad "$Q" 2> /dev/null; vi -u NONE -es -c "%!cat good" -c wq "$Q"',
}


def test_shells_and_tools_can_write_a_query(someone: Commands, catalogue_folder: Path, folder_mirror: Path) -> None:
    give_catalogue(someone, catalogue_folder)
    folder = someone.home
    (folder / "good").write_text(f"{SMALL}\n")
    (folder / "more").write_text("-- and more\n")
    (folder / "bad").write_text(f"{BROKEN}\n{BROKEN}\n")
    with someone.mounted(folder / "idc", "--mirror", folder_mirror) as point:
        for name, script in WRITERS.items():
            before = "set -e; cd; mkdir ~/idc/cohorts/mine; Q=~/idc/cohorts/mine/.query"
            done = someone.run("bash", "-c", f'{before}\n{script}\ncmp text "$Q"', timeout=PATIENCE)
            assert (done.returncode, done.stderr) == (0, ""), (name, done.stdout)
            assert someone.run("ls", point / "cohorts" / "mine").stdout == "tcga_luad\n", name
            assert someone.run("cat", point / "cohorts" / "mine" / ".error").returncode == 1, name
            assert someone.run("rmdir", point / "cohorts" / "mine").returncode == 0, name


def test_a_terminal_editor_can_write_a_query(cohort: Path, home: Path) -> None:
    master, terminal = pty.openpty()
    editor = subprocess.Popen(
        ["nano", "--ignorercfiles", str(cohort / ".query")],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "HOME": str(home)},
    )  # fmt: skip
    try:
        os.close(terminal)
        # Keys: the end of the line, a comment, write to this name, exit.
        for keys, shown in ((b"\x05 -- edited", b"edited"), (b"\x0f\r", b"Wrote"), (b"\x18", b"")):
            if keys.startswith(b"\x05"):
                _until_shown(master, b"SELECT")
            os.write(master, keys)
            if shown:
                _until_shown(master, shown)
        assert editor.wait(PATIENCE) == 0
    finally:
        editor.kill()
        editor.wait()
        os.close(master)
    assert (cohort / ".query").read_text() == f"{SMALL} -- edited\n"
    assert os.listdir(cohort) == ["tcga_luad"]


def _until_shown(terminal: int, text: bytes) -> None:
    shown, deadline = b"", time.monotonic() + PATIENCE
    while text not in shown:
        left = deadline - time.monotonic()
        assert left > 0, shown
        if select.select([terminal], [], [], left)[0]:
            shown += os.read(terminal, 4096)


@pytest.mark.parametrize(
    "script",
    [
        'cat bad > "$Q"',
        'cat > "$Q" << E\n$(cat bad)\nE\n',
        'tee "$Q" < bad',
        'cp bad "$Q"',
        'dd if=bad of="$Q" status=none',
        'rsync --inplace bad "$Q"',
        "python3 -c \"import sys; f = open(sys.argv[1], 'w'); f.write(open('bad').read()); f.close()\" \"$Q\"",
    ],
)
def test_a_query_that_does_not_work_fails_close_and_is_in_the_error_file(cohort: Path, home: Path, script: str) -> None:
    (home / "bad").write_text(BROKEN)
    done = Commands(home, environment={"Q": str(cohort / ".query")}).run("bash", "-c", f"cd; {script}")
    assert done.returncode != 0
    assert "Invalid argument" in done.stderr
    assert (cohort / ".query").read_text().strip() == BROKEN
    assert "indexx" in (cohort / ".error").read_text()
    assert os.listdir(cohort) == ["tcga_luad"], "the last result"
    (cohort / ".query").write_text(OTHER)
    assert os.listdir(cohort) == ["nlst"]
    assert not (cohort / ".error").exists()


def test_a_query_that_is_too_long_is_refused(cohort: Path) -> None:
    def write(text: bytes, offset: int = 0) -> None:
        with (cohort / ".query").open("wb", buffering=0) as file:
            file.seek(offset)
            file.write(text)

    assert number_of(lambda: write(b"SELECT 1 -- " + b"x" * (1 << 20))) == "EFBIG"
    assert number_of(lambda: write(b"x", 128 << 20)) == "EFBIG"
    assert number_of(lambda: os.truncate(cohort / ".query", (128 << 20) + 1)) == "EFBIG"
    assert os.listdir(cohort) == ["tcga_luad"]


@pytest.mark.parametrize(
    "script",
    [
        'sed -i s/SELECT/SELEC/ "$Q"',
        'mv bad "$Q"',
        'mv -f bad "$Q"',
        'rsync bad "$Q"',
        'rm "$Q"',
        'rm -f "$Q"',
        'rm -r "$C"',
        'rm -rf "$C"',
        'cp --remove-destination bad "$Q"',
        'ln -sf bad "$Q"',
        'install bad "$Q"',
        'mv "$C" ~',
    ],
)
def test_an_unsupported_write_fails_and_changes_nothing(cohort: Path, home: Path, script: str) -> None:
    (home / "bad").write_text(BROKEN)
    variables = {"Q": str(cohort / ".query"), "C": str(cohort)}
    done = Commands(home, environment=variables).run("bash", "-c", f"cd; {script}", timeout=PATIENCE)
    assert done.returncode != 0
    assert done.stderr
    assert (home / "bad").exists()
    assert (cohort / ".query").read_text() == SMALL
    assert os.listdir(cohort) == ["tcga_luad"]


def test_rmdir_removes_a_cohort_with_its_folders(cohort: Path, home: Path) -> None:
    assert os.listdir(cohort) == ["tcga_luad"]
    assert Commands(home).run("rmdir", cohort).returncode == 0
    assert not cohort.exists()
    assert cohort.name not in os.listdir(cohort.parent)
    assert not (home / ".local/share/idcfs/cohorts" / f"{cohort.name}.sql").exists()


CALLS = """
import errno, os, sys
point, = sys.argv[1:]
root = os.path.join(point, "cohorts")
mine, other = os.path.join(root, "mine"), os.path.join(root, "other")
query, new = os.path.join(mine, ".query"), os.path.join(mine, "new")
inside = os.path.join(mine, "tcga_luad")
calls = {
    "EROFS mkdir in a cohort": lambda: os.mkdir(new),
    "EROFS mkdir below a cohort": lambda: os.mkdir(os.path.join(inside, "new")),
    "EROFS mkdir at the root": lambda: os.mkdir(os.path.join(point, "new")),
    "EROFS create among cohorts": lambda: open(os.path.join(root, "new"), "x"),
    "EROFS create in a cohort": lambda: open(new, "x"),
    "EROFS open .summary to write": lambda: open(os.path.join(mine, ".summary"), "r+"),
    "EROFS unlink .query": lambda: os.unlink(query),
    "EROFS rename .query": lambda: os.rename(query, new),
    "EROFS rename onto .query": lambda: os.rename(os.path.join(other, ".query"), query),
    "EROFS link": lambda: os.link(query, new),
    "EROFS symlink": lambda: os.symlink("x", os.path.join(root, "new")),
    "EROFS mkfifo": lambda: os.mkfifo(new),
    "EROFS rmdir in a cohort": lambda: os.rmdir(inside),
    "EROFS rmdir .idc": lambda: os.rmdir(os.path.join(mine, ".idc")),
    "EROFS move out": lambda: os.rename(mine, os.path.join(point, "mine")),
    "EROFS move in": lambda: os.rename(os.path.join(point, "nlst"), os.path.join(root, "nlst")),
    "EROFS move into another": lambda: os.rename(mine, os.path.join(other, "mine")),
    "EROFS move up": lambda: os.rename(inside, os.path.join(root, "new")),
    "EXDEV move away": lambda: os.rename(mine, os.path.join(os.path.dirname(point), "mine")),
    "EROFS chmod a cohort": lambda: os.chmod(mine, 0o700),
    "EROFS chmod the cohorts": lambda: os.chmod(root, 0o700),
    "EROFS utime a cohort": lambda: os.utime(mine),
    "EROFS setxattr": lambda: os.setxattr(query, "user.x", b"y"),
    "EEXIST mkdir": lambda: os.mkdir(mine),
    "EEXIST rename": lambda: os.rename(mine, other),
    "EINVAL hidden": lambda: os.mkdir(os.path.join(root, ".hidden")),
    "EINVAL no UTF-8": lambda: os.mkdir(os.path.join(os.fsencode(root), b"\\xff")),
    "EINVAL control": lambda: os.mkdir(os.path.join(root, "a\\nb")),
    "EINVAL hide": lambda: os.rename(mine, os.path.join(root, ".hidden")),
    "ENAMETOOLONG mkdir": lambda: os.mkdir(os.path.join(root, "x" * 252)),
    "ENAMETOOLONG rename": lambda: os.rename(mine, os.path.join(root, "x" * 252)),
    "ENOENT rmdir": lambda: os.rmdir(os.path.join(root, "none")),
    "ENOENT stat hidden": lambda: os.stat(os.path.join(root, ".hidden")),
    "ENOENT stat too long": lambda: os.stat(os.path.join(root, "x" * 252)),
    "EISDIR read a cohort": lambda: os.read(os.open(mine, os.O_RDONLY), 1),
    "worked chmod .query": lambda: os.chmod(query, 0o600),
    "worked utime .query": lambda: os.utime(query),
    "worked access": lambda: os.access(query, os.W_OK) and os.access(root, os.W_OK) or 1 / 0,
    "worked mkdir": lambda: os.mkdir(os.path.join(root, "x" * 251)),
    "worked rename": lambda: os.rename(os.path.join(root, "x" * 251), os.path.join(root, "a b'\\u00fc")),
    "worked rmdir": lambda: os.rmdir(os.path.join(root, "a b'\\u00fc")),
}
for name, call in calls.items():
    try:
        call()
        print(name, "worked", sep=":")
    except OSError as error:
        print(name, errno.errorcode[error.errno], sep=":")
print(sorted(os.listdir(root)), open(query).read(), os.listdir(mine), sep=":")
"""


def test_each_call_has_the_documented_result(someone: Commands, catalogue_folder: Path, folder_mirror: Path) -> None:
    give_catalogue(someone, catalogue_folder)
    with someone.mounted(someone.home / "idc", "--mirror", folder_mirror) as point:
        root = point / "cohorts"
        made = someone.run("sh", "-c", f'mkdir {root}/mine {root}/other; printf "%s" "{SMALL}" > {root}/mine/.query')
        assert made.returncode == 0, made.stderr
        done = someone.run("python3", "-c", CALLS, point)
        *lines, last = done.stdout.splitlines()
        assert len(lines) == 41, done.stderr
        assert [line for line in lines if line.partition(" ")[0] != line.rpartition(":")[2]] == []
        assert last == f"['mine', 'other']:{SMALL}:['tcga_luad']"


def test_files_opened_under_the_old_name_work_after_a_rename(cohort: Path) -> None:
    assert os.listdir(cohort) == ["tcga_luad"]
    facts, folder = os.stat(cohort), os.open(cohort, os.O_RDONLY)
    try:
        renamed = cohort.with_name("renamed")
        cohort.rename(renamed)
        assert (os.stat(renamed).st_ino, os.listdir(folder)) == (facts.st_ino, ["tcga_luad"])
        assert not cohort.exists()
        renamed.rename(cohort)
        assert os.stat("tcga_luad", dir_fd=folder).st_ino == os.stat(cohort / "tcga_luad").st_ino
    finally:
        os.close(folder)


def manifest(uuids: list[str]) -> str:
    return "-- layout: %collection_id/%crdc_series_uuid\n" + "\n".join(uuids) + "\n"


def open_views(daemon: int) -> int:
    """The number of files of cohorts' views that a daemon has open."""
    found = 0
    for file in Path(f"/proc/{daemon}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "/cohorts/" in os.readlink(file)
    return found


def test_the_tree_changes_at_once_and_open_files_stay(
    cohort: Path, mounted: Path, folder_mirror: Path, is_long: bool
) -> None:
    series = mirror_series(folder_mirror)
    halves = [sorted(series)[0::2], sorted(series)[1::2]]
    (cohort / ".query").write_text(manifest(sorted(series)))
    places = {path.name: path for path in cohort.glob("*/*")}
    (cohort / ".query").write_text(manifest(halves[0]))
    first, last = (places[half[0]] for half in halves)
    name = os.listdir(first)[0]
    cwd, file = os.open(first.parent, os.O_RDONLY), os.open(first / name, os.O_RDONLY)
    wanted = (series[first.name] / name).read_bytes()
    daemon = status(mounted)["pid"]
    try:
        for turn in range(1, 31 if is_long else 11):
            half = halves[turn % 2]
            (cohort / ".query").write_text(manifest(half) + "\n" * turn)
            # A look-up by name, before a listing gives the kernel the new entries.
            assert (first.exists(), last.exists()) == (turn % 2 == 0, turn % 2 == 1)
            assert sorted(path.name for path in cohort.glob("*/*")) == half
            for path in cohort.glob("*/*"):
                assert os.listdir(path)
            assert first.name in os.listdir(cwd)
            assert os.stat(f"{first.name}/{name}", dir_fd=cwd).st_size == len(wanted)
            assert os.pread(file, len(wanted), 0) == wanted
        # Two levels each of the view that is shown, of those held open here, and of a few in the kernel's cache.
        until(lambda: open_views(daemon) <= 12)
    finally:
        os.close(cwd)
        os.close(file)


def test_concurrent_readers_see_one_of_the_trees(cohort: Path) -> None:
    """Each listing has all of one tree, while a writer changes the query."""
    stop, seen, wrong = threading.Event(), set(), []

    def look() -> None:
        while not stop.is_set():
            names = tuple(os.listdir(cohort))
            seen.add(names)
            if names not in {("tcga_luad",), ("nlst",)}:
                wrong.append(names)

    readers = [threading.Thread(target=look) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(10):
            (cohort / ".query").write_text((OTHER, SMALL)[turn % 2])
            assert os.listdir(cohort) == [("nlst", "tcga_luad")[turn % 2]]
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert (wrong, len(seen)) == ([], 2)


def test_two_mounts_share_one_cohort_folder(commands: Commands, folder_mirror: Path, is_long: bool) -> None:
    times = 20 if is_long else 6
    flags: list[str | Path] = ["--mirror", folder_mirror, "--cohort-dir", commands.home / "queries"]
    with (
        commands.mounted(commands.home / "one", *flags) as one,
        commands.mounted(commands.home / "two", *flags) as two,
    ):
        (one / "cohorts" / "mine").mkdir()
        assert os.listdir(two / "cohorts") == ["mine"]
        (two / "cohorts" / "mine" / ".query").write_text(f"{SMALL}\n")
        assert os.listdir(one / "cohorts" / "mine") == ["tcga_luad"]
        script = f'for n in $(seq {times}); do echo "-- $2 $n" >> "$1/cohorts/mine/.query"; done'
        writing = [commands.start("sh", "-c", script, "sh", point, point.name) for point in (one, two)]
        assert [process.wait(PATIENCE) for process in writing] == [0, 0]
        text = (one / "cohorts" / "mine" / ".query").read_text()
        assert text == (two / "cohorts" / "mine" / ".query").read_text()
        lines = text.splitlines()
        assert lines[0] == SMALL
        assert sorted(lines[1:]) == sorted(f"-- {name} {n}" for name in ("one", "two") for n in range(1, times + 1))
        assert os.listdir(two / "cohorts" / "mine") == ["tcga_luad"]
        (two / "cohorts" / "mine").rename(two / "cohorts" / "ours")
        assert os.listdir(one / "cohorts") == ["ours"]
        (one / "cohorts" / "ours").rmdir()
        assert os.listdir(two / "cohorts") == []


def test_a_cohort_has_the_same_files_as_the_main_tree(cohort: Path, mounted: Path, folder_mirror: Path) -> None:
    series = mirror_series(folder_mirror)
    (cohort / ".query").write_text("\n".join(series))
    assert not (cohort / ".error").exists()
    found = [path for path in cohort.glob("*/*/*/*") if path.is_dir()]
    assert len(found) == len(series)
    for path in found:
        uuid = json.loads((path / ".idc" / "info.json").read_text())["crdc_series_uuid"]
        assert checksums(path) == checksums(series[uuid])
        for file in path.iterdir():
            assert os.path.samefile(file, mounted / file.relative_to(cohort))
    fetched = status(mounted)["bytes_fetched"]
    for path in found:
        checksums(mounted / path.relative_to(cohort))
    assert status(mounted)["bytes_fetched"] == fetched
    listed = Commands(mounted.parent).run("find", cohort, "-name", ".*").stdout
    assert listed == "", "a walk finds series only"


def test_a_copy_of_a_cohort_has_its_series_and_nothing_else(
    cohort: Path, commands: Commands, folder_mirror: Path
) -> None:
    uuid, original = next(iter(mirror_series(folder_mirror).items()))
    (cohort / ".query").write_text(f"-- layout: %crdc_series_uuid\n{uuid}\n")
    assert commands.run("cp", "-r", cohort, commands.home / "copy").returncode == 0
    assert checksums(commands.home / "copy" / uuid) == checksums(original)
    assert os.listdir(commands.home / "copy") == [uuid]


def test_a_query_whose_process_is_ended_is_reported(cohort: Path, mounted: Path) -> None:
    daemon = status(mounted)["pid"]
    (cohort / ".query").write_text(SLOW)
    killed: set[int] = set()
    # The process is started again once.
    for _ in range(2):
        until(lambda: children(daemon) - killed)
        for child in children(daemon) - killed:
            os.kill(child, signal.SIGKILL)
            killed.add(child)
    assert "ended its process" in (cohort / ".error").read_text()
    assert os.listdir(cohort) == ["tcga_luad"], "the last result"
    assert is_running(daemon)
    (cohort / ".query").write_text(OTHER)
    assert os.listdir(cohort) == ["nlst"]


def test_a_query_whose_process_is_killed_is_evaluated_again(cohort: Path, mounted: Path) -> None:
    daemon = status(mounted)["pid"]
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit((cohort / ".query").write_text, OTHER + " -- evaluated again")
        until(lambda: children(daemon))
        for child in children(daemon):
            os.kill(child, signal.SIGKILL)
        writing.result()
    assert os.listdir(cohort) == ["nlst"]
    assert not (cohort / ".error").exists()


def test_everything_else_answers_while_a_query_runs(cohort: Path, mounted: Path) -> None:
    daemon = status(mounted)["pid"]
    (cohort / ".query").write_text(SLOW)
    until(lambda: children(daemon))
    other = cohort.with_name("beside")
    other.mkdir()
    try:
        assert os.listdir(mounted / "nlst")
        assert (cohort / ".query").read_text() == SLOW
        assert os.stat(cohort).st_nlink
        (other / ".query").write_text(OTHER)
        assert os.listdir(other) == ["nlst"]
        assert children(daemon), "the query still runs"
    finally:
        other.rmdir()
    cohort.rmdir()
    until(lambda: not children(daemon))


def test_a_look_times_out_and_a_query_that_takes_too_long_is_ended(commands: Commands, folder_mirror: Path) -> None:
    flags: list[str | Path] = ["--mirror", folder_mirror, "--timeout", "2", "--query-timeout", "5"]
    with commands.mounted(commands.home / "idc", *flags) as point:
        cohort = point / "cohorts" / "slow"
        cohort.mkdir()
        (cohort / ".query").write_text(SLOW)
        assert number_of(lambda: os.listdir(cohort)) == "ETIMEDOUT"
        until(lambda: number_of(lambda: os.stat(cohort / ".error")) == "worked")
        assert "5 seconds" in (cohort / ".error").read_text()
        assert os.listdir(cohort) == []
        assert not children(status(point)["pid"])


def test_unmounting_ends_running_queries(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        (point / "cohorts" / "slow").mkdir()
        (point / "cohorts" / "slow" / ".query").write_text(SLOW)
        daemon = status(point)["pid"]
        until(lambda: children(daemon))
        running = children(daemon)
        assert commands.idcfs("unmount", point).returncode == 0
        assert not is_running(daemon)
        assert not [child for child in running if is_running(child)]


def test_killing_the_daemon_ends_running_queries(commands: Commands, folder_mirror: Path) -> None:
    point = commands.home / "idc"
    assert commands.idcfs("mount", "--mirror", folder_mirror, point).returncode == 0
    try:
        (point / "cohorts" / "slow").mkdir()
        (point / "cohorts" / "slow" / ".query").write_text(SLOW)
        daemon = status(point)["pid"]
        until(lambda: children(daemon))
        running = children(daemon)
        os.kill(daemon, signal.SIGKILL)
        until(lambda: not [child for child in running if is_running(child)])
    finally:
        commands.run("fusermount3", "-uz", point)


def test_cohorts_outlive_the_mount(commands: Commands, folder_mirror: Path) -> None:
    flags: list[str | Path] = ["--mirror", folder_mirror]
    with commands.mounted(commands.home / "idc", *flags) as point:
        cohort = point / "cohorts" / "mine"
        cohort.mkdir()
        (cohort / ".query").write_text(SMALL)
        assert os.listdir(cohort) == ["tcga_luad"]
    with commands.mounted(commands.home / "idc", *flags) as point:
        assert number_of(lambda: (cohort / ".query").write_text(BROKEN)) == "EINVAL"
        assert os.listdir(cohort) == ["tcga_luad"]
    with commands.mounted(commands.home / "idc", *flags) as point:
        assert os.listdir(point / "cohorts") == ["mine"]
        assert "indexx" in (cohort / ".error").read_text()
        assert os.listdir(cohort) == ["tcga_luad"]
        assert (cohort / ".query").read_text() == BROKEN


def test_a_cohort_folder_that_cannot_be_used_is_an_error(commands: Commands, folder_mirror: Path) -> None:
    (commands.home / "file").write_text("no folder")
    flags: list[str | Path] = ["--mirror", folder_mirror, "--cohort-dir", commands.home / "file"]
    with commands.mounted(commands.home / "idc", *flags) as point:
        assert number_of(lambda: (point / "cohorts" / "mine").mkdir()) == "EIO"
        assert number_of(lambda: os.listdir(point / "cohorts")) == "EIO"
        assert os.listdir(point)[-1] == "cohorts"
        assert os.listdir(point / "nlst")
        assert status(point)["errors"]["CohortsUnusable"] >= 2
    (log,) = (commands.home / ".local" / "state" / "idcfs" / "log").iterdir()
    assert "Not a directory" in log.read_text()
    assert "--cohort-dir" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_cohorts_in_a_read_only_folder_work(someone: Commands, catalogue_folder: Path, folder_mirror: Path) -> None:
    if someone.user is None:
        pytest.skip("root may write everywhere")
    give_catalogue(someone, catalogue_folder)
    folder = someone.home.parent / f"{someone.home.name}-queries"
    folder.mkdir(mode=0o755)
    (folder / "mine.sql").write_text(SMALL)
    (folder / "broken.sql").write_text(BROKEN)
    with someone.mounted(someone.home / "idc", "--mirror", folder_mirror, "--cohort-dir", folder) as point:
        root = point / "cohorts"
        assert someone.run("ls", root, root / "mine").stdout.endswith("tcga_luad\n")
        assert "indexx" in someone.run("cat", root / "broken" / ".error").stdout
        for script in (f"mkdir {root}/new", f"rmdir {root}/mine", f"cp {folder}/mine.sql {root}/mine/.query"):
            assert someone.run("sh", "-c", script).returncode == 1
        assert someone.run("ls", root / "mine").stdout == "tcga_luad\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to look as another user")
def test_other_users_read_cohorts_and_write_none(commands: Commands, folder_mirror: Path) -> None:
    other = Commands(commands.home, 65534)
    with commands.mounted(commands.home / "idc", "--allow-other", "--mirror", folder_mirror) as point:
        cohort = point / "cohorts" / "mine"
        cohort.mkdir()
        (cohort / ".query").write_text(SMALL)
        assert other.run("ls", cohort).stdout == "tcga_luad\n"
        assert other.run("cat", cohort / ".query").stdout == SMALL
        for script in (f"mkdir {cohort}2", f"rmdir {cohort}", f"mv {cohort} {cohort}2", f"echo x > {cohort}/.query"):
            assert other.run("bash", "-c", script).returncode != 0, script
        assert (cohort / ".query").read_text() == SMALL
        assert os.listdir(point / "cohorts") == ["mine"]
        (cohort / ".query").write_text(OTHER)
        cohort.rename(cohort.with_name("yours"))
        cohort.with_name("yours").rmdir()
        assert os.listdir(point / "cohorts") == []


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_cohort_folder_may_be_under_version_control(commands: Commands, folder_mirror: Path) -> None:
    queries = commands.home / "queries"
    queries.mkdir()

    def git(*words: str) -> None:
        done = commands.run("git", "-C", queries, "-c", "user.name=x", "-c", "user.email=x@example.org", *words)
        assert done.returncode == 0, done.stderr

    git("init", "--quiet")
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror, "--cohort-dir", queries) as point:
        cohort = point / "cohorts" / "mine"
        cohort.mkdir()
        (cohort / ".query").write_text(SMALL)
        git("add", "mine.sql")
        git("commit", "--quiet", "--message", "One")
        (cohort / ".query").write_text(OTHER)
        assert os.listdir(cohort) == ["nlst"]
        git("checkout", "--quiet", "mine.sql")
        assert os.listdir(cohort) == ["tcga_luad"]
