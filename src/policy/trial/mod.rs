//! The trial: the agent asks a private sshd whether a key lets a user in, before a step depends on it (KP-10.1 and
//! KP-10.5). This module defines the request, the outcome and how logs become an outcome.

mod candidate;
mod client_log;
mod explain;
mod server_log;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::content::SharedBytes;
use super::observation::Connection;
use super::public_key::PublicKey;

pub use candidate::{CandidateConfig, build_candidate_config};
pub use client_log::{ClientReport, KeyOffer};
pub use explain::{RejectionContext, explain_rejection};
pub use server_log::{KeyMatch, RefusalCause, ServerReport};

/// The request to a private sshd: would it accept this key for this user? It uses sshd's configuration and the user's
/// key files as they will be after the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrialRequest {
    /// The user's login name.
    pub user: String,
    /// The key that the client offers. The public half is enough.
    pub key: PublicKey,
    /// Directives that come before the present main file, one per line. Empty if the configuration does not change.
    pub ahead: String,
    /// Key files whose content will differ from the present content.
    pub key_files: Vec<PlannedKeyFile>,
    /// The connections. The private sshd runs once for each of them.
    pub connections: Vec<Connection>,
    /// Whether the configuration depends on addresses. Then an answer without the addresses proves nothing.
    pub needs_addresses: bool,
}

/// A key file with its future content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedKeyFile {
    /// The path of the file.
    #[serde(with = "super::path_bytes")]
    pub path: PathBuf,
    /// The login name of the user that will own the file if it is new.
    pub user: String,
    /// The content.
    #[serde(with = "super::block::base64_bytes")]
    pub content: SharedBytes,
}

/// The result of one run of a private sshd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TrialOutcome {
    /// sshd accepts the key at this place.
    Accepted(Acceptance),
    /// sshd refuses the key.
    Refused(Rejection),
    /// The agent cannot show the planned key file to a private sshd here. The key must be in place first. The text
    /// says why.
    NotShown(String),
    /// The kernel does not support this address family, so no client can connect this way.
    NoSuchFamily,
    /// There is no answer. The text says why.
    NotTaken(String),
}

/// Where and how sshd accepts a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acceptance {
    /// The line that matches.
    pub at: KeyMatch,
    /// The options of that line that restrict a login, named as in sshd's log or in the line. Empty if there are none.
    pub restrictions: Vec<String>,
    /// The methods that sshd offers first, by their protocol names.
    pub methods: Vec<String>,
}

/// Why sshd refuses a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// The cause, if sshd's log names one.
    pub cause: RefusalCause,
    /// sshd's own message, or `None` if it logged none.
    pub said: Option<String>,
    /// The methods that sshd offers first.
    pub methods: Vec<String>,
}

/// Converts the two logs of a run into an outcome. `key_file_line` returns the text of a line of a file. It is needed
/// for releases before 7.7, whose log does not list options.
pub fn interpret_logs(
    client: &ClientReport,
    server: &ServerReport,
    mut key_file_line: impl FnMut(&KeyMatch) -> Option<Vec<u8>>,
) -> TrialOutcome {
    if client.authenticated_without_key {
        return TrialOutcome::NotTaken(
            "sshd lets the user in without a key or a password (PermitEmptyPasswords)".to_owned(),
        );
    }
    let methods = client.methods.clone().unwrap_or_default();
    let offers_keys = methods.iter().any(|method| method == "publickey");
    let refused = |cause: RefusalCause, said: Option<String>| {
        TrialOutcome::Refused(Rejection { cause, said, methods: methods.clone() })
    };
    match client.offer {
        KeyOffer::Accepted => {}
        KeyOffer::Refused if !offers_keys => {
            return refused(RefusalCause::MethodNotOffered, server.refusal_message());
        }
        KeyOffer::Refused => return refused(server.cause(), server.refusal_message()),
        KeyOffer::NoMutualAlgorithm => return refused(RefusalCause::Algorithm, server.refusal_message()),
        KeyOffer::NotOffered => {
            return match &client.methods {
                Some(_) if !offers_keys => refused(RefusalCause::MethodNotOffered, server.refusal_message()),
                Some(_) => TrialOutcome::NotTaken("the ssh client could not offer the key".to_owned()),
                None if server.refuses_connection() => {
                    refused(RefusalCause::ConnectionRefused, server.refusal_message())
                }
                None => TrialOutcome::NotTaken(match (server.fault(), &client.fault) {
                    (Some(fault), _) => format!("the private sshd ended: {fault}"),
                    (None, Some(fault)) => format!("the ssh client ended: {fault}"),
                    (None, None) => "the private sshd gave no answer".to_owned(),
                }),
            };
        }
    }
    let Some(at) = server.accepted_at() else {
        return TrialOutcome::NotTaken("sshd accepts the key and does not say at which line".to_owned());
    };
    let restrictions = match &server.options {
        Some(options) => server_log::parse_restrictions(options),
        None => match key_file_line(&at) {
            Some(line) => super::authorized_keys::list_restrictions(&line),
            None => {
                return TrialOutcome::NotTaken(format!(
                    "sshd accepts the key at {at}, and the options there cannot be read"
                ));
            }
        },
    };
    TrialOutcome::Accepted(Acceptance { at, restrictions, methods })
}
