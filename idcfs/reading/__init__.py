"""A range of bytes of an instance, on time.

    Reader.read ──▶ which extents hold it ──▶ Fetcher.peek ──▶ in memory: answered at once
         │                                          │ not there
         │                                Fetcher.want(extents, urgent=True), then Fetcher.get waits
         └─▶ ReadAhead.read (pure) ──▶ Fetcher.want(extents, urgent=False): nobody waits

    Fetcher    extent ─▶ in memory, or a flight under way? ─▶ nothing to do
               urgent ─▶ begins now      ahead ─▶ queue ─▶ begins when the RequestLimit has room
               begins ─▶ cannot be on disk ─▶ posted to the mirror, without a task ──┐
                      └▶ task: OnDisk.get ─▶ there ───────────────────────────────┐  │
                                       └▶ Requests.get, one for each run ──────┐  │  │
               _land  ◀────────────────────────────────────────────────────────┴──┴──┘
                      memory ─▶ failures ─▶ OnDisk.put ─▶ wake whoever waits ─▶ FilledFiles.fill if nobody does

A *hit* is answered from memory without a task, or from a file of the disk cache that is open (`Fetcher.peek_part`).
On a *miss* the extents are wanted urgently, then what the policy expects next is wanted, and the reader waits for the
flights. *Ahead* of a reader the same flights are begun by the queue; a reader who comes to one of them joins it, so
nothing is asked for twice; bytes that nobody waits for go on into the kernel's pages. On a *failure* of a posted
request, which is one attempt, a task asks at once if somebody waits; otherwise the flight fails. For a task the stores
try again (`idcfs.store`), and then the error goes to whoever waits. An error that took long is repeated from memory for
three seconds (`Failures`), because the kernel asks for a page that failed a second time. An object that came under
another ETag, or moved to another bucket, is the business of `Requests`.

    reader        ranges of bytes: their extents, and what comes next
    policy        what to fetch ahead, from what was read; pure
    fetcher       extents: the queue, the flights, and landing
    flights       work under way that several callers wait for
    request_limit how many requests may be ahead; pure
    on_disk       extents in the disk cache: keys, and what may be there
    requests      requests to the mirror: changed and moved objects
    filled        what the kernel was given before anybody read it
    failures      errors that readers got, for some seconds
    listings      the instances of a series
    series_order  which series a reader of the tree comes to next

Everything here belongs to the event loop, which owns all of its state; nothing is locked, and a function that awaits
must look again at what it knew. Imports the rooms above it (`store`, `cache`, `pages`, `catalog`, `processes`);
`cohorts`, `tree` and the rooms below may import it.
"""
