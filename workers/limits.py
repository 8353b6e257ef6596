"""Sizes, rates and times of the worker side, in one place. What the web shares is in `webapp.limits`."""

from __future__ import annotations

MAX_LINE_BYTES = 64 * 2**20  # one event; a tree of 100,000 nodes is some 35 MB
MAX_SPOOL_BYTES = 2**30  # a full spool makes the trainer wait, it never drops an event
MAX_STRAY_LINES = 100  # output lines that are no event, kept as log lines; more are only counted
STDERR_TAIL_BYTES = 16_384

SPOOL_SYNC_SECONDS = 1.0
GATHER_SECONDS = 0.1
RECORD_SECONDS = 0.25  # at most four transactions a second and run ...
RECORD_EVENTS = 500  # ... unless this many events wait
RECORD_BYTES = 16 * 2**20  # events are taken into memory up to this size at once
PROGRESS_SECONDS = 1.0  # how often the place inside a step is shown
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 5.0)  # the database is away

WISH_SECONDS = 0.5  # how often the wish to pause or stop is read
FAIL_GRACE_SECONDS = 8.0  # to save, of a trainer that cannot be worked with any more
PREEMPT_GRACE_SECONDS = 60.0  # a worker that is told to stop gives its trainer this long to save
FINISHED_GRACE_SECONDS = 10.0  # a trainer that said it finished may take this long to leave
SHUTDOWN_RECORD_SECONDS = 10.0  # a worker that is told to stop waits this long for a lost database
UPKEEP_SECONDS = 5.0  # how often a worker is seen, and hears of a drain
MEASURE_SECONDS = 10.0  # how often it measures its machine
BEAT_SECONDS = 2.0  # a trainer is told so often that its supervisor runs (trainer.supervised.SILENT_SECONDS)
UNFINISHED_SECONDS = 3600.0  # a checkpoint that nobody has written to for so long never will be one

MAX_STEP = 2**53
MAX_CHECKPOINTS_TRIED = 100  # one after the other, until one is whole
MAX_LOG_BYTES = 20 * 2**20  # of a trainer's standard error kept on disk

PROBE_TICK_SECONDS = 0.2  # how long a probe's process is waited for at a time
PROBE_LOOK_SECONDS = 0.5  # how often its memory and the wish to cancel are looked at
PROBE_MEMORY_SHARE = 0.5  # of the machine's memory, unless ARBORIST_PROBE_MEMORY_MB says otherwise
