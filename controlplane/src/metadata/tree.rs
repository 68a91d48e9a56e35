//! The documented tree: the response for a directory is an array of names, the response for a leaf is a JSON string
//! (KP-1.3).

use axum::extract::{Path, State};
use axum::response::Response;
use base64ct::{Base64, Encoding};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{CallerInstance, MetadataError, respond_with_json as json_response};
use crate::inventory::Instance;
use crate::platform::AppState;

/// The path after the base; empty for the base itself.
#[derive(Deserialize)]
pub struct TreePath {
    #[serde(default)]
    path: String,
}

/// Answers a `GET` in the tree.
///
/// # Errors
/// [`MetadataError::NotFound`] if the path is not in the tree. [`MetadataError::Store`] if the store fails.
pub async fn get_metadata(
    State(platform): State<AppState>,
    CallerInstance(instance): CallerInstance,
    Path(TreePath { path }): Path<TreePath>,
) -> Result<Response, MetadataError> {
    let bound = platform.store.binding(&instance.id).await?;
    let key = bound.map(|binding| binding.key_pair.key_pair.public_key.line());
    metadata_value(&instance, key.as_deref(), &path)
        .map(|value| json_response(value.to_string()))
        .ok_or(MetadataError::NotFound)
}

/// The value at `path`. `key` is the line of the bound public key. With nothing bound there is no `ssh-keys` entry,
/// because a client could take an empty value for a key.
fn metadata_value(instance: &Instance, key: Option<&str>, path: &str) -> Option<Value> {
    Some(match path.trim_matches('/') {
        "" => json!([
            "attributes/",
            "network/",
            "placement/",
            "image/",
            "description",
            "instance-name",
            "instance-type",
            "instance-id",
            "pin"
        ]),
        "attributes" => match key {
            Some(_) => json!(["hostname", "ssh-keys"]),
            None => json!(["hostname"]),
        },
        "attributes/hostname" => json!(instance.hostname),
        "attributes/ssh-keys" => json!(Base64::encode_string(key?.as_bytes())),
        "network" => json!([]),
        "placement" => json!(["region"]),
        "placement/region" => json!(instance.region.to_string()),
        "image" => json!(["os-type"]),
        "image/os-type" => json!(instance.os_type.as_str()),
        "instance-id" => json!(instance.id.as_str()),
        "instance-name" => json!(instance.hostname),
        "description" | "instance-type" | "pin" => json!(""),
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;

    #[test]
    fn metadata_directory_entries_all_resolve() {
        let inventory = Inventory::load(&["i-1".into()], None).unwrap();
        let instance = inventory.get("i-1").unwrap();
        let mut directories = vec![String::new()];
        let mut leaves = 0;
        while let Some(directory) = directories.pop() {
            for name in metadata_value(instance, Some("a key"), &directory).unwrap().as_array().unwrap() {
                let path = format!("{directory}{}", name.as_str().unwrap());
                match path.ends_with('/') {
                    true => directories.push(path),
                    false => {
                        assert!(
                            metadata_value(instance, Some("a key"), &path).unwrap().is_string(),
                            "{path}"
                        );
                        leaves += 1;
                    }
                }
            }
        }
        assert_eq!(leaves, 9);
    }

    #[test]
    fn ssh_keys_are_absent_without_binding() {
        let inventory = Inventory::load(&["i-1".into()], None).unwrap();
        let instance = inventory.get("i-1").unwrap();
        assert_eq!(metadata_value(instance, None, "attributes/"), Some(json!(["hostname"])));
        assert_eq!(metadata_value(instance, None, "attributes/ssh-keys"), None);
        assert_eq!(metadata_value(instance, Some("a b"), "attributes/ssh-keys"), Some(json!("YSBi")));
        assert_eq!(metadata_value(instance, None, "keypair"), None);
    }
}
