"""What stores return, as bytes of a test's own: copied, and its lease released."""

from idcfs.errors import ReadError
from idcfs.store.base import Body, ObjectStore, ObjectVersion, Progress, Range


def copied(body: Body) -> bytes:
    """The bytes of a body, which is released."""
    if isinstance(body, bytes):
        return body
    with body:
        return bytes(body.view)


def outcome_of(outcome: Body | ReadError) -> bytes | ReadError:
    """What `get_soon` has come to, with the bytes of a body, which is released."""
    return outcome if isinstance(outcome, ReadError) else copied(outcome)


async def read(
    store: ObjectStore,
    bucket: str,
    key: str,
    start: int,
    stop: int,
    version: ObjectVersion,
    progress: Progress | None = None,
) -> bytes:
    """The bytes that `ObjectStore.get` returns."""
    return copied(await store.get(Range(bucket, key, start, stop, version), progress))
