"""`idcfs cohort`: the texts of cohorts, with a mount or without; what they come to is kept for the next mount."""

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from rich import filesize

from idcfs import errors
from idcfs.cli.group import SqlCommand, check_folders, counted, main
from idcfs.config import Settings, load_settings
from idcfs.private import UMASK

T = TypeVar("T")

_Command = Callable[..., None]


class Answer(NamedTuple):
    """What a cohort comes to: what is in it, what its author should know, and what is wrong with its query."""

    summary: dict[str, Any] | None
    remarks: str
    error: errors.IdcfsError | None


@main.group()
def cohort() -> None:
    """Make, show and remove cohorts: folders that a query or a manifest defines."""
    os.umask(UMASK)


def _named(command: _Command) -> _Command:
    """The name of a cohort, and where it is kept."""
    command = click.option(
        "--cohort-dir", metavar="FOLDER", help="Where the queries are kept. Default: the configured one."
    )(command)
    return click.argument("name")(command)


def _evaluating(command: _Command) -> _Command:
    """The flags of a command that evaluates a query."""
    for option, metavar, told in (
        ("--query-timeout", "SECONDS", "How long the query may take. Default: 60."),
        ("--query-memory", "SIZE", "Memory that the query may take. Default: 3GiB."),
        ("--cache-dir", "FOLDER", "Where results are kept. Default: the configured one."),
        ("--index", "FOLDER", "Parquet files to use instead of the installed idc-index-data."),
        ("--layout", "TEMPLATE", "The layout of a query that says none."),
    ):
        command = click.option(option, metavar=metavar, help=told)(command)
    return command


def _defining(command: _Command) -> _Command:
    """The ways to say what a cohort is."""
    file = click.Path(path_type=Path, allow_dash=True)
    for option, what in (("--manifest", "manifest"), ("--file", "query")):
        told = f"Take the {what} in FILE (- for standard input)."
        command = click.option(option, type=file, metavar="FILE", help=told)(command)
    return click.argument("sql", required=False)(command)


def _text(sql: str | None, file: Path | None, manifest: Path | None) -> bytes | None:
    """The one text that a command line gives, or None."""
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
@_named
@_defining
@_evaluating
def create(name: str, sql: str | None, file: Path | None, manifest: Path | None, **flags: Any) -> None:
    """Make the cohort NAME of a query or a manifest, and say what is in it.

    A query is one SELECT over the tables of 'idcfs query', whose result has a column that says which series are
    meant. A manifest has a line for each series, as the IDC portal and idc-index write it. Without either the
    cohort is empty.

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
            answer = _evaluate(settings, name)
        except BaseException:
            # Nothing is known of the query, and the next try is not to find the name taken.
            folder.delete(name)
            raise
        _tell(name, answer)


@cohort.command("edit", cls=SqlCommand, short_help="Change a cohort's query.")
@_named
@_defining
@_evaluating
def edit(name: str, sql: str | None, file: Path | None, manifest: Path | None, **flags: Any) -> None:
    """Put another query or manifest in the place of the cohort NAME's, in your editor if none is given."""
    text = _text(sql, file, manifest)
    settings = _settings(flags)
    before = _read(settings, name)
    if text is None:
        text = _edited(name, before)
        if text is None:
            click.echo(f"{name} is as it was")
            return
        _check_unchanged(name, before, _read(settings, name), text)
    folder = _folder(settings)
    # If the new text does not work, what did is still shown.
    if before.strip() and folder.read_last_good(name) is None:
        folder.keep_last_good(name, before)
    folder.write(name, text)
    _tell(name, _evaluate(settings, name))


def _check_unchanged(name: str, before: bytes, now: bytes, text: bytes) -> None:
    """Keep an edited text aside if the cohort was changed while the editor was open."""
    if now != before:
        with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".sql", delete=False) as aside:
            aside.write(text)
        raise errors.UsageError(
            f"cohort {name} was changed while you edited it; your text is in {aside.name}: "
            f"idcfs cohort edit {name} --file {aside.name}"
        )


def _edited(name: str, text: bytes) -> bytes | None:
    """What the user makes of *text* in their editor, None if they leave it as it is."""
    try:
        edited = click.edit(text, extension=".sql")
    except click.ClickException as error:
        raise errors.IdcfsError(f"the editor failed, so cohort {name} is as it was ({error.message})") from error
    return None if edited == text else edited


@cohort.command("show", short_help="Print a cohort's query and what is in it.")
@_named
@_evaluating
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool, **flags: Any) -> None:
    """Print the query of the cohort NAME and what is in it."""
    settings = _settings(flags)
    text = _read(settings, name)
    answer = _evaluate(settings, name)
    if as_json:
        told = {"name": name, "query": text.decode(errors="replace"), "summary": answer.summary}
        click.echo(json.dumps(told | {"remarks": answer.remarks, "error": str(answer.error or "")}, indent=2))
    else:
        click.echo(text.decode(errors="replace").rstrip())
        click.echo()
        _tell(name, answer)


