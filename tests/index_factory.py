"""Small generated indexes with the real ones' columns, and mirrors (in memory, in a folder) that match them.

    rows = [Row("nlst", "p1"), Row("nlst", "p2", modality="SR", instances=1)]
    index = make_index(tmp_path, rows, prior=[PriorRow("nlst", "p0", first=1, last=2)])
    fill_store(MemoryStore(), rows)  # or write_mirror(folder, rows)

What an instance is called and holds follows from its series' UUID, so it is the same in every mirror and run.
"""

import random
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import trio

from idcfs.catalog.catalogue import open_catalogue
from idcfs.catalog.index import Index, find_index
from tests.memory_store import MemoryStore

RELEASES = {1: "2020-06-01", 2: "2021-04-10", 3: "2021-07-13"}

_NAMESPACE = uuid.UUID("1dcf5000-0000-4000-8000-000000000000")


def _schema(columns: str) -> pa.Schema:
    kinds = {"series_size_MB": pa.float64(), "instanceCount": pa.int64()}
    return pa.schema(
        [
            (name, kinds.get(name, pa.int64() if name.endswith("_idc_version") else pa.string()))
            for name in columns.split()
        ]
    )


INDEX_SCHEMA = _schema(
    """collection_id analysis_result_id PatientID SeriesInstanceUID StudyInstanceUID source_DOI PatientAge
    PatientSex StudyDate StudyDescription BodyPartExamined Modality SOPClassUID sop_class_name TransferSyntaxUID
    transfer_syntax_name PhotometricInterpretation PixelRepresentation Manufacturer ManufacturerModelName
    SeriesDate SeriesDescription SeriesNumber instanceCount license_short_name series_init_idc_version
    series_revised_idc_version aws_bucket crdc_series_uuid series_aws_url series_size_MB"""
)
PRIOR_SCHEMA = _schema(
    """collection_id PatientID SeriesInstanceUID StudyInstanceUID Modality gcs_bucket crdc_series_uuid
    series_size_MB series_aws_url aws_bucket min_idc_version max_idc_version"""
)


@dataclass(frozen=True)
class Row:
    """A series of today's index.

    What is left empty is made of what is above it, so that rows with different identifiers are different series.
    Two that are to share a whole path need different `uuid`s (see `make_uuid`).

    Attributes:
        sizes: of its instances, in bytes.
        revised: the IDC version since which it is as it is.
        columns: any other of the index's columns.
    """

    collection: str | None = "collection"
    patient: str | None = "patient"
    study: str | None = ""
    series: str | None = ""
    modality: str | None = "CT"
    uuid: str = ""
    bucket: str = "idc-open-data"
    sizes: tuple[int, ...] = (700, 1300)
    revised: int = 1
    analysis_result: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        above = [self.collection, self.patient]
        for name in ("study", "series", "uuid"):
            if getattr(self, name) == "":
                value = make_uuid(name, *above)
                # A UID may be made of a UUID (PS3.5 §B.2).
                object.__setattr__(self, name, value if name == "uuid" else f"2.25.{uuid.UUID(value).int}")
            above += [getattr(self, name), self.modality]

    def record(self) -> dict[str, Any]:
        """The row of the parquet file."""
        return {
            "collection_id": self.collection,
            "analysis_result_id": self.analysis_result,
            "PatientID": self.patient,
            "StudyInstanceUID": self.study,
            "SeriesInstanceUID": self.series,
            "Modality": self.modality,
            "PatientAge": "061Y",
            "PatientSex": "F",
            "StudyDate": "1999-12-31",
            "StudyDescription": "Thorax",
            "SeriesDescription": "axial",
            "instanceCount": len(self.sizes),
            "series_init_idc_version": self.revised,
            "series_revised_idc_version": self.revised,
            "aws_bucket": self.bucket,
            "crdc_series_uuid": self.uuid,
            "series_aws_url": f"s3://{self.bucket}/{self.uuid}/*",
            "series_size_MB": sum(self.sizes) / 1e6,
            **self.columns,
        }


@dataclass(frozen=True)
class PriorRow(Row):
    """A series of earlier IDC versions, the *first* to the *last*."""

    first: int = 1
    last: int = 1

    def __post_init__(self) -> None:
        if not self.uuid:
            # Of the same identifiers as today's, but another series.
            words = self.collection, self.patient, self.study, self.series, self.modality, self.first, self.last
            object.__setattr__(self, "uuid", make_uuid("prior", *words))
        super().__post_init__()

    def record(self) -> dict[str, Any]:
        row = super().record()
        kept = {name: row[name] for name in PRIOR_SCHEMA.names if name in row}
        return {**kept, "gcs_bucket": self.bucket, "min_idc_version": self.first, "max_idc_version": self.last}


class Instance(NamedTuple):
    """A file of a series."""

    name: str
    content: bytes


def make_uuid(*words: object) -> str:
    """A UUID that follows from *words*."""
    return str(uuid.uuid5(_NAMESPACE, repr(words)))


def make_index(
    folder: Path, rows: Iterable[Row], prior: Iterable[PriorRow] = (), releases: Mapping[int, str] = RELEASES
) -> Index:
    """Write an index of *rows* into *folder*, created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    collections = sorted({row.collection for row in rows if row.collection})
    tables = {
        "idc_index": pa.Table.from_pylist([row.record() for row in rows], INDEX_SCHEMA),
        "prior_versions_index": pa.Table.from_pylist([row.record() for row in prior], PRIOR_SCHEMA),
        "version_metadata_index": pa.table(
            {"idc_version": list(releases), "version_timestamp": list(releases.values())},
            pa.schema([("idc_version", pa.int64()), ("version_timestamp", pa.string())]),
        ),
        "collections_index": pa.table({"collection_id": collections, "collection_name": collections}),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return find_index(folder)


def instances(row: Row) -> list[Instance]:
    """The files of a series in name order; which has which of its sizes is as random as the names are."""
    named = ((f"{make_uuid(row.uuid, number)}.dcm", size) for number, size in enumerate(row.sizes))
    return [Instance(name, content(name, size)) for name, size in sorted(named)]


def content(name: str, size: int) -> bytes:
    """The bytes of the instance called *name*."""
    return random.Random(name).randbytes(size)


def objects(rows: Iterable[Row]) -> Iterator[tuple[str, str, bytes]]:
    """Bucket, key and bytes of every instance."""
    for row in rows:
        for instance in instances(row):
            yield row.bucket, f"{row.uuid}/{instance.name}", instance.content


def build_catalogue(folder: Path, index: Index) -> Path:
    """Build the catalogue of an index, attributes included, in a cache folder, and return that."""

    async def build() -> None:
        async with open_catalogue(folder, index) as catalogue:
            await catalogue.attributes_file()

    trio.run(build)
    return folder


def fill_store(store: MemoryStore, rows: Iterable[Row]) -> MemoryStore:
    """Put all instances into *store*, and return it."""
    for bucket, key, data in objects(rows):
        store.put(bucket, key, data)
    return store


def write_mirror(folder: Path, rows: Iterable[Row]) -> Path:
    """Write all instances into a folder mirror, and return it."""
    for bucket, key, data in objects(rows):
        path = folder / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
