"""Requests to the mirror for ranges of instances: moved buckets and changed ETags; belongs to the event loop.

The store that is asked tries again by itself (`RetryingStore`); nothing else is tried again here.
"""

import contextlib
from collections.abc import Awaitable, Callable

from idcfs.errors import AccessDenied, NotFound, ObjectChanged, Untrusted
from idcfs.metrics import Metrics
from idcfs.reading.listings import Listing, Listings
from idcfs.reading.policy import Extent
from idcfs.store.base import Body, Finished, ObjectStore, ObjectVersion, Progress, Range
from idcfs.store.mirror import Mirror


class Requests:
    """Asks *store*, whose buckets are those of *mirror*.

    *stored_anew* is called with an extent and a listing when its object came under another ETag.
    """

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        listings: Listings,
        metrics: Metrics,
        stored_anew: Callable[[Extent, Listing], Awaitable[None]],
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._listings = listings
        self._metrics = metrics
        self._stored_anew = stored_anew

    def is_current(self, extent: Extent, listing: Listing) -> bool:
        """Whether an instance is still listed under the ETag that it has in *listing*."""
        current = self._listings.peek(extent.series)
        return current is None or current.etags[extent.instance] == listing.etags[extent.instance]

    def post(self, extent: Extent, listing: Listing, finished: Finished) -> bool:
        """Ask once and wait for nothing; see `ObjectStore.get_soon`.

        *finished* gets `ObjectChanged` in the place of bytes that are not those of the present listing.
        """

        def check(outcome: Body | Exception) -> None:
            if not isinstance(outcome, Exception):
                outcome = self._counted(outcome)
                if not self.is_current(extent, listing):
                    _release(outcome)
                    outcome = ObjectChanged("the object came under another ETag")
            finished(outcome)  # type: ignore[arg-type]  # every exception that comes here is a ReadError

        return self._store.get_soon(self._range(listing.bucket, extent, listing), check)

    async def get(self, extent: Extent, progress: Progress | None = None) -> tuple[Body, Listing]:
        """The bytes of a range of an object, all of one version of it, and its listing; waits for the network.

        Raises:
            ReadError: as `ObjectStore.get`.
        """
        while True:
            listing = await self._listings.get(extent.series)
            body, listing = await self._get(extent, listing, progress)
            if self.is_current(extent, listing):
                return body, listing
            # Meanwhile the object came under another ETag; two versions must not be mixed.
            _release(body)

    async def _get(self, extent: Extent, listing: Listing, progress: Progress | None) -> tuple[Body, Listing]:
        """The bytes of an extent, and the listing that they were asked for under.

        Raises:
            Untrusted: the mirror refuses under an ETag what it lists under it.
            ObjectChanged: the object changes faster than it can be listed.
        """
        try:
            return await self._get_anywhere(extent, listing, progress), listing
        except ObjectChanged:
            fresh = await self._listings.refresh(extent.series, listing)
        is_as_listed = fresh.etags[extent.instance] == listing.etags[extent.instance]
        if not is_as_listed:
            # The same size means the same object, stored anew.
            await self._stored_anew(extent, fresh)
        try:
            return await self._get_anywhere(extent, fresh, progress), fresh
        except ObjectChanged as error:
            if is_as_listed:
                raise Untrusted(f"the mirror refuses what it lists: {error}") from error
            raise

    async def _get_anywhere(self, extent: Extent, listing: Listing, progress: Progress | None) -> Body:
        """From the bucket that was listed, or its siblings: objects have moved under unchanged names."""
        with contextlib.suppress(NotFound):
            return await self._get_from(listing.bucket, extent, listing, progress)
        for bucket in self._mirror.candidates(listing.bucket):
            if bucket != listing.bucket:
                with contextlib.suppress(NotFound, AccessDenied):
                    return await self._get_from(bucket, extent, listing, progress)
        name = listing.names[extent.instance].decode()
        raise NotFound(f"{name} of series {self._listings.uuid(extent.series)} is gone from every bucket")

    async def _get_from(self, bucket: str, extent: Extent, listing: Listing, progress: Progress | None) -> Body:
        return self._counted(await self._store.get(self._range(bucket, extent, listing), progress))

    def _range(self, bucket: str, extent: Extent, listing: Listing) -> Range:
        at = extent.instance
        key = f"{self._listings.uuid(extent.series)}/{listing.names[at].decode()}"
        version = ObjectVersion(listing.etags[at].decode(), listing.sizes[at])
        return Range(bucket, key, extent.offset, extent.offset + extent.length, version)

    def _counted(self, body: Body) -> Body:
        self._metrics.objects_fetched += 1
        self._metrics.bytes_fetched += len(body)
        return body


def _release(body: Body) -> None:
    if not isinstance(body, bytes):
        body.release()
