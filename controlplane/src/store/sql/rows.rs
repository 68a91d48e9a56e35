//! SQL statements for many rows at once. The SQL text is built here, because for [`Any`] sqlx's own builder writes
//! `?`. PostgreSQL does not accept `?`.

use keypair_agent::policy::types::InstanceId;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::to_store_error;
use crate::store::StoreError;

/// The largest number of rows in a statement. SQLite accepts 32,766 parameters, PostgreSQL 65,535.
pub(super) const MAX_ROWS_PER_STATEMENT: usize = 500;

/// The rows of a VALUES clause, for example `($1, $2), ($3, $4)`.
pub(super) fn values_placeholders(rows: usize, columns: usize) -> String {
    let row = |row: usize| format!("({})", placeholders(row * columns, columns));
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// `count` placeholders after the first `after` ones, for example `$3, $4`.
pub(super) fn placeholders(after: usize, count: usize) -> String {
    (after + 1..=after + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// A query for this number of rows. Most queries have one row. Their text repeats, so only those are kept prepared.
pub(super) fn build_query(text: &str, rows: usize) -> Query<'_, Any, AnyArguments<'_>> {
    sqlx::query(text).persistent(rows == 1)
}

/// Binds the instance ids as the next parameters of the query.
pub(super) fn bind_instance_ids<'q>(
    query: Query<'q, Any, AnyArguments<'q>>,
    instances: &[&'q InstanceId],
) -> Query<'q, Any, AnyArguments<'q>> {
    instances.iter().fold(query, |query, instance| query.bind(instance.as_str()))
}

/// The instance id of a row.
pub(super) fn parse_instance_id(row: &AnyRow) -> Result<InstanceId, StoreError> {
    Ok(row.try_get::<String, _>("instance").map_err(to_store_error)?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_placeholders_are_numbered_consecutively() {
        assert_eq!(values_placeholders(2, 3), "($1, $2, $3), ($4, $5, $6)");
        assert_eq!((placeholders(0, 1), placeholders(2, 2)), ("$1".to_owned(), "$3, $4".to_owned()));
    }
}
