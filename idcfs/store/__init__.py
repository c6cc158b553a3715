"""Mirrors: the `ObjectStore` protocol, the stores that implement it, and the wrappers that make them dependable.

Wrappers are stores too, so the reader of a mount sees one `ObjectStore` and knows nothing of what is inside:

    FailoverStore                      with two mirrors only: asks the second where the first cannot serve
    ├── BreakerStore                   stops asking a mirror that is away, until a probe is answered
    │   └── RetryingStore              repeats a call that failed, until the caller's deadline
    │       └── S3Store, FolderStore   one attempt: worker processes with `S3Client`, or files in threads
    └── BreakerStore
        └── …

`opening` builds the stores of a mount with its file system, and they are open as long as it is. The rooms below `store`
in the list of `tests/test_layers.py` may import it. Each store owns its state (breaker, learned ETags, workers), in
memory only.
"""
