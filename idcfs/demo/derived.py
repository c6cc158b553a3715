"""The demo's derived objects: segmentation, structure set and structured report of a series of slices.

Each outlines or measures the lesion of its source's phantom, and refers to the source's instances by their UIDs, so
that a viewer can lay it over the slices.
"""

from collections.abc import Iterable

from pydicom.dataset import Dataset

from idcfs.demo.modules import (
    NOTE,
    PATIENT_NAME,
    TIME,
    add_content_time,
    add_dimensions,
    add_frame_of_reference,
    code,
    dicom_date,
    item,
    new_object,
    reference,
)
from idcfs.demo.phantom import COLUMNS, ROWS
from idcfs.demo.selection import IndexedSeries
from idcfs.demo.slices import AXIAL, phantom_of


def segmentation(series: IndexedSeries, number: int, source: IndexedSeries) -> Dataset:
    """Return a binary segmentation with one segment."""
    phantom = phantom_of(source)
    slices = phantom.lesion_slices(source.instance_count)
    image = new_object(series, number)
    image.SeriesNumber = series.series_number or 1
    add_frame_of_reference(image, series)
    add_content_time(image, series)
    image.BodyPartExamined = series.body_part_examined
    image.ImageType = ["DERIVED", "PRIMARY"]
    image.ContentLabel = "SYNTHETIC"
    image.ContentDescription = NOTE
    image.ContentCreatorName = PATIENT_NAME
    image.LossyImageCompression = "00"
    image.BurnedInAnnotation = "NO"
    image.SegmentationType = "BINARY"
    image.SegmentsOverlap = "NO"
    image.SegmentSequence = [_segment()]
    indexes = {
        "ReferencedSegmentNumber": "SegmentIdentificationSequence",
        "ImagePositionPatient": "PlanePositionSequence",
    }
    add_dimensions(image, series, "3D", indexes)
    _add_functional_groups(image, source, slices)
    image.ReferencedSeriesSequence = [
        item(
            SeriesInstanceUID=source.series_instance_uid,
            ReferencedInstanceSequence=[reference(source, index + 1) for index in slices],
        )
    ]
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.NumberOfFrames = len(slices)
    image.Rows = ROWS
    image.Columns = COLUMNS
    image.BitsAllocated = image.BitsStored = 1
    image.HighBit = 0
    image.PixelRepresentation = 0
    image.PixelData = b"".join(phantom.lesion_mask(index, source.instance_count) for index in slices)
    return image


def _segment() -> Dataset:
    return item(
        SegmentNumber=1,
        SegmentLabel="SYNTHETIC lesion",
        SegmentDescription=NOTE,
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName="idcfs demo",
        SegmentedPropertyCategoryCodeSequence=code("49755003", "SCT", "Morphologically Altered Structure"),
        SegmentedPropertyTypeCodeSequence=code("52988006", "SCT", "Lesion"),
        RecommendedDisplayCIELabValue=[34885, 53485, 50171],
    )


def _add_functional_groups(image: Dataset, source: IndexedSeries, slices: list[int]) -> None:
    phantom = phantom_of(source)
    image.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[
                item(
                    PixelSpacing=[phantom.spacing, phantom.spacing],
                    SliceThickness=phantom.thickness,
                    SpacingBetweenSlices=phantom.thickness,
                )
            ],
            PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)],
        )
    ]
    image.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(DimensionIndexValues=[1, frame])],
            PlanePositionSequence=[item(ImagePositionPatient=phantom.position(index))],
            DerivationImageSequence=[_derivation(source, index + 1)],
        )
        for frame, index in enumerate(slices, start=1)
    ]


def _derivation(source: IndexedSeries, number: int) -> Dataset:
    image = reference(source, number)
    image.PurposeOfReferenceCodeSequence = code("121322", "DCM", "Source image for image processing operation")
    return item(
        DerivationCodeSequence=code("113076", "DCM", "Segmentation"),
        SourceImageSequence=[image],
    )


