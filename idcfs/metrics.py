"""The counters of a mount; belong to the event loop."""

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """Counters since the mount started. Sizes are in bytes."""

    started: float = field(default_factory=time.time)
    bytes_served: int = 0
    bytes_fetched: int = 0
    objects_fetched: int = 0
    listings_fetched: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    open_files: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """The number of calls that ended in each kind of error, by the name of its class."""

    @property
    def hit_rate(self) -> float | None:
        """Of the extents that were not in memory, the share that the disk cache had; None before the first."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else None
