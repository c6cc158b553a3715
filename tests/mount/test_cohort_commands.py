"""`idcfs cohort`, with and without a mount."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.mounting import Commands, mirror_series

SMALL = "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'tcga_luad' ORDER BY 1 LIMIT 3"
OTHER = "SELECT SeriesInstanceUID FROM index WHERE collection_id = 'nlst' ORDER BY 1 LIMIT 3"
BROKEN = "SELECT SeriesInstanceUID FROM indexx"


def done(commands: Commands, *words: str | Path) -> str:
    """Run `idcfs cohort`, make sure that it succeeds, and return its output."""
    found = commands.idcfs("cohort", *words)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


def refused(commands: Commands, code: int, *words: str | Path) -> str:
    """Run `idcfs cohort`, make sure that it exits with *code*, and return its one line of error."""
    found = commands.idcfs("cohort", *words)
    assert found.returncode == code, found.stderr
    assert found.stderr.startswith("idcfs: ")
    assert len(found.stderr.splitlines()) == 1, found.stderr
    return found.stderr


def shown(commands: Commands, name: str = "mine") -> dict[str, object]:
    """A cohort as JSON."""
    return dict(json.loads(commands.idcfs("cohort", "show", name, "--json").stdout))


def queries(commands: Commands) -> Path:
    return commands.home / ".local" / "share" / "idcfs" / "cohorts"


def editor(commands: Commands, script: str) -> None:
    """Make a shell script the user's editor; $1 is the file."""
    file = commands.home / "editor"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    commands.environment["EDITOR"] = str(file)


def test_a_cohort_is_created_shown_edited_and_deleted(commands: Commands) -> None:
    assert "no cohorts" in done(commands, "list")
    assert json.loads(done(commands, "list", "--json")) == []
    output = done(commands, "create", "mine", SMALL)
    assert "3 series" in output
    assert "CC BY" in output
    assert (queries(commands) / "mine.sql").read_text() == f"{SMALL}\n"
    output = done(commands, "show", "mine")
    assert output.startswith(f"{SMALL}\n")
    assert "3 series" in output
    assert "nlst" not in output
    done(commands, "create", "empty")
    output = done(commands, "list")
    assert [line.split("  ")[0].strip() for line in output.splitlines()] == ["empty", "mine"]
    assert "3 series" in output
    (queries(commands) / "new.sql").write_text(OTHER)
    (queries(commands) / "wrong.sql").write_text("SELEC")
    assert commands.idcfs("cohort", "show", "wrong").returncode == 6
    facts = json.loads(done(commands, "list", "--json"))
    assert [(fact["name"], fact["query"]) for fact in facts] == [
        ("empty", ""), ("mine", f"{SMALL}\n"), ("new", OTHER), ("wrong", "SELEC")
    ]  # fmt: skip
    states = [fact["state"] for fact in facts]
    assert states[0] == "empty"
    assert states[1].startswith("3 series, ")
    assert states[2:] == ["not looked at yet", "refused"]
    done(commands, "delete", "new")
    done(commands, "delete", "wrong")
    assert "empty" in done(commands, "show", "empty")
    assert "3 series" in done(commands, "edit", "mine", OTHER)
    facts = shown(commands)
    assert (facts["name"], facts["query"], facts["error"], facts["remarks"]) == ("mine", f"{OTHER}\n", "", "")
    assert isinstance(facts["summary"], dict)
    assert (facts["summary"]["series"], facts["summary"]["collections"]) == (3, ["nlst"])
    assert done(commands, "delete", "mine") == ""
    assert [path.name for path in queries(commands).glob("*.sql")] == ["empty.sql"]


def test_a_query_or_manifest_comes_from_a_file_or_standard_input(commands: Commands, folder_mirror: Path) -> None:
    uuids = list(mirror_series(folder_mirror))
    (commands.home / "query.sql").write_text(OTHER)
    (commands.home / "manifest.s5cmd").write_text("".join(f"cp s3://idc-open-data/{uuid}/* .\n" for uuid in uuids))
    assert "3 series" in done(commands, "create", "file", "--file", commands.home / "query.sql")
    output = done(commands, "create", "manifest", "--manifest", commands.home / "manifest.s5cmd")
    assert f"{len(uuids)} series" in output
    for option in ("--file", "--manifest"):
        for command in ("create", "edit"):
            given = subprocess.run(
                ["idcfs", "cohort", command, "given", option, "-"],
                input=uuids[0], capture_output=True, text=True, env=commands.variables(), check=False, timeout=60,
            )  # fmt: skip
            assert (given.returncode, given.stderr) == (0, "")
            assert "1 series" in given.stdout
        done(commands, "delete", "given")


