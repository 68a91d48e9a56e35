//! What goes wrong at the API, word for word (KP-9.3).

use std::fmt;

use axum::http::StatusCode;
use keypair_agent::policy::types::InstanceId;
use tracing::error;

use super::authenticate::AuthError;
use crate::inventory::Status;
use crate::store::StoreError;

/// An error of the API; its text is the platform's own, and ours for what the platform does not word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// The instance runs Windows.
    WindowsOs,
    /// The instance is neither running nor stopped.
    InvalidStatus(Status),
    /// An attach, and something is bound.
    AlreadyAttached(InstanceId),
    /// A detach, and another key pair is bound.
    OtherKeyPairAttached(InstanceId),
    /// No such instance in the region.
    InstanceNotFound(String),
    /// No such key pair in the region.
    KeyPairNotFound(String),
    /// An import under a name that is taken.
    NameInUse(String),
    /// An import of something that is no public key that can be bound; the text given.
    MalformedPublicKey(String),
    /// No such request, or one of long ago.
    RequestNotFound(String),
    /// The request is not signed as it must be.
    Unauthenticated(AuthError),
    /// Any other bad parameter: which, and what would do.
    InvalidArgument(String),
    /// No such path.
    PathNotFound,
    /// The path does not know this method.
    MethodNotAllowed,
    /// Something here failed, and nothing was changed; the log says what.
    Internal,
    /// Nobody knows whether something was changed.
    Unknown,
}

impl ApiError {
    /// The HTTP status, which is the envelope's `code` too.
    pub fn http_status(&self) -> StatusCode {
        match self {
            Self::WindowsOs
            | Self::InvalidStatus(_)
            | Self::AlreadyAttached(_)
            | Self::OtherKeyPairAttached(_)
            | Self::NameInUse(_)
            | Self::MalformedPublicKey(_)
            | Self::InvalidArgument(_) => StatusCode::BAD_REQUEST,
            Self::InstanceNotFound(_)
            | Self::KeyPairNotFound(_)
            | Self::RequestNotFound(_)
            | Self::PathNotFound => StatusCode::NOT_FOUND,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Internal | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The envelope's `status`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::WindowsOs
            | Self::InvalidStatus(_)
            | Self::AlreadyAttached(_)
            | Self::OtherKeyPairAttached(_)
            | Self::NameInUse(_)
            | Self::MalformedPublicKey(_) => "FAILED_PRECONDITION",
            Self::InvalidArgument(_) => "INVALID_ARGUMENT",
            Self::InstanceNotFound(_)
            | Self::KeyPairNotFound(_)
            | Self::RequestNotFound(_)
            | Self::PathNotFound => "NOT_FOUND",
            Self::Unauthenticated(_) => "ACCESS_ERROR",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::Internal => "INTERNAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// What is said of an answer that no handler of ours gave.
    pub fn from_http_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::PathNotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            _ if status.is_client_error() => Self::InvalidArgument("the request cannot be read".into()),
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WindowsOs => f.write_str("Windows OS doesn't support attach keypair."),
            Self::InvalidStatus(status) => write!(f, "Invalid instance status {status}"),
            Self::AlreadyAttached(id) => write!(f, "Already attached key pair. instance id {id}"),
            Self::OtherKeyPairAttached(id) => write!(f, "Already attached other keypair. instance id {id}"),
            Self::InstanceNotFound(id) => write!(f, "Instance '{id}' not found."),
            Self::KeyPairNotFound(name) => write!(f, "Keypair '{name}' not found"),
            Self::NameInUse(name) => write!(f, "KeyName '{name}' already in use"),
            Self::MalformedPublicKey(text) => write!(f, "Malformed PublicKey {text}"),
            Self::RequestNotFound(id) => write!(f, "Request '{id}' not found."),
            Self::Unauthenticated(why) => why.fmt(f),
            Self::InvalidArgument(what) => f.write_str(what),
            Self::PathNotFound => f.write_str("no such path here"),
            Self::MethodNotAllowed => f.write_str("this path does not know this method"),
            Self::Internal => f.write_str("Internal server error"),
            Self::Unknown => f.write_str("Unknown server error"),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<StoreError> for ApiError {
    fn from(cause: StoreError) -> Self {
        error!("{cause}");
        match cause {
            StoreError::Failed(_) => Self::Internal,
            StoreError::Uncertain(_) => Self::Unknown,
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(why: AuthError) -> Self {
        Self::Unauthenticated(why)
    }
}

/// Answers a path that is none.
pub async fn path_not_found() -> ApiError {
    ApiError::PathNotFound
}

/// Answers a method that the path does not know.
pub async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}
