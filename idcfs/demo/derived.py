"""The demo's derived objects: segmentation, structure set and structured report of a series of slices.

Each outlines or measures the lesion of its source's phantom, and refers to the source's instances by their UIDs, so
that a viewer can lay it over the slices.
"""

from pydicom.dataset import Dataset

from idcfs.demo.modules import (
    NOTE,
    PATIENT_NAME,
    TIME,
    code,
    content_time,
    dimensions,
    frame_of_reference,
    item,
    new_object,
    pixels,
    reference,
)
from idcfs.demo.phantom import ROWS
from idcfs.demo.selection import IndexedSeries
from idcfs.demo.slices import AXIAL, phantom_of

_SEGMENTATION_DIMENSIONS = {
    "ReferencedSegmentNumber": "SegmentIdentificationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
}


def segmentation(series: IndexedSeries, number: int, source: IndexedSeries) -> Dataset:
    """Return a binary segmentation with one segment."""
    phantom = phantom_of(source)
    slices = phantom.lesion_slices(source.instance_count)
    masks = [phantom.lesion_mask(index, source.instance_count) for index in slices]
    segment = item(
        SegmentNumber=1,
        SegmentLabel="SYNTHETIC lesion",
        SegmentDescription=NOTE,
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName="idcfs demo",
        SegmentedPropertyCategoryCodeSequence=code("49755003", "SCT", "Morphologically Altered Structure"),
        SegmentedPropertyTypeCodeSequence=code("52988006", "SCT", "Lesion"),
        RecommendedDisplayCIELabValue=[34885, 53485, 50171],
    )
    measures = item(
        PixelSpacing=[phantom.spacing, phantom.spacing],
        SliceThickness=phantom.thickness,
        SpacingBetweenSlices=phantom.thickness,
    )
    return new_object(
        series,
        number,
        **frame_of_reference(series),
        **content_time(series),
        **dimensions(series, "3D", _SEGMENTATION_DIMENSIONS),
        **pixels(ROWS, 1, b"".join(masks)),
        SeriesNumber=series.series_number or 1,
        BodyPartExamined=series.body_part_examined,
        ImageType=["DERIVED", "PRIMARY"],
        ContentLabel="SYNTHETIC",
        ContentDescription=NOTE,
        ContentCreatorName=PATIENT_NAME,
        LossyImageCompression="00",
        BurnedInAnnotation="NO",
        SegmentationType="BINARY",
        SegmentsOverlap="NO",
        SegmentSequence=[segment],
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[measures],
                PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)],
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)],
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            item(
                FrameContentSequence=[item(DimensionIndexValues=[1, frame])],
                PlanePositionSequence=[item(ImagePositionPatient=phantom.position(index))],
                DerivationImageSequence=[_derivation(source, index + 1)],
            )
            for frame, index in enumerate(slices, start=1)
        ],
        ReferencedSeriesSequence=[
            item(
                SeriesInstanceUID=source.series_instance_uid,
                ReferencedInstanceSequence=[reference(source, index + 1) for index in slices],
            )
        ],
        NumberOfFrames=len(slices),
    )


def _derivation(source: IndexedSeries, number: int) -> Dataset:
    image = reference(source, number)
    image.PurposeOfReferenceCodeSequence = code("121322", "DCM", "Source image for image processing operation")
    return item(DerivationCodeSequence=code("113076", "DCM", "Segmentation"), SourceImageSequence=[image])


def structure_set(series: IndexedSeries, number: int, source: IndexedSeries) -> Dataset:
    """Return a structure set with one region of interest."""
    slices = phantom_of(source).lesion_slices(source.instance_count)
    referenced_series = item(
        SeriesInstanceUID=source.series_instance_uid,
        ContourImageSequence=[reference(source, index + 1) for index in slices],
    )
    referenced_study = item(
        # Detached Study Management: retired, but required by the attribute's definition
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=source.study_instance_uid,
        RTReferencedSeriesSequence=[referenced_series],
    )
    region = item(
        ROINumber=1,
        ReferencedFrameOfReferenceUID=source.frame_of_reference_uid,
        ROIName="SYNTHETIC lesion",
        ROIDescription=NOTE,
        ROIGenerationAlgorithm="AUTOMATIC",
    )
    contours = [_contour(source, index) for index in slices]
    return new_object(
        series,
        number,
        **frame_of_reference(series),
        OperatorsName="",
        StructureSetLabel="SYNTHETIC",
        StructureSetName=NOTE,
        StructureSetDate=series.content_date,
        StructureSetTime=TIME,
        ApprovalStatus="UNAPPROVED",
        ReferencedFrameOfReferenceSequence=[
            item(FrameOfReferenceUID=source.frame_of_reference_uid, RTReferencedStudySequence=[referenced_study])
        ],
        StructureSetROISequence=[region],
        ROIContourSequence=[item(ReferencedROINumber=1, ROIDisplayColor=[255, 0, 0], ContourSequence=contours)],
        RTROIObservationsSequence=[
            item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="", ROIInterpreter="")
        ],
    )


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
    phantom = phantom_of(source)
    evidence = reference(source, phantom.lesion_slices(source.instance_count)[0] + 1)
    evidence_series = item(SeriesInstanceUID=source.series_instance_uid, ReferencedSOPSequence=[evidence])
    language = item(
        RelationshipType="HAS CONCEPT MOD",
        ValueType="CODE",
        ConceptNameCodeSequence=code("121049", "DCM", "Language of Content Item and Descendants"),
        ConceptCodeSequence=code("en", "RFC5646", "English"),
    )
    comment = item(
        RelationshipType="CONTAINS",
        ValueType="TEXT",
        ConceptNameCodeSequence=code("121106", "DCM", "Comment"),
        TextValue=f"SYNTHETIC: {NOTE}",
    )
    millimeters = code("mm3", "UCUM", "cubic millimeter")
    value = item(NumericValue=phantom.lesion_volume(source.instance_count), MeasurementUnitsCodeSequence=millimeters)
    volume = item(
        RelationshipType="CONTAINS",
        ValueType="NUM",
        ConceptNameCodeSequence=code("118565006", "SCT", "Volume"),
        MeasuredValueSequence=[value],
        ContentSequence=[item(RelationshipType="INFERRED FROM", ValueType="IMAGE", ReferencedSOPSequence=[evidence])],
    )
    return new_object(
        series,
        number,
        **content_time(series),
        SeriesNumber=series.series_number or 1,
        ReferencedPerformedProcedureStepSequence=[],
        PerformedProcedureCodeSequence=[],
        CompletionFlag="COMPLETE",
        VerificationFlag="UNVERIFIED",
        ValueType="CONTAINER",
        ContinuityOfContent="SEPARATE",
        ConceptNameCodeSequence=code("126000", "DCM", "Imaging Measurement Report"),
        CurrentRequestedProcedureEvidenceSequence=[
            item(StudyInstanceUID=source.study_instance_uid, ReferencedSeriesSequence=[evidence_series])
        ],
        ContentSequence=[language, comment, volume],
    )