def test_lines_that_match_nothing_are_reported(commands: Commands, folder_mirror: Path) -> None:
    uuid = next(iter(mirror_series(folder_mirror)))
    (commands.home / "manifest").write_text(f"{uuid}\n# comment\n00000000-0000-0000-0000-000000000000\n")
    found = commands.idcfs("cohort", "create", "mine", "--manifest", commands.home / "manifest")
    assert found.returncode == 0
    assert "1 series" in found.stdout
    assert "line 3" in found.stderr
    assert "line 3" in str(shown(commands)["remarks"])
    found = commands.idcfs("cohort", "show", "mine")
    assert (found.returncode, "line 3" in found.stderr) == (0, True)


def test_the_commands_and_a_mount_see_each_others_cohorts(commands: Commands, folder_mirror: Path) -> None:
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        root = point / "cohorts"
        done(commands, "create", "mine", SMALL)
        assert os.listdir(root) == ["mine"]
        assert os.listdir(root / "mine") == ["tcga_luad"]
        done(commands, "edit", "mine", OTHER)
        assert os.listdir(root / "mine") == ["nlst"]
        assert (root / "mine" / ".query").read_text() == f"{OTHER}\n"
        (root / "yours").mkdir()
        (root / "yours" / ".query").write_text(SMALL)
        assert shown(commands, "yours")["query"] == SMALL
        (root / "yours").rename(root / "ours")
        assert [fact["name"] for fact in json.loads(done(commands, "list", "--json"))] == ["mine", "ours"]
        found = commands.idcfs("cohort", "edit", "mine", BROKEN)
        assert found.returncode == 6
        assert "indexx" in (root / "mine" / ".error").read_text()
        assert os.listdir(root / "mine") == ["nlst"]
        done(commands, "delete", "mine")
        assert os.listdir(root) == ["ours"]
        (root / "ours").rmdir()
        assert json.loads(done(commands, "list", "--json")) == []


def test_a_refused_query_is_kept_and_the_last_result_still_shown(commands: Commands, folder_mirror: Path) -> None:
    done(commands, "create", "mine", SMALL)
    for command in (["edit", "mine", BROKEN], ["show", "mine"]):
        found = commands.idcfs("cohort", *command)
        assert found.returncode == 6
        assert found.stderr.startswith("idcfs: cohort mine: ")
        for part in ("indexx", "still shows what worked last", "idcfs cohort edit mine"):
            assert part in found.stderr
    assert (queries(commands) / "mine.sql").read_text() == f"{BROKEN}\n"
    facts = shown(commands)
    assert "indexx" in str(facts["error"])
    assert isinstance(facts["summary"], dict)
    assert facts["summary"]["collections"] == ["tcga_luad"]
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        assert os.listdir(point / "cohorts" / "mine") == ["tcga_luad"]
        assert "indexx" in (point / "cohorts" / "mine" / ".error").read_text()
    found = commands.idcfs("cohort", "create", "new", BROKEN)
    assert found.returncode == 6
    assert "still shows" not in found.stderr
    assert (queries(commands) / "new.sql").read_text() == f"{BROKEN}\n"
    done(commands, "edit", "new", SMALL)


