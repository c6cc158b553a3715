"""The demo's CT, MR and PT slices: one object each, together a volume.

The slices of a series are axial, equally spaced and numbered from the feet up.
"""

from collections.abc import Callable

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from idcfs.demo.modules import (
    NOTE,
    TIME,
    add_content_time,
    add_frame_of_reference,
    code,
    dicom_date,
    item,
    new_object,
)
from idcfs.demo.phantom import CHEST, COLUMNS, HEAD, ROWS, TRUNK, Phantom
from idcfs.demo.selection import IndexedSeries

AXIAL = [1, 0, 0, 0, 1, 0]

_PHANTOMS: dict[str, Phantom] = {
    CTImageStorage: CHEST,
    MRImageStorage: HEAD,
    PositronEmissionTomographyImageStorage: TRUNK,
}


def phantom_of(series: IndexedSeries) -> Phantom:
    """Return the phantom that a series of slices shows."""
    return _PHANTOMS[series.sop_class_uid]


def slice_image(series: IndexedSeries, number: int) -> Dataset:
    """Return one slice."""
    phantom = phantom_of(series)
    image = new_object(series, number)
    add_frame_of_reference(image, series)
    add_content_time(image, series)
    image.BodyPartExamined = series.body_part_examined
    if not series.body_part_examined:
        image.Laterality = ""
    image.AcquisitionNumber = 1
    image.AcquisitionDate = dicom_date(series.content_date)
    image.AcquisitionTime = TIME
    image.ImageComments = NOTE
    _add_plane(image, phantom, number - 1)
    _add_pixels(image, phantom.pixels(number - 1, series.instance_count))
    _ADD_MODALITY[series.sop_class_uid](image, series, number)
    return image


def _add_plane(image: Dataset, phantom: Phantom, index: int) -> None:
    position = phantom.position(index)
    image.PixelSpacing = [phantom.spacing, phantom.spacing]
    image.ImageOrientationPatient = AXIAL
    image.ImagePositionPatient = position
    image.SliceThickness = phantom.thickness
    image.SliceLocation = position[2]


def _add_pixels(image: Dataset, pixels: bytes) -> None:
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows = ROWS
    image.Columns = COLUMNS
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = 0
    image.PixelData = pixels


def _add_ct(image: Dataset, series: IndexedSeries, number: int) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PatientPosition = "HFS"
    image.KVP = 120
    image.RescaleIntercept = -1024
    image.RescaleSlope = 1
    image.RescaleType = "HU"
    image.WindowCenter = 40
    image.WindowWidth = 400


def _add_mr(image: Dataset, series: IndexedSeries, number: int) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    image.PatientPosition = "HFS"
    image.ScanningSequence = "SE"
    image.SequenceVariant = "NONE"
    image.ScanOptions = ""
    image.MRAcquisitionType = "2D"
    image.RepetitionTime = 500
    image.EchoTime = 10
    image.EchoTrainLength = 1
    image.MagneticFieldStrength = 3
    image.SpacingBetweenSlices = image.SliceThickness
    image.WindowCenter = 450
    image.WindowWidth = 900


def _add_pt(image: Dataset, series: IndexedSeries, number: int) -> None:
    _add_pt_series(image, series)
    image.ImageType = ["ORIGINAL", "PRIMARY"]
    image.RescaleIntercept = 0
    image.RescaleSlope = 2
    image.FrameReferenceTime = 90_000
    image.ActualFrameDuration = 180_000
    image.DecayFactor = 1
    image.DoseCalibrationFactor = 1
    image.ImageIndex = number
    image.WindowCenter = 6000
    image.WindowWidth = 12000


def _add_pt_series(image: Dataset, series: IndexedSeries) -> None:
    image.SeriesDate = dicom_date(series.content_date)
    image.SeriesTime = TIME
    image.Units = "BQML"
    image.CountsSource = "EMISSION"
    image.SeriesType = ["STATIC", "IMAGE"]
    image.NumberOfSlices = series.instance_count
    image.CorrectedImage = ["DECY", "ATTN"]
    image.DecayCorrection = "START"
    image.AttenuationCorrectionMethod = "SYNTHETIC"
    image.CollimatorType = "NONE"
    image.PatientWeight = 70
    image.PatientOrientationCodeSequence = code("102538003", "SCT", "recumbent")
    image.PatientOrientationCodeSequence[0].PatientOrientationModifierCodeSequence = code("40199007", "SCT", "supine")
    image.PatientGantryRelationshipCodeSequence = code("102540008", "SCT", "headfirst")
    image.RadiopharmaceuticalInformationSequence = [
        item(
            Radiopharmaceutical="SYNTHETIC",
            RadiopharmaceuticalStartTime="110000",
            RadionuclideTotalDose=370_000_000,
            RadionuclideHalfLife=6586.2,
            RadionuclidePositronFraction=0.97,
            RadionuclideCodeSequence=code("77004003", "SCT", "^18^Fluorine"),
        )
    ]


_ADD_MODALITY: dict[str, Callable[[Dataset, IndexedSeries, int], None]] = {
    CTImageStorage: _add_ct,
    MRImageStorage: _add_mr,
    PositronEmissionTomographyImageStorage: _add_pt,
}
