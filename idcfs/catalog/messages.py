"""The requests to the programs of the catalogue, and their reports; pure."""

from typing import Any, NamedTuple


class Build(NamedTuple):
    """A request to `idcfs.catalog.build`, which builds a part of a catalogue and reports each `Step`.

    `what` is "catalogue" (the table of all series and the main view), "view" or "attributes"; `folder` is the
    catalogue's; `tables` maps names to parquet files. A view has the series that `select` names (see `selection`), in
    the layout `template`, and is written to the folder `view`.
    """

    what: str
    folder: str
    tables: dict[str, str]
    template: str = ""
    select: dict[str, Any] = {}  # noqa: RUF012  # never changed
    view: str = ""


class Step(NamedTuple):
    """A report that the next step of a build begins; `text` describes the step for people."""

    text: str


class Query(NamedTuple):
    """A request to `idcfs.catalog.query`, which runs a user's `sql` and reports `Bound` once it is known to be valid.

    `tables` maps names to parquet files; `memory` is in bytes; up to `limit` rows (None: all) are written to `result`,
    an Arrow file.
    """

    tables: dict[str, str]
    memory: int
    sql: str
    limit: int | None
    result: str


class Bound(NamedTuple):
    """A report that a text is valid: it parses, its names exist, and it only reads."""
