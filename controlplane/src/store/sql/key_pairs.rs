//! The table `key_pairs`.

use std::collections::BTreeSet;

use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::types::{Invalid, KeyName};
use sqlx::Row;
use sqlx::any::AnyRow;
use time::OffsetDateTime;

use super::rows::{self, MAX_ROWS_PER_STATEMENT};
use super::{Connection, from_sql_timestamp, to_sql_timestamp, to_store_error};
use crate::keypair::{Region, StoredKeyPair};
use crate::store::StoreError;

/// Inserts a new key pair. Returns `false` if its name is in use.
pub(super) async fn insert(
    connection: &mut Connection,
    key_pair: &StoredKeyPair,
) -> Result<bool, StoreError> {
    let KeyPair { key_name, public_key } = &key_pair.key_pair;
    let query = sqlx::query(
        "INSERT INTO key_pairs (id, region, name, public_key, create_time) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT DO NOTHING",
    );
    let query = query
        .bind(key_pair.id.as_str())
        .bind(key_pair.region.to_string())
        .bind(key_name.as_str())
        .bind(public_key.line())
        .bind(to_sql_timestamp(key_pair.create_time));
    Ok(query.execute(connection).await.map_err(to_store_error)?.rows_affected() == 1)
}

/// Marks a key pair as deleted. Returns `false` if there is none.
pub(super) async fn delete(
    connection: &mut Connection,
    region: &Region,
    name: &KeyName,
) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "UPDATE key_pairs SET deleted_at = $1 WHERE region = $2 AND name = $3 AND deleted_at IS NULL",
    );
    let now = to_sql_timestamp(OffsetDateTime::now_utc());
    let query = query.bind(now).bind(region.to_string()).bind(name.as_str());
    Ok(query.execute(connection).await.map_err(to_store_error)?.rows_affected() == 1)
}

/// The undeleted key pair with this name.
pub(super) async fn find_by_name(
    connection: &mut Connection,
    region: &Region,
    name: &KeyName,
) -> Result<Option<StoredKeyPair>, StoreError> {
    let query = sqlx::query(
        "SELECT id, region, name, public_key, create_time FROM key_pairs \
         WHERE region = $1 AND name = $2 AND deleted_at IS NULL",
    );
    let row = query
        .bind(region.to_string())
        .bind(name.as_str())
        .fetch_optional(connection)
        .await
        .map_err(to_store_error)?;
    row.map(|row| parse_row(&row)).transpose()
}

/// The undeleted key pairs of a region, ordered by name.
pub(super) async fn list_in_region(
    connection: &mut Connection,
    region: &Region,
) -> Result<Vec<StoredKeyPair>, StoreError> {
    let query = sqlx::query(
        "SELECT id, region, name, public_key, create_time FROM key_pairs WHERE region = $1 AND deleted_at IS NULL",
    );
    let rows = query.bind(region.to_string()).fetch_all(connection).await.map_err(to_store_error)?;
    let mut found: Vec<StoredKeyPair> = rows.iter().map(parse_row).collect::<Result<_, _>>()?;
    // The database would sort in the order of its locale, so the sort is done here.
    found.sort_by(|one, other| one.key_pair.key_name.cmp(&other.key_pair.key_name));
    Ok(found)
}

/// The ids of this set that belong to undeleted key pairs.
pub(super) async fn select_undeleted(
    connection: &mut Connection,
    ids: &BTreeSet<&str>,
) -> Result<BTreeSet<String>, StoreError> {
    let mut live = BTreeSet::new();
    let ids: Vec<&str> = ids.iter().copied().collect();
    for chunk in ids.chunks(MAX_ROWS_PER_STATEMENT) {
        let list = rows::placeholders(0, chunk.len());
        let text = format!("SELECT id FROM key_pairs WHERE id IN ({list}) AND deleted_at IS NULL");
        let query = chunk.iter().fold(rows::build_query(&text, chunk.len()), |query, id| query.bind(*id));
        for row in query.fetch_all(&mut *connection).await.map_err(to_store_error)? {
            live.insert(row.try_get("id").map_err(to_store_error)?);
        }
    }
    Ok(live)
}

/// Parses the columns `id`, `region`, `name`, `public_key` and `create_time` of a row.
fn parse_row(row: &AnyRow) -> Result<StoredKeyPair, StoreError> {
    parse_prefixed_row(row, "")
}

/// Like `parse_row`, but the column names begin with `prefix`. A row may hold two key pairs.
pub(super) fn parse_prefixed_row(row: &AnyRow, prefix: &str) -> Result<StoredKeyPair, StoreError> {
    let text =
        |column: &str| row.try_get::<String, _>(format!("{prefix}{column}").as_str()).map_err(to_store_error);
    let invalid_row = |what: &dyn std::fmt::Display| Invalid(format!("a key pair in the store: {what}"));
    let name = text("name")?;
    let key_name = name.parse().map_err(|error: Invalid| invalid_row(&error))?;
    let public_key =
        PublicKey::parse(&text("public_key")?).map_err(|refusal| invalid_row(&refusal.message))?;
    Ok(StoredKeyPair {
        id: text("id")?,
        region: text("region")?.parse()?,
        key_pair: KeyPair { key_name, public_key },
        create_time: from_sql_timestamp(
            row.try_get(format!("{prefix}create_time").as_str()).map_err(to_store_error)?,
        )?,
    })
}

/// The column list of a SELECT for [`parse_prefixed_row`], from this table.
pub(super) fn prefixed_columns(table: &str, prefix: &str) -> String {
    let columns = ["id", "region", "name", "public_key", "create_time"];
    columns.map(|column| format!("{table}.{column} AS {prefix}{column}")).join(", ")
}
