//! The errors of the API, with their exact texts (KP-9.3).

use std::fmt;

use axum::http::StatusCode;
use keypair_agent::policy::types::InstanceId;
use tracing::error;

use super::authenticate::AuthError;
use crate::inventory::Status;
use crate::store::StoreError;

/// An error of the API. The texts are the platform's own. For a case without a platform text, this crate has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// The instance runs Windows.
    WindowsOs,
    /// The instance is neither running nor stopped.
    InvalidStatus(Status),
    /// An attach, but a key pair is already bound to the instance.
    AlreadyAttached(InstanceId),
    /// A detach, but another key pair is bound to the instance.
    OtherKeyPairAttached(InstanceId),
    /// There is no such instance in the region.
    InstanceNotFound(String),
    /// There is no such key pair in the region.
    KeyPairNotFound(String),
    /// An import, but the name is in use.
    NameInUse(String),
    /// An import of a text that is not a bindable public key; holds that text.
    MalformedPublicKey(String),
    /// There is no such request, or it is too old to be known.
    RequestNotFound(String),
    /// The request is not signed correctly.
    Unauthenticated(AuthError),
    /// Any other invalid parameter; holds its name and the accepted values.
    InvalidArgument(String),
    /// The path does not exist.
    PathNotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The server failed and nothing was changed. The log has the cause.
    Internal,
    /// The server failed, and it is unknown whether something was changed.
    Unknown,
}

impl ApiError {
    /// The HTTP status. It is also the `code` in the envelope.
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

    /// The `status` in the envelope.
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

    /// The error for a response that axum produced, and not one of the handlers.
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

/// The fallback handler for an unknown path.
pub async fn path_not_found() -> ApiError {
    ApiError::PathNotFound
}

/// The fallback handler for a method that the path does not have.
pub async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}
