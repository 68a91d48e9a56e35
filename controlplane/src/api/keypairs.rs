//! Import, list and delete key pairs.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::types::KeyName;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::info;

use super::body::{Fields, RawBody};
use super::envelope::{Handled, Reply};
use super::error::ApiError;
use super::list_query::ListQuery;
use crate::ids;
use crate::keypair::{Region, StoredKeyPair};
use crate::platform::Platform;

/// Answers `POST /v1/regions/{region}/keypairs:import`.
///
/// # Errors
/// Those of contract 9.
pub async fn import(
    State(platform): State<Platform>,
    Path(region_text): Path<String>,
    body: RawBody,
) -> Handled {
    let region = region(&region_text)?;
    let fields = Fields::read(body)?;
    let key_name: KeyName = fields
        .text("keyName")?
        .parse()
        .map_err(|error| ApiError::InvalidArgument(format!("keyName is refused: {error}")))?;
    let text = fields.text("publicKey")?;
    let public_key = PublicKey::parse(text).map_err(|refusal| {
        info!("import of {key_name}: {}", refusal.message);
        ApiError::MalformedPublicKey(text.to_owned())
    })?;
    let key_pair = StoredKeyPair {
        id: ids::fresh(),
        region,
        key_pair: KeyPair { key_name: key_name.clone(), public_key },
        create_time: OffsetDateTime::now_utc(),
    };
    let answer = Value::Object(described(&key_pair)?);
    let key = key_pair.key_pair.public_key.fingerprint().sha256;
    if !platform.store.import(key_pair).await? {
        return Err(ApiError::NameInUse(key_name.to_string()));
    }
    info!(%key_name, key, "imported");
    Ok(Reply(answer))
}

/// Answers `GET /v1/regions/{region}/keypairs`.
///
/// # Errors
/// Those of contract 9.
pub async fn describe(
    State(platform): State<Platform>,
    Path(region_text): Path<String>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Handled {
    let region = region(&region_text)?;
    let Query(pairs) = query.map_err(|_| ApiError::InvalidArgument("the query cannot be read".into()))?;
    let query = ListQuery::read(&pairs)?;
    let mut listed = platform.store.list(&region).await?;
    listed.retain(|listed| query.wants(listed.key_pair.key_pair.key_name.as_str()));
    let mut page = Vec::new();
    for listed in listed.iter().skip(query.skipped()).take(query.page_size) {
        let mut described = described(&listed.key_pair)?;
        let ids = listed.instances.iter().map(|id| json!(id.as_str())).collect();
        described.insert("instanceIds".to_owned(), Value::Array(ids));
        page.push(described);
    }
    Ok(Reply(json!({ "keypairs": page, "totalCount": listed.len() })))
}

/// Answers `DELETE /v1/regions/{region}/keypairs/{keyName}`. A bound key goes on working in the guest.
///
/// # Errors
/// Those of contract 9.
pub async fn delete(
    State(platform): State<Platform>,
    Path((region_text, key_name)): Path<(String, String)>,
) -> Handled {
    let region = region(&region_text)?;
    let deleted = match key_name.parse() {
        Ok(name) => platform.store.delete(&region, &name).await?,
        Err(_) => false,
    };
    if !deleted {
        return Err(ApiError::NoKeyPair(key_name));
    }
    Ok(Reply(json!({})))
}

/// The region of a path.
pub(super) fn region(text: &str) -> Result<Region, ApiError> {
    text.parse().map_err(|error| ApiError::InvalidArgument(format!("regionId is refused: {error}")))
}

/// What the platform shows of a key pair.
fn described(key_pair: &StoredKeyPair) -> Result<serde_json::Map<String, Value>, ApiError> {
    let time = key_pair.create_time.replace_nanosecond(0).unwrap_or(key_pair.create_time);
    let time = time.format(&Rfc3339).map_err(|_| ApiError::Internal)?;
    let KeyPair { key_name, public_key } = &key_pair.key_pair;
    Ok([
        ("keyName".to_owned(), json!(key_name.as_str())),
        ("keyFingerprint".to_owned(), json!(public_key.fingerprint().md5)),
        ("createTime".to_owned(), json!(time)),
    ]
    .into_iter()
    .collect())
}
