//! The table `states`.

use std::collections::BTreeMap;

use keypair_agent::policy::types::InstanceId;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

use super::rows;
use super::{Connection, failed, instant, milliseconds, not_written};
use crate::lifecycle::State;
use crate::store::StoreError;

/// Keeps a new one in place of the one that was seen; `false` where that is another one by now.
pub(super) async fn change(
    pool: &AnyPool,
    instance: &InstanceId,
    before: Option<&State>,
    state: &State,
) -> Result<bool, StoreError> {
    let query = match before {
        None => sqlx::query(
            "INSERT INTO states (instance, status, since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        ),
        Some(_) => sqlx::query(
            "UPDATE states SET status = $2, since = $3 WHERE instance = $1 AND status = $4 AND since = $5",
        ),
    };
    let mut query =
        query.bind(instance.as_str()).bind(state.status.to_string()).bind(milliseconds(state.since));
    if let Some(before) = before {
        query = query.bind(before.status.to_string()).bind(milliseconds(before.since));
    }
    Ok(query.execute(pool).await.map_err(not_written)?.rows_affected() == 1)
}

/// The states of those of these instances, a chunk at most, that have one.
pub(super) async fn load(
    connection: &mut Connection,
    instances: &[&InstanceId],
) -> Result<BTreeMap<InstanceId, Result<State, StoreError>>, StoreError> {
    let list = rows::list(0, instances.len());
    let text = format!("SELECT instance, status, since FROM states WHERE instance IN ({list})");
    let query = rows::bind(rows::query(&text, instances.len()), instances);
    let rows = query.fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Ok((rows::instance(row)?, state(row)))).collect()
}

fn state(row: &AnyRow) -> Result<State, StoreError> {
    let status: String = row.try_get("status").map_err(failed)?;
    Ok(State { status: status.try_into()?, since: instant(row.try_get("since").map_err(failed)?)? })
}
