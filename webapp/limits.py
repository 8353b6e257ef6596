"""Every size, rate and timeout of the web side, in one place. Each is tested at its edge."""

from __future__ import annotations

LEASE_SECONDS = 20
HEARTBEAT_SECONDS = 5
SWEEP_SECONDS = 5
RESEND_QUEUED_SECONDS = 15
MAX_RESTARTS = 3
SERVING_WORKER_SECONDS = 30  # heard of so lately, a worker counts as there
SILENT_WORKER_SECONDS = 15  # as long unheard, its page says so
LOST_WORKER_SECONDS = 60  # then it says lost
RESTART_BACKOFF_SECONDS = (10, 30, 90)
SILENT_TRAINER_SECONDS = 15  # as long without a word after it was asked to leave, a trainer does not answer
STOP_GRACE_SECONDS = 45  # to save, of a trainer that was asked to stop; people who cannot wait stop it now
KILL_SECONDS = 15  # a worker that has not ended a run by then that is to stop now is not waited for
SAME_STEP_DEATHS = 2  # lost attempts at one step before a run fails

WAITING_PER_PERSON = 200  # runs that one person has in the queue
WAITING_PER_PROJECT = 500
FORKED_CHECKPOINTS_PER_RUN = 20  # kept for forks, whatever else is deleted

LOGIN_LINK_SECONDS = 3600
LOGIN_FAILURES_PER_ACCOUNT = 5
LOGIN_FAILURES_PER_ADDRESS = 20
LOGIN_WINDOW_SECONDS = 900
PASSWORD_CHECKS_AT_ONCE = 2  # in one process; each takes 100 MB
TOKENS_PER_USER = 50  # that are good
TOKEN_DAYS = 90  # the life of a token, unless another one is chosen
MAX_TOKEN_DAYS = 365  # the longest that there is
TOKEN_NAME_LETTERS = 80

API_CALLS = 100  # per user and window, that is 20 a second
API_WINDOW_SECONDS = 5

MAX_BODY_BYTES = 1_000_000
MAX_UPLOAD_BYTES = 128 * 2**20  # a file of trees
UPLOAD_SECONDS = 600
UPLOADS_AT_ONCE = 2  # in one process
MAX_HEADER_BYTES = 64_000
BODY_SECONDS = 30
MAX_YAML_BYTES = 256_000
MAX_SERIES_PER_RUN = 1000
MAX_CHART_POINTS = 2000
PAGE_SIZE = 100
MAX_PAGE_SIZE = 200

SOCKET_MESSAGE_BYTES = 64_000
SOCKET_SUBSCRIPTIONS = 50
SOCKET_BAD_MESSAGES = 10
SOCKET_PING_SECONDS = 20
SOCKET_POLL_SECONDS = 5
SOCKET_FRAMES_PER_SECOND = 10
SOCKET_SEND_SECONDS = 10
SOCKET_RECHECK_SECONDS = 10
SOCKET_RESYNC_EVENTS = 500
DATABASE_STATEMENT_SECONDS = 5
DATABASE_POOL = 20  # connections of one web process
DATABASE_POOL_WAIT_SECONDS = 5  # for one of them
DATABASE_RECONNECT_SECONDS = 2  # the pool's own attempts; it waits longer and longer between them
DATABASE_SILENCE_SECONDS = 2.0  # of a statement, then the server is asked for a sign of life; doubling ...
DATABASE_SILENCE_MAX_SECONDS = 30.0  # ... up to this
DATABASE_ANSWER_SECONDS = 1.5  # that it may take to give one
DATABASE_ASK_SECONDS = 1.0  # between two questions while it gives none
DATABASE_LOCK_IDLE_SECONDS = 15  # a run's row stays locked by who says nothing more; less than a lease
OUTAGE_RETRY_SECONDS = 5  # when a page that was refused for an outage may be asked for again
SOCKET_READERS = 4  # threads that read for sockets
SOCKET_READ_SECONDS = 15  # for one read with its wait for a thread; a frozen database sends no error
SOCKET_ASK_SECONDS = 1.0  # between questions while the database is away
SOCKET_ASK_PATIENCE_SECONDS = 6  # for an answer
SOCKET_SUMMARIES_PER_SECOND = 2
SOCKET_TAIL_BYTES = 1_000_000  # the newest events of a watched run, kept once for all its viewers

JOB_LEASE_SECONDS = 60  # of exports, imports and verifications: a worker renews it about every second
JOB_ATTEMPTS = 3
IMPORTS_AT_ONCE = 3  # of one user that wait or are worked on
MAX_IMPORT_MEMORY = 1024 * 2**20  # that reading one line of an uploaded file may take
MAX_IMPORT_ERRORS = 20  # lines that are told of before reading stops
IMPORT_STORE_SECONDS = 300  # the lease while all trees of a file are stored at once
EXPORTS_AT_ONCE = 3  # of one user that wait or are worked on
EXPORT_KEEP_SECONDS = 7 * 86_400  # then the file is deleted
EXPORT_FORGET_SECONDS = 30 * 86_400  # then the row is
MAX_EXPORT_TREES = 200_000
MAX_EXPORT_NODES = 1_000_000  # that a search may find for one
MAX_EXPORT_BYTES = 8 * 2**30
MAX_EXPORT_BYTES_PER_USER = 16 * 2**30
PREVIEW_ROWS = 3
PREVIEW_TREES = 20
PREVIEW_BYTES = 2_000_000  # of payloads
PREVIEW_SECONDS = 1.0  # of processor time for the rows of a preview

PROBE_CONTINUATIONS = 64  # of one probe
PROBE_TOKENS = 4096  # of one continuation
PROBE_TOKENS_IN_ALL = 65_536  # n times max_tokens
PROBE_PREFIX_BYTES = 64_000
PROBES_PER_USER = 4  # that wait or run
PROBES_IN_ALL = 100  # likewise, of everybody
PROBES_PER_TREE = 500  # kept
PROBE_LEASE_SECONDS = 30
PROBE_SECONDS = 600  # of sampling
PROBE_LOSSES = 2  # workers that may be lost over one probe

VERIFICATIONS_PER_USER = 10  # that wait or are judged
VERIFICATIONS_IN_ALL = 100  # likewise, of everybody
VERIFICATIONS_PER_NODE = 5  # kept, the newest
VERIFICATION_ATTEMPTS = 2
VERIFICATION_KEEP_SECONDS = 90 * 86_400

SEARCH_INDEX_SECONDS = 5  # how often the indexer looks
SEARCH_DEMAND_SECONDS = 900  # after a search, its project's runs are indexed while they train
SEARCH_BATCH_NODES = 20_000  # of one transaction of the indexer
SEARCH_BATCH_BYTES = 16_000_000  # of payloads in it
SEARCH_TEXT_LETTERS = 65_536  # of a node that can be found
SEARCH_PAGE = 25
SEARCH_SECONDS = 0.25  # of walking back through nodes for one page; then it says how far it came
SEARCH_STATEMENT_SECONDS = 4.0
SEARCH_PATTERN_SECONDS = 3.0
SEARCH_PATTERN_NODES = 100_000
SEARCH_COUNTED = 10_000  # matches that are counted one by one; of more a share is counted
