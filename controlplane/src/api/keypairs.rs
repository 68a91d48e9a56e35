//! Import, create, list and delete key pairs.

use axum::extract::{Path, State};
use keypair_agent::policy::command::KeyPair;
use keypair_agent::policy::public_key::PublicKey;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::{error, info};

use super::body::{RawBody, RequestFields};
use super::envelope::{HandlerResult, Reply};
use super::error::ApiError;
use super::list_query::{self, ListQuery, RawQuery};
use crate::ids;
use crate::keypair::{GeneratedKey, Region, StoredKeyPair};
use crate::platform::AppState;

/// Answers `POST /v1/regions/{region}/keypairs:import`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn import_key_pair(
    State(platform): State<AppState>,
    Path(region_text): Path<String>,
    body: RawBody,
) -> HandlerResult {
    let region = parse_region(&region_text)?;
    let fields = RequestFields::from_body(body)?;
    let key_name = fields.key_name()?;
    let text = fields.required_str("publicKey")?;
    let public_key = PublicKey::parse(text).map_err(|refusal| {
        info!("import of {key_name}: {}", refusal.message);
        ApiError::MalformedPublicKey(text.to_owned())
    })?;
    store_key_pair(&platform, region, KeyPair { key_name, public_key })
        .await
        .map(|described| Reply(Value::Object(described)))
}

/// Answers `POST /v1/regions/{region}/keypairs`: generates a key pair. The response holds the private key; the server
/// does not store it.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn create_key_pair(
    State(platform): State<AppState>,
    Path(region_text): Path<String>,
    body: RawBody,
) -> HandlerResult {
    let region = parse_region(&region_text)?;
    let key_name = RequestFields::from_body(body)?.key_name()?;
    let generated = GeneratedKey::generate().map_err(|why| {
        error!("{why}");
        ApiError::Internal
    })?;
    let key_pair = KeyPair { key_name, public_key: generated.public_key };
    let mut described = store_key_pair(&platform, region, key_pair).await?;
    described.insert("privateKey".to_owned(), json!(*generated.private_key));
    Ok(Reply(Value::Object(described)))
}

/// Stores a new key pair and returns its JSON.
async fn store_key_pair(
    platform: &AppState,
    region: Region,
    key_pair: KeyPair,
) -> Result<Map<String, Value>, ApiError> {
    let (name, key) = (key_pair.key_name.clone(), key_pair.public_key.fingerprint().sha256);
    let key_pair =
        StoredKeyPair { id: ids::generate_id(), region, key_pair, create_time: OffsetDateTime::now_utc() };
    let answer = key_pair_to_json(&key_pair)?;
    if !platform.store.insert_key_pair(key_pair).await? {
        return Err(ApiError::NameInUse(name.to_string()));
    }
    info!(key_name = %name, key, "kept");
    Ok(answer)
}

/// Answers `GET /v1/regions/{region}/keypairs`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn list_key_pairs(
    State(platform): State<AppState>,
    Path(region_text): Path<String>,
    query: RawQuery,
) -> HandlerResult {
    let region = parse_region(&region_text)?;
    let pairs = list_query::parse_query_pairs(query)?;
    let query = ListQuery::from_pairs(&pairs, &["keyNames"])?;
    let mut listed = platform.store.list_key_pairs(&region).await?;
    listed.retain(|listed| query.matches(|_| listed.key_pair.key_pair.key_name.as_str()));
    let mut page = Vec::new();
    for listed in query.page(&listed) {
        let mut described = key_pair_to_json(&listed.key_pair)?;
        let ids = listed.instances.iter().map(|id| json!(id.as_str())).collect();
        described.insert("instanceIds".to_owned(), Value::Array(ids));
        page.push(described);
    }
    Ok(Reply(json!({ "keypairs": page, "totalCount": listed.len() })))
}

/// Answers `DELETE /v1/regions/{region}/keypairs/{keyName}`. A key that is bound in a guest still works there.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn delete_key_pair(
    State(platform): State<AppState>,
    Path((region_text, key_name)): Path<(String, String)>,
) -> HandlerResult {
    let region = parse_region(&region_text)?;
    let deleted = match key_name.parse() {
        Ok(name) => platform.store.delete_key_pair(&region, &name).await?,
        Err(_) => false,
    };
    if !deleted {
        return Err(ApiError::KeyPairNotFound(key_name));
    }
    Ok(Reply(json!({})))
}

/// Parses the region in a path.
pub(super) fn parse_region(text: &str) -> Result<Region, ApiError> {
    text.parse().map_err(|error| ApiError::InvalidArgument(format!("regionId is refused: {error}")))
}

/// The JSON fields of a key pair, as the platform shows them.
fn key_pair_to_json(key_pair: &StoredKeyPair) -> Result<Map<String, Value>, ApiError> {
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