@cohort.command("list", short_help="List the cohorts.")
@click.option("--cohort-dir", metavar="FOLDER", help="Where the queries are kept. Default: the configured one.")
@_evaluating
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_cohorts(as_json: bool, **flags: Any) -> None:
    """List the cohorts: what is known of each, and the first line of its query. Evaluates nothing."""
    settings = _settings(flags)
    folder = _folder(settings)
    found: dict[str, bytes] = {}
    for name in folder.names():
        # It may have gone since.
        with contextlib.suppress(errors.NotThereNow):
            found[name] = folder.read(name)[0]
    states = _states(settings, found) if found else {}
    if as_json:
        told = [
            {"name": name, "state": states[name], "query": text.decode(errors="replace")}
            for name, text in found.items()
        ]
        click.echo(json.dumps(told, indent=2))
    elif not found:
        click.echo("There are no cohorts. Make one: idcfs cohort create NAME 'SELECT ...'")
    else:
        widths = max(map(len, found)), max(map(len, states.values()))
        for name, text in found.items():
            first = text.decode(errors="replace").partition("\n")[0]
            click.echo(f"{name:<{widths[0]}}  {states[name]:<{widths[1]}}  {first[:80]}".rstrip())


def _states(settings: Settings, texts: dict[str, bytes]) -> dict[str, str]:
    """What is known of texts without evaluating them, in a few words each."""

    async def states() -> dict[str, str]:
        async with _opened(settings) as (_, results, version):
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

    return _run(states)


@cohort.command("delete", short_help="Remove a cohort.")
@_named
def delete(name: str, **flags: Any) -> None:
    """Remove the cohort NAME. Its query is gone; what it showed stays where it was in IDC."""
    settings = _settings(flags)
    _read(settings, name)
    _folder(settings).delete(name)


def _checked(name: str) -> str:
    from idcfs.cohorts.folder import check_name

    try:
        return check_name(name.encode(errors="surrogateescape"))
    except errors.ReadError as error:
        raise errors.UsageError(str(error)) from error


def _settings(flags: dict[str, Any]) -> Settings:
    settings = load_settings(flags)
    check_folders(settings)
    return settings


def _folder(settings: Settings) -> Any:
    from idcfs.cohorts.folder import CohortFolder

    return CohortFolder(settings.cohort_dir)


def _read(settings: Settings, name: str) -> bytes:
    try:
        return bytes(_folder(settings).read(_checked(name))[0])
    except errors.NotThereNow as error:
        raise errors.UsageError(f"there is no cohort {name} in {settings.cohort_dir}; see idcfs cohort list") from error


def _evaluate(settings: Settings, name: str) -> Answer:
    """What a cohort comes to."""

    async def evaluate() -> Answer:
        async with _opened(settings) as (cohorts, _, version):
            found = await cohorts.find(name)
            error = await cohorts.evaluated(found)
            result = found.result
            if result is None:
                return Answer(None, "", error)
            return Answer(result.summary(version), result.remarks(), error)

    return _run(evaluate)


def _run(work: Callable[[], Awaitable[T]]) -> T:
    import trio

    try:
        return trio.run(work)
    except ExceptionGroup as group:
        raise errors.first_error(group) from group


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Any, Any, int]]:
    """The cohorts as a mount has them, their results, and the version of IDC."""
    import trio

    from idcfs.catalog.catalogue import open_catalogue
    from idcfs.catalog.index import find_index
    from idcfs.cohorts.registry import Cohorts
    from idcfs.cohorts.results import Results

    def tell(step: str) -> None:
        click.echo(f"idcfs: {step} ...", err=True)

    index = find_index(settings.index)
    # The main tree's layout is of no use here but as the default.
    async with open_catalogue(settings.cache_dir, index, tell=tell) as catalogue, trio.open_nursery() as nursery:
        # Nobody's read waits here: as long as a query may take, and some for its queue.
        timeout = 2 * settings.query_timeout
        results = Results(catalogue, settings)
        yield Cohorts(settings.cohort_dir, catalogue, results, nursery, timeout), results, catalogue.version
        nursery.cancel_scope.cancel()


def _tell(name: str, answer: Answer) -> None:
    """Print what a cohort comes to.

    Raises:
        QueryRefused: its query does not work.
    """
    if answer.error is not None:
        still = "; it still shows what worked last" if answer.summary else ""
        remedy = f"The query is kept{still}. Change it: idcfs cohort edit {name}"
        raise type(answer.error)(f"cohort {name}: {answer.error}\n{remedy}")
    if answer.summary is None:
        click.echo(f"{name} is empty: it has no query")
        return
    told = answer.summary
    click.echo(
        f"{name}: {told['series']:,} series of {counted(told['patients'], 'patient')} in "
        f"{counted(len(told['collections']), 'collection')}, {counted(told['instances'], 'file')}, "
        f"{filesize.decimal(told['bytes'])}"
    )
    for licence, series in told["licences"].items():
        click.echo(f"  {licence}: {series:,} series")
    if answer.remarks:
        click.echo(answer.remarks.rstrip(), err=True)
