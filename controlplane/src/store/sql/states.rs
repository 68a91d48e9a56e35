//! The table `states`: the last state that was set for each instance.

use std::collections::BTreeMap;

use keypair_agent::policy::types::InstanceId;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

use super::rows;
use super::{Connection, from_sql_timestamp, to_sql_timestamp, to_store_error, to_write_error};
use crate::lifecycle::InstanceState;
use crate::store::StoreError;

/// Replaces the state `before` with `state`. Returns `false` if the stored state is no longer `before`.
pub(super) async fn compare_and_set(
    pool: &AnyPool,
    instance: &InstanceId,
    before: Option<&InstanceState>,
    state: &InstanceState,
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
        query.bind(instance.as_str()).bind(state.status.to_string()).bind(to_sql_timestamp(state.since));
    if let Some(before) = before {
        query = query.bind(before.status.to_string()).bind(to_sql_timestamp(before.since));
    }
    Ok(query.execute(pool).await.map_err(to_write_error)?.rows_affected() == 1)
}

/// The stored states of these instances, at most one chunk. An instance without a stored state is absent.
pub(super) async fn load_states(
    connection: &mut Connection,
    instances: &[&InstanceId],
) -> Result<BTreeMap<InstanceId, Result<InstanceState, StoreError>>, StoreError> {
    let list = rows::placeholders(0, instances.len());
    let text = format!("SELECT instance, status, since FROM states WHERE instance IN ({list})");
    let query = rows::bind_instance_ids(rows::build_query(&text, instances.len()), instances);
    let rows = query.fetch_all(connection).await.map_err(to_store_error)?;
    rows.iter().map(|row| Ok((rows::parse_instance_id(row)?, parse_state(row)))).collect()
}

fn parse_state(row: &AnyRow) -> Result<InstanceState, StoreError> {
    let status: String = row.try_get("status").map_err(to_store_error)?;
    Ok(InstanceState {
        status: status.try_into()?,
        since: from_sql_timestamp(row.try_get("since").map_err(to_store_error)?)?,
    })
}
