//! The table `key_pairs`.

use std::collections::BTreeSet;

use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::types::{Invalid, KeyName};
use sqlx::Row;
use sqlx::any::AnyRow;
use time::OffsetDateTime;

use super::rows::{self, CHUNK};
use super::{Connection, failed, instant, milliseconds};
use crate::keypair::{Region, StoredKeyPair};
use crate::store::StoreError;

/// Keeps a new one; `false` where its name is in use.
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
        .bind(milliseconds(key_pair.create_time));
    Ok(query.execute(connection).await.map_err(failed)?.rows_affected() == 1)
}

/// Marks it as deleted; `false` where there is none.
pub(super) async fn delete(
    connection: &mut Connection,
    region: &Region,
    name: &KeyName,
) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "UPDATE key_pairs SET deleted_at = $1 WHERE region = $2 AND name = $3 AND deleted_at IS NULL",
    );
    let now = milliseconds(OffsetDateTime::now_utc());
    let query = query.bind(now).bind(region.to_string()).bind(name.as_str());
    Ok(query.execute(connection).await.map_err(failed)?.rows_affected() == 1)
}

/// The one that has this name now.
pub(super) async fn named(
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
        .map_err(failed)?;
    row.map(|row| read(&row)).transpose()
}

/// Those of a region, by name.
pub(super) async fn of(
    connection: &mut Connection,
    region: &Region,
) -> Result<Vec<StoredKeyPair>, StoreError> {
    let query = sqlx::query(
        "SELECT id, region, name, public_key, create_time FROM key_pairs WHERE region = $1 AND deleted_at IS NULL",
    );
    let rows = query.bind(region.to_string()).fetch_all(connection).await.map_err(failed)?;
    let mut found: Vec<StoredKeyPair> = rows.iter().map(read).collect::<Result<_, _>>()?;
    // Not by the database, whose order is that of its locale.
    found.sort_by(|one, other| one.key_pair.key_name.cmp(&other.key_pair.key_name));
    Ok(found)
}

/// Those of these ids that were not deleted.
pub(super) async fn live(
    connection: &mut Connection,
    ids: &BTreeSet<&str>,
) -> Result<BTreeSet<String>, StoreError> {
    let mut live = BTreeSet::new();
    let ids: Vec<&str> = ids.iter().copied().collect();
    for chunk in ids.chunks(CHUNK) {
        let list = rows::list(0, chunk.len());
        let text = format!("SELECT id FROM key_pairs WHERE id IN ({list}) AND deleted_at IS NULL");
        let query = chunk.iter().fold(rows::query(&text, chunk.len()), |query, id| query.bind(*id));
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            live.insert(row.try_get("id").map_err(failed)?);
        }
    }
    Ok(live)
}

/// Reads `id`, `region`, `name`, `public_key` and `create_time` of a row.
fn read(row: &AnyRow) -> Result<StoredKeyPair, StoreError> {
    read_named(row, "")
}

/// The same columns, where their names begin with this: a row may hold two key pairs.
pub(super) fn read_named(row: &AnyRow, prefix: &str) -> Result<StoredKeyPair, StoreError> {
    let text = |column: &str| row.try_get::<String, _>(format!("{prefix}{column}").as_str()).map_err(failed);
    let not_ours = |what: &dyn std::fmt::Display| Invalid(format!("a key pair in the store: {what}"));
    let name = text("name")?;
    let key_name = name.parse().map_err(|error: Invalid| not_ours(&error))?;
    let public_key = PublicKey::parse(&text("public_key")?).map_err(|refusal| not_ours(&refusal.message))?;
    Ok(StoredKeyPair {
        id: text("id")?,
        region: text("region")?.parse()?,
        key_pair: KeyPair { key_name, public_key },
        create_time: instant(row.try_get(format!("{prefix}create_time").as_str()).map_err(failed)?)?,
    })
}

/// The columns that [`read_named`] wants, of this table.
pub(super) fn columns_named(table: &str, prefix: &str) -> String {
    let columns = ["id", "region", "name", "public_key", "create_time"];
    columns.map(|column| format!("{table}.{column} AS {prefix}{column}")).join(", ")
}
