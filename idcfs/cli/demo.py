"""The command `idcfs demo-mirror`."""

from pathlib import Path

import click
from rich import filesize

from idcfs import errors
from idcfs.cli.group import index_option, main
from idcfs.config import load_settings


@main.command("demo-mirror", short_help="Write the synthetic sample as a mirror.")
@click.argument("folder", type=click.Path(path_type=Path, readable=False))
@index_option
def demo_mirror(folder: Path, index: str | None) -> None:
    """Write the synthetic sample of about a dozen small series as a mirror into FOLDER.

    Mount it with: idcfs mount --mirror FOLDER
    """
    from idcfs.catalog.index import find_index
    from idcfs.demo import write_demo_mirror

    settings = load_settings({"index": index})
    try:
        summary = write_demo_mirror(folder, find_index(settings.index).tables["index"])
    except OSError as error:
        raise errors.UsageError(f"{folder}: {error.strerror}; choose a folder that you can write") from error
    click.echo(f"{summary.series} series, {summary.instances} files, {filesize.decimal(summary.bytes)} in {folder}")
