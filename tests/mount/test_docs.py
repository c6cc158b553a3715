"""Every command of the documentation runs as printed.

A block of ```console holds commands after ``$ `` and what they print; ``...`` stands for any text, alone on a
line for any lines. A file's commands run in one shell, in an empty home folder, with `~/idc` unmounted at the
start; the mirror is one that holds the sample.
"""

import re
import subprocess
from pathlib import Path

import click
import pytest

from tests.mounting import Commands

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that this test cannot run, and the test or script that runs them.
RUN_ELSEWHERE = {
    "scripts/demo": ".ci/run",
    "scripts/test": "this is it",
    "scripts/check": ".ci/run",
    "scripts/bench": "its figures are of a quiet machine",
    "scripts/soak": "tests/faults/test_soak.py",
}

BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(document: Path) -> list[tuple[str, str]]:
    """The commands of a document, each with its printed output."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(document.read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif line.startswith("> ") and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
            else:
                found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def pattern(expected: str) -> str:
    """A regular expression for the output of a command."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else ".*".join(map(re.escape, line.split("..."))).rstrip() + r" *\n"
        for line in expected.splitlines()
    ]
    return "".join(lines)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_example_runs_as_printed(document: Path, commands: Commands, folder_mirror: Path) -> None:
    wanted = [example for example in examples(document) if example[0].split()[0] not in RUN_ELSEWHERE]
    if not wanted:
        return
    script = "cd ~\n" + "".join(f"echo '@@ {number}'\n{command}\n" for number, (command, _) in enumerate(wanted))
    commands.environment["IDCFS_MIRROR"] = str(folder_mirror)
    try:
        done = subprocess.run(
            ["bash"], input=script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=150,
            env=commands.variables(), check=False,
        )  # fmt: skip
    finally:
        point = commands.home / "idc"
        if subprocess.run(["mountpoint", "-q", point], check=False).returncode == 0:
            commands.idcfs("unmount", "--lazy", point)
    printed = re.split(r"^@@ \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert len(printed) == len(wanted), done.stdout
    for (command, expected), got in zip(wanted, printed, strict=True):
        assert re.fullmatch(pattern(expected), got), f"$ {command}\n--- printed:\n{got}--- documented:\n{expected}"


def test_every_flag_and_setting_is_documented() -> None:
    from dataclasses import fields

    from idcfs.cli import main
    from idcfs.config import Settings

    text = (ROOT / "docs" / "commands.md").read_text()
    groups = [main, *(command for command in main.commands.values() if isinstance(command, click.Group))]
    flags = {
        option
        for group in groups
        for command in [group, *group.commands.values()]
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    missing = [flag for flag in sorted(flags) if f"`{flag}" not in text]
    missing += [known.name for known in fields(Settings) if f"`{known.name}`" not in text]
    assert not missing


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    text = (ROOT / "docs" / "architecture.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[>=<\[]", dependency)[0] for dependency in project["dependencies"]]
    assert [name for name in names if f"`{name}`" not in text] == []
