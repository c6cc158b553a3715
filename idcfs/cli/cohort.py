"""The commands `idcfs cohort ...`, which need no mount; their results are kept for the next one."""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich import filesize

from idcfs import errors
from idcfs.cli.group import Command, SqlCommand, check_folders, counted, index_option, json_flag, main, option, run_trio
from idcfs.cohorts.folder import CohortTexts, check_name
from idcfs.config import Settings, load_settings
from idcfs.private import UMASK


class Outcome(NamedTuple):
    """The outcome of evaluating a cohort: what is in it, what its author should know, and the error of its query."""

    summary: dict[str, Any] | None
    remarks: str
    error: errors.IdcfsError | None


@main.group()
def cohort() -> None:
    """Make, show and remove cohorts: folders that a query or a manifest defines."""
    os.umask(UMASK)


def _all(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds all of these arguments and options, in this order."""
    return lambda command: functools.reduce(lambda done, add: add(done), reversed(decorators), command)


_FILE = click.Path(path_type=Path, allow_dash=True)

_cohort_dir = option("--cohort-dir", "FOLDER", "Where the queries are kept. Default: the configured one.")
_name = _all(click.argument("name"), _cohort_dir)
_definition = _all(
    click.argument("sql", required=False),
    option("--file", "FILE", "Take the query in FILE (- for standard input).", _FILE),
    option("--manifest", "FILE", "Take the manifest in FILE (- for standard input).", _FILE),
)
_evaluation = _all(
    option("--layout", "TEMPLATE", "The layout of a query that says none."),
    index_option,
    option("--cache-dir", "FOLDER", "Where results are kept. Default: the configured one."),
    option("--query-memory", "SIZE", "Memory that the query may take. Default: 3GiB."),
    option("--query-timeout", "SECONDS", "How long the query may take. Default: 60."),
)


def _text(sql: str | None, file: Path | None, manifest: Path | None) -> bytes | None:
    """Return the one text that the command line gives, or None."""
    given = [value for value in (sql, file, manifest) if value is not None]
    if len(given) > 1:
        raise errors.UsageError("give the query once: as SQL, with --file or with --manifest")
    path = file or manifest
    if path is None:
        return None if sql is None else os.fsencode(sql) + b"\n"
    try:
        with click.open_file(str(path), "rb") as stream:
            return bytes(stream.read())
    except OSError as error:
        raise errors.UsageError(f"{path}: {error.strerror}") from error


@cohort.command("create", cls=SqlCommand, short_help="Make a cohort.")
@_name
@_definition
@_evaluation
def create(name: str, sql: str | None, file: Path | None, manifest: Path | None, **flags: Any) -> None:
    """Make the cohort NAME of a query or a manifest, and print what is in it.

    A query is one SELECT over the tables of 'idcfs query', whose result has a column that identifies series. A
    manifest has a line for each series, as the IDC portal and idc-index write it. Without either the cohort is
    empty.

    \b
    Examples:
      idcfs cohort create lung_ct "SELECT SeriesInstanceUID FROM index WHERE BodyPartExamined = 'LUNG'"
      idcfs cohort create mine --manifest manifest.s5cmd
    """  # noqa: D301  # click's mark for text that it must not wrap is a real backspace
    text = _text(sql, file, manifest)
    settings = _settings(flags)
    name = _checked(name)
    folder = _folder(settings)
    try:
        folder.create(name)
    except errors.AlreadyThere as error:
        raise errors.UsageError(f"there is a cohort {name} already; change it: idcfs cohort edit {name}") from error
    if text:
        try:
            folder.write(name, text)
            outcome = _evaluate(settings, name)
        except BaseException:
            # The query was not evaluated, and the name must be free for the next try.
            folder.delete(name)
            raise
        _print_outcome(name, outcome)


@cohort.command("edit", cls=SqlCommand, short_help="Change a cohort's query.")
@_name
@_definition
@_evaluation
def edit(name: str, sql: str | None, file: Path | None, manifest: Path | None, **flags: Any) -> None:
    """Replace the query or manifest of the cohort NAME, in your editor if none is given."""
    text = _text(sql, file, manifest)
    settings = _settings(flags)
    before = _read(settings, name)
    if text is None:
        text = _edit_text(name, before)
        if text is None:
            click.echo(f"{name} is unchanged")
            return
        _check_unchanged(name, before, _read(settings, name), text)
    folder = _folder(settings)
    # If the new text does not work, the cohort still shows the last one that did.
    if before.strip() and folder.read_last_good(name) is None:
        folder.keep_last_good(name, before)
    folder.write(name, text)
    _print_outcome(name, _evaluate(settings, name))


def _check_unchanged(name: str, before: bytes, now: bytes, text: bytes) -> None:
    """Raise an error, and keep the text in a file, if the cohort was changed while the editor was open."""
    if now != before:
        with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".sql", delete=False) as aside:
            aside.write(text)
        raise errors.UsageError(
            f"cohort {name} was changed while you edited it; your text is in {aside.name}: "
            f"idcfs cohort edit {name} --file {aside.name}"
        )


def _edit_text(name: str, text: bytes) -> bytes | None:
    """Return what the user makes of *text* in their editor, or None if they do not change it."""
    try:
        edited = click.edit(text, extension=".sql")
    except click.ClickException as error:
        raise errors.IdcfsError(f"the editor failed ({error.message}); cohort {name} is unchanged") from error
    return None if edited == text else edited


@cohort.command("show", short_help="Print a cohort's query and what is in it.")
@_name
@_evaluation
@json_flag
def show(name: str, as_json: bool, **flags: Any) -> None:
    """Print the query of the cohort NAME and what is in it."""
    settings = _settings(flags)
    text = _read(settings, name)
    outcome = _evaluate(settings, name)
    if as_json:
        facts = {"name": name, "query": text.decode(errors="replace"), "summary": outcome.summary}
        click.echo(json.dumps(facts | {"remarks": outcome.remarks, "error": str(outcome.error or "")}, indent=2))
    else:
        click.echo(text.decode(errors="replace").rstrip())
        click.echo()
        _print_outcome(name, outcome)


@cohort.command("list", short_help="List the cohorts.")
@_cohort_dir
@_evaluation
@json_flag
def list_cohorts(as_json: bool, **flags: Any) -> None:
    """List the cohorts: what is known of each, and the first line of its query. Evaluates nothing."""
    settings = _settings(flags)
    folder = _folder(settings)
    found: dict[str, bytes] = {}
    for name in folder.names():
        # The file may be gone by now.
        with contextlib.suppress(errors.NotThereNow):
            found[name] = folder.read(name)[0]
    states = _states(settings, found) if found else {}
    if as_json:
        queries = {name: text.decode(errors="replace") for name, text in found.items()}
        rows = [{"name": name, "state": states[name], "query": query} for name, query in queries.items()]
        click.echo(json.dumps(rows, indent=2))
    elif not found:
        click.echo("There are no cohorts. Make one: idcfs cohort create NAME 'SELECT ...'")
    else:
        widths = max(map(len, found)), max(map(len, states.values()))
        for name, text in found.items():
            first = text.decode(errors="replace").partition("\n")[0]
            click.echo(f"{name:<{widths[0]}}  {states[name]:<{widths[1]}}  {first[:80]}".rstrip())


def _states(settings: Settings, texts: dict[str, bytes]) -> dict[str, str]:
    """Return what is known of texts without evaluating them, in a few words each."""

    async def states() -> dict[str, str]:
        async with _open_cohorts(settings) as (_, results, version):
            found = {}
            for name, text in texts.items():
                kept = await results.kept(text)
                if not text.strip():
                    found[name] = "empty"
                elif kept is None:
                    found[name] = "not looked at yet"
                elif isinstance(kept, errors.QueryRefused):
                    found[name] = "refused"
                else:
                    summary = kept.summary(version)
                    found[name] = f"{summary['series']:,} series, {filesize.decimal(summary['bytes'])}"
            return found

    return run_trio(states)


@cohort.command("delete", short_help="Remove a cohort.")
@_name
def delete(name: str, **flags: Any) -> None:
    """Remove the cohort NAME and its query. The series that it showed stay in IDC."""
    settings = _settings(flags)
    _read(settings, name)
    _folder(settings).delete(name)


def _checked(name: str) -> str:
    try:
        return check_name(name.encode(errors="surrogateescape"))
    except errors.ReadError as error:
        raise errors.UsageError(str(error)) from error


def _settings(flags: dict[str, Any]) -> Settings:
    settings = load_settings(flags)
    check_folders(settings)
    return settings


def _folder(settings: Settings) -> CohortTexts:
    return CohortTexts(settings.cohort_dir)


def _read(settings: Settings, name: str) -> bytes:
    try:
        return _folder(settings).read(_checked(name))[0]
    except errors.NotThereNow as error:
        raise errors.UsageError(f"there is no cohort {name} in {settings.cohort_dir}; see idcfs cohort list") from error


def _evaluate(settings: Settings, name: str) -> Outcome:
    async def evaluate() -> Outcome:
        async with _open_cohorts(settings) as (cohorts, _, version):
            found = await cohorts.find(name)
            error = await cohorts.evaluated(found)
            result = found.result
            return Outcome(result and result.summary(version), result.remarks() if result else "", error)

    return run_trio(evaluate)


@contextlib.asynccontextmanager
async def _open_cohorts(settings: Settings) -> AsyncIterator[tuple[Any, Any, int]]:
    """Open the cohorts as a mount does; yields them, their results, and the version of IDC."""
    import trio

    from idcfs.catalog.catalogue import open_catalogue
    from idcfs.catalog.index import find_index
    from idcfs.cohorts.registry import Cohorts
    from idcfs.cohorts.results import Results

    def report(step: str) -> None:
        click.echo(f"idcfs: {step} ...", err=True)

    index = find_index(settings.index)
    # The main tree is not shown, so its layout only matters as the default of cohorts.
    async with open_catalogue(settings.cache_dir, index, report=report) as catalogue, trio.open_nursery() as nursery:
        # No read waits here, so there is time for the query and for those before it in the queue.
        timeout = 2 * settings.query_timeout
        results = Results(catalogue, settings)
        yield Cohorts(settings.cohort_dir, catalogue, results, nursery, timeout), results, catalogue.version
        nursery.cancel_scope.cancel()


def _print_outcome(name: str, outcome: Outcome) -> None:
    """Print what is in a cohort.

    Raises:
        QueryRefused: its query does not work.
    """
    if outcome.error is not None:
        still = "; it still shows what worked last" if outcome.summary else ""
        remedy = f"The query is kept{still}. Change it: idcfs cohort edit {name}"
        raise type(outcome.error)(f"cohort {name}: {outcome.error}\n{remedy}")
    if outcome.summary is None:
        click.echo(f"{name} is empty: it has no query")
        return
    summary = outcome.summary
    click.echo(
        f"{name}: {summary['series']:,} series of {counted(summary['patients'], 'patient')} in "
        f"{counted(len(summary['collections']), 'collection')}, {counted(summary['instances'], 'file')}, "
        f"{filesize.decimal(summary['bytes'])}"
    )
    for licence, series in summary["licences"].items():
        click.echo(f"  {licence}: {series:,} series")
    if outcome.remarks:
        click.echo(outcome.remarks.rstrip(), err=True)
