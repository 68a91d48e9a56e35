//! A database is opened: reached, its schema brought up to date, its sessions told their limits.

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
use super::schema::Schema;
use super::{Sql, failed, news};
use crate::store::StoreError;

/// How long a call waits for a connection: agents give a call 10 s, and wait for no later answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long another process may take to give a file back.
const BUSY: Duration = Duration::from_secs(1);
/// How many connections a server holds to PostgreSQL, besides the one that listens.
const CONNECTIONS: u32 = 16;
/// What bounds every statement of a session, and every lock that it holds while its server is not heard of.
const BOUNDS: &str = "SET lock_timeout = '8s'; SET statement_timeout = '15s'; \
                      SET idle_in_transaction_session_timeout = '15s'";

impl Sql {
    /// Opens a file of this process alone; it is made where there is none.
    ///
    /// # Errors
    /// Where it cannot be opened, another process has it, or it is no store of this version.
    pub async fn open_sqlite(path: &Path) -> Result<Self, StoreError> {
        install_default_drivers();
        // A pool would try again and again, and then say that it has waited.
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true).busy_timeout(BUSY);
        let mut alone = SqliteConnection::connect_with(&options).await.map_err(not_opened)?;
        alone.execute("BEGIN EXCLUSIVE; COMMIT").await.map_err(not_opened)?;
        alone.close().await.map_err(not_opened)?;
        let path = utf8_percent_encode(
            path.to_str().ok_or_else(|| failed("the path is not UTF-8"))?,
            NON_ALPHANUMERIC,
        );
        // One connection: what is written is in order, and nobody waits for a lock of his own.
        let pool = AnyPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(PATIENCE)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    // Exclusive before it is used; each commit is on the disk before it is answered.
                    let pragmas = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
                    connection.execute(pragmas).await.map(drop)
                })
            })
            .connect(&format!("sqlite:{path}?mode=rwc"))
            .await
            .map_err(not_opened)?;
        Self::up_to_date(pool, Locking::WholeFile).await
    }

    /// Opens a database that other servers may share.
    ///
    /// # Errors
    /// Where it cannot be reached, or is no store of this version.
    pub async fn open_postgres(url: &str) -> Result<Self, StoreError> {
        install_default_drivers();
        // A pool would try again and again, and then say that it has waited.
        PgConnection::connect(url).await.map_err(not_opened)?.close().await.map_err(not_opened)?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(PATIENCE)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(BOUNDS).await.map(drop) })
            })
            .connect(url)
            .await
            .map_err(not_opened)?;
        let store = Self::up_to_date(pool, Locking::Rows).await?;
        news::listen(url, store.database.pool.clone(), store.database.changes.clone())
            .await
            .map_err(not_opened)?;
        Ok(store)
    }

    async fn up_to_date(pool: AnyPool, locking: Locking) -> Result<Self, StoreError> {
        let migrator = Migrator::new(Schema).await.map_err(not_opened)?;
        migrator.run(&pool).await.map_err(not_opened)?;
        Ok(Self::of(Database { pool, locking, changes: Arc::default(), purged: Mutex::default() }))
    }
}

/// It cannot be opened: what of its text does not tell a person what to do is said in words of ours.
fn not_opened(error: impl ToString) -> StoreError {
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
