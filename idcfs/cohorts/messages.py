"""What the program that builds cohorts is asked, and what it answers; pure."""

from typing import Any, NamedTuple


class BuildCohort(NamedTuple):
    """Build the series that a cohort's text names: `idcfs.cohorts.build`, which reports `Bound` once that is sound.

    `tables` maps names to parquet files; `memory` is in bytes; `text` is a file; `layout` is for a text without one;
    `series` is the table of all series; the view and its facts are written to `folder`. With `only_bind` the program
    ends once the text is known to be sound, and the facts are empty.
    """

    tables: dict[str, str]
    memory: int
    text: str
    layout: str
    series: str
    folder: str
    only_bind: bool


class Facts(NamedTuple):
    """What is known of a cohort's view (see `idcfs.cohorts.results`)."""

    facts: dict[str, Any]
