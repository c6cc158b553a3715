"""The program that runs a user's query and writes its rows to a file, in a child process.

    python -m idcfs.catalog.query < specification

The SQL runs in the sandbox of `idcfs.catalog.sandbox`.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from idcfs.catalog import build
from idcfs.catalog.sandbox import bind, limit_resources, open_sandbox, refusals
from idcfs.processes.program import Tell, serve


@build.build_errors()
def run_query(specification: dict[str, Any], tell: Tell) -> None:
    """Run a query.

    The specification has `tables` (names to parquet files), `memory` (bytes), `sql`, `limit` (rows, or None for all)
    and `result`, the Arrow file to write. The one message is ``{"step": "bound"}``, once the query is sound.
    """
    limit_resources(specification["memory"], Path(specification["result"]).parent)
    sandbox = open_sandbox(specification["tables"], specification["memory"])
    relation = bind(sandbox, specification["sql"])
    tell({"step": "bound"})
    with refusals():
        if specification["limit"] is not None:
            relation = relation.limit(specification["limit"])
        batches = build.arrow_reader(relation)
        with pa.OSFile(specification["result"], "wb") as file, pa.ipc.new_stream(file, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)


if __name__ == "__main__":
    serve(run_query)
