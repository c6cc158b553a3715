"""The series of the index that the tests of the file system share."""

from tests.index_factory import PriorRow, Row

SMALL = Row("nlst", "100001", sizes=(700, 1300, 900), columns={"SeriesDescription": "a/b", "PatientAge": None})
REPORT = Row("nlst", "100001", modality="SR", sizes=(50,), analysis_result="Nuclei")
SPACES = Row("nlst", "a b=c", sizes=(10, 20), revised=2, bucket="idc-open-data-two")
SLIDE = Row("tcga", "slide", modality="SM", sizes=((20 << 20) + 12_345,), revised=3)
MANY = Row("tcga", "many", sizes=tuple(range(1000, 1200)))
LARGE = Row("tcga", "large", sizes=(3,) * 2500, bucket="idc-open-data-cr")
SHORT = Row("odd", "short", columns={"instanceCount": 9})
MISSING = Row("odd", "missing")
ALL = [SMALL, REPORT, SPACES, SLIDE, MANY, LARGE, SHORT, MISSING]

EARLIER = PriorRow("nlst", "a b=c", first=1, last=1, sizes=(9,))
PRIOR = [EARLIER]
