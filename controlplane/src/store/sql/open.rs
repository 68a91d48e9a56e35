//! Opening of a database: connect, update the schema, and set the limits of each session.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AnyPool, Connection as _, Executor};

use super::database::Database;
use super::ledgers::Locking;
use super::schema::EmbeddedMigrations;
use super::{SqlStore, news, to_store_error};
use crate::store::StoreError;

/// How long a call waits for a connection. Agents give up a call after 10 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long to wait until another process releases the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of connections of a server to PostgreSQL, without the listening one.
const MAX_CONNECTIONS: u32 = 16;
/// Limits for every statement of a session, and for locks of a server that no longer responds.
const SESSION_TIMEOUTS_SQL: &str = "SET lock_timeout = '8s'; SET statement_timeout = '15s'; \
                      SET idle_in_transaction_session_timeout = '15s'";

impl SqlStore {
    /// Opens a SQLite file for this process alone. Creates the file if it does not exist.
    ///
    /// # Errors
    /// The file cannot be opened, another process uses it, or it is not a store of this version.
    pub async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        install_default_drivers();
        // A direct connection first: a pool would retry until its timeout, and then report only the timeout.
        let options =
            SqliteConnectOptions::new().filename(path).create_if_missing(true).busy_timeout(BUSY_TIMEOUT);
        let mut alone = SqliteConnection::connect_with(&options).await.map_err(to_open_error)?;
        alone.execute("BEGIN EXCLUSIVE; COMMIT").await.map_err(to_open_error)?;
        alone.close().await.map_err(to_open_error)?;
        let path = utf8_percent_encode(
            path.to_str().ok_or_else(|| to_store_error("the path is not UTF-8"))?,
            NON_ALPHANUMERIC,
        );
        // With one connection all writes are in order, and no call waits for a lock of its own process.
        let pool = AnyPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    // The exclusive mode is set before the first use. With `synchronous = FULL`, each commit is on
                    // the disk before it is confirmed.
                    let pragmas = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
                    connection.execute(pragmas).await.map(drop)
                })
            })
            .connect(&format!("sqlite:{path}?mode=rwc"))
            .await
            .map_err(to_open_error)?;
        Self::migrate(pool, Locking::WholeFile).await
    }

    /// Opens a PostgreSQL database that other servers may share.
    ///
    /// # Errors
    /// The database cannot be reached, or it is not a store of this version.
    pub async fn open_postgres(url: &str) -> Result<Self, StoreError> {
        install_default_drivers();
        // A direct connection first: a pool would retry until its timeout, and then report only the timeout.
        PgConnection::connect(url).await.map_err(to_open_error)?.close().await.map_err(to_open_error)?;
        let pool = AnyPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SESSION_TIMEOUTS_SQL).await.map(drop) })
            })
            .connect(url)
            .await
            .map_err(to_open_error)?;
        let store = Self::migrate(pool, Locking::Rows).await?;
        news::spawn_listener(url, store.database.pool.clone(), store.database.changes.clone())
            .await
            .map_err(to_open_error)?;
        Ok(store)
    }

    async fn migrate(pool: AnyPool, locking: Locking) -> Result<Self, StoreError> {
        let migrator = Migrator::new(EmbeddedMigrations).await.map_err(to_open_error)?;
        migrator.run(&pool).await.map_err(to_open_error)?;
        Ok(Self::new(Database { pool, locking, changes: Arc::default(), purged: Mutex::default() }))
    }
}

/// Converts an error of opening. It adds a remedy if the error's own text does not tell a person what to do.
fn to_open_error(error: impl ToString) -> StoreError {
    let text = error.to_string();
    let remedies = [
        (
            "database is locked",
            "another process has it: one server to a file, several to a postgres:// database",
        ),
        ("unable to open database file", "its folder is not there, or not to be written: make it first"),
        (
            "is missing in the resolved migrations",
            "a newer version of this program has used it: run that one",
        ),
        ("permission denied", "the role must be allowed to create tables in it"),
        ("TLS", "encrypted connections are not spoken: sslmode=disable, or another way there"),
    ];
    let remedy = remedies.iter().find(|(cause, _)| text.contains(cause));
    StoreError::Failed(remedy.map_or_else(|| text.clone(), |(_, remedy)| format!("{text}: {remedy}")))
}
