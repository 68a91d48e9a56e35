//! Statements about many rows at once. The texts are put together here, since sqlx's own builder writes `?` for [`Any`], which
//! PostgreSQL does not read.

use keypair_agent::policy::types::InstanceId;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::failed;
use crate::store::StoreError;

/// How many rows a statement is about at most: SQLite takes 32,766 parameters, PostgreSQL 65,535.
pub(super) const CHUNK: usize = 500;

/// `($1, $2), ($3, $4)`: the rows of a VALUES.
pub(super) fn values(rows: usize, columns: usize) -> String {
    let row = |row: usize| format!("({})", list(row * columns, columns));
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// `$3, $4`: so many parameters, after so many others.
pub(super) fn list(after: usize, count: usize) -> String {
    (after + 1..=after + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// A statement about so many rows. One row is what there mostly is: its text comes again, and is worth keeping prepared.
pub(super) fn query(text: &str, rows: usize) -> Query<'_, Any, AnyArguments<'_>> {
    sqlx::query(text).persistent(rows == 1)
}

/// With these instances as its next parameters.
pub(super) fn bind<'q>(
    query: Query<'q, Any, AnyArguments<'q>>,
    instances: &[&'q InstanceId],
) -> Query<'q, Any, AnyArguments<'q>> {
    instances.iter().fold(query, |query, instance| query.bind(instance.as_str()))
}

/// Whose a row is.
pub(super) fn instance(row: &AnyRow) -> Result<InstanceId, StoreError> {
    Ok(row.try_get::<String, _>("instance").map_err(failed)?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_through() {
        assert_eq!(values(2, 3), "($1, $2, $3), ($4, $5, $6)");
        assert_eq!((list(0, 1), list(2, 2)), ("$1".to_owned(), "$3, $4".to_owned()));
    }
}
