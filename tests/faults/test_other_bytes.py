"""A mirror that sends bytes of the right length that do not match the ETag."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.cases import RIGHT, body
from tests.faults.programs import outcome
from tests.faults.server import Answer, Exchange, Fault
from tests.faults.tree import series
from tests.faults.world import world

SIZE = 700


def flipped(total: str) -> Fault:
    """A wrong bit in the last byte, with another total size."""

    def change(exchange: Exchange) -> Answer:
        right = exchange.right
        part = right.headers["Content-Range"].partition("/")[0]
        return replace(
            right,
            headers={**right.headers, "Content-Range": f"{part}/{total}"},
            body=right.body[:-1] + bytes([right.body[-1] ^ 1]),
        )

    return body(change)


@pytest.mark.parametrize("total", [str(SIZE), str(SIZE + 1), "*"])
def test_a_whole_object_that_does_not_match_its_etag_is_refused(tmp_path: Path, total: str) -> None:
    one = series("one")
    name, content = one.instance(SIZE)
    with world(tmp_path, [one.row], "--timeout", "60") as place, place.mounted():

        def read() -> str:
            return RIGHT if (one.folder(place.point) / name).read_bytes() == content else "wrong"

        with place.server.failing(flipped(total)):
            assert outcome(read).result == "EIO"
        assert outcome(read).result == RIGHT
