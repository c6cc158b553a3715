"""The program that runs a user's query and writes its rows to a file, in a child process.

The SQL runs in the sandbox of `idcfs.catalog.sandbox`.
"""

from pathlib import Path

import pyarrow as pa

from idcfs.catalog import build
from idcfs.catalog.messages import Bound, Query
from idcfs.catalog.sandbox import bind, limit_resources, open_sandbox, refusals
from idcfs.processes.messages import Done
from idcfs.processes.server import Report, run_once


@build.build_errors()
def run_query(request: Query, report: Report) -> Done:
    """Run a query; *report* takes `Bound`."""
    limit_resources(request.memory, Path(request.result).parent)
    sandbox = open_sandbox(request.tables, request.memory)
    relation = bind(sandbox, request.sql)
    report(Bound())
    with refusals():
        if request.limit is not None:
            relation = relation.limit(request.limit)
        batches = build.arrow_reader(relation)
        with pa.OSFile(request.result, "wb") as file, pa.ipc.new_stream(file, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    return Done()


if __name__ == "__main__":
    run_once(Query, run_query)
