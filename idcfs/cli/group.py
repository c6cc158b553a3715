"""The command group with its exit codes and error messages, and what commands share."""

import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from idcfs import __version__, errors
from idcfs.config import Settings
from idcfs.printable import printable
from idcfs.private import check_folder

Command = Callable[..., None]
T = TypeVar("T")

PARTS = ("objects", "listings", "catalogue")
"""The folders in a cache folder."""

EXIT_CODES: dict[type[errors.IdcfsError], int] = {
    errors.UsageError: 2,
    errors.IndexUnusable: 3,
    errors.MountFailed: 4,
    errors.CacheUnusable: 5,
    errors.CohortsUnusable: 5,
    errors.NoSpace: 5,
    errors.DamageFound: 7,
    errors.QueryRefused: 6,
    errors.QueryTooLong: 6,
    errors.QueryTooCostly: 6,
}
"""Any other error exits with 1, and Ctrl-C with 130. Documented in docs/commands.md."""


class _Group(click.Group):
    """Prints errors of idcfs as one line, and exits with their codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except errors.IdcfsError as error:
            # A refused query has more lines, which show where it is wrong.
            lines = [printable(line) for line in str(error).split("\n")]
            click.echo("idcfs: " + "\n".join(lines), err=True)
            sys.exit(EXIT_CODES.get(type(error), 1))
        except KeyboardInterrupt:
            click.echo("idcfs: interrupted", err=True)
            sys.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="idcfs")
def main() -> None:
    """The NCI Imaging Data Commons as a folder.

    Mount it, and every DICOM tool can read all of IDC: collection / patient / study / series / *.dcm.
    The tree comes from the installed IDC index; bytes are fetched when they are read, and kept in a cache.

    Exit codes: 0 done, 1 something else went wrong, 2 a wrong flag or setting, 3 the IDC index cannot be
    used, 4 the mount cannot be made or ended, 5 the cache folder or the cohort folder cannot be used,
    6 the query is refused, 7 the cache is damaged, 130 interrupted.
    """


def check_folders(settings: Settings) -> None:
    """Make sure that nobody else can change the cache or the cohorts, because a mount trusts them.

    Raises:
        CacheUnusable, CohortsUnusable: somebody else can.
    """
    for folder in (settings.cache_dir, *(settings.cache_dir / name for name in PARTS)):
        check_folder(folder, "cache folder", "--cache-dir", errors.CacheUnusable)
    # The folder may belong to a colleague, whose cohorts are to be shown.
    check_folder(settings.cohort_dir, "cohort folder", "--cohort-dir", errors.CohortsUnusable, may_be_foreign=True)


class SqlCommand(click.Command):
    """A command that takes SQL, which may begin with a comment: ``-- text`` is not a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move arguments that begin with a comment behind ``--``, where no flags are expected."""
        if "--" not in args:
            sql = [word for word in args if re.match(r"--[^=]*\s", word)]
            args = [*(word for word in args if word not in sql), *(["--", *sql] if sql else [])]
        return super().parse_args(ctx, args)


def counted(number: int, noun: str) -> str:
    """Return a number of things as people read it, such as 2 files; *noun* has an s in the plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def option(name: str, metavar: str, text: str, kind: Any = None) -> Callable[[Command], Command]:
    """Return a decorator that adds an option with a value."""
    return click.option(name, metavar=metavar, help=text, type=kind)


index_option = option("--index", "FOLDER", "Parquet files to use instead of the installed idc-index-data.")
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
mountpoint_argument = click.argument("mountpoint", type=Path, required=False)


def run_trio(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Return the result of *work* in an event loop; of the errors of a nursery, the first is raised."""
    import trio

    try:
        return trio.run(work, *arguments)
    except ExceptionGroup as group:
        raise errors.first_error(group) from group
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        # Ctrl-C while Python itself handles the signal, as a mount does in its first moments.
        raise KeyboardInterrupt from group