def test_edit_without_a_query_opens_the_editor(commands: Commands) -> None:
    done(commands, "create", "mine", SMALL)
    editor(commands, 'grep -q tcga_luad "$1" && sed -i s/tcga_luad/nlst/ "$1"')
    assert "3 series" in done(commands, "edit", "mine")
    assert (queries(commands) / "mine.sql").read_text() == f"{SMALL}\n".replace("tcga_luad", "nlst")
    editor(commands, "exit 0")
    assert "mine is unchanged" in done(commands, "edit", "mine")
    editor(commands, 'case "$1" in *.sql) echo "SELEC" > "$1";; esac')
    found = commands.idcfs("cohort", "edit", "mine")
    assert (found.returncode, "SELEC" in found.stderr) == (6, True)
    assert (queries(commands) / "mine.sql").read_text() == "SELEC\n"
    (queries(commands) / "latin.sql").write_bytes(b"-- \xe4\n")
    editor(commands, f'echo "{OTHER}" >> "$1"')
    assert commands.idcfs("cohort", "edit", "latin").returncode == 6
    assert (queries(commands) / "latin.sql").read_bytes() == b"-- \xe4\n" + OTHER.encode() + b"\n"
    editor(commands, "exit 3")
    assert "editor" in refused(commands, 1, "edit", "mine")
    assert (queries(commands) / "mine.sql").read_text() == "SELEC\n"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["create", "mine", SMALL], 2, "already"),
        (["create", ".hidden", SMALL], 2, ".hidden"),
        (["create", "a/b", SMALL], 2, "a/b"),
        (["create", "", SMALL], 2, "name"),
        (["create", "x" * 252, SMALL], 2, "251"),
        (["create", "new", "--file", "/no/such/file"], 2, "/no/such/file"),
        (["create", "new", "--manifest", "/no/such/file"], 2, "/no/such/file"),
        (["create", "new", "--file", "/"], 2, "/"),
        (["create", "new", SMALL, "--file", "/dev/null"], 2, "once"),
        (["create", "new", "--manifest", "/dev/null", "--file", "/dev/null"], 2, "once"),
        (["create", "new", SMALL, "--query-memory", "1kB"], 2, "1kB"),
        (["create", "new", SMALL, "--index", "/no/such/index"], 3, "/no/such/index"),
        (["create", "new", SMALL, "--cache-dir", "/dev/null"], 5, "/dev/null"),
        (["create", "new", SMALL, "--cohort-dir", "/dev/null"], 5, "--cohort-dir"),
        (["list", "--cohort-dir", "/dev/null"], 5, "--cohort-dir"),
        (["edit", "none", SMALL], 2, "idcfs cohort list"),
        (["edit", "mine", SMALL, "--file", "/dev/null"], 2, "once"),
        (["edit", "mine", "--file", "/no/such/file"], 2, "/no/such/file"),
        (["show", "none"], 2, "none"),
        (["show", ".hidden"], 2, ".hidden"),
        (["delete", "none"], 2, "none"),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_changes_nothing(commands: Commands, words: list[str], code: int, error: str) -> None:
    queries(commands).mkdir(parents=True)
    (queries(commands) / "mine.sql").write_text(OTHER)
    assert error in refused(commands, code, *words)
    assert {path.name: path.read_text() for path in queries(commands).glob("*.sql")} == {"mine.sql": OTHER}


def test_sql_and_files_must_be_utf_8(commands: Commands) -> None:
    (commands.home / "latin").write_bytes(b"SELECT '\xe4' AS SeriesInstanceUID")
    for words in ([os.fsdecode(b"SELECT '\xe4' AS SeriesInstanceUID")], ["--file", str(commands.home / "latin")]):
        found = commands.idcfs("cohort", "create", "mine", *words)
        assert found.returncode == 6
        assert "UTF-8" in found.stderr
        assert "Traceback" not in found.stderr
        found = commands.idcfs("cohort", "show", "mine")
        assert (found.returncode, "UTF-8" in found.stderr) == (6, True)
        done(commands, "delete", "mine")


def test_a_query_that_takes_too_long_is_refused(commands: Commands) -> None:
    slow = "SELECT max(SeriesInstanceUID) AS SeriesInstanceUID FROM index, range(100000000000) AS t(n) WHERE hash(n)=0"
    found = commands.idcfs("cohort", "create", "mine", slow, "--query-timeout", "1")
    assert found.returncode == 6
    assert "1 seconds" in found.stderr


def test_a_cohort_may_have_its_own_layout(commands: Commands, folder_mirror: Path) -> None:
    done(commands, "create", "mine", f"-- layout: %Modality/%SeriesInstanceUID\n{SMALL}")
    assert isinstance(summary := shown(commands)["summary"], dict)
    assert summary["layout"] == "%Modality/%SeriesInstanceUID"
    with commands.mounted(commands.home / "idc", "--mirror", folder_mirror) as point:
        modalities = os.listdir(point / "cohorts" / "mine")
        assert "tcga_luad" not in modalities
        assert sum(len(os.listdir(point / "cohorts" / "mine" / modality)) for modality in modalities) == 3


@pytest.mark.parametrize("command", [[], ["create"], ["edit"], ["show"], ["list"], ["delete"]])
def test_help(commands: Commands, command: list[str]) -> None:
    assert "Usage: idcfs cohort" in done(commands, *command, "--help")
