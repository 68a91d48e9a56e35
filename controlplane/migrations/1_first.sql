-- One schema for SQLite and PostgreSQL: TEXT and BIGINT alone. Times are milliseconds since 1970.

-- What was deleted on the platform stays, for the bindings to it.
CREATE TABLE key_pairs (
    id TEXT PRIMARY KEY,
    region TEXT NOT NULL,
    name TEXT NOT NULL,
    public_key TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    deleted_at BIGINT
);
CREATE UNIQUE INDEX key_pairs_by_name ON key_pairs (region, name) WHERE deleted_at IS NULL;

-- What an instance confirmed last, and its highest sequence; the row is the lock on all that is the instance's.
CREATE TABLE ledgers (
    instance TEXT PRIMARY KEY,
    key_pair TEXT REFERENCES key_pairs (id),
    password_auth TEXT,
    confirmed_by BIGINT,
    highest BIGINT NOT NULL
);

-- Commands as they are handed out; with an attach the key pair, with an answer the result's own bytes.
CREATE TABLE commands (
    instance TEXT NOT NULL REFERENCES ledgers (instance),
    sequence BIGINT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    command TEXT NOT NULL,
    key_pair TEXT REFERENCES key_pairs (id),
    result TEXT,
    PRIMARY KEY (instance, sequence)
);
CREATE INDEX commands_without_result ON commands (instance, sequence) WHERE result IS NULL;

-- Which commands a request led to.
CREATE TABLE requested (
    request TEXT NOT NULL,
    place BIGINT NOT NULL,
    command TEXT NOT NULL REFERENCES commands (id) ON DELETE CASCADE,
    PRIMARY KEY (request, place)
);
CREATE INDEX requested_by_command ON requested (command);

CREATE TABLE states (
    instance TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    since BIGINT NOT NULL
);

CREATE TABLE reports (
    instance TEXT PRIMARY KEY,
    report TEXT NOT NULL
);

CREATE TABLE signatures (
    signature TEXT PRIMARY KEY,
    until BIGINT NOT NULL
);
CREATE INDEX signatures_by_time ON signatures (until);
