"""What a contributor's files say about the project has to agree."""

import re
import tomllib
from pathlib import Path

import idcfs

ROOT = Path(__file__).parents[2]


def test_a_commit_is_checked_as_scripts_check_does() -> None:
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == re.findall(r"^\.venv/bin/.*", (ROOT / "scripts" / "check").read_text(), re.MULTILINE)


def test_the_newest_change_is_of_the_version_that_is_packaged() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert idcfs.__version__ == packaged == newest[1]
