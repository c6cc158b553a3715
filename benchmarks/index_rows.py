"""Series of the installed index to measure with; loads duckdb, so it is called in a child process."""

from pathlib import Path
from typing import NamedTuple

from idcfs.catalog.index import find_index
from idcfs.layout import PLAIN_COMPONENT


class SeriesRow(NamedTuple):
    """A series: its identifier, the number of its instances, and its folder in the default layout."""

    uuid: str
    instances: int
    folder: Path


def largest_series() -> SeriesRow:
    """The series with the most instances."""
    return _first("TRUE", "instanceCount DESC")


def series_of(modality: str, instances: int) -> SeriesRow:
    """A series of a modality with so many instances."""
    return _first(f"Modality = '{modality}' AND instanceCount = {instances}", "crdc_series_uuid")


def _first(condition: str, order: str) -> SeriesRow:
    import duckdb

    index = str(find_index().tables["index"])
    row = duckdb.execute(
        f"""SELECT crdc_series_uuid, instanceCount,
            concat_ws('/', collection_id, PatientID, StudyInstanceUID, Modality || '_' || SeriesInstanceUID)
        FROM read_parquet($index)
        WHERE {condition} AND regexp_full_match(PatientID, $plain) ORDER BY {order}, crdc_series_uuid LIMIT 1""",
        {"index": index, "plain": PLAIN_COMPONENT},
    ).fetchone()
    assert row is not None, f"no series has {condition}"
    return SeriesRow(row[0], row[1], Path(row[2]))
