"""What the programs of the catalogue are asked, and what they report; pure."""

from typing import Any, NamedTuple


class Build(NamedTuple):
    """Build a part of a catalogue: `idcfs.catalog.build`, which reports each `Step`.

    `what` is "catalogue" (the table of all series and the main view), "view" or "attributes"; `folder` is the
    catalogue's; `tables` maps names to parquet files. A view is of the series that `select` names (see `selection`), in
    the layout `template`, and is written to the folder `view`.
    """

    what: str
    folder: str
    tables: dict[str, str]
    template: str = ""
    select: dict[str, Any] = {}  # noqa: RUF012  # never changed
    view: str = ""


class Step(NamedTuple):
    """A build goes on with something else, which `text` names for people."""

    text: str


class Query(NamedTuple):
    """Run a user's `sql`: `idcfs.catalog.query`, which reports `Bound` once the query is sound.

    `tables` maps names to parquet files; `memory` is in bytes; up to `limit` rows (None: all) are written to `result`,
    an Arrow file.
    """

    tables: dict[str, str]
    memory: int
    sql: str
    limit: int | None
    result: str


class Bound(NamedTuple):
    """The text is sound: it parses, its names exist, and it only reads."""
