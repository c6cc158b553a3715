"""What a mount reports about itself, as facts and in Prometheus' text format; belongs to the event loop."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idcfs import __version__
from idcfs.cache.client import Cache
from idcfs.catalog.catalogue import Catalogue
from idcfs.metrics import Metrics
from idcfs.store.breaker import BreakerStore
from idcfs.store.mirror import Mirror


@dataclass(frozen=True)
class Status:
    """The state of a mount.

    Attributes:
        caches: the caches, by what they hold.
        breakers: the mirrors.
        limits_failure: why the kernel lets few reads wait, and what follows from that, or None.
    """

    catalogue: Catalogue
    mirror: Mirror
    caches: Mapping[str, Cache]
    metrics: Metrics
    breakers: Sequence[BreakerStore]
    limits_failure: Callable[[], str | None]

    async def facts(self) -> dict[str, Any]:
        """The state as JSON's types; waits for the disks of the caches, for seconds at most."""
        metrics, caches = self.metrics, {}
        for name, cache in self.caches.items():
            entries, used = await cache.usage()
            caches[name] = {
                "folder": str(cache.folder), "entries": entries, "bytes": used, "limit": cache.limit,
                "failure": cache.failure,
            }  # fmt: skip
        return {
            "idcfs_version": __version__,
            "pid": os.getpid(),
            "idc_version": self.catalogue.version,
            "mirror": self.mirror.word,
            "mirrors": {breaker.name: breaker.state._asdict() for breaker in self.breakers},
            "limits_failure": self.limits_failure(),
            "uptime_seconds": round(time.time() - metrics.started, 1),
            "counts": dict(self.catalogue.counts),
            "cache": caches,
            "hit_rate": metrics.hit_rate,
            "bytes_fetched": metrics.bytes_fetched,
            "bytes_served": metrics.bytes_served,
            "objects_fetched": metrics.objects_fetched,
            "listings_fetched": metrics.listings_fetched,
            "open_files": metrics.open_files,
            "errors": dict(metrics.errors),
        }

    async def prometheus(self) -> bytes:
        """The counters in Prometheus' text format; waits as `facts`."""
        facts = await self.facts()
        lines = []
        for name in ("bytes_fetched", "bytes_served", "objects_fetched", "listings_fetched"):
            lines += [f"# TYPE idcfs_{name}_total counter", f"idcfs_{name}_total {facts[name]}"]
        for name in ("open_files", "uptime_seconds"):
            lines += [f"# TYPE idcfs_{name} gauge", f"idcfs_{name} {facts[name]}"]
        lines.append("# TYPE idcfs_cache_bytes gauge")
        lines += [f'idcfs_cache_bytes{{cache="{name}"}} {cache["bytes"]}' for name, cache in facts["cache"].items()]
        lines.append("# TYPE idcfs_mirror_away gauge")
        lines += [
            # Labels are written as JSON's strings are.
            f"idcfs_mirror_away{{mirror={json.dumps(name)}}} {int(mirror['state'] != 'closed')}"
            for name, mirror in facts["mirrors"].items()
        ]
        lines.append("# TYPE idcfs_errors_total counter")
        lines += [f'idcfs_errors_total{{kind="{kind}"}} {count}' for kind, count in facts["errors"].items()]
        return ("\n".join(lines) + "\n").encode()