def structure_set(series: IndexedSeries, number: int, source: IndexedSeries) -> Dataset:
    """Return a structure set with one region of interest."""
    phantom = phantom_of(source)
    slices = phantom.lesion_slices(source.instance_count)
    structures = new_object(series, number)
    structures.OperatorsName = ""
    add_frame_of_reference(structures, series)
    structures.StructureSetLabel = "SYNTHETIC"
    structures.StructureSetName = NOTE
    structures.StructureSetDate = dicom_date(series.content_date)
    structures.StructureSetTime = TIME
    structures.ApprovalStatus = "UNAPPROVED"
    structures.ReferencedFrameOfReferenceSequence = [_referenced_frame_of_reference(source, slices)]
    structures.StructureSetROISequence = [
        item(
            ROINumber=1,
            ReferencedFrameOfReferenceUID=source.frame_of_reference_uid,
            ROIName="SYNTHETIC lesion",
            ROIDescription=NOTE,
            ROIGenerationAlgorithm="AUTOMATIC",
        )
    ]
    structures.ROIContourSequence = [
        item(
            ReferencedROINumber=1,
            ROIDisplayColor=[255, 0, 0],
            ContourSequence=[_contour(source, index) for index in slices],
        )
    ]
    structures.RTROIObservationsSequence = [
        item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="", ROIInterpreter="")
    ]
    return structures


def _referenced_frame_of_reference(source: IndexedSeries, slices: Iterable[int]) -> Dataset:
    series = item(
        SeriesInstanceUID=source.series_instance_uid,
        ContourImageSequence=[reference(source, index + 1) for index in slices],
    )
    study = item(
        # Detached Study Management: retired, but required by the attribute's definition
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=source.study_instance_uid,
        RTReferencedSeriesSequence=[series],
    )
    return item(FrameOfReferenceUID=source.frame_of_reference_uid, RTReferencedStudySequence=[study])


def _contour(source: IndexedSeries, index: int) -> Dataset:
    points = phantom_of(source).lesion_contour(index, source.instance_count)
    return item(
        ContourNumber=index + 1,
        ContourImageSequence=[reference(source, index + 1)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points) // 3,
        ContourData=points,
    )


def report(series: IndexedSeries, number: int, source: IndexedSeries) -> Dataset:
    """Return a structured report with one measurement."""
    evidence = reference(source, phantom_of(source).lesion_slices(source.instance_count)[0] + 1)
    document = new_object(series, number)
    document.SeriesNumber = series.series_number or 1
    add_content_time(document, series)
    document.ReferencedPerformedProcedureStepSequence = []
    document.PerformedProcedureCodeSequence = []
    document.CompletionFlag = "COMPLETE"
    document.VerificationFlag = "UNVERIFIED"
    document.ValueType = "CONTAINER"
    document.ContinuityOfContent = "SEPARATE"
    document.ConceptNameCodeSequence = code("126000", "DCM", "Imaging Measurement Report")
    document.CurrentRequestedProcedureEvidenceSequence = [
        item(
            StudyInstanceUID=source.study_instance_uid,
            ReferencedSeriesSequence=[
                item(
                    SeriesInstanceUID=source.series_instance_uid,
                    ReferencedSOPSequence=[evidence],
                )
            ],
        )
    ]
    document.ContentSequence = [
        item(
            RelationshipType="HAS CONCEPT MOD",
            ValueType="CODE",
            ConceptNameCodeSequence=code("121049", "DCM", "Language of Content Item and Descendants"),
            ConceptCodeSequence=code("en", "RFC5646", "English"),
        ),
        item(
            RelationshipType="CONTAINS",
            ValueType="TEXT",
            ConceptNameCodeSequence=code("121106", "DCM", "Comment"),
            TextValue=f"SYNTHETIC: {NOTE}",
        ),
        _volume(source, evidence),
    ]
    return document


def _volume(source: IndexedSeries, evidence: Dataset) -> Dataset:
    return item(
        RelationshipType="CONTAINS",
        ValueType="NUM",
        ConceptNameCodeSequence=code("118565006", "SCT", "Volume"),
        MeasuredValueSequence=[
            item(
                NumericValue=phantom_of(source).lesion_volume(source.instance_count),
                MeasurementUnitsCodeSequence=code("mm3", "UCUM", "cubic millimeter"),
            )
        ],
        ContentSequence=[
            item(
                RelationshipType="INFERRED FROM",
                ValueType="IMAGE",
                ReferencedSOPSequence=[evidence],
            )
        ],
    )
