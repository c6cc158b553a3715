"""The request to the program that builds cohorts, and its answer; pure."""

from typing import Any, NamedTuple


class BuildCohort(NamedTuple):
    """A request to `idcfs.cohorts.build`, which makes the view of a text and reports `Bound` once the text is valid.

    `tables` maps names to parquet files; `memory` is in bytes; `text` is a file; `layout` is for a text without one;
    `series` is the table of all series; the view and its facts are written to `folder`. With `only_bind` the program
    ends once the text is known to be valid, and the facts are empty.
    """

    tables: dict[str, str]
    memory: int
    text: str
    layout: str
    series: str
    folder: str
    only_bind: bool


class Facts(NamedTuple):
    """The facts about a cohort's view (see `idcfs.cohorts.results`)."""

    facts: dict[str, Any]
