-- The database of lpo-tools (lpo-db(5)): what one wants to query about runs,
-- metrics, preferences, scores and files.  Tensors are never in here.
-- Times are Unix seconds.

-- One row per run id: a tool, its options and inputs.
CREATE TABLE run (
    id          INTEGER PRIMARY KEY,
    run         TEXT NOT NULL UNIQUE CHECK (length(run) = 16),
    tool        TEXT NOT NULL,
    version     TEXT NOT NULL,
    options     TEXT NOT NULL CHECK (json_valid(options)),
    seed        INTEGER NOT NULL,
    output      TEXT,                   -- path; NULL: standard output
    status      TEXT NOT NULL DEFAULT 'running'
                CHECK (status IN ('running', 'done', 'failed', 'stopped')),
    started_at  INTEGER NOT NULL,       -- of the first attempt
    ended_at    INTEGER
) STRICT;

-- One row per process that worked on a run.
CREATE TABLE attempt (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    argv        TEXT NOT NULL,          -- the command line as typed
    host        TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    device      TEXT,
    isa         TEXT,
    precision   TEXT,
    threads     INTEGER,
    status      TEXT NOT NULL DEFAULT 'running'
                CHECK (status IN ('running', 'done', 'failed', 'stopped')),
    exit_status INTEGER,
    message     TEXT,                   -- why it failed
    started_at  INTEGER NOT NULL,
    ended_at    INTEGER
) STRICT;
CREATE INDEX attempt_run ON attempt (run_id);

-- What a run read.
CREATE TABLE input (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    role        TEXT NOT NULL,          -- model, reward, prompts ...
    path        TEXT NOT NULL,
    sha256      TEXT NOT NULL,
    size_bytes  INTEGER NOT NULL,
    UNIQUE (run_id, role, path)
) STRICT;

-- Streams: the runs whose output this one read.
CREATE TABLE parent (
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    parent      TEXT NOT NULL,          -- a run id, of any database
    PRIMARY KEY (run_id, parent)
) STRICT, WITHOUT ROWID;

-- Figures over the steps of a run; NULL: not finite.
CREATE TABLE metric (
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    step        INTEGER NOT NULL,
    value       REAL,
    PRIMARY KEY (run_id, name, step)
) STRICT, WITHOUT ROWID;

-- The job log: skipped records and what else was said.
CREATE TABLE log (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    attempt_id  INTEGER REFERENCES attempt (id) ON DELETE SET NULL,
    level       TEXT NOT NULL CHECK (level IN ('info', 'warning', 'error')),
    text        TEXT NOT NULL,
    logged_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX log_run ON log (run_id);

-- Model files that were published.
CREATE TABLE checkpoint (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    step        INTEGER NOT NULL,
    path        TEXT NOT NULL,
    sha256      TEXT NOT NULL,
    check_score REAL,                   -- of the held-out check, if any
    created_at  INTEGER NOT NULL,
    UNIQUE (run_id, step, path)
) STRICT;

-- Preferences that were encoded.
CREATE TABLE preference (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    row         INTEGER NOT NULL,       -- of the input, 0-based
    user_id     TEXT,                   -- the user's id, if any
    prompt      TEXT NOT NULL,
    label_0     REAL NOT NULL CHECK (label_0 BETWEEN 0 AND 1),
    label_1     REAL NOT NULL CHECK (label_1 BETWEEN 0 AND 1),
    extra       TEXT CHECK (extra IS NULL OR json_valid(extra)),
    UNIQUE (run_id, row)
) STRICT;

-- What lpo-eval compares.
CREATE TABLE system (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    model       TEXT,
    lora        TEXT,
    UNIQUE (run_id, name)
) STRICT;

CREATE TABLE image (
    id          INTEGER PRIMARY KEY,
    system_id   INTEGER NOT NULL REFERENCES system (id) ON DELETE CASCADE,
    key         TEXT NOT NULL,
    prompt_index INTEGER NOT NULL,
    prompt      TEXT NOT NULL,
    number      INTEGER NOT NULL,       -- of the prompt's images
    seed        INTEGER NOT NULL,
    sha256      TEXT,
    UNIQUE (system_id, key)
) STRICT;

CREATE TABLE score (
    image_id    INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    scorer      TEXT NOT NULL,          -- "judge.alignment"
    value       REAL NOT NULL,
    PRIMARY KEY (image_id, scorer)
) STRICT, WITHOUT ROWID;

-- A paired comparison of two systems: 95 % intervals over prompts.
CREATE TABLE result (
    id              INTEGER PRIMARY KEY,
    run_id          INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    scorer          TEXT NOT NULL,
    system_id       INTEGER NOT NULL REFERENCES system (id) ON DELETE CASCADE,
    base_id         INTEGER NOT NULL REFERENCES system (id) ON DELETE CASCADE,
    n_prompts       INTEGER NOT NULL,
    n_images        INTEGER NOT NULL,
    mean_system     REAL NOT NULL,
    mean_base       REAL NOT NULL,
    difference      REAL NOT NULL,
    difference_low  REAL NOT NULL,
    difference_high REAL NOT NULL,
    win_rate        REAL NOT NULL,
    win_rate_low    REAL NOT NULL,
    win_rate_high   REAL NOT NULL,
    UNIQUE (run_id, scorer, system_id)
) STRICT;

-- SHA-256 of large files, good while the file is the same.
CREATE TABLE file_hash (
    device      INTEGER NOT NULL,
    inode       INTEGER NOT NULL,
    size_bytes  INTEGER NOT NULL,
    mtime_ns    INTEGER NOT NULL,
    sha256      TEXT NOT NULL,
    PRIMARY KEY (device, inode)
) STRICT, WITHOUT ROWID;
