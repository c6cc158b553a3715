"""Chooses series of the installed index; loads duckdb, so it is called in a child process."""

from pathlib import Path
from typing import NamedTuple

from idcfs.catalog.index import find_index
from idcfs.layout import PLAIN_COMPONENT


class SeriesRow(NamedTuple):
    """A series: its identifier, the number of its instances, its bucket, and its folder in the default layout."""

    uuid: str
    instances: int
    bucket: str
    folder: Path


def find_series(condition: str, order: str = "crdc_series_uuid", limit: int = 1) -> list[SeriesRow]:
    """The first *limit* series for which *condition* is true, in *order*; both are SQL, in which `series` is the index.

    Raises:
        LookupError: there is none.
    """
    import duckdb

    index = str(find_index().tables["index"])
    rows = duckdb.execute(
        f"""WITH series AS (FROM read_parquet($index))
        SELECT crdc_series_uuid, instanceCount, aws_bucket,
            concat_ws('/', collection_id, PatientID, StudyInstanceUID, Modality || '_' || SeriesInstanceUID)
        FROM series
        WHERE {condition} AND regexp_full_match(PatientID, $plain) ORDER BY {order}, crdc_series_uuid LIMIT {limit}""",
        {"index": index, "plain": PLAIN_COMPONENT},
    ).fetchall()
    if not rows:
        raise LookupError(f"no series matches {condition}")
    return [SeriesRow(uuid, instances, bucket, Path(folder)) for uuid, instances, bucket, folder in rows]
