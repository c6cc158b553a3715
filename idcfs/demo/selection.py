"""The series of the Imaging Data Commons that the demo imitates, and their values in the index.

Names and UIDs of instances depend on the series and the instance's number alone: no randomness, no clock.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from idcfs.errors import IndexUnusable

DEMO_SERIES = (
    # eay131, EAY131-9659014, one study: a neck CT, its segmentation, its structure set
    "527a5965-9a10-477b-863a-3597081538a4",
    "b825439e-50fe-4447-a860-ff3301b0c295",
    "e0320622-1ae0-4bfd-bbe4-e59748c3fced",
    # nlst, 209385, one study: a chest CT, its segmentation, two reports of measurements
    "0c697e68-13e8-453b-bef7-d2c0af445f65",
    "88379592-3f93-4ff7-a1ab-3b7c334ba8b5",
    "a153abb4-ed73-40d3-8042-98cb931c0dc7",
    "b3050427-9d72-47bc-b2bd-5cef7a460c93",
    # upenn_gbm, UPENN-GBM-00309, one study: a head MR and its segmentation
    "3528931f-75ed-49e7-a98b-84704208e5b1",
    "c4136534-d280-4c39-b199-5ecf4fecea7f",
    # anti_pd_1_lung, PD-1-Lung-00032: a PT in idc-open-data-two
    "ff086bac-269b-40de-abb0-6a1e28250b8e",
    # midrc_ricord_1b: a CT in idc-open-data-cr. The licence of that bucket, CC BY-NC, is that of the true images; the
    # demo's are made up.
    "98ec51e4-fbb4-4dc9-80db-8857aa20dc27",
    # gtex, GTEX-17HHY: a slide in four resolutions
    "0dd042f4-35ba-43ce-89f6-e1e07dafdab2",
)

SOURCES = {
    "b825439e-50fe-4447-a860-ff3301b0c295": "527a5965-9a10-477b-863a-3597081538a4",
    "e0320622-1ae0-4bfd-bbe4-e59748c3fced": "527a5965-9a10-477b-863a-3597081538a4",
    "88379592-3f93-4ff7-a1ab-3b7c334ba8b5": "0c697e68-13e8-453b-bef7-d2c0af445f65",
    "a153abb4-ed73-40d3-8042-98cb931c0dc7": "0c697e68-13e8-453b-bef7-d2c0af445f65",
    "b3050427-9d72-47bc-b2bd-5cef7a460c93": "0c697e68-13e8-453b-bef7-d2c0af445f65",
    "c4136534-d280-4c39-b199-5ecf4fecea7f": "3528931f-75ed-49e7-a98b-84704208e5b1",
}
"""The image series that each derived series (segmentation, structure set, report) was made from."""

_COLUMNS = [
    "crdc_series_uuid", "aws_bucket", "PatientID", "PatientAge", "PatientSex", "StudyInstanceUID", "StudyDate",
    "SeriesInstanceUID", "SeriesDate", "SeriesNumber", "Modality", "BodyPartExamined", "SOPClassUID",
    "TransferSyntaxUID", "instanceCount",
]  # fmt: skip
"""The columns of the index that an `IndexedSeries` has, in the order of its fields."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "demo.idcfs")


def synthetic_uid(*parts: object) -> str:
    """Return a UID that depends on these parts alone."""
    return f"2.25.{_synthetic_uuid(*parts).int}"


def _synthetic_uuid(*parts: object) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, "/".join(map(str, parts)))


@dataclass(frozen=True, slots=True)
class IndexedSeries:
    """A series as the index has it. Missing values are empty, dates are as in DICOM; instances are numbered from 1."""

    crdc_series_uuid: str
    aws_bucket: str
    patient_id: str
    patient_age: str
    patient_sex: str
    study_instance_uid: str
    study_date: str
    series_instance_uid: str
    series_date: str
    series_number: str
    modality: str
    body_part_examined: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_count: int

    @property
    def content_date(self) -> str:
        """The date of what must have one, even where the index has none."""
        return self.series_date or self.study_date or "20000101"

    @property
    def frame_of_reference_uid(self) -> str:
        """The coordinate system, which all series of a study share."""
        return synthetic_uid("frame of reference", self.study_instance_uid)

    def file_name(self, number: int) -> str:
        """Return the instance's name in the bucket."""
        return f"{_synthetic_uuid('file', self.crdc_series_uuid, number)}.dcm"

    def sop_instance_uid(self, number: int) -> str:
        """Return the instance's UID."""
        return synthetic_uid("instance", self.crdc_series_uuid, number)


def read_series(index_parquet: Path) -> tuple[IndexedSeries, ...]:
    """Return the demo's series that the index has, in the order of `DEMO_SERIES`.

    A derived series whose source is missing is left out, because it would refer to nothing.

    Raises:
        IndexUnusable: the index cannot be read or has none of the series.
    """
    try:
        table = pyarrow.parquet.read_table(
            index_parquet,
            columns=_COLUMNS,
            filters=[("crdc_series_uuid", "in", list(DEMO_SERIES))],
        )
        rows = {row["crdc_series_uuid"]: row for row in table.to_pylist()}
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        message = f"cannot read the index {index_parquet}: {error}; reinstall idc-index-data"
        raise IndexUnusable(" ".join(message.split())) from error
    found = tuple(
        _indexed_series(rows[series])
        for series in DEMO_SERIES
        if series in rows and SOURCES.get(series, series) in rows
    )
    if not found:
        raise IndexUnusable(f"the index {index_parquet} has none of the demo's series; upgrade idc-index-data")
    return found


def _indexed_series(row: dict[str, Any]) -> IndexedSeries:
    values: dict[str, Any] = {column: "" if row[column] is None else row[column] for column in _COLUMNS}
    for column in ("StudyDate", "SeriesDate"):
        values[column] = values[column].replace("-", "")
    return IndexedSeries(*values.values())
