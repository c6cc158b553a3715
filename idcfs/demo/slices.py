"""The demo's CT, MR and PT slices: one object each, together a volume.

The slices of a series are axial, equally spaced and numbered from the feet up.
"""

from typing import Any

from pydicom.dataset import Dataset

from idcfs.demo.modules import NOTE, TIME, code, content_time, frame_of_reference, item, new_object, pixels
from idcfs.demo.phantom import CHEST, HEAD, ROWS, TRUNK, Phantom
from idcfs.demo.selection import IndexedSeries

AXIAL = [1, 0, 0, 0, 1, 0]

_PHANTOMS = {"CT": CHEST, "MR": HEAD, "PT": TRUNK}

_MODALITIES: dict[str, dict[str, Any]] = {
    "CT": {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientPosition": "HFS",
        "KVP": 120,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": 40,
        "WindowWidth": 400,
    },
    "MR": {
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "PatientPosition": "HFS",
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 500,
        "EchoTime": 10,
        "EchoTrainLength": 1,
        "MagneticFieldStrength": 3,
        "SpacingBetweenSlices": HEAD.thickness,
        "WindowCenter": 450,
        "WindowWidth": 900,
    },
    "PT": {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "RescaleIntercept": 0,
        "RescaleSlope": 2,
        "FrameReferenceTime": 90_000,
        "ActualFrameDuration": 180_000,
        "DecayFactor": 1,
        "DoseCalibrationFactor": 1,
        "WindowCenter": 6000,
        "WindowWidth": 12000,
        "SeriesTime": TIME,
        "Units": "BQML",
        "CountsSource": "EMISSION",
        "SeriesType": ["STATIC", "IMAGE"],
        "CorrectedImage": ["DECY", "ATTN"],
        "DecayCorrection": "START",
        "AttenuationCorrectionMethod": "SYNTHETIC",
        "CollimatorType": "NONE",
        "PatientWeight": 70,
    },
}
"""The attributes that all slices of a modality have."""


def phantom_of(series: IndexedSeries) -> Phantom:
    """Return the phantom that a series of slices shows."""
    return _PHANTOMS[series.modality]


def slice_image(series: IndexedSeries, number: int) -> Dataset:
    """Return one slice."""
    phantom = phantom_of(series)
    position = phantom.position(number - 1)
    image = new_object(
        series,
        number,
        **frame_of_reference(series),
        **content_time(series),
        **pixels(ROWS, 16, phantom.pixels(number - 1, series.instance_count)),
        **_MODALITIES[series.modality],
        **(_pet(series, number) if series.modality == "PT" else {}),
        BodyPartExamined=series.body_part_examined,
        AcquisitionNumber=1,
        AcquisitionDate=series.content_date,
        AcquisitionTime=TIME,
        ImageComments=NOTE,
        PixelSpacing=[phantom.spacing, phantom.spacing],
        ImageOrientationPatient=AXIAL,
        ImagePositionPatient=position,
        SliceThickness=phantom.thickness,
        SliceLocation=position[2],
    )
    if not series.body_part_examined:
        image.Laterality = ""
    return image


def _pet(series: IndexedSeries, number: int) -> dict[str, Any]:
    """Return the attributes of a PT slice that depend on its series, or are sequences."""
    recumbent = code("102538003", "SCT", "recumbent")
    recumbent[0].PatientOrientationModifierCodeSequence = code("40199007", "SCT", "supine")
    return {
        "SeriesDate": series.content_date,
        "NumberOfSlices": series.instance_count,
        "ImageIndex": number,
        "PatientOrientationCodeSequence": recumbent,
        "PatientGantryRelationshipCodeSequence": code("102540008", "SCT", "headfirst"),
        "RadiopharmaceuticalInformationSequence": [
            item(
                Radiopharmaceutical="SYNTHETIC",
                RadiopharmaceuticalStartTime="110000",
                RadionuclideTotalDose=370_000_000,
                RadionuclideHalfLife=6586.2,
                RadionuclidePositronFraction=0.97,
                RadionuclideCodeSequence=code("77004003", "SCT", "^18^Fluorine"),
            )
        ],
    }
