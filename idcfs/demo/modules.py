"""The DICOM modules that all the demo's objects share, and the encoding of objects as files.

The values are those of the index; every free text says that it is synthetic. No file names the version of pydicom that
wrote it, so that all versions write the same bytes.
"""

import io
from typing import Any

from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from idcfs.demo.selection import IndexedSeries, synthetic_uid

PATIENT_NAME = "SYNTHETIC^IDCFS DEMO"
NOTE = "synthetic demo data, not a patient"
TIME = "120000"
"""The time of day wherever one is required."""

_IMPLEMENTATION_CLASS_UID = UID(synthetic_uid("implementation"))


def code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    """Return a code sequence of one item."""
    return [item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def item(**attributes: Any) -> Dataset:
    """Return a sequence item with these attributes."""
    result = Dataset()
    for keyword, value in attributes.items():
        setattr(result, keyword, value)
    return result


def reference(series: IndexedSeries, number: int) -> Dataset:
    """Return a reference to an instance."""
    return item(ReferencedSOPClassUID=series.sop_class_uid, ReferencedSOPInstanceUID=series.sop_instance_uid(number))


def new_object(series: IndexedSeries, number: int, **attributes: Any) -> Dataset:
    """Return an instance with these attributes and its patient, study, series, equipment and SOP common modules."""
    common: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": series.sop_class_uid,
        "SOPInstanceUID": series.sop_instance_uid(number),
        "InstanceNumber": number,
        "PatientName": PATIENT_NAME,
        "PatientID": series.patient_id,
        "PatientBirthDate": "",
        "PatientSex": series.patient_sex,
        "PatientAge": series.patient_age,
        "PatientComments": NOTE,
        "QualityControlSubject": "YES",
        "StudyInstanceUID": series.study_instance_uid,
        "StudyDate": series.study_date,
        "StudyTime": TIME,
        "StudyID": "DEMO",
        "StudyDescription": f"SYNTHETIC: {NOTE}",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesInstanceUID": series.series_instance_uid,
        "SeriesNumber": series.series_number,
        "SeriesDescription": f"SYNTHETIC {series.modality}: {NOTE}",
        "Modality": series.modality,
        "Manufacturer": "SYNTHETIC (idcfs demo)",
        "ManufacturerModelName": "SYNTHETIC idcfs demo",
        "DeviceSerialNumber": "SYNTHETIC",
        "SoftwareVersions": "1",
        "InstitutionName": "SYNTHETIC (idcfs demo)",
    }
    if series.series_date:
        common |= {"SeriesDate": series.series_date, "SeriesTime": TIME}
    return item(**(common | attributes))


def frame_of_reference(series: IndexedSeries, position_reference: str = "") -> dict[str, Any]:
    """Return the frame of reference module."""
    return {"FrameOfReferenceUID": series.frame_of_reference_uid, "PositionReferenceIndicator": position_reference}


def content_time(series: IndexedSeries) -> dict[str, Any]:
    """Return the date and time of the content."""
    return {"ContentDate": series.content_date, "ContentTime": TIME}


def pixels(side: int, bits: int, data: bytes, interpretation: str = "MONOCHROME2") -> dict[str, Any]:
    """Return the image pixel module of square frames with unsigned samples of *bits* bits."""
    return {
        "SamplesPerPixel": 3 if interpretation == "RGB" else 1,
        "PhotometricInterpretation": interpretation,
        "Rows": side,
        "Columns": side,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "PixelData": data,
    }


def dimensions(series: IndexedSeries, kind: str, indexes: dict[str, str]) -> dict[str, Any]:
    """Return the multi-frame dimension module; *indexes* has the keyword of each dimension's functional group."""
    organization = synthetic_uid("dimensions", series.crdc_series_uuid)
    return {
        "DimensionOrganizationType": kind,
        "DimensionOrganizationSequence": [item(DimensionOrganizationUID=organization)],
        "DimensionIndexSequence": [
            item(
                DimensionOrganizationUID=organization,
                DimensionIndexPointer=Tag(pointer),
                FunctionalGroupPointer=Tag(group),
                DimensionDescriptionLabel=pointer,
            )
            for pointer, group in indexes.items()
        ],
    }


def encode(instance: Dataset, series: IndexedSeries) -> bytes:
    """Return the file of an object; Explicit VR Little Endian replaces a compressed transfer syntax."""
    implicit = series.transfer_syntax_uid == ImplicitVRLittleEndian
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(series.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = "IDCFS_DEMO_1"
    instance.file_meta = meta
    file = io.BytesIO()
    dcmwrite(file, instance, enforce_file_format=True)
    return file.getvalue()
