//! The table `reports`: the last report of each agent.

use std::collections::BTreeMap;

use keypair_agent::policy::types::InstanceId;
use sqlx::Row;

use super::rows;
use super::{Connection, to_store_error, to_write_error};
use crate::store::StoreError;

/// Stores reports, at most one chunk, in place of the previous ones. All servers use the same order of rows, so that
/// there is no deadlock.
pub(super) async fn upsert_reports(
    connection: &mut Connection,
    reports: &BTreeMap<&InstanceId, &str>,
) -> Result<(), StoreError> {
    let text = format!(
        "INSERT INTO reports (instance, report) VALUES {} \
         ON CONFLICT (instance) DO UPDATE SET report = excluded.report",
        rows::values_placeholders(reports.len(), 2)
    );
    let query = rows::build_query(&text, reports.len());
    let query =
        reports.iter().fold(query, |query, (instance, report)| query.bind(instance.as_str()).bind(*report));
    query.execute(connection).await.map_err(to_write_error)?;
    Ok(())
}

/// The report of this instance, if there is one.
pub(super) async fn load_report(
    connection: &mut Connection,
    instance: &InstanceId,
) -> Result<Option<String>, StoreError> {
    let query = sqlx::query("SELECT report FROM reports WHERE instance = $1").bind(instance.as_str());
    let row = query.fetch_optional(connection).await.map_err(to_store_error)?;
    row.map(|row| row.try_get("report")).transpose().map_err(to_store_error)
}
