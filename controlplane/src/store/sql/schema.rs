//! The schema, as migrations. A released migration is never changed.

use std::future::Future;
use std::pin::Pin;

use sqlx::error::BoxDynError;
use sqlx::migrate::{Migration, MigrationSource, MigrationType};

/// All migrations in order: number, subject, SQL.
const MIGRATIONS: [(i64, &str, &str); 2] = [
    (1, "first", include_str!("../../../migrations/1_first.sql")),
    (2, "handed out", include_str!("../../../migrations/2_handed_out.sql")),
];

/// The embedded migrations as a source for sqlx.
#[derive(Debug)]
pub(super) struct EmbeddedMigrations;

impl<'s> MigrationSource<'s> for EmbeddedMigrations {
    fn resolve(self) -> Pin<Box<dyn Future<Output = Result<Vec<Migration>, BoxDynError>> + Send + 's>> {
        let step = |(number, subject, sql): (i64, &'static str, &'static str)| {
            Migration::new(number, subject.into(), MigrationType::Simple, sql.into(), false)
        };
        Box::pin(std::future::ready(Ok(MIGRATIONS.into_iter().map(step).collect())))
    }
}
